"""Pictures and videos in, videos out: what `mavlite animate, interpolate, vary, extend, morph` do."""

from pathlib import Path

from mavlite.generate import write_files
from mavlite.inputs import read_image, read_video
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import parse_prompt
from mavlite.video import Video, check_output_path


def apply(application, inputs, outputs, *, invert="auto", weights=None, device=None, stages_out=None,
          **options):
    """Run one application of the cascade on files, and write its video.

    application: animate (one picture), interpolate (two), vary, extend (one video), morph (two prompts).
    inputs: their paths, for morph the prompts. options: of the method of `MakeAVideo` with that name.
    Everything that can be refused is refused before the first step. Returns the Video.
    """
    outputs = [check_output_path(path, several=application == "morph") for path in outputs]
    if stages_out:
        stages_out = check_output_path(Path(stages_out) / "any.png").parent
    pipe = MakeAVideo.from_pretrained(weights, device=device)
    if pipe.networks["clip"].tiny:
        for prompt in [*(inputs if application == "morph" else ()), options.get("prompt")]:
            if prompt is not None:
                parse_prompt(prompt)
    size, channels = pipe.data.sizes[-1], pipe.data.channels
    if application in ("animate", "interpolate"):
        given = [read_image(path, size, channels, invert)[None] for path in inputs]
    elif application in ("vary", "extend"):
        given = []
        for path in inputs:
            frames, fps = read_video(path, size, channels, invert, min_frames=2)
            # An NPY names no rate: as we write it.
            given.append(Video(frames[None], fps or pipe.data.fps * pipe.data.frame_skip))
    else:
        given = inputs
    video = getattr(pipe, application)(*given, progress=True, **options)
    write_files(video, outputs, stages_out)
    return video
