"""The table as Markdown, which may be made piece by piece."""

from pathlib import Path

HEAD = "| point | what was tried | what was found | holds |\n|---|---|---|---|"


def line(row, folder):
    """A Row as a line of the table, without the name of the folder in which it was tried."""
    found = row.found.replace(str(folder), "").replace("|", "/")
    return f"| {row.point} | {row.what} | {found} | {'yes' if row.holds else '**NO**'} |"


def _point(line):
    return line.removeprefix("| ").partition(" | ")[0]


def earlier(path, made, anew):
    """The lines of the table at path, if there is one, of all points but those that are tried anew.

    made: the command that makes the table. One made by another command, such as its short form, is refused.
    """
    if not Path(path).exists():
        return []
    lines = Path(path).read_text().splitlines()
    if f"Made by `{made}`." not in lines:
        raise SystemExit(f"{path} was not made by `{made}`; delete it or choose another --out")
    return [line for line in lines if line.startswith("| ") and _point(line) not in (*anew, _point(HEAD))]


def write(path, made, lines, points):
    """Write the lines in the order of points; points of which there is none are named as missing."""
    there = [_point(line) for line in lines]
    lines = [line for point in points for line in lines if _point(line) == point]
    missing = [point for point in points if point not in there]
    note = [f"Not tried: {'; '.join(missing)}.", ""] if missing else []
    text = ["# What training and loading survive", "", f"Made by `{made}`.", "", *note, HEAD, *lines, ""]
    Path(path).write_text("\n".join(text))
