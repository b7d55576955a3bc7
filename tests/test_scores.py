"""The README's scores are the report's."""

import json
from pathlib import Path

import pytest

from benchmarks.scores import BEGIN, END, SHOWN, insert

ROOT = Path(__file__).parents[1]
REPORT, UNDISTILLED = (json.loads((ROOT / "docs" / name).read_text())
                       for name in ("report.json", "report-undistilled.json"))


def test_the_readme_shows_the_scores_of_the_report():
    readme = (ROOT / "README.md").read_text()
    assert insert(readme, REPORT, UNDISTILLED) == readme


def test_every_score_that_is_shown_exists():
    assert set(SHOWN) <= {(row["section"], row["score"], row["unit"]) for row in REPORT["scores"]}


def test_a_score_stands_beside_the_undistilled_cascade_s():
    row = next(row for row in UNDISTILLED["scores"] if row["score"] == "... SR_h: the whole cascade")
    shown = insert(BEGIN + END, REPORT, UNDISTILLED)
    line, = (line for line in shown.splitlines() if "... SR_h: the whole cascade" in line)
    assert line.split(" | ")[4] == f"{row['value']:.3f}"


def test_motion_is_compared_too_though_it_counts_other_clips_but_not_reports_of_other_sizes():
    row = next(row for row in UNDISTILLED["scores"] if row["score"] == "speed error at 6 fps")
    fewer = UNDISTILLED | {"sizes": UNDISTILLED["sizes"] | {"videos": 55}}
    for other, wanted in ((UNDISTILLED, f"{row['value']:.3f}"), (fewer, "")):
        line, = (line for line in insert(BEGIN + END, REPORT, other).splitlines()
                 if "speed error at 6 fps" in line)
        assert line.split(" | ")[4] == wanted


def test_only_what_is_between_the_marks_changes():
    text = insert(f"a\n{BEGIN}old\n{END}\nb\n", REPORT, UNDISTILLED)
    assert text.startswith(f"a\n{BEGIN}| part") and text.endswith(f"{END}\nb\n") and "old" not in text
    with pytest.raises(ValueError, match="scores"):
        insert("no marks", REPORT, UNDISTILLED)
