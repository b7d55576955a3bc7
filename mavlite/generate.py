"""Prompts to files: what `mavlite generate` does."""

import re
from pathlib import Path

import torch
from tqdm import tqdm

from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import parse_prompt
from mavlite.video import Video, check_output_path

MOST = 2000                                  # videos of one call, all kept in memory: some 10 GB

def read_prompts(path):
    """One prompt a line; empty lines are passed over."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MavliteError(f"{path}: cannot be read as text ({error})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise MavliteError(f"{path}: holds no prompt; write one a line, such as \"two and 4\"")
    return prompts


def generate_files(prompts, outputs, *, num_videos=1, batch_size=8, weights=None, device=None, seed=0,
                   stages_out=None, **options):
    """Generate num_videos videos for each prompt and write them to each of `outputs`; returns the Video.

    Video k of all (prompt by prompt) draws from (seed, k), whatever the batch size. Everything that can be
    refused is refused before the first step.
    """
    if num_videos < 1 or batch_size < 1:
        raise MavliteError("--num-videos and --batch-size must be 1 or more")
    if len(prompts) * num_videos > MOST:
        raise MavliteError(f"{len(prompts) * num_videos:,} videos are more than one call keeps in memory "
                           f"({MOST:,}); make fewer at once, with another --seed each time")
    prompts = [prompt for prompt in prompts for _ in range(num_videos)]
    outputs = [check_output_path(path, several=len(prompts) > 1) for path in outputs]
    if stages_out:
        stages_out = check_output_path(Path(stages_out) / "any.png").parent
    pipe = MakeAVideo.from_pretrained(weights, device=device)
    if pipe.networks["clip"].tiny:
        for prompt in prompts:
            parse_prompt(prompt)

    parts, single = [], len(prompts) <= batch_size
    for start in tqdm(range(0, len(prompts), batch_size), disable=single, unit="batch"):
        batch = prompts[start:start + batch_size]
        parts.append(pipe(batch, seed=seed, index=start, progress=single, **options))
    video = _join(parts)
    write_files(video, outputs, stages_out)
    return video


def write_files(video, outputs, stages_out=None):
    """Write a Video to each of `outputs`, what its stages made to the folder stages_out, and say so."""
    for path in outputs:
        _write(video, Path(path))
        print(f"wrote {path}")
    for name, frames in video.stages.items() if stages_out else ():
        if frames.ndim > 2:                                  # embeddings are no pictures
            frames = frames[:, :, None] if frames.ndim == 4 else frames
            # What was made to be chosen from is more in the same time.
            fps = video.fps * max(1, frames.shape[2] - 1) / max(1, video.frames.shape[2] - 1)
            if name in ("decoder_t", "key_frames"):
                fps = video.key_fps
            for suffix in ("png", "gif"):
                print("wrote", Video(frames, fps).save(Path(stages_out) / f"{name}.{suffix}"))
    seconds = ", ".join(f"{stage} {t:.2f}" for stage, t in video.seconds.items())
    print(f"{len(video)} x {video.frames.shape[2]} frames at {video.fps:g} fps; seconds: {seconds}, "
          f"in all {sum(video.seconds.values()):.2f}")


def _join(parts):
    """Several batches as one Video."""
    stages = {name: torch.cat([part.stages[name] for part in parts]) for name in parts[0].stages}
    seconds = {name: sum(part.seconds[name] for part in parts) for name in parts[0].seconds}
    return Video(torch.cat([part.frames for part in parts]), parts[0].fps, stages, seconds,
                 [prompt for part in parts for prompt in part.prompts], parts[0].key_fps)


def _write(video, path):
    if path.suffix and not path.is_dir():
        video.save(path)
        return
    for i, clip in enumerate(video):                         # a folder: one file a video
        said = re.sub(r"[^\w]+", "-", " ".join(clip.prompts))[:60].strip("-")       # CLIP may take any text
        clip.save(path / f"{i:04d}-{said}.mp4")
