"""The cost sheet of one video: arithmetic, seconds and memory of each stage, beside what this machine can do.

    python -m benchmarks.cost [--weights DIR] [--repeats 5] [--out docs/cost.md]

FLOPs are those of matrix products and convolutions, two a multiply-add, as torch counts them. Seconds are
medians of whole videos; each stage's peak of memory is that of a process in which this stage runs alone.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command import command_line, machine, run, table, write
from benchmarks.timing import PROMPT, in_own_process, median_seconds, stage_seconds
from mavlite import cascade, options
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast, peak_memory
from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo
from mavlite.sampling import time_steps
from mavlite.stages import STAGES

CANDIDATES = 2                               # of the prior
WHOLE = "in all"


def machine_rates(device, precision):
    """GFLOP/s of a matrix product and of the U-Net's commonest convolution (64 channels, 8 x 8)."""
    size, images = (1024, 512) if device.type == "cpu" else (8192, 16384)        # a GPU would only be started
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    x, w = (torch.randn(*shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
            for shape in ((images, 64, 8, 8), (64, 64, 3, 3)))
    with torch.no_grad():
        product = 2 * size**3 / median_seconds(lambda: a @ a, device)
        convolution = 2 * images * 64 * w.numel() / median_seconds(lambda: F.conv2d(x, w, padding=1), device)
    return product / 1e9, convolution / 1e9


def evaluations(sample, steps=None):
    """Network evaluations of one sample under a SampleConfig, or of its first steps: a guided one takes two.

    They stand in one doubled batch, but for D^t, whose second one is of D (`guidance.single_frames`).
    """
    times = time_steps(sample.steps)[:-1][:steps]
    guided = sample.guidance_scale != 1 and int((times >= sample.guidance_until).sum())
    return len(times) + guided


def video_length(data):
    """Frames of a finished video by default."""
    return (data.num_frames - 1) * data.frame_skip + 1


@torch.no_grad()
def run_stage(pipe, stage):
    """One stage for one video, on input of the right shape: what the input says costs nothing."""
    data, clip = pipe.data, pipe.networks["clip"]
    network, config = pipe.networks[stage], pipe.configs.get(stage)
    each = options.CANDIDATES if stage == "decoder_t" else 1
    noise = cascade.Noise(0, [0], stage, pipe.device, each)
    y_e = torch.zeros(each, clip.embed_dim, device=pipe.device)

    def video(size, frames):
        return torch.zeros(1, data.channels, frames, data.sizes[size], data.sizes[size], device=pipe.device)

    with autocast(pipe.device, pipe.precision):
        if stage in ("clip", "prior"):
            text = [x.float() for x in clip.text([PROMPT])]
            return text if stage == "clip" else cascade.run_prior(network, config, noise, *text)
        if stage == "decoder_t":
            choose = pipe.choice(each, y_e[:1], data.fps, config.sample.steps)
            return cascade.run_decoder_t(network, config, noise, y_e, data.fps, choose=choose,
                                         away_from=pipe.single_frames)
        if stage == "interpolation":
            return cascade.run_interpolation(network, config, noise, video(0, data.num_frames), y_e, data.fps,
                                             data.frame_skip)
        return cascade.run_super_resolution(network, config, noise,
                                            video(STAGES[stage].size[1], video_length(data)),
                                            shared_noise=stage == "sr_h")


def arithmetic(pipe, stage):
    """GFLOP of a stage in one video, all evaluations of all candidates, counted while it runs."""
    with FlopCounterMode(display=False) as counter:
        run_stage(pipe, stage)
    return counter.get_total_flops() / 1e9


def memory(weights, stage):
    """(bytes with the weights loaded, bytes that a stage or a whole video adds at most), in this process."""
    pipe = MakeAVideo.from_pretrained(weights)
    before = peak_memory(pipe.device)
    if stage == WHOLE:
        pipe(PROMPT)
    else:
        run_stage(pipe, stage)
    return before, peak_memory(pipe.device) - before


def row(stage, seconds, whole, added, convolution, gflop=None, count=None):
    """A line of the table.

    seconds: of this stage. whole: of the whole call. added: bytes of memory. convolution: the machine's
    GFLOP/s. gflop: of this stage in a video. count: its evaluations, None for all stages together.
    """
    each, rates = ["", ""], ["", "", ""]
    if count is not None:
        each = [f"{gflop / count:.3g}", count]
    if gflop is not None:
        rates = [f"{gflop:.1f}", f"{gflop / seconds:.0f}", f"{gflop / seconds / convolution:.0%}"]
    return [stage, *each, rates[0], f"{seconds:.3f}", f"{seconds / whole:.1%}", *rates[1:],
            f"{added / 2**20:.0f}"]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if args.repeats < 1:
        raise MavliteError(f"--repeats {args.repeats}: must be 1 or more")
    pipe = MakeAVideo.from_pretrained(args.weights)
    seconds, whole = stage_seconds(pipe, args.repeats)
    product, convolution = machine_rates(pipe.device, pipe.precision)
    held, rows, total = [], [], 0.0
    for stage, spent in seconds.items():
        before, added = in_own_process(memory, args.weights, stage)
        held.append(before)
        if stage in pipe.configs:                            # C reads one prompt, once
            gflop, count = arithmetic(pipe, stage), evaluations(pipe.configs[stage].sample)
            total += gflop
            rows.append(row(f"`{stage}`", spent, whole, added, convolution, gflop, count))
        else:
            rows.append(row(f"`{stage}`", spent, whole, added, convolution))
    _, added = in_own_process(memory, args.weights, WHOLE)
    rows.append(row(WHOLE, whole, whole, added, convolution, total))
    length, rate = video_length(pipe.data), pipe.data.fps * pipe.data.frame_skip
    header = ["stage", "GFLOP each", "evaluations", "GFLOP", "seconds", "share", "GFLOP/s",
              "of the convolution rate", "peak memory, MiB"]
    holding = "the weights" if pipe.device.type == "cuda" else "PyTorch and the weights"
    write(f"One video of {length} frames, {length / rate:.2f} s long, `{command_line()}`, median of "
          f"{args.repeats} after warm-up: {machine(pipe.device, pipe.precision)}; matrix product "
          f"{product:.0f} GFLOP/s, convolution {convolution:.0f} GFLOP/s. \"Each\" is an evaluation of the "
          "network, of which a guided step takes two (of D^t, one of it and one of D), the mean over the "
          f"walk: P's are of {CANDIDATES} candidates, D^t's of {options.CANDIDATES} up to the choice and of "
          "one from there on, what chooses included. Memory is what comes on top of the "
          f"{min(held) / 2**20:.0f} MiB held before by {holding} of all stages.\n\n"
          + table(header, rows), args.out)


if __name__ == "__main__":
    run(main)
