"""The cost sheet of one video: arithmetic and seconds of each stage, beside what this machine can do.

    python -m benchmarks.cost [--weights DIR] [--repeats 5]
"""

import argparse
import statistics

import torch
import torch.nn.functional as F

from benchmarks.timing import median_seconds
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast
from mavlite.info import flops_per_frame
from mavlite.pipeline import MakeAVideo

CANDIDATES = 2                               # of the prior


def machine_rates(device, precision):
    """GFLOP/s of a matrix product (1024 x 1024) and of the U-Net's commonest convolution (64 x 8 x 8)."""
    a = torch.randn(1024, 1024, device=device)
    x = torch.randn(512, 64, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), autocast(device, precision):
        product = 2 * 1024**3 / median_seconds(lambda: a @ a, device)
        convolution = 2 * 512 * 64 * 64 * 64 * 9 / median_seconds(lambda: F.conv2d(x, w, padding=1), device)
    return product / 1e9, convolution / 1e9


def evaluations(pipe, stage):
    """(network evaluations, frames in each) of a stage for one video with its default settings."""
    sample, data = pipe.configs[stage].sample, pipe.data
    doubled = 2 if sample.guidance_scale != 1 else 1
    keys = data.num_frames
    per_window = (keys - 1) // data.frame_skip + 1
    windows = -(-(keys - 1) // (per_window - 1))
    video = (keys - 1) * data.frame_skip + 1
    frames = {"prior": CANDIDATES, "decoder_t": keys, "sr_l_t": video, "sr_h": video,
              "interpolation": windows * ((per_window - 1) * data.frame_skip + 1)}[stage]
    return sample.steps, doubled * frames


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    pipe = MakeAVideo.from_pretrained(args.weights)
    pipe("two and 4")                                        # warm up
    runs = [pipe("two and 4", seed=k).seconds for k in range(args.repeats)]
    seconds = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
    total = sum(seconds.values())
    product, convolution = machine_rates(pipe.device, pipe.precision)
    print(f"{pipe.device.type}, {pipe.precision}, {torch.get_num_threads()} threads: "
          f"matrix product {product:.0f} GFLOP/s, convolution {convolution:.0f} GFLOP/s")
    print(f"{'stage':14s} {'evaluations':>11s} {'frames each':>11s} {'GFLOP':>8s} "
          f"{'seconds':>8s} {'share':>6s} {'GFLOP/s':>8s}")
    for stage, spent in seconds.items():
        if stage == "clip":
            print(f"{stage:14s} {1:11d} {'-':>11s} {'-':>8s} {spent:8.3f} {spent / total:6.1%}")
            continue
        steps, frames = evaluations(pipe, stage)
        # The FLOP counter wants real tensors on the CPU.
        gflop = flops_per_frame(stage, pipe.networks[stage].cpu(), pipe.configs[stage]) * steps * frames / 1e9
        print(f"{stage:14s} {steps:11d} {frames:11d} {gflop:8.1f} "
              f"{spent:8.3f} {spent / total:6.1%} {gflop / spent:8.0f}")
    length = (pipe.data.num_frames - 1) * pipe.data.frame_skip + 1
    print(f"{'in all':14s} {'':11s} {'':11s} {'':8s} {total:8.3f}, for {length} frames")


if __name__ == "__main__":
    main()
