"""A benchmark as a command: what goes wrong is said in one line, and tables are kept as Markdown."""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from mavlite.checkpoint import SHIPPED
from mavlite.config import STAGE_NAMES
from mavlite.errors import MavliteError


def run(main):
    """Call main(); a user's mistake becomes one line and exit code 2."""
    try:
        main()
    except MavliteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def recipe_arguments(doc, stages, steps):
    """The command line of a benchmark that trains a few steps of a recipe. doc: the module's; stages, steps:
    defaults."""
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument("--config", default="configs/cpu.yaml")
    p.add_argument("--stages", nargs="+", choices=STAGE_NAMES, default=stages)
    p.add_argument("--steps", type=int, default=steps, help="timed, after warm-up")
    p.add_argument("--weights", default=SHIPPED, help="where C comes from")
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if args.steps < 1:
        raise MavliteError(f"--steps {args.steps}: must be 1 or more")
    return args


def command_line():
    """The command that is running, as it was typed."""
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def table(header, rows):
    """A Markdown table: header and each row are lists of cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def machine(device, precision):
    """Where a table was measured, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {precision}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write(text, out):
    """Print a text, and write it to `out` if that is a path."""
    print(text, end="")
    if out is None:
        return
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MavliteError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
