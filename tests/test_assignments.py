"""The coursework: references score 100, empty submissions 0, and every known mistake is named as such."""

import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from mutants import MUTANTS, OTHER_ANSWERS

from mavlite.errors import MavliteError
from mavlite.teaching import assignments
from mavlite.teaching.assignments import (
    grade,
    grade_file,
    main,
    marks,
    release,
    run_in_kernel,
    source_notebook,
    student_version,
    with_tests,
    without_region,
)

FOLDER = ROOT / "notebooks" / "assignments"
NAMES = list(assignments.assignments())
CASES, RIGHT = ([pytest.param(name, other, id=f"{other.cell.removeprefix('check_')}: {other.about}")
                 for name in NAMES for other in others[name]] for others in (MUTANTS, OTHER_ANSWERS))


@cache
def source(name):
    return source_notebook(name)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")


def run(cells, namespace):
    """What each cell raised, one line or None. Cells without a grade id, the pictures, are left out."""
    errors = []
    for cell in cells:
        errors.append(None)
        if cell.cell_type == "code" and marks(cell):
            try:
                exec(compile(cell.source, marks(cell)["grade_id"], "exec"), namespace)
            except Exception as error:
                errors[-1] = f"{type(error).__name__}: {error}"
    return errors


def in_process(notebook):
    return run(notebook.cells, {})


def graded(name):
    return [cell for cell in source(name).cells if marks(cell).get("grade")]


# ---------------------------------------------------------------- sources

def test_there_are_five_with_mutants_for_each():
    assert len(NAMES) == 5 and list(MUTANTS) == NAMES
    assert all(len(MUTANTS[name]) >= 6 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_points_add_up_to_100_and_headings_say_them(name):
    points = [marks(cell)["points"] for cell in graded(name)]
    assert sum(points) == 100
    headings = [heading for cell in source(name).cells if cell.cell_type == "markdown"
                for heading in re.findall(r"^## .*\((\d+) points\)", cell.source, flags=re.M)]
    assert [int(said) for said in headings] == points


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_marked_as_nbgrader_wants_them(name):
    notebook = source(name)
    nbformat.validate(notebook)
    ids = [marks(cell)["grade_id"] for cell in notebook.cells if marks(cell)]
    assert len(ids) == len(set(ids))
    for cell in notebook.cells:
        mark = marks(cell)
        assert ("BEGIN SOLUTION" in cell.source) == bool(mark.get("solution"))
        assert ("BEGIN HIDDEN TESTS" in cell.source) == bool(mark.get("grade") and not mark["solution"])
        assert mark.get("locked", False) == (bool(mark) and not mark["solution"])
        assert cell.cell_type == "markdown" or cell.outputs == []
    written = [cell for cell in graded(name) if marks(cell)["solution"]]
    assert len(written) == 1 and "**Rubric.**" in written[0].source


@pytest.mark.parametrize("name", NAMES)
def test_lines_of_the_code_are_short(name):
    for cell in source(name).cells:
        assert max(map(len, cell.source.split("\n"))) <= (110 if cell.cell_type == "code" else 130)


# ---------------------------------------------------------------- student versions

@pytest.mark.parametrize("name", NAMES)
def test_student_version_has_stubs_that_parse_and_no_answers(name):
    student = student_version(source(name))
    text = "\n".join(cell.source for cell in student.cells)
    for word in ("SOLUTION", "HIDDEN", "Rubric"):
        assert word not in text
    for cell, full in zip(student.cells, source(name).cells):
        if cell.cell_type == "code":
            compile(cell.source, "stub", "exec")
        if cell.cell_type == "code" and marks(cell).get("solution"):
            stub = r'raise NotImplementedError\("Implement \w+ \(.+\), about \d+ lines?"\)'
            stubs = re.findall(stub, cell.source)
            assert len(stubs) == cell.source.count("def ") == cell.source.count("# TODO: ")
            for line in re.findall(r"# TODO: .*|raise NotImplementedError.*", cell.source):
                assert re.search(r"eq\. |section ", line), line
            promised = sum(int(n) for n in re.findall(r"TODO.*about (\d+) line", cell.source))
            regions = re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", full.source, flags=re.S)
            lines = [line for region in regions for line in region.splitlines()
                     if line.strip() and not line.strip().startswith("#")]
            assert abs(promised - len(lines)) <= 1


def test_regions_must_be_closed():
    assert without_region("a\n  # BEGIN X\nb\n  # END X\nc", "X", "stub") == "a\n  stub\nc"
    for broken in ("# BEGIN X", "# END X", "# BEGIN X\n# BEGIN X\n# END X"):
        with pytest.raises(MavliteError, match="region"):
            without_region(broken, "X")


def test_release_writes_all_or_those_named(tmp_path, capsys):
    assert main(["release", "--out", str(tmp_path / "all")]) == 0
    assert sorted(path.stem for path in (tmp_path / "all").glob("*/*.ipynb")) == NAMES
    (path,) = release(tmp_path / "one", [NAMES[2]])
    assert nbformat.read(path, as_version=4) == nbformat.from_dict(student_version(source(NAMES[2])))
    capsys.readouterr()
    assert main(["release", "--out", str(tmp_path), "6_nothing"]) == 2
    assert capsys.readouterr().err.startswith("mavlite: error: there is no assignment '6_nothing'")
    assert main(["release", "--out", str(tmp_path), "--sources", str(tmp_path)]) == 2
    assert "clone" in capsys.readouterr().err


# ---------------------------------------------------------------- grades

@pytest.mark.parametrize("name", NAMES)
def test_reference_scores_100(name):
    made = grade(source(name), source(name), name, execute=in_process, written=10)
    assert [score.message for score in made.scores] == [""] * len(made.scores)
    assert made.total == made.out_of == 100


@pytest.mark.parametrize("name", NAMES)
def test_empty_student_version_scores_0(name):
    made = grade(student_version(source(name)), source(name), name, execute=in_process, written=10)
    assert made.total == 0 and made.out_of == 100
    said = [score.message for score in made.scores]
    assert sum(message.startswith("NotImplementedError: Implement ") for message in said) >= 3


def test_a_written_answer_waits_until_it_is_read():
    name = NAMES[0]
    made = grade(source(name), source(name), name, execute=in_process)
    assert made.total == 90 and made.scores[-1].points is None and "--written" in str(made)
    with pytest.raises(MavliteError, match="0 to 10"):
        grade(source(name), source(name), name, execute=in_process, written=11)


def test_tests_are_put_back_whatever_was_handed_in():
    name = NAMES[0]
    full = source(name)
    cheat = student_version(full)
    for cell in cheat.cells:
        if marks(cell).get("locked"):
            cell.source = "pass"
    assert grade(cheat, full, name, execute=in_process).total == 0
    cheat.cells = [cell for cell in full.cells if not marks(cell).get("grade")]         # tests deleted
    assert grade(cheat, full, name, execute=in_process).total == 90
    cheat.cells = full.cells + full.cells                                               # all cells twice
    assert len([cell for cell in with_tests(cheat, full).cells if marks(cell).get("locked")]) == 5
    assert grade(cheat, full, name, execute=in_process, written=10).total == 100
    cheat.cells = []
    assert grade(cheat, full, name, execute=in_process, written=10).total == 0


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"cells": 3, "nbformat": 4}',
                                  '{"cells": [{}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'])
def test_what_is_no_notebook_is_refused_in_one_line(text, tmp_path, capsys):
    path = tmp_path / f"{NAMES[0]}.ipynb"
    path.write_text(text)
    assert main(["grade", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mavlite: error: ") and said.count("\n") == 1


def test_a_notebook_that_says_nothing_of_its_assignment_is_refused(tmp_path, capsys):
    path = tmp_path / "homework.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), path)
    assert main(["grade", str(path)]) == 2
    assert "--assignment" in capsys.readouterr().err
    assert main(["grade", str(tmp_path / "missing.ipynb")]) == 2


def test_grades_say_whose_they_are_and_a_damaged_file_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(assignments, "run_in_kernel", lambda notebook, folder, timeout: in_process(notebook))
    name, paths = NAMES[0], {}
    for student in ("ada", "bob", "eve"):
        paths[student] = tmp_path / student / f"{name}.ipynb"
        paths[student].parent.mkdir()
    nbformat.write(source(name), paths["ada"])
    paths["bob"].write_text("not json")
    nbformat.write(student_version(source(name)), paths["eve"])
    assert main(["grade", *map(str, paths.values())]) == 2
    said = capsys.readouterr()
    ada, eve = said.out.split(f"{paths['eve']}: {name}\n")
    assert ada.startswith(f"{paths['ada']}: {name}\n") and ada.endswith("90 of 100 in all\n")
    assert eve.endswith("0 of 100 in all\n")
    assert said.err.startswith(f"mavlite: error: {paths['bob']} is not a notebook")
    assert said.err.count("\n") == 1

    assert main(["grade", str(paths["ada"]), str(paths["eve"])]) == 0
    capsys.readouterr()
    assert main(["grade", "--written", "11", str(paths["ada"]), str(paths["eve"])]) == 2
    said = capsys.readouterr()                               # an error that names no file
    assert said.err.startswith(f"mavlite: error: {paths['ada']}: --written is 11")
    assert said.err.count("\n") == 1 and said.out.startswith(f"{paths['eve']}: {name}\n")


# ---------------------------------------------------------------- known mistakes

def mutated(notebook, mutant):
    """The namespace after all solution cells, one of them changed."""
    cells, hits = [], 0
    for cell in notebook.cells:
        mark = marks(cell)
        if cell.cell_type == "code" and mark and not mark["grade"]:
            changed = nbformat.from_dict(cell)
            if mark["solution"] and hits == 0 and belongs(notebook, cell, mutant.cell):
                hits += cell.source.count(mutant.old)
                changed.source = cell.source.replace(mutant.old, mutant.new)
            cells.append(changed)
    assert hits, f"{mutant.old!r} is not in the reference solution any more"
    namespace = {}
    assert run(cells, namespace) == [None] * len(cells)
    return namespace


def belongs(notebook, solution, test):
    """Whether `test` is the next graded cell after the solution."""
    after = notebook.cells[notebook.cells.index(solution):]
    return next(marks(cell)["grade_id"] for cell in after if marks(cell).get("grade")) == test


def cell_named(notebook, name):
    return next(cell for cell in notebook.cells if marks(cell).get("grade_id") == name)


@pytest.mark.parametrize("name, mutant", CASES)
def test_mutant_is_caught_by_the_check_meant_for_it(name, mutant):
    full = source(name)
    namespace = mutated(full, mutant)
    visible = student_version(full)
    if mutant.hidden:
        assert run([cell_named(visible, mutant.cell)], namespace) == [None]
        (said,) = run([cell_named(full, mutant.cell)], namespace)
    else:
        (said,) = run([cell_named(visible, mutant.cell)], namespace)
    assert said is not None, "passed"
    assert said.startswith("AssertionError: ") and re.search(mutant.says, said), said


@pytest.mark.parametrize("name, answer", RIGHT)
def test_another_right_answer_is_accepted(name, answer):
    full = source(name)
    assert run([cell_named(full, answer.cell)], mutated(full, answer)) == [None]


# ---------------------------------------------------------------- the instructor's page

def catches_table():
    rows = ["| assignment | graded cell | points | catches |", "|---|---|---|---|"]
    for name in NAMES:
        for cell in graded(name):
            mark = marks(cell)
            caught = [mutant.about + (" (hidden)" if mutant.hidden else "")
                      for mutant in MUTANTS[name] if mutant.cell == mark["grade_id"]]
            what = "; ".join(caught) if not mark["solution"] else "read by hand"
            rows.append(f"| {name} | `{mark['grade_id']}` | {mark['points']} | {what} |")
    return "\n".join(rows)


def test_instructor_page_lists_what_each_check_catches():
    assert catches_table() in (FOLDER / "README.md").read_text(), "the table should be\n" + catches_table()


# ---------------------------------------------------------------- slow: real kernels, nbgrader

@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_in_a_kernel_every_cell_of_the_reference_runs_and_the_empty_version_scores_0(name, tmp_path):
    raised = run_in_kernel(with_tests(source(name), source(name)), tmp_path, 60)
    assert set(raised) == {None}
    assert grade(source(name), source(name), name, execute=lambda notebook: raised, written=10).total == 100
    (path,) = release(tmp_path, [name])
    assert grade_file(path, written=10).total == 0


@pytest.mark.slow
def test_in_a_kernel_a_cell_that_hangs_or_kills_stops_at_its_limit(tmp_path):
    cell = nbformat.v4.new_code_cell
    cells = [cell("x = 1"), cell("while True: pass"), cell("assert x == 1"), cell("import os; os._exit(1)"),
             cell("x")]
    raised = run_in_kernel(nbformat.v4.new_notebook(cells=cells), tmp_path, 3)
    assert raised[0] is None and raised[2] is None
    assert raised[1].startswith("KeyboardInterrupt")
    assert "kernel is gone" in raised[3] and raised[4] == raised[3]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nbgrader_makes_the_same_student_version_and_the_same_grades(name, tmp_path, monkeypatch):
    """With nbgrader installed (`pip install -e ".[course]"` in the clone)."""
    pytest.importorskip("nbgrader")
    from nbgrader.api import Gradebook
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # It calls the program alembic of its own environment.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    course = tmp_path / "course"
    shutil.copytree(FOLDER / "source" / name, course / "source" / name)
    config = Config()
    exec((FOLDER / "nbgrader_config.py").read_text(), {"get_config": lambda: config})
    config.CourseDirectory.root = str(course)
    api = NbGraderAPI(config=config)
    made = api.generate_assignment(name)
    assert made["success"], made["log"]
    released = nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)
    ours = student_version(source(name))
    assert [cell.source for cell in released.cells] == [cell.source for cell in ours.cells]

    submissions = {"perfect": source(name), "empty": released}
    for student, notebook in submissions.items():
        path = course / "submitted" / student / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)
        graded = api.autograde(name, student)
        assert graded["success"], graded["log"]
    with Gradebook(f"sqlite:///{course}/gradebook.db") as book:
        scores = {student: book.find_submission(name, student) for student in submissions}
        assert scores["perfect"].score == 90 and scores["perfect"].needs_manual_grade
        assert scores["empty"].score == 0 and scores["empty"].max_score == 100
