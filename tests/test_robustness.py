"""`python -m benchmarks.robustness`: every line of its table holds, and it can be made piece by piece."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.robustness import table
from benchmarks.robustness.common import Row


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits files as on Linux")
@pytest.mark.parametrize("form", ["short", pytest.param("long", marks=pytest.mark.slow)])
def test_training_and_loading_survive(form, tmp_path):
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    arguments = ["--out", tmp_path / "table.md", *["--long"] * (form == "long")]
    ended = subprocess.run([sys.executable, "-m", "benchmarks.robustness", *arguments], cwd=ROOT,
                           env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    written = (tmp_path / "table.md").read_text()
    for point in ("exact resume", "SIGKILL", "SIGTERM, Ctrl-C", "write faults", "corruption", "numerics",
                  "hostile files", "configurations", "two trainers", "offline", "determinism"):
        assert f"| {point} |" in written
    assert "Not tried" not in written


def test_a_table_is_made_piece_by_piece(tmp_path):
    path, points = tmp_path / "table.md", ["exact resume", "SIGKILL", "offline"]
    made, row = f"python -m benchmarks.robustness --long --out {path}", ("tried", f"{tmp_path}/found", True)
    assert table.earlier(path, made, ["SIGKILL"]) == []
    first = [table.line(Row(point, *row), tmp_path) for point in ("SIGKILL", "SIGKILL", "offline")]
    table.write(path, made, first, points)
    assert "Not tried: exact resume." in path.read_text() and str(tmp_path) not in first[0]
    assert table.earlier(path, made, ["SIGKILL"]) == [first[2]]
    new = [table.line(Row("SIGKILL", "tried again", "found", False), tmp_path),
           table.line(Row("exact resume", *row), tmp_path)]
    table.write(path, made, [*table.earlier(path, made, ["SIGKILL", "exact resume"]), *new], points)
    text = path.read_text()
    assert text.splitlines()[-3:] == [new[1], new[0], first[2]] and "**NO**" in new[0]
    assert "Not tried" not in text and f"Made by `{made}`." in text


def test_pieces_of_another_command_are_not_mixed(tmp_path):
    path = tmp_path / "table.md"
    table.write(path, "python -m benchmarks.robustness --out x", [], ["SIGKILL"])
    with pytest.raises(SystemExit, match="was not made by"):
        table.earlier(path, "python -m benchmarks.robustness --long --out x", ["SIGKILL"])
