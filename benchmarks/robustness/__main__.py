"""A table of what training and loading survive, each line tried out anew.

    python -m benchmarks.robustness [--long] [--out docs/robustness.md]

The short form is a part of `make test`; --long tries many more moments, offsets and configurations. Exit
code 1 if any line does not hold. Needs Linux, and hypothesis (`pip install "mavlite[test]"`).
"""

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from benchmarks.robustness import files, golden, numbers, settings, stopping
from benchmarks.robustness.common import Bench, Row


def checks(bench):
    """Rows, in the order of the ten points; a check that breaks is a row that does not hold."""
    losses = golden.train_all(bench)                         # first: all others start from its weights
    parts = [lambda: stopping.resume(bench, losses), lambda: stopping.kills(bench),
             lambda: stopping.stops(bench), lambda: stopping.write_faults(bench),
             lambda: files.weights(bench), lambda: files.impostors(bench), lambda: files.checkpoints(bench),
             lambda: numbers.not_finite(bench), lambda: numbers.loss_scaler(bench),
             lambda: files.pickles(bench), lambda: files.folders(bench), lambda: files.pictures(bench),
             lambda: settings.configurations(bench), lambda: stopping.two_trainers(bench),
             lambda: numbers.offline(bench), lambda: numbers.same_bytes(bench),
             lambda: numbers.golden(bench, losses)]
    for part in parts:
        try:
            yield from part()
        except Exception as error:
            traceback.print_exc()
            yield Row("broken", type(error).__name__, " ".join(str(error).split())[:300], False)


def main():
    p = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__.splitlines()[0])
    p.add_argument("--long", action="store_true", help="200 kills, 120 offsets a file, all stages: minutes")
    p.add_argument("--out", metavar="MARKDOWN", help="write the table there, too")
    p.add_argument("--seed", type=int, default=0, help="of the random moments and offsets")
    args = p.parse_args()
    torch.set_num_threads(1)                                 # small tensors are faster so, and forks safe
    lines = ["| point | what was tried | what was found | holds |", "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    held, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for row in checks(Bench(folder, args.long, args.seed)):
            found = row.found.replace(folder, "").replace("|", "/")
            lines.append(f"| {row.point} | {row.what} | {found} | {'yes' if row.holds else '**NO**'} |")
            print(lines[-1], f"<!-- {time.monotonic() - started:.0f} s -->", flush=True)
            held.append(row.holds)
    if args.out:
        said = "python -m benchmarks.robustness" + " --long" * args.long + f" --out {args.out}"
        Path(args.out).write_text(f"# What training and loading survive\n\nMade by `{said}`.\n\n"
                                  + "\n".join(lines) + "\n")
    print(f"{sum(held)} of {len(held)} lines hold")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
