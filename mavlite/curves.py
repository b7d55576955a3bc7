"""Loss curves: a run's own beside the reference that a recipe is known to give.

    python -m mavlite.curves runs/cpu/decoder configs/curves/cpu/decoder.csv     keep a run's as a reference

A stage that stays far above its reference has a bug, not a bad seed.
"""

import csv
import sys
from pathlib import Path

from mavlite.errors import MavliteError

POINTS = 60                                  # of a reference: enough to see a curve, small enough to commit


def read_curve(path):
    """(steps, losses) of a run's log.csv or of a reference. Raises MavliteError when the file is neither."""
    try:
        with open(path, newline="") as file:
            rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
        ok = all(0 <= step < 2**31 and abs(loss) < 1e12 for step, loss in rows)      # NaN is not
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise MavliteError(f"{path}: is no loss curve, a CSV with the columns step and loss "
                           f"({' '.join(str(error).split())[:100]})") from None
    if not ok:
        raise MavliteError(f"{path}: holds a step or a loss that cannot be drawn; keep it anew from a run")
    if not rows:
        raise MavliteError(f"{path}: holds no steps; train first")
    return tuple(map(list, zip(*rows)))


def thin(steps, losses, points=POINTS):
    """At most `points` means of consecutive rows, each at its last step."""
    share = -(-len(steps) // points)
    starts = range(0, len(steps), share)
    return ([steps[start:start + share][-1] for start in starts],
            [sum(part) / len(part) for part in (losses[start:start + share] for start in starts)])


def keep_reference(run, path):
    """Thin a run folder's log into a reference curve."""
    steps, losses = thin(*read_curve(Path(run) / "log.csv"))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        rows = ((step, f"{loss:.5g}") for step, loss in zip(steps, losses))
        csv.writer(file).writerows([("step", "loss"), *rows])


def plot_loss(run, reference=None):
    """Write run/loss.png: the run's losses, over the reference's if there is one; returns its path.

    Of a run too short for a line in its log there is nothing to draw: None.
    """
    log = Path(run) / "log.csv"
    if len(log.read_text().splitlines()) < 2:
        return None
    from matplotlib.figure import Figure  # not pyplot: a notebook's backend stays as it is

    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    if reference is not None:
        axes.plot(*read_curve(reference), color="0.6", linewidth=4,
                  label=f"reference, {Path(reference).stem}")
    axes.plot(*thin(*read_curve(log), points=4 * POINTS), color="black", linewidth=1, label="this run")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    path = Path(run) / "loss.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


if __name__ == "__main__":
    keep_reference(*sys.argv[1:3])
