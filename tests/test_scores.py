"""The README's scores are the report's."""

import json
from pathlib import Path

import pytest

from benchmarks.scores import BEGIN, END, SHOWN, insert
from mavlite.checkpoint import SHIPPED, read_record
from mavlite.stages import STAGES

ROOT = Path(__file__).parents[1]
REPORT, UNDISTILLED, FULL = (json.loads((ROOT / "docs" / name).read_text()) for name in (
    "report.json", "report-undistilled.json", "report-2048.json"))


def test_the_readme_shows_the_scores_of_the_report():
    readme = (ROOT / "README.md").read_text()
    assert insert(readme, REPORT, UNDISTILLED, FULL) == readme


def test_an_aim_is_judged_by_the_larger_report_if_it_is_of_the_same_weights():
    key, weights = ("prompt accuracy", "... SR_h: the whole cascade", "clips"), REPORT["weights"]

    def line_of(value, weights):
        rows = [{**row, "value": value} if (row["section"], row["score"], row["unit"]) == key else row
                for row in FULL["scores"]]
        shown = insert(BEGIN + END, REPORT, UNDISTILLED, FULL | {"scores": rows, "weights": weights})
        line, = (line for line in shown.splitlines() if key[1] in line)
        return shown, line

    for value, judged in ((0.949, "missed"), (0.951, "reached")):
        shown, line = line_of(value, weights)
        assert f"{value:.3f}" in line and line.endswith(f"≥ 0.95: {judged} |")
        assert "of 2048 videos | n |" in shown
    shown, line = line_of(0.949, weights | {"decoder_t": "another", "sr_h": "another"})
    assert "0.949" in line and line.endswith("≥ 0.95: reached |")        # by the smaller one
    assert "of 2048 videos, before a new decoder_t, sr_h | n |" in shown


def test_the_report_is_of_the_shipped_weights():
    shipped = {stage: read_record(SHIPPED / stage, stage)["sha256"][:12] for stage in STAGES}
    assert REPORT["weights"] == shipped and set(FULL["weights"]) == set(shipped)


def test_every_score_that_is_shown_exists():
    assert set(SHOWN) <= {(row["section"], row["score"], row["unit"]) for row in REPORT["scores"]}


def test_a_score_stands_beside_the_undistilled_cascade_s():
    row = next(row for row in UNDISTILLED["scores"] if row["score"] == "... SR_h: the whole cascade")
    shown = insert(BEGIN + END, REPORT, UNDISTILLED, FULL)
    line, = (line for line in shown.splitlines() if "... SR_h: the whole cascade" in line)
    assert line.split(" | ")[4] == f"{row['value']:.3f}"


@pytest.mark.parametrize("score", ["speed error at 6 fps", "SR_h, clean input, more than baseline"])
def test_what_counts_other_clips_is_compared_in_motion_only(score):
    row = next(row for row in UNDISTILLED["scores"] if row["score"] == score and row["unit"] != "SSIM")
    others = [{**one, "n": one["n"] + 1} if one is row else one for one in UNDISTILLED["scores"]]
    fewer = UNDISTILLED["sizes"] | {"videos": 55}
    for other, shown in ((UNDISTILLED | {"scores": others}, row["section"] == "motion"),
                         (UNDISTILLED | {"sizes": fewer}, False)):
        report = UNDISTILLED | {"scores": [row]}
        line, = (line for line in insert(BEGIN + END, report, other, FULL).splitlines() if score in line)
        assert line.split(" | ")[4] == (f"{row['value']:.3f}" if shown else "")


def test_only_what_is_between_the_marks_changes():
    text = insert(f"a\n{BEGIN}old\n{END}\nb\n", REPORT, UNDISTILLED, FULL)
    assert text.startswith(f"a\n{BEGIN}| part") and text.endswith(f"{END}\nb\n") and "old" not in text
    with pytest.raises(ValueError, match="scores"):
        insert("no marks", REPORT, UNDISTILLED, FULL)
