"""What torch.compile is worth in training: the wait before the first step, and the steps after it.

    python -m benchmarks.compile [--config configs/cpu.yaml] [--stages decoder_t ...] [--out docs/compile.md]

Each stage takes a few real steps of its recipe through the trainer, from scratch: first as it is, then with
`train.compile` and an empty cache, as on a machine that never compiled this network.
"""

import os
import statistics
import tempfile
from itertools import pairwise
from unittest.mock import patch

import torch
from tqdm import tqdm

from benchmarks.command import command_line, machine, recipe_arguments, run, table, write
from mavlite.config import load_config
from mavlite.device import keep_freed_memory, pick_device, pick_precision
from mavlite.training import Trainer


def step_seconds(config, weights, steps):
    """(seconds of the first step, median seconds of the `steps` after the second)."""
    with tempfile.TemporaryDirectory() as folder:
        reports = Trainer(config, folder, weights=weights).steps()
        seconds = [report["seconds"] for _, report in zip(range(steps + 2), reports)]
        reports.close()
    return seconds[0], statistics.median(b - a for a, b in pairwise(seconds[1:]))


def measure(config_file, stage, weights, steps):
    """A line of the table."""
    options = ["train.inflate=false", f"train.steps={steps + 3}", "train.save_every=1000000"]
    _, plain = step_seconds(load_config(config_file, stage, options), weights, steps)
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
        compiled_config = load_config(config_file, stage, [*options, "train.compile=true"])
        first, compiled = step_seconds(compiled_config, weights, steps)
    saved = plain - compiled
    pays = f"{(first - plain) / saved:.0f}" if saved > 0 else "never"
    return [f"`{stage}`", f"{plain:.2f}", f"{compiled:.2f}", f"{saved / plain:.0%}", f"{first:.0f}", pays]


def main():
    args = recipe_arguments(__doc__, stages=["decoder", "decoder_t"], steps=10)
    keep_freed_memory()
    device = pick_device()
    rows = [measure(args.config, stage, args.weights, args.steps) for stage in tqdm(args.stages)]
    header = ["stage", "s a step", "compiled", "saved", "s to the end of step 1", "steps until that pays"]
    write(f"`{command_line()}`, median of {args.steps} steps: {machine(device, pick_precision(device))}.\n\n"
          + table(header, rows), args.out)


if __name__ == "__main__":
    run(main)
