"""Assignments: student versions from the solution-bearing sources, and grades for what comes back.

    python -m mavlite.teaching.assignments release --out DIR [ASSIGNMENT ...]
    python -m mavlite.teaching.assignments grade NOTEBOOK [NOTEBOOK ...] [--written POINTS]

Sources use nbgrader's markers, cell metadata and folders, so nbgrader works on them too; it is not needed
here. See notebooks/assignments/README.md.
"""

import argparse
import copy
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

from mavlite.errors import MavliteError

SOURCES = Path(__file__).parents[2] / "notebooks" / "assignments" / "source"
CODE_STUB, TEXT_STUB = "# YOUR CODE HERE", "YOUR ANSWER HERE"                    # as in nbgrader_config.py


# ---------------------------------------------------------------- sources

def assignments(sources=SOURCES):
    """Name -> path of every source, in order."""
    paths = sorted(Path(sources).glob("*/*.ipynb"))
    found = {path.stem: path for path in paths if path.stem == path.parent.name}
    if not found:
        raise MavliteError(f"there are no assignments in {sources}: run this from a clone of the repository, "
                           "or say where they are with --sources")
    return found


def read_notebook(path):
    """A notebook from a file.

    Raises:
        MavliteError: if there is none.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            _ = cell.cell_type, cell.source, cell.metadata
        return notebook
    except OSError as error:
        raise MavliteError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:                               # JSON of many kinds of damage
        raise MavliteError(f"{path} is not a notebook ({type(error).__name__}); save it again in "
                           "Jupyter") from None


def source_notebook(name, sources=SOURCES):
    found = assignments(sources)
    if name not in found:
        raise MavliteError(f"there is no assignment {name!r}; there are {', '.join(found)}")
    return read_notebook(found[name])


def marks(cell):
    """nbgrader's metadata of a cell: {} for a plain one."""
    value = cell.metadata.get("nbgrader", {})
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- student versions

def without_region(text, region, stub=None):
    """The text without what stands between `BEGIN region` and `END region`, a stub in its place.

    Raises:
        MavliteError: for markers without their partner.
    """
    kept, inside = [], False
    for line in text.split("\n"):
        begins, ends = f"BEGIN {region}" in line, f"END {region}" in line
        if begins and inside or ends and not inside:
            raise MavliteError(f"the markers of a region {region} do not come in pairs, at {line.strip()!r}")
        if begins and stub is not None:
            kept.append(re.match(r"\s*", line).group(0) + stub)
        if begins or ends:
            inside = begins
        elif not inside:
            kept.append(line)
    if inside:
        raise MavliteError(f"a region {region} is not ended")
    return "\n".join(kept)


def student_version(source):
    """The notebook without solutions, hidden tests and outputs."""
    notebook = copy.deepcopy(source)
    for cell in notebook.cells:
        stub = CODE_STUB if cell.cell_type == "code" else TEXT_STUB
        cell.source = without_region(cell.source, "SOLUTION", stub)
        cell.source = without_region(cell.source, "HIDDEN TESTS")
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def release(out, names=(), sources=SOURCES):
    """Write OUT/NAME/NAME.ipynb for every assignment, or for those named; returns the paths."""
    written = []
    for name in names or assignments(sources):
        path = Path(out) / name / f"{name}.ipynb"
        notebook = student_version(source_notebook(name, sources))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, path)
        except OSError as error:
            raise MavliteError(f"cannot write {path}: {error.strerror or error}") from None
        written.append(path)
    return written


# ---------------------------------------------------------------- grades

@dataclass
class Score:
    """Of one graded cell. points is None while the cell waits to be read by someone."""
    cell: str
    points: float | None
    out_of: float
    message: str = ""


@dataclass
class Grade:
    assignment: str
    scores: list

    @property
    def total(self):
        return sum(score.points or 0 for score in self.scores)

    @property
    def out_of(self):
        return sum(score.out_of for score in self.scores)

    def __str__(self):
        lines = [f"{self.assignment}"]
        for score in self.scores:
            points = "-" if score.points is None else f"{score.points:g}"
            lines.append(f"{points:>5} of {score.out_of:<3g} {score.cell:24s} {score.message}".rstrip())
        return "\n".join([*lines, f"{self.total:5g} of {self.out_of:<3g} in all"])


def which_assignment(notebook, path, sources=SOURCES):
    """The assignment that a submission answers: by its metadata, else by its file's name."""
    found, said = assignments(sources), notebook.metadata.get("mavlite", {})
    for name in (said.get("assignment") if isinstance(said, dict) else None, Path(path).stem):
        if name in found:
            return name
    raise MavliteError(f"{path} does not say which assignment it is; give --assignment, one of "
                       f"{', '.join(found)}")


def with_tests(submission, source):
    """The submission with all locked cells as in the source (hidden tests and all), missing ones at the end.

    A copy of a locked cell counts once; outputs are dropped.
    """
    locked = {marks(cell)["grade_id"]: cell for cell in source.cells if marks(cell).get("locked")}
    notebook = nbformat.v4.new_notebook(metadata=copy.deepcopy(source.metadata))
    for cell in submission.cells:
        name = marks(cell).get("grade_id")
        if name in locked:
            cell = locked.pop(name)
        elif marks(cell).get("locked"):
            continue                                         # a second copy, or of another assignment
        notebook.cells.append(copy.deepcopy(cell))
    notebook.cells += [copy.deepcopy(cell) for cell in locked.values()]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def run_in_kernel(notebook, folder, timeout):
    """What each cell raised, one line or None: in a Jupyter kernel of its own, started in folder.

    A cell that raises does not stop the others; one that takes longer than `timeout` seconds is interrupted.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    client = NotebookClient(notebook, timeout=timeout, interrupt_on_timeout=True, kernel_name="python3",
                            extra_arguments=["--IPKernelApp.log_level=40"],          # errors only
                            resources={"metadata": {"path": str(folder)}})
    # With this very package, installed or not.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    errors, dead = [], None
    with client.setup_kernel(env=variables):
        for i, cell in enumerate(notebook.cells):
            errors.append(dead)
            if dead is None and cell.cell_type == "code":
                try:
                    client.execute_cell(cell, i)
                except CellExecutionError as error:
                    errors[-1] = " ".join(f"{error.ename}: {error.evalue}".split())
                except (CellTimeoutError, DeadKernelError) as error:
                    dead = errors[-1] = f"the kernel is gone: {type(error).__name__}"
    return errors


def grade(submission, source, name, *, execute, written=None):
    """Grade a submitted notebook against its source.

    Args:
        execute: notebook -> for each cell what it raised, one line, or None.
        written: points given by hand for the written answer, if it has been read.
    """
    notebook = with_tests(submission, source)
    raised = dict(zip((marks(cell).get("grade_id") for cell in notebook.cells), execute(notebook)))
    answers = {marks(cell).get("grade_id"): cell.source.strip() for cell in submission.cells}
    scores = []
    for cell, empty in zip(source.cells, student_version(source).cells):
        mark = marks(cell)
        if not mark.get("grade"):
            continue
        cell_name, points = mark["grade_id"], mark["points"]
        if mark["solution"]:                                 # written: a person reads it
            if answers.get(cell_name, "") in ("", empty.source.strip()):
                scores.append(Score(cell_name, 0, points, "not answered"))
            elif written is None:
                scores.append(Score(cell_name, None, points, "to be read: give its points with --written"))
            elif not 0 <= written <= points:
                raise MavliteError(f"--written is {written:g}; the written answer of {name} has 0 to "
                                   f"{points:g} points")
            else:
                scores.append(Score(cell_name, written, points))
        else:
            message = raised[cell_name]
            scores.append(Score(cell_name, points if message is None else 0, points, message or ""))
    return Grade(name, scores)


def grade_file(path, *, assignment=None, written=None, timeout=60, sources=SOURCES):
    """Grade a notebook file in a Jupyter kernel.

    Raises:
        MavliteError: if it is no notebook, belongs to no assignment, or `written` is out of range.
    """
    submission = read_notebook(path)
    name = assignment or which_assignment(submission, path, sources)
    source = source_notebook(name, sources)
    return grade(submission, source, name, written=written,
                 execute=lambda notebook: run_in_kernel(notebook, Path(path).absolute().parent, timeout))


# ---------------------------------------------------------------- the command

def parser():
    main = argparse.ArgumentParser(prog="python -m "
                                        "mavlite.teaching.assignments", description=__doc__.split("\n")[0])
    commands = main.add_subparsers(dest="command", required=True)
    command = commands.add_parser("release", help="write the student versions")
    command.add_argument("names", nargs="*", metavar="ASSIGNMENT", help="default: all")
    command.add_argument("--out", required=True, help="folder for ASSIGNMENT/ASSIGNMENT.ipynb")
    command.add_argument("--sources", default=SOURCES, help="folder of the sources")
    command = commands.add_parser("grade", help="run submissions with the hidden tests, print their points")
    command.add_argument("notebooks", nargs="+", metavar="NOTEBOOK")
    command.add_argument("--assignment", help="default: what the notebook says it is")
    command.add_argument("--written", type=float, help="points for the written answer, given by hand")
    command.add_argument("--timeout", type=int, default=60, help="seconds for one cell (60)")
    command.add_argument("--sources", default=SOURCES, help="folder of the sources")
    return main


def main(argv=None):
    args = parser().parse_args(argv)
    if args.command == "grade":
        return grade_all(args)
    try:
        for path in release(args.out, args.names, args.sources):
            print(path)
    except MavliteError as error:
        print(f"mavlite: error: {error}", file=sys.stderr)
        return 2
    return 0


def grade_all(args):
    """Print each notebook's path and grade; one that cannot be graded does not stop the others."""
    failed = False
    for path in args.notebooks:
        try:
            made = grade_file(path, assignment=args.assignment, written=args.written, timeout=args.timeout,
                              sources=args.sources)
            print(f"{path}: {made}", flush=True)             # flushed: errors stand in their place
        except MavliteError as error:
            said = str(error) if path in str(error) else f"{path}: {error}"
            print(f"mavlite: error: {said}", file=sys.stderr)
            failed = True
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
