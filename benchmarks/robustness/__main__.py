"""A table of what training and loading survive, each line tried out anew.

    python -m benchmarks.robustness [--long] [--only POINT ...] [--out docs/robustness.md]

The short form is a part of `make test`; --long tries many more moments, offsets and configurations. --only
tries some points, and renews only their lines in the table that --out names. Exit code 1 if any line does
not hold. Needs Linux, and hypothesis (`pip install -e ".[test]"`).
"""

import argparse
import random
import sys
import tempfile
import time
import traceback

import torch

from benchmarks.robustness import files, golden, numbers, settings, stopping, table
from benchmarks.robustness.common import Bench, Row

POINTS = {
    "exact resume": [stopping.resume],
    "SIGKILL": [stopping.kills],
    "SIGTERM, Ctrl-C": [stopping.stops],
    "write faults": [stopping.write_faults],
    "corruption": [files.weights, files.impostors, files.checkpoints],
    "numerics": [numbers.not_finite, numbers.loss_scaler],
    "hostile files": [files.pickles, files.folders, files.pictures],
    "configurations": [settings.configurations],
    "two trainers": [stopping.two_trainers],
    "offline": [numbers.offline],
    "determinism": [numbers.same_bytes, numbers.golden],
}


def rows(bench, point, seed):
    """The rows of a point; a check that breaks is a row that does not hold."""
    bench.random = random.Random(f"{seed} {point}")          # whatever was tried before
    for check in POINTS[point]:
        try:
            yield from check(bench)
        except Exception as error:
            traceback.print_exc()
            yield Row(point, "broken", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False)


def main():
    p = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__.splitlines()[0])
    p.add_argument("--long", action="store_true", help="200 kills, 120 offsets a file, all stages: minutes")
    p.add_argument("--only", nargs="+", choices=POINTS, metavar="POINT", default=list(POINTS),
                   help=f"try these only: {', '.join(repr(point) for point in POINTS)}")
    p.add_argument("--out", metavar="MARKDOWN", help="write the table there, too")
    p.add_argument("--seed", type=int, default=0, help="of the random moments and offsets")
    args = p.parse_args()
    torch.set_num_threads(1)                                 # small tensors are faster so, and forks safe
    options = " --long" * args.long + f" --seed {args.seed}" * bool(args.seed)
    made = f"python -m benchmarks.robustness{options} --out {args.out}"
    lines = table.earlier(args.out, made, args.only) if args.out and set(args.only) != set(POINTS) else []
    print(table.HEAD, flush=True)
    held, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, args.long)
        golden.train_all(bench)                              # first: all checks start from its weights
        for point in POINTS:
            for row in rows(bench, point, args.seed) if point in args.only else ():
                lines.append(table.line(row, folder))
                print(lines[-1], f"<!-- {time.monotonic() - started:.0f} s -->", flush=True)
                held.append(row.holds)
            if args.out:                                     # now, for who stops it and goes on with --only
                table.write(args.out, made, lines, POINTS)
    print(f"{sum(held)} of {len(held)} lines hold")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
