"""The sanity ladder: before a stage is trained for hours, it must overfit one clip in minutes.

    python -m benchmarks.ladder --config configs/cpu.yaml --steps 200 --out docs/ladder.md

Each row trains a stage on the frames of one clip (`data.num_clips=1`), with ever new noise, and gives the
mean loss of the first and the last steps; beside them the reference curve's loss (configs/curves/cpu) at that
step, where every step has new clips and the learning rate is still high. A stage whose last loss is not far
below its first has a bug. Where the condition leaves little open, as in super-resolution, one clip is hardly
easier than many; SR_l^t starts where SR_l ended.
"""

import argparse
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.command import command_line
from mavlite.checkpoint import SHIPPED
from mavlite.config import load_config
from mavlite.curves import read_curve
from mavlite.device import keep_freed_memory
from mavlite.training import Trainer

STAGES = ("decoder", "decoder_t", "interpolation", "sr_l", "sr_l_t", "sr_h", "tracker", "video_features")
MEAN = 20                                    # steps


def overfit(config, weights):
    """Mean losses of the first and last MEAN steps of a training."""
    with tempfile.TemporaryDirectory() as run:
        losses = [float(report["loss"]) for report in Trainer(config, run, weights=weights).steps()]
    return sum(losses[:MEAN]) / MEAN, sum(losses[-MEAN:]) / MEAN


def reference_loss(path, step):
    """The loss of a reference curve at the first of its steps that is not below `step`; None without one."""
    if not Path(path).exists():
        return None
    return next((loss for at, loss in zip(*read_curve(path)) if at >= step), None)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--config", required=True)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    p.add_argument("--weights", default=SHIPPED, help="where C and the stages to inflate come from")
    p.add_argument("--curves", default="configs/curves/cpu")
    p.add_argument("--out", required=True, metavar="MARKDOWN")
    args = p.parse_args()
    keep_freed_memory()
    header = ["stage", f"first {MEAN} steps", f"last {MEAN} of {args.steps}", "new clips, same step"]
    lines = [f"Written by `{command_line()}`.", "",
             f"| {' | '.join(header)} |", "|---|---|---|---|"]
    for stage in tqdm(args.stages):
        config = load_config(args.config, stage, [f"train.steps={args.steps}", "data.num_clips=1"])
        first, last = overfit(config, args.weights)
        new = reference_loss(Path(args.curves) / f"{stage}.csv", args.steps)
        lines.append(f"| `{stage}` | {first:.4f} | {last:.4f} | {'' if new is None else f'{new:.4f}'} |")
        Path(args.out).write_text("\n".join(lines) + "\n")
        tqdm.write(lines[-1])


if __name__ == "__main__":
    main()
