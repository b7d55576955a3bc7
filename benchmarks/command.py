"""A benchmark as a command: what goes wrong is said in one line, and tables are kept as Markdown."""

import sys
from pathlib import Path

import torch

from mavlite.errors import MavliteError


def run(main):
    """Call main(); a user's mistake becomes one line and exit code 2."""
    try:
        main()
    except MavliteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


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
