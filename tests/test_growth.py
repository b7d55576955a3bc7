"""The growth benchmark: the line it fits, and the whole command on smoke weights."""

import csv
import subprocess
import sys

import pytest
from conftest import ROOT


def test_the_line_is_the_best_one(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.growth import line
    assert line([16, 76, 150], [1 + 0.5 * x for x in (16, 76, 150)]) == pytest.approx((1, 0.5, 1))
    start, slope, r2 = line([0, 1, 2], [0, 1, 0])
    assert (start, slope, r2) == pytest.approx((1 / 3, 0, 0), abs=1e-9)
    assert line([1, 2, 4], [3, 3, 3]) == pytest.approx((3, 0, 1))


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_plot(smoke_weights, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "benchmarks.growth", "--weights", smoke_weights,
                               "--device", "cpu", "--out", tmp_path, *arguments], cwd=ROOT,
                              capture_output=True, text=True)
    done = run("--frames", "16", "76", "--batch", "1", "2", "--batch-frames", "16")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "growth.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frames"], row["batch"]) for row in rows] == [("16", "1"), ("76", "1"), ("16", "2")]
    for row in rows:                                         # a process of its own: PyTorch and little else
        assert 100 < float(row["peak_mib"]) < 4000 and 0 < float(row["seconds"]) < 60
        assert float(row["interpolation"]) > 0
    assert done.stdout.count("R^2") == 4 and (tmp_path / "growth.png").stat().st_size > 5000
    failed = run("--frames", "16", "20000", "--batch", "1", "2")
    assert failed.returncode != 0 and "20000 frames" in failed.stderr and "Traceback" not in failed.stderr
