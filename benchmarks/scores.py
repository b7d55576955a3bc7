"""Writes a report's main scores into a text, between two marks: the README's table of scores.

    python -m benchmarks.scores docs/report.json README.md
"""

import argparse
import json
from pathlib import Path

from mavlite.evaluation.report import markdown
from mavlite.pipeline import CANDIDATES

BEGIN, END = "<!-- scores: begin -->\n", "<!-- scores: end -->"
SHOWN = [                                    # (section, score, unit)
    ("prompt accuracy", "real clips", "clips"),
    ("prompt accuracy", "true embedding, D, one frame", "clips"),
    ("prompt accuracy", "true embedding, D^t drawn once", "clips"),
    ("prompt accuracy", "prompt, P, D^t drawn once", "clips"),
    ("prompt accuracy", f"prompt, P, D^t, C's choice of {CANDIDATES}", "clips"),
    ("prompt accuracy", "... SR_h: the whole cascade", "clips"),
    ("motion", "identity switches at 6 fps", "clips"),
    ("motion", "speed error at 6 fps", "share"),
    ("MM-FVD", "generated against real", "distance"),
    ("frames between", "upF, skip 5", "dB PSNR"),
    ("super-resolution", "SR_l^t, clean input", "dB PSNR"),
    ("super-resolution", "SR_h, clean input", "dB PSNR"),
    ("flicker", "SR_l^t / SR_l frame by frame", "ratio"),
    ("flicker", "SR_h shared / independent noise", "ratio"),
    ("cost", "in all", "s a video"),
]


def insert(text, report):
    """The text with the table of a report (a dict, as in report.json) between the marks.

    Raises ValueError when the marks are not there. A score that the report does not have has no row.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no {BEGIN.strip()} ... {END}")
    rows = {(row["section"], row["score"], row["unit"]): row for row in report["scores"]}
    shown = [rows[key] for key in SHOWN if key in rows]
    return before + begin + markdown({**report, "scores": shown}) + end + after


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("report", type=Path)
    p.add_argument("text", type=Path)
    args = p.parse_args()
    args.text.write_text(insert(args.text.read_text(), json.loads(args.report.read_text())))


if __name__ == "__main__":
    main()
