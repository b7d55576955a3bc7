"""Writes a report's main scores into a text, between two marks: the README's table of scores.

    python -m benchmarks.scores docs/report.json README.md --undistilled docs/report-undistilled.json \
        --full docs/report-2048.json

docs/report-undistilled.json is the report of the cascade whose D^t, in twelve guided steps, taught the
shipped one. docs/report-2048.json is of more videos than docs/report.json. If it is of the same weights, aims
are judged by it; else its column says which stages have changed since.
"""

import argparse
import json
from pathlib import Path

from benchmarks.command import table
from mavlite.evaluation.report import source
from mavlite.options import CANDIDATES, FRAME_CANDIDATES

BEGIN, END = "<!-- scores: begin -->\n", "<!-- scores: end -->"


def at_least(offset, key=None):
    """An aim: the value is to be `offset` or more, above the row's ceiling or floor where `key` names it."""
    return lambda row: ("≥", offset + (row[key] if key else 0))


def at_most(offset, key=None, share=1.0):
    """An aim: the value is to be `offset`, plus a share of the row's ceiling or floor, or less."""
    return lambda row: ("≤", offset + (share * row[key] if key else 0))


SHOWN = {                                    # (section, score, unit): what is aimed at
    ("prompt accuracy", "real clips", "clips"): None,
    ("prompt accuracy", "true embedding, D, one frame", "clips"): at_least(-0.03, "ceiling"),
    ("prompt accuracy", f"true embedding, D, one frame, the best of {FRAME_CANDIDATES}", "clips"):
        at_least(-0.03, "ceiling"),
    ("prompt accuracy", "true embedding, D^t drawn once", "clips"): None,
    ("prompt accuracy", "prompt, P, D^t drawn once", "clips"): None,
    ("prompt accuracy", f"prompt, P, D^t, the best of {CANDIDATES}", "clips"): None,
    ("prompt accuracy", "... SR_h: the whole cascade", "clips"): at_least(0.95),
    ("prompt accuracy", "the whole cascade, frame by frame", "frames"): None,
    ("motion", "identity switches at 6 fps", "clips"): at_most(0.03, "ceiling"),
    ("motion", "changed in sight at 6 fps", "clips"): at_most(0.03, "ceiling"),
    ("motion", "third digit at 6 fps", "clips"): None,
    ("motion", "handwriting at 6 fps", "of 0 ... 1"): None,
    ("motion", "apart share at 6 fps", "frames"): None,
    ("motion", "speed error at 6 fps", "share"): at_most(0.10, "ceiling"),
    ("MM-FVD", "generated against real", "distance"): at_most(0, "floor", 0.25),
    ("MM-KVD", "generated against real", "distance"): None,
    ("frames between", "upF, skip 5, more than baseline", "dB PSNR"): at_least(6),
    ("super-resolution", "SR_l^t, clean input, more than baseline", "dB PSNR"): at_least(2),
    ("super-resolution", "SR_l^t, upF's frames, more than baseline", "dB PSNR"): None,
    ("super-resolution", "SR_h, clean input, more than baseline", "dB PSNR"): at_least(2),
    ("flicker", "SR_l^t / SR_l frame by frame", "ratio"): at_most(1),
    ("flicker", "SR_h shared / independent noise", "ratio"): at_most(1),
    ("animation", "both digits kept", "clips"): at_least(0.9),
    ("variation", "both digits kept", "clips"): at_least(0.9),
    ("interpolation", "... more than linear blend", "dB PSNR"): at_least(4),
    ("extension", "both digits, last 2.5 s of 600 frames", "clips"): at_least(0.8),
    ("extension", "both digits, last 2.5 s of 600 frames, with a prompt", "clips"): at_least(0.8),
    ("cost", "in all", "s a video"): at_most(2.5),
}


def row_of(row, aim, undistilled, full, judged):
    """A row of the report as cells of a table, with the same row of two other reports, or None.

    judged: the row that is to reach the aim.
    """
    def cell(value):
        return "" if value is None else f"{value:.3f}"
    between = "{:.3f} … {:.3f}".format(*row["interval"]) if row["interval"] else ""
    wanted = ""
    if aim is not None:
        sign, bound = aim(judged)
        reached = judged["value"] >= bound if sign == "≥" else judged["value"] <= bound
        wanted = f"{sign} {bound:.3g}: {'reached' if reached else 'missed'}"
    return [row["section"], row["score"], cell(row["value"]), between,
            cell(undistilled and undistilled["value"]), cell(row["ceiling"]), cell(row["floor"]), row["n"],
            row["unit"], cell(full and full["value"]), full["n"] if full else "", wanted]


def insert(text, report, undistilled, full):
    """The text with the table of three reports (dicts, as in report.json) between the marks.

    What takes time is of the first. Where the second looked at another number of clips there is no
    comparison, and its column stays empty; but motion is measured where digits are apart, and counts as many
    as it finds. Raises ValueError when the marks are not there. A score that the report does not have has no
    row.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no {BEGIN.strip()} ... {END}")
    rows, others, larger = ({(row["section"], row["score"], row["unit"]): row for row in one["scores"]}
                            for one in (report, undistilled, full))
    larger = {key: row for key, row in larger.items() if row["section"] != "cost"}
    same = all(undistilled["sizes"][key] == report["sizes"][key] for key in ("videos", "reference"))
    since = ", ".join(changed(full, report))
    others = {key: row for key, row in others.items() if same and key in rows
              and (row["section"] == "motion" or row["n"] == rows[key]["n"])}
    header = ["part", "score", "value", "95 % interval", "undistilled", "ceiling", "floor", "n", "unit",
              f"of {full['sizes']['videos']} videos" + (f", before a new {since}" if since else ""),
              "n", "aim"]
    shown = table(header, [row_of(rows[key], aim, others.get(key), larger.get(key),
                                  rows[key] if since else larger.get(key, rows[key]))
                           for key, aim in SHOWN.items() if key in rows])
    return before + begin + shown + "\n" + source(report) + "\n" + end + after


def changed(before, report):
    """The stages whose weights changed from one report to another, in the order of the latter."""
    return [stage for stage, checksum in report.get("weights", {}).items()
            if before["weights"].get(stage) != checksum]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("report", type=Path)
    p.add_argument("text", type=Path)
    p.add_argument("--undistilled", type=Path, required=True, help="the report to compare with")
    p.add_argument("--full", type=Path, required=True, help="a report of more videos")
    args = p.parse_args()
    reports = [json.loads(path.read_text()) for path in (args.report, args.undistilled, args.full)]
    args.text.write_text(insert(args.text.read_text(), *reports))


if __name__ == "__main__":
    main()
