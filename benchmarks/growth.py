"""Time and peak memory of a video against its length, and of several against their number.

    python -m benchmarks.growth [--weights DIR] [--frames 16 76 ...] [--batch 1 2 ...] [--out docs/growth]

Each size is measured in a process of its own, so that the peak of memory is its own too; it first makes the
shortest video, to warm up, and then the median of `--repeats` videos is taken. Writes growth.csv and
growth.png, and in growth.md the straight lines that fit best: linear growth has R^2 near 1, flat memory a
small part of a MiB a frame. What the memory holds at any length is PyTorch, the weights and the stages'
working memory; what grows are the finished frames and those that the stages keep for `Video.stages`.
"""

import argparse
import csv
import statistics
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.command import command_line, machine, run, write
from benchmarks.timing import PROMPT, in_own_process
from mavlite.checkpoint import SHIPPED
from mavlite.device import peak_memory, pick_device, pick_precision
from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo

FRAMES = [16, 76, 150, 300, 600, 1200, 2400]
BATCH = [1, 2, 4, 8, 16, 32, 64]


def measure(weights, device, frames, batch, repeats):
    """One size, in this process: {frames, batch, seconds, peak_mib, one column for each stage's seconds}."""
    pipe = MakeAVideo.from_pretrained(weights, device=device)
    pipe(PROMPT, num_frames=2)
    runs = [pipe([PROMPT] * batch, num_frames=frames, seed=k).seconds for k in range(repeats)]
    stages = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
    return {"frames": frames, "batch": batch, "seconds": sum(stages.values()),
            "peak_mib": peak_memory(pipe.device) / 2**20, **stages}


def write_csv(rows, path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({key: round(value, 4) for key, value in row.items()} for row in rows)
    except OSError as error:
        raise MavliteError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


def line(x, y):
    """The straight line y = start + slope x that fits best: (start, slope, R^2)."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    slope, start = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    missed = ((y - start - slope * x) ** 2).sum()
    return start, slope, 1 - missed / spread if spread else 1.0


def save_plot(series, path):
    """series: {"frames": rows, "batch": rows}. Above seconds, below memory, each with its line."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 2, figsize=(9, 6))
    for column, (along, rows) in enumerate(series.items()):
        x = [row[along] for row in rows]
        for axis, key, label in ((axes[0, column], "seconds", "seconds"),
                                 (axes[1, column], "peak_mib", "peak memory, MiB")):
            y = [row[key] for row in rows]
            start, slope, _ = line(x, y)
            axis.plot(x, y, "o", color="black")
            axis.plot(x, [start + slope * value for value in x], color="0.6")
            axis.set(xlabel=f"{along} ({rows[0]['batch']} video)" if along == "frames"
                     else f"videos of {rows[0]['frames']} frames", ylabel=label, ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=str(SHIPPED))
    p.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    p.add_argument("--frames", type=int, nargs="+", default=FRAMES, help="lengths of one video")
    p.add_argument("--batch", type=int, nargs="+", default=BATCH, help="numbers of videos at a time")
    p.add_argument("--batch-frames", type=int, default=76, help="their length")
    p.add_argument("--repeats", type=int, default=1)
    p.add_argument("--out", default="docs/growth", metavar="DIR")
    args = p.parse_args()
    if (min(len(args.frames), len(args.batch), *args.frames, args.batch_frames) < 2
            or min(*args.batch, args.repeats) < 1):
        raise MavliteError("give two lengths of 2 frames or more, two batch sizes, and 1 repeat, or more")

    device, out, measured = pick_device(args.device), Path(args.out), {}
    sizes = {"frames": [(frames, 1) for frames in args.frames],
             "batch": [(args.batch_frames, batch) for batch in args.batch]}
    wanted = list(dict.fromkeys(sizes["frames"] + sizes["batch"]))       # one video of 76 frames is in both
    for size in tqdm(wanted, unit="size"):
        try:
            measured[size] = in_own_process(measure, args.weights, device, *size, args.repeats)
        except MavliteError as error:
            raise MavliteError(f"{size[0]} frames, batch {size[1]}: {error}") from None
        write_csv(list(measured.values()), out / "growth.csv")       # what is measured stays
    series = {along: [measured[size] for size in group] for along, group in sizes.items()}
    save_plot(series, out / "growth.png")
    lines = []
    for along, rows in series.items():
        for key, name, unit in (("seconds", "seconds", "s"), ("peak_mib", "peak memory", "MiB")):
            start, slope, r2 = line([row[along] for row in rows], [row[key] for row in rows])
            what = "frames" if along == "frames" else f"videos of {args.batch_frames} frames"
            low, high = (end(row[along] for row in rows) for end in (min, max))
            lines.append(f"- {name} = {start:.3f} {unit} + {slope:.5f} {unit} × {what}, "
                         f"from {low} to {high}: R^2 {r2:.4f}\n")
    write(f"`{command_line()}`, median of {args.repeats}: "
          f"{machine(device, pick_precision(device))}. Values: [growth.csv](growth.csv), drawn: "
          "[growth.png](growth.png). Straight lines that fit best:\n\n" + "".join(lines), out / "growth.md")


if __name__ == "__main__":
    run(main)
