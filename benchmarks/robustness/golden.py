"""Golden loss curves: what the smoke preset gives on glyph digits, step by step, in fp64 on a CPU.

    python -m benchmarks.robustness.golden       write configs/curves/smoke.csv anew, after a wanted change

A change of code that was not meant to change training, but does, moves them by more than the tolerance. In
fp64 what differs between versions of torch and kinds of CPU stays below it.
"""

import csv
import tempfile

import torch

from benchmarks.robustness.common import ROOT, Bench
from mavlite.stages import STAGES
from mavlite.training import Trainer

GOLDEN = ROOT / "configs" / "curves" / "smoke.csv"
TOLERANCE = 0.002                            # of a loss; torch 2.6 and 2.15 differ by 0.0004 (of clip)


def train_all(bench, precision="fp32"):
    """Train every stage of the smoke preset in order into bench.folder/straight; returns stage -> its losses.

    The weights, which later stages start from, are gathered in bench.weights.
    """
    losses = {}
    for stage in STAGES:
        config = bench.config(stage, f"train.precision={precision}")
        trainer = Trainer(config, bench.folder / "straight" / stage, weights=bench.weights, device="cpu")
        losses[stage] = [report["loss"] for report in trainer.steps()]
        trainer.export(bench.weights / stage)
    return losses


def read_golden():
    """stage -> its losses."""
    golden = {}
    with open(GOLDEN, newline="") as file:
        for row in csv.DictReader(file):
            golden.setdefault(row["stage"], []).append(float(row["loss"]))
    return golden


def worst_deviation(losses):
    """(largest relative deviation from the golden curves, its stage)."""
    golden = read_golden()
    assert golden.keys() == losses.keys(), f"golden curves are of {', '.join(golden)}; write them anew"
    return max((abs(a - b) / abs(b), stage) for stage in golden
               for a, b in zip(losses[stage], golden[stage], strict=True))


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        losses = train_all(Bench(folder), "fp64")
    with open(GOLDEN, "w", newline="") as file:
        rows = [(stage, step, f"{loss:.9g}") for stage, values in losses.items()
                for step, loss in enumerate(values, 1)]
        csv.writer(file, lineterminator="\n").writerows([("stage", "step", "loss"), *rows])
    print(f"wrote {GOLDEN.relative_to(ROOT)}: {len(losses)} stages, {len(rows)} losses")


if __name__ == "__main__":
    main()
