"""The notebooks: how they are written, that they run from top to bottom, and what they are made with."""

import json
import re
import shutil

import nbformat
import pytest
import torch
from conftest import ROOT

from mavlite.errors import MavliteError
from mavlite.stages import CASCADE
from mavlite.teaching import notebook, opening, run
from mavlite.video import Video

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
CHEAP = ("04_prior", "05_inflation", "07_interpolation", "08_super_resolution", "09_cascade")
# A minute alone: `make slow` runs it.
DEAR = pytest.param(ROOT / "notebooks" / "06_motion.ipynb", marks=pytest.mark.slow)
FOLDERS = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|content)/")    # of some machine


def by_name(path):
    return path.stem


# ---------------------------------------------------------------- as written

@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_it_opens_with_title_badge_and_setup(path):
    book = run.read(path)
    cells, published = book.cells, opening.address(ROOT)
    assert re.match(r"# \d\d ", cells[0].source) and cells[0].cell_type == "markdown"
    assert (opening.BADGE in cells[0].source) == bool(opening.badge(published, ""))
    before = json.dumps(cells)
    opening.open_with(cells, published, path.relative_to(ROOT).as_posix())
    assert json.dumps(cells) == before, "run `python -m mavlite.teaching.run --badges`"
    assert cells[0].source.startswith(f"# {path.stem[:2]} ")
    assert any(f'lesson.header("{path.stem}"' in cell.source for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_its_file_is_small_and_tidy(path):
    assert path.stat().st_size <= run.LARGEST
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata == run.METADATA
    assert all(output.output_type != "error" for cell in book.cells for output in cell.get("outputs", []))
    texts = [cell.source for cell in book.cells] + list(run.printed(book))
    assert not [text for text in texts if FOLDERS.search(text)]


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "notebooks" / "README.md"], ids=by_name)
def test_files_it_links_to_exist(path):
    text = path.read_text() if path.suffix == ".md" else \
        "\n".join(cell.source for cell in run.read(path).cells if cell.cell_type == "markdown")
    local = [link.partition("#")[0] for link in LINK.findall(text) if not link.startswith(("http", "#"))]
    assert [link for link in local if not (path.parent / link).resolve().exists()] == []


# ---------------------------------------------------------------- executed

@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    """A copy of the notebooks, where what one of them trains is there for the next."""
    return shutil.copytree(ROOT / "notebooks", tmp_path_factory.mktemp("copy") / "notebooks",
                           ignore=shutil.ignore_patterns("runs", ".ipynb_checkpoints", "assignments"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_it_runs_from_top_to_bottom(path, copies):
    env = {"MAVLITE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "MAVLITE_DATA": str(copies / "none")}
    book, measured = run.execute(copies / path.name, preset="smoke", pretrained=False, timeout=120, env=env)
    assert not measured["pretrained"] and measured["minutes"] > 0
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
    assert not [text for text in run.printed(book) if str(ROOT) in text]


@pytest.mark.parametrize("path", [*(path for path in NOTEBOOKS if path.stem in CHEAP), DEAR], ids=by_name)
def test_it_runs_with_the_shipped_weights(path, copies):
    env = {"MAVLITE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "MAVLITE_DATA": str(copies / "none")}
    book, measured = run.execute(copies / path.name, preset="cpu", pretrained=True, timeout=120, env=env)
    assert measured["pretrained"] and measured["preset"] == "cpu"
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")


def small_notebook(tmp_path, *cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 99 Small"),
                                           *map(nbformat.v4.new_code_cell, cells)])
    nbformat.write(book, tmp_path / "99_small.ipynb")
    return tmp_path / "99_small.ipynb"


def test_a_cell_that_fails_is_named_in_one_error(tmp_path):
    path = small_notebook(tmp_path, "lesson = None", "assert 1 == 2, 'the check'")
    with pytest.raises(MavliteError, match=r"99_small(.|\n)*the check"):
        run.execute(path, preset="smoke")


def test_outputs_and_measurements_are_kept_beside_each_other(tmp_path):
    path = small_notebook(tmp_path)
    book = run.read(path)
    book.cells.append(nbformat.v4.new_code_cell("1"))
    row = {"preset": "cpu", "pretrained": True, "device": "2 cores", "minutes": 1.234, "peak_gib": 0.5}
    run.keep(path, book, row)
    run.keep(path, book, row | {"minutes": 2.0})                             # replaces
    run.keep(path, book, row | {"device": "a GPU"})                          # stands beside
    rows = notebook.read_measured(tmp_path)["99_small"]
    assert [(r["device"], r["minutes"]) for r in rows] == [("2 cores", 2.0), ("a GPU", 1.23)]
    assert len(run.read(path).cells) == 2

    printed = nbformat.v4.new_output("stream", text=f"weights in {ROOT}/runs")
    for output, complaint in ((printed, "names the folder"),
                              (nbformat.v4.new_output("stream", text="x" * run.LARGEST), "MiB")):
        before = path.read_text()
        book.cells[-1].outputs = [output]
        with pytest.raises(MavliteError, match=complaint):
            run.keep(path, book, row)
        assert path.read_text() == before


@pytest.mark.parametrize("arguments, complaint", [
    ([], "name notebooks"), (["none.ipynb"], "no such notebook"), ([str(ROOT / "README.md")], "no notebook"),
    (["none.ipynb", "--preset", "smoke", "--in-place"], "show nothing")])
def test_the_command_refuses_in_one_line(arguments, complaint, capsys):
    assert run.main(arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


# ---------------------------------------------------------------- badge and address

def project(folder, urls):
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\n' + urls)
    return folder


def test_there_is_a_badge_once_there_is_an_address(tmp_path):
    assert opening.address(project(tmp_path, "")) == ""
    published = opening.address(project(
        tmp_path, '[project.urls]\nRepository = "https://github.com/someone/mavlite/"\n'))
    cells = [{"cell_type": "markdown", "source": "# 99 Small\n\nWhat it shows."},
             {"cell_type": "code", "source": "old"}]
    for _ in range(2):                                                       # twice is once
        opening.open_with(cells, published, "notebooks/99_small.ipynb")
        title, badge, rest = cells[0]["source"].split("\n\n")
        assert (title, rest) == ("# 99 Small", "What it shows.")
        assert badge.endswith("(https://colab.research.google.com/github/someone/mavlite/blob/main/"
                              "notebooks/99_small.ipynb)")
        assert 'ADDRESS = "https://github.com/someone/mavlite"' in cells[1]["source"]
    opening.open_with(cells, "", "notebooks/99_small.ipynb")
    assert cells[0]["source"] == "# 99 Small\n\nWhat it shows." and 'ADDRESS = ""' in cells[1]["source"]
    assert opening.badge("https://codeberg.org/someone/mavlite", "x") == ""  # Colab opens GitHub's only
    with pytest.raises(MavliteError, match="setup cell"):
        opening.open_with(cells[:1], "", "x")


# ---------------------------------------------------------------- lessons

def test_the_environment_decides_and_mistakes_are_refused(monkeypatch):
    monkeypatch.delenv("MAVLITE_PRESET", raising=False)
    monkeypatch.delenv("MAVLITE_PRETRAINED", raising=False)
    lesson = notebook.start("cpu", True)
    assert (lesson.preset, lesson.pretrained) == ("cpu", True) and notebook.start("cpu", True) is lesson
    assert lesson.pick(smoke=1, cpu=2, t4=3) == 2
    for arguments in (("gpu", True), ("cpu", "yes")):
        with pytest.raises(MavliteError):
            notebook.start(*arguments)
    monkeypatch.setenv("MAVLITE_PRESET", "smoke")
    monkeypatch.setenv("MAVLITE_PRETRAINED", "1")
    lesson = notebook.start("cpu", False)                    # no shipped weights have the smoke sizes
    assert (lesson.preset, lesson.pretrained) == ("smoke", False)
    assert lesson.config("decoder").data.sizes == [16, 24, 32]


def test_a_stage_is_trained_after_the_stages_it_needs():
    assert notebook.with_sources(["decoder"]) == ["clip", "decoder"]
    assert notebook.with_sources(["interpolation"]) == ["clip", "decoder", "decoder_t", "interpolation"]
    assert notebook.with_sources(["sr_l_t"]) == ["sr_l", "sr_l_t"]
    with pytest.raises(MavliteError, match="unknown stage 'sr'"):
        notebook.with_sources(["sr"])


def test_a_lesson_trains_once_and_counts_right(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lesson = notebook.Lesson("smoke", True)
    assert lesson.runs.is_relative_to(tmp_path)              # never into a repository it was not started in
    network = lesson.network("decoder")
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) == lesson.parameters("decoder")
    assert str(tmp_path) not in capsys.readouterr().out
    again = notebook.Lesson("smoke", False).network("decoder")
    assert "steps of" not in capsys.readouterr().out         # taken from the run folder
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters()))


def test_without_a_repository_the_way_out_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    with pytest.raises(MavliteError, match="clone"):
        notebook.Lesson("t4", False).config("decoder")
    assert notebook.Lesson("t4", True).config("decoder").stage == "decoder"  # shipped weights bring their own


def test_the_header_says_what_was_measured(monkeypatch, tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "measured.json").write_text(json.dumps({"99_small": [
        {"preset": "t4", "pretrained": False, "device": "a GPU", "minutes": 12.3, "peak_gib": 3.21}]}))
    shown = []
    monkeypatch.setattr(notebook, "display", lambda markdown: shown.append(markdown.data))
    lesson = notebook.Lesson("smoke", False)
    parameters = lesson.parameters("sr_l")
    lesson.header("99_small", "sr_l")
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    monkeypatch.setattr(lesson, "parameters", lambda stage: parameters)
    lesson.header("99_small", *CASCADE)
    lesson.header("98_none")
    assert "12.3" not in shown[0] and f"| {parameters:,} |" in shown[0]
    assert "| t4, everything trained, a GPU | 12.3 | 3.2 GiB |" in shown[1]
    nothing = ["| cpu, 2 CPU cores | not measured yet |", "| t4, a T4-class GPU | not measured yet |"]
    assert [row in shown[1] for row in nothing] == [True, False]             # said of what is missing, only
    assert [row in shown[2] for row in nothing] == [True, True]


def test_pictures_of_every_kind(monkeypatch):
    from mavlite.teaching import pictures
    monkeypatch.setattr(pictures.plt, "show", lambda: None)
    shown = []
    monkeypatch.setattr(pictures, "display", shown.append)
    notebook.show(torch.rand(3, 1, 8, 8), torch.rand(1, 3, 16, 16), titles=list("abcd"), columns=2)
    assert len(pictures.plt.gcf().axes) == 4 and not shown
    notebook.strip(torch.rand(2, 1, 16, 8, 8), titles=["first", "second"])
    pictures.plt.close("all")

    slow = torch.zeros(1, 1, 2, 8, 8)
    slow[:, :, 1] = 1
    notebook.show(Video(slow, fps=2.0), Video(torch.rand(2, 1, 8, 16, 16), fps=8.0, prompts=["a", "b"]),
                  titles=["slow", "a", "b"])
    import imageio.v3
    frames = imageio.v3.imread(shown[0].data, extension=".gif")
    corner = frames[:, pictures.CAPTION + 4, 4].reshape(8, -1)[:, 0]
    assert corner.tolist() == [0] * 4 + [255] * 4            # a second: a slow frame lasts four fast ones
    for wrong in (torch.rand(8, 8), torch.rand(1, 2, 8, 8)):
        with pytest.raises(ValueError, match="frames are"):
            notebook.show(wrong)
    with pytest.raises(ValueError, match="2 titles for 1"):
        notebook.show(torch.rand(1, 1, 8, 8), titles=["a", "b"])
