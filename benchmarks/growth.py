"""Time and peak memory of a video against its length, and of several against their number.

    python -m benchmarks.growth [--weights DIR] [--frames 16 76 ...] [--batch 1 2 ...] [--out docs/growth]

Each size is measured in a process of its own, so that the peak of memory is its own too; it first makes the
shortest video, to warm up, and then the median of `--repeats` videos is taken. Writes growth.csv and
growth.png, and prints the straight line that fits best: linear growth has R^2 near 1, flat memory few MiB a
frame. What the memory holds at any length is PyTorch, the weights and the stages' working memory; what grows
are the finished frames and those that the stages keep for `Video.stages`.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mavlite.checkpoint import SHIPPED
from mavlite.device import pick_device
from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo

FRAMES = [16, 76, 150, 300, 600, 1200, 2400]
BATCH = [1, 2, 4, 8, 16, 32, 64]


def peak_memory(device):
    """Bytes: on a CUDA device what tensors took at most, elsewhere what the whole process did."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(weights, device, frames, batch, repeats):
    """One size, in this process: {frames, batch, seconds, peak_mib, one column for each stage's seconds}."""
    pipe = MakeAVideo.from_pretrained(weights, device=device)
    pipe("two and 4", num_frames=2)
    runs = [pipe(["two and 4"] * batch, num_frames=frames, seed=k).seconds for k in range(repeats)]
    stages = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
    return {"frames": frames, "batch": batch, "seconds": sum(stages.values()),
            "peak_mib": peak_memory(pipe.device) / 2**20, **stages}


def in_own_process(*arguments):
    """`measure`, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.growth", "--one", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip() or "no word: it was probably killed for want of memory"
        raise SystemExit(f"{arguments[2]} frames, batch {arguments[3]}: {said.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


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
    p.add_argument("--one", nargs=5, metavar=("WEIGHTS", "DEVICE", "FRAMES", "BATCH", "REPEATS"),
                   help="measure this size here, print JSON and end")
    args = p.parse_args()
    if args.one:
        try:
            print(json.dumps(measure(*args.one[:2], *map(int, args.one[2:]))))
        except MavliteError as error:
            raise SystemExit(str(error)) from None
        return
    if (min(len(args.frames), len(args.batch), *args.frames, args.batch_frames) < 2
            or min(*args.batch, args.repeats) < 1):
        raise SystemExit("give two lengths of 2 frames or more, two batch sizes, and 1 repeat, or more")

    device, out = pick_device(args.device), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    sizes = {"frames": [(frames, 1) for frames in args.frames],
             "batch": [(args.batch_frames, batch) for batch in args.batch]}
    bar = tqdm(total=len({size for group in sizes.values() for size in group}), unit="size")
    measured = {}
    for size in sum(sizes.values(), []):
        if size not in measured:                             # one video of 76 frames is in both
            measured[size] = in_own_process(args.weights, device, *size, args.repeats)
            bar.update()
            with open(out / "growth.csv", "w", newline="") as file:                  # what is measured stays
                writer = csv.DictWriter(file, next(iter(measured.values())))
                writer.writeheader()
                writer.writerows({key: round(value, 4) for key, value in row.items()}
                                 for row in measured.values())
    bar.close()
    series = {along: [measured[size] for size in group] for along, group in sizes.items()}
    save_plot(series, out / "growth.png")
    print(f"{device.type}, {torch.get_num_threads()} threads, median of {args.repeats}")
    for along, rows in series.items():
        for key, unit in (("seconds", "s"), ("peak_mib", "MiB")):
            start, slope, r2 = line([row[along] for row in rows], [row[key] for row in rows])
            print(f"{key:8s} = {start:9.3f} {unit} + {slope:9.5f} {unit} x {along:6s}   R^2 {r2:.4f}")
    print("wrote", out / "growth.csv", out / "growth.png")


if __name__ == "__main__":
    main()
