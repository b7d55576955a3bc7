"""`python -m benchmarks.robustness`: every line of its table holds."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits files as on Linux")
@pytest.mark.parametrize("form", ["short", pytest.param("long", marks=pytest.mark.slow)])
def test_training_and_loading_survive(form, tmp_path):
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    arguments = ["--out", tmp_path / "table.md", *["--long"] * (form == "long")]
    ended = subprocess.run([sys.executable, "-m", "benchmarks.robustness", *arguments], cwd=ROOT,
                           env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    table = (tmp_path / "table.md").read_text()
    for point in ("exact resume", "SIGKILL", "SIGTERM, Ctrl-C", "write faults", "corruption", "numerics",
                  "hostile files", "configurations", "two trainers", "offline", "determinism"):
        assert f"| {point} |" in table
