"""Execute notebooks: see that they work, measure what they take, save their outputs.

    python -m mavlite.teaching.run notebooks/*.ipynb --preset smoke         does every cell work?
    python -m mavlite.teaching.run notebooks/03*.ipynb --in-place           keep outputs and measurements
    python -m mavlite.teaching.run --badges                                 after project.urls has changed
"""

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from mavlite.errors import MavliteError
from mavlite.teaching.notebook import PRESETS, ROOT, memory, read_measured, repository
from mavlite.teaching.opening import address, open_with

LARGEST = 2**20                              # bytes of a notebook with its outputs
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}
REPORT = """\
import json
from mavlite.teaching.notebook import peak_gib
from mavlite.training_log import hardware
print(json.dumps({"preset": lesson.preset, "pretrained": lesson.pretrained,
                  "device": hardware(lesson.device), "peak_gib": peak_gib()}))"""


def execute(path, *, preset="cpu", pretrained=True, timeout=None, env=None):
    """Run a notebook from top to bottom in a kernel of its own, in its own folder, with this very package.

    env: further variables for the kernel. timeout: seconds a cell may take. Returns (notebook with outputs,
    {preset, pretrained, device, minutes, peak_gib}); the file is not changed. Raises MavliteError for a file
    that is no notebook or a cell that fails.
    """
    path, started = Path(path), time.perf_counter()
    notebook = read(path)
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT))
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "MAVLITE_PRESET": preset,
                 "MAVLITE_PRETRAINED": str(int(pretrained)), **(env or {})}
    if sys.platform == "win32":                              # the kernel's sockets need this kind of loop
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False,
                            extra_arguments=["--IPKernelApp.log_level=40"],          # errors only
                            resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute(env=variables)
    except CellExecutionError as error:
        raise MavliteError(f"{path}: a cell failed\n{error}") from None
    report = json.loads(notebook.cells.pop().outputs[0].text)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook, {**report, "minutes": (time.perf_counter() - started) / 60}


def read(path):
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise MavliteError(f"{path}: no such notebook") from None
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise MavliteError(f"{path}: is no notebook ({' '.join(str(error).split())[:100]})") from None


def keep(path, notebook, measured):
    """Write a notebook with its outputs, and what it took into measured.json beside it.

    Raises MavliteError, and writes nothing, for more than LARGEST bytes and where an output names a folder
    of this machine.
    """
    path = Path(path)
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LARGEST:
        raise MavliteError(f"{path}: {len(text.encode()) / 2**20:.2f} MiB with its outputs, at most "
                           f"{LARGEST / 2**20:g} are allowed; show fewer, smaller or shorter pictures")
    for folder in (str(ROOT), str(Path.home())):
        if any(folder in words for words in printed(notebook)):
            raise MavliteError(f"{path}: an output names the folder {folder} of this machine")
    path.write_text(text, encoding="utf-8")
    table = read_measured(path.parent)
    same = ("preset", "pretrained", "device")
    others = [row for row in table.get(path.stem, []) if any(row[key] != measured[key] for key in same)]
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in measured.items()}
    table[path.stem] = sorted([*others, rounded], key=lambda row: str([row[key] for key in same]))
    text = json.dumps(dict(sorted(table.items())), indent=1) + "\n"
    (path.parent / "measured.json").write_text(text, encoding="utf-8")


def printed(notebook):
    """All text among a notebook's outputs (pictures are left out: in base64 anything may stand)."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        yield output.get("text", "")
        yield from output.get("traceback", [])
        yield output.get("data", {}).get("text/plain", "")


def write_openings(repository):
    """Give every notebook the badge and the setup cell that the published address asks for."""
    for path in sorted((Path(repository) / "notebooks").glob("*.ipynb")):
        notebook = read(path)
        open_with(notebook.cells, address(repository), path.relative_to(repository).as_posix())
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m mavlite.teaching.run",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--pretrained", type=int, choices=(0, 1), default=1,
                        help="0: train everything that is used")
    parser.add_argument("--in-place", action="store_true", help="save outputs, and add to measured.json")
    parser.add_argument("--badges", action="store_true",
                        help="rewrite the badge and setup cell of all notebooks from project.urls")
    args = parser.parse_args(argv)
    try:
        if args.badges:
            write_openings(repository())
        elif not args.notebooks:
            raise MavliteError("name notebooks to execute, such as notebooks/03_diffusion.ipynb")
        for path in args.notebooks:
            if args.in_place and args.preset == "smoke":
                raise MavliteError("--in-place: the pictures of preset smoke show nothing; use cpu or t4")
            notebook, measured = execute(path, preset=args.preset, pretrained=bool(args.pretrained))
            if args.in_place:
                keep(path, notebook, measured)
            print(f"{path}: {measured['minutes']:.1f} minutes, {memory(measured['peak_gib'])} at most, "
                  f"{measured['device']}", flush=True)
    except MavliteError as error:
        print(f"mavlite: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
