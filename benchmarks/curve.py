"""The table behind quality-against-steps curves: rows that are merged call by call, and where the knee is.

A row says what one stage scored by one measure with one way of sampling; see `FIELDS`.
"""

import csv
from pathlib import Path

from mavlite.errors import MavliteError
from mavlite.stages import CASCADE

# evaluations: of networks, see `benchmarks.cost`. score: higher is better. seconds: of one clip, by one step.
# shipped: 1 for the stage's default. weights: which ones, a short sum. n: clips. digits: their source.
FIELDS = {"stage": str, "measure": str, "unit": str, "sampler": str, "guidance_scale": float, "steps": int,
          "evaluations": int, "score": float, "n": int, "seconds": float, "shipped": int, "weights": str,
          "digits": str}
KEY = ("stage", "measure", "sampler", "guidance_scale", "steps")
TOLERANCE = {"share": 0.01, "cosine": 0.01, "dB": 0.1}       # by unit: what the knee may give up


def read_rows(path):
    """The rows of a CSV, [] if there is none yet. Raises MavliteError when it is another file's."""
    if not Path(path).exists():
        return []
    try:
        with open(path, newline="") as file:
            return [{name: kind(row[name]) for name, kind in FIELDS.items()} for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise MavliteError(f"{path}: is no table of this command ({error}); choose another --out") from None


def write_rows(rows, path):
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" if isinstance(value, float) else value
                              for name, value in row.items()} for row in rows)
    except OSError as error:
        raise MavliteError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


def measured_on(row):
    """What is the same throughout a curve."""
    return row["weights"], row["n"], row["digits"]


def merge(rows, new):
    """Rows with the new ones in: a new row takes the place of an old one with the same `KEY`.

    Old rows of a stage that was measured since with other weights or other clips go: one curve, one network.
    """
    now = {row["stage"]: measured_on(row) for row in new}
    kept = {tuple(row[name] for name in KEY): row for row in rows
            if now.get(row["stage"], measured_on(row)) == measured_on(row)}
    kept |= {tuple(row[name] for name in KEY): row for row in new}
    return sorted(kept.values(), key=lambda row: (CASCADE.index(row["stage"]), row["measure"],
                                                  row["guidance_scale"], row["sampler"], row["steps"]))


def curves(rows):
    """(stage, measure) -> its rows, in eq. 1's order."""
    grouped = {}
    for row in rows:
        grouped.setdefault((row["stage"], row["measure"]), []).append(row)
    return grouped


def knee(rows):
    """(best, knee) of one stage's rows by one measure.

    The knee is the row of fewest evaluations whose score is within `TOLERANCE` of the best; of several, the
    better one. With guidance the same for all, that is the one of fewest steps.
    """
    best = max(rows, key=lambda row: (row["score"], -row["evaluations"]))
    good = [row for row in rows if row["score"] >= best["score"] - TOLERANCE[row["unit"]] - 1e-9]
    return best, min(good, key=lambda row: (row["evaluations"], -row["score"]))
