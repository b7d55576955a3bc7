"""How fast a recipe trains: clips a second of each stage, beside what this machine can do.

    python -m benchmarks.training [--config configs/cpu.yaml] [--stages ...] [--out docs/training.md]

Each stage takes a few real steps of its recipe through the trainer, from scratch. FLOPs are those of matrix
products and convolutions in a whole step: the network forwards and backwards, C's embeddings, the optimizer's
matrix products, the simulator's enlargements.
"""

import statistics
import tempfile
import time
from unittest.mock import patch

from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.command import command_line, machine, recipe_arguments, run, table, write
from benchmarks.cost import machine_rates
from mavlite import objectives
from mavlite.config import STAGE_NAMES, load_config
from mavlite.device import keep_freed_memory, pick_device, pick_precision, synchronize
from mavlite.errors import MavliteError
from mavlite.objectives import frames_per_sample
from mavlite.training import Trainer


class Timed:
    """Another object, or a function, whose calls are timed: `seconds` adds up."""

    def __init__(self, wrapped, device):
        self.wrapped, self.device, self.seconds = wrapped, device, 0.0

    def __getattr__(self, name):                             # a method of the object
        def call(*args, **kwargs):
            return self._timed(getattr(self.wrapped, name), args, kwargs)
        return call

    def __call__(self, *args, **kwargs):
        return self._timed(self.wrapped, args, kwargs)

    def _timed(self, function, args, kwargs):
        synchronize(self.device)
        started = time.perf_counter()
        result = function(*args, **kwargs)
        synchronize(self.device)
        self.seconds += time.perf_counter() - started
        return result


def measure(config, weights, steps):
    """A few steps of a stage: {seconds and flops of a step, simulator: its share of the time}."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder, weights=weights)
        data = "pairs" if hasattr(trainer.objective, "pairs") else "clips"
        simulator = Timed(getattr(trainer.objective, data), trainer.device)
        resize = Timed(objectives.box_resize, trainer.device)                        # super-resolution's
        setattr(trainer.objective, data, simulator)
        reports = trainer.steps()
        with patch.object(objectives, "box_resize", resize):
            with FlopCounterMode(display=False) as counter:  # also the warm-up
                next(reports)
            simulator.seconds = resize.seconds = 0.0
            started = trainer.seconds
            times = [batch["seconds"] for _, batch in zip(range(steps), reports)]
        reports.close()
        whole = times[-1] - started
        seconds = statistics.median(b - a for a, b in zip([started, *times], times))
        return {"seconds": seconds, "flops": counter.get_total_flops(),
                "simulator": (simulator.seconds + resize.seconds) / whole}


def row(config, measured, convolution):
    """A line of the table; convolution: this machine's rate in GFLOP/s."""
    train, rate = config.train, measured["flops"] / measured["seconds"] / 1e9
    clips = train.batch_size / measured["seconds"]
    return [f"`{config.stage}`", train.batch_size, f"{clips:.0f}", f"{clips * frames_per_sample(config):.0f}",
            f"{measured['flops'] / 1e9:.0f}", f"{rate:.0f}", f"{rate / convolution:.0%}",
            f"{measured['simulator']:.1%}", train.steps, f"{measured['flops'] * train.steps / 1e15:.2f}",
            f"{measured['seconds'] * train.steps / 60:.0f}"]


def main():
    args = recipe_arguments(__doc__, stages=STAGE_NAMES, steps=5)
    keep_freed_memory()
    device = pick_device()
    product, convolution = machine_rates(device, pick_precision(device))
    rows, flops, seconds = [], 0.0, 0.0
    for stage in tqdm(args.stages):
        # From scratch, as inflating changes no speed; with no checkpoint on the way.
        config = load_config(args.config, stage, ["train.inflate=false"])
        if config.train.steps < args.steps + 2:
            raise MavliteError(f"{args.config} ({stage}): has {config.train.steps} steps, "
                               f"--steps {args.steps} needs {args.steps + 2} or more")
        config.train.save_every = config.train.steps
        measured = measure(config, args.weights, args.steps)
        rows.append(row(config, measured, convolution))
        flops += measured["flops"] * config.train.steps
        seconds += measured["seconds"] * config.train.steps
    rows.append(["in all", *[""] * 8, f"{flops / 1e15:.2f}", f"{seconds / 60:.0f}"])
    header = ["stage", "batch", "samples/s", "frames/s", "GFLOP a step", "GFLOP/s", "of the convolution rate",
              "simulator's share", "steps", "PFLOP in all", "minutes in all"]
    write(f"`{command_line()}`, median of {args.steps} steps: "
          f"{machine(device, pick_precision(device))}; matrix product {product:.0f} GFLOP/s, convolution "
          f"{convolution:.0f} GFLOP/s. A sample is a frame or a clip; minutes are steps times seconds.\n\n"
          + table(header, rows), args.out)


if __name__ == "__main__":
    run(main)
