"""Prompt accuracy: does the judge find both prompted digits, and where along the cascade are they lost?

    python -m mavlite.evaluation.accuracy [--weights DIR] [--seeds 2] [--out accuracy.json]

Beside the generated clips stand the same judge's score on real clips of the test split (its ceiling) and
chance (1 in 55 or so, the floor), and D^t given true embeddings of test frames instead of P's.
"""

import argparse
import json
import math
import time

import torch

from mavlite import cascade
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast
from mavlite.digits import load_digits
from mavlite.evaluation.judge import judge_clips, pooled
from mavlite.moving_mnist import TextFramePairs, UnlabelledClips
from mavlite.pipeline import MakeAVideo, to_unit
from mavlite.prompts import PAIRS, make_prompt, pair_index
from mavlite.stages import load_network

TEST_SEED = 20_000                           # of the simulator: test clips are no stage's training clips


def interval(share, count, z=1.96):
    """Wilson's 95 % confidence interval of a share (low, high)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half


def score(judge, frames, pairs):
    """{clip, frame, clips, interval}: shares of clips (evidence pooled) and frames judged as the pair wanted."""
    log_p = judge_clips(judge, frames)                                               # b f 55
    clip = (pooled(log_p) == pairs).float().mean().item()
    frame = (log_p.argmax(dim=-1) == pairs[:, None]).float().mean().item()
    return {"clip": clip, "frame": frame, "clips": len(pairs), "interval": interval(clip, len(pairs))}


class RealClips:
    """Clips of the test split, two drawn digits each, with the pair they show."""

    def __init__(self, data, count, seed=TEST_SEED):
        digits = load_digits("test", data.digits)
        self.data, self.indices, self.source = data, range(count), digits.source
        self.clips = UnlabelledClips(digits.images, seed, data.channels)
        labels = TextFramePairs(digits, seed, data.channels).labels(self.indices)
        self.pairs = pair_index(labels[:, 0], labels[:, 1])

    def frames(self, size, fps=None):
        return self.clips.clips(self.indices, fps or self.data.fps, self.data.num_frames, size)[0]

    def embeds(self, clip):
        return clip.image_embeds(self.clips.condition_frames(self.indices, self.data.sizes[0]))


@torch.no_grad()
def measure(weights=SHIPPED, seeds=2, device=None, batch=11):
    """The report as a dict; prompts are all 55 pairs, `seeds` videos each."""
    pipe = MakeAVideo.from_pretrained(weights, device=device)
    judge, _, _ = load_network(weights, "judge", device=pipe.device)
    data, started = pipe.data, time.perf_counter()
    wanted = torch.tensor([i for i in range(len(PAIRS)) for _ in range(seeds)])
    prompts = [make_prompt(*PAIRS[i], k % 2 == 0, k % 3 == 0) for k, i in enumerate(wanted.tolist())]
    real = RealClips(data, len(wanted))

    stages, seconds = {}, {}
    for start in range(0, len(prompts), batch):
        video = pipe(prompts[start:start + batch], seed=0, index=start)
        for name in ("decoder_t", "interpolation", "sr_l_t", "sr_h"):
            # A few frames of each stage: the judge pools evidence over 16 in every case, as for real clips.
            frames = video.stages[name]
            stages.setdefault(name, []).append(frames if frames.shape[2] == data.num_frames else
                                               frames[:, :, ::data.frame_skip])
        for name, t in video.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + t
    report = {"digits": real.source, "clips": len(prompts), "frames_judged": data.num_frames,
              "real, test split": score(judge, real.frames(64), real.pairs),
              "chance": {"clip": 1 / len(PAIRS)}}
    for name, parts in stages.items():
        report[f"prompt -> {name}"] = score(judge, torch.cat(parts), wanted)

    with autocast(pipe.device, pipe.precision):
        y_e = real.embeds(pipe.networks["clip"]).float()
        noise = cascade.Noise(1, range(len(y_e)), "decoder_t", pipe.device)
        keys = cascade.run_decoder_t(pipe.networks["decoder_t"], pipe.configs["decoder_t"], noise, y_e, data.fps)
        noise = cascade.Noise(1, range(len(y_e)), "decoder", pipe.device)
        single = cascade.run_decoder(pipe.networks["decoder"], pipe.configs["decoder"], noise, y_e)
    report["true embedding -> decoder_t"] = score(judge, to_unit(keys.float()), real.pairs)
    report["true embedding -> decoder, one frame"] = score(judge, to_unit(single.float())[:, :, None], real.pairs)
    report["seconds a video"] = {name: t / len(prompts) for name, t in seconds.items()}
    report["seconds in all"] = time.perf_counter() - started
    return report


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--out")
    p.add_argument("--device")
    args = p.parse_args()
    report = measure(args.weights, args.seeds, args.device)
    for name, value in report.items():
        if isinstance(value, dict) and "frame" in value:
            low, high = value["interval"]
            print(f"{name:40s} clip {value['clip']:.3f} ({low:.3f} ... {high:.3f})   frame {value['frame']:.3f}")
    print("seconds a video: " + ", ".join(f"{k} {v:.2f}" for k, v in report["seconds a video"].items()))
    if args.out:
        with open(args.out, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
