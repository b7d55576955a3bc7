"""docs/applications.md: every command exists, reads what was written before, and writes what is shown."""

import re
import shlex

from conftest import ROOT

from mavlite import Video
from mavlite.cli import parser
from mavlite.inputs import read_image

PAGE = (ROOT / "docs" / "applications.md").read_text()
COMMANDS = [shlex.split(line) for block in re.findall(r"```\n(.*?)```", PAGE, re.S)
            for line in block.replace("\\\n", "").splitlines()]
SHOWN = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)


def parsed(monkeypatch):
    """(inputs, outputs) of each command, as its own parser reads them."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import pictures
    for words in COMMANDS:
        if words[0] == "mavlite":
            args = parser().parse_args(words[1:])
            made = list(args.out)
            if args.stages_out:
                names = ("decoder_t", "interpolation", "sr_l_t", "sr_h")
                made += [f"{args.stages_out}/{name}.{suffix}" for name in names for suffix in ("png", "gif")]
            given = args.inputs if args.command in ("animate", "interpolate", "vary", "extend") else []
            yield args.command, given, made
        else:
            assert words[:3] == ["python", "-m", "benchmarks.pictures"]
            args = pictures.parser().parse_args(words[3:])
            yield "pictures", [args.video], args.out


def test_what_is_read_and_shown_was_written_before(monkeypatch):
    written, commands = [], set()
    for command, given, made in parsed(monkeypatch):
        assert set(given) <= set(written), command
        assert all(path.startswith("docs/applications/") for path in made)
        written += made
        commands.add(command)
    assert {"generate", "animate", "interpolate", "vary", "extend", "morph"} <= commands
    assert len(set(written)) == len(written)                 # nothing is written twice
    assert {f"docs/{path}" for path in SHOWN} <= set(written)
    assert len(SHOWN) == len(set(SHOWN)) >= len(COMMANDS)


def test_pictures_come_back_as_the_frames_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.pictures import main
    from mavlite.digits import load_digits
    from mavlite.moving_mnist import MovingMNIST
    clip = MovingMNIST(load_digits("test", "glyphs").images).clip(0, 3, 30.0, 12)[None]
    video = Video(clip, 30.0).save(tmp_path / "v.gif")
    a, b, photo = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "photo.jpg"
    monkeypatch.setattr("sys.argv", ["pictures", str(video), "--at", "0", "10", "--out", str(a), str(b)])
    main()
    for path, k in ((a, 0), (b, 10)):
        assert (read_image(path, 64) - clip[0, :, k]).abs().max() < 0.51 / 255
    monkeypatch.setattr("sys.argv", ["pictures", str(video), "--at", "0", "--paper", "--out", str(photo)])
    main()
    made = read_image(photo, 64)
    assert (made - clip[0, :, 0]).abs().mean() < 0.02 and made[clip[0, :, 0] > 0.9].min() > 0.7
    assert capsys.readouterr().out.count("wrote") == 3
