"""Loss curves: read, thinned, kept, drawn."""

import pytest

from mavlite.curves import keep_reference, plot_loss, read_curve, thin
from mavlite.errors import MavliteError


def write_log(folder, losses):
    folder.mkdir(exist_ok=True)
    rows = "".join(f"{10 * i + 10},{x},1\n" for i, x in enumerate(losses))
    (folder / "log.csv").write_text("step,loss,rate\n" + rows)
    return folder


def test_thinning_keeps_the_mean_and_the_last_step():
    steps, losses = thin(list(range(1, 101)), [float(x) for x in range(100)], points=10)
    assert steps == list(range(10, 101, 10)) and losses == [4.5 + 10 * k for k in range(10)]
    assert thin([1, 2], [3.0, 4.0], points=10) == ([1, 2], [3.0, 4.0])


def test_a_run_becomes_a_reference(tmp_path):
    run = write_log(tmp_path / "run", [2.0, 1.0, 0.5])
    keep_reference(run, tmp_path / "curves" / "decoder.csv")
    kept = read_curve(tmp_path / "curves" / "decoder.csv")
    assert kept == read_curve(run / "log.csv") == ([10, 20, 30], [2.0, 1.0, 0.5])


def test_the_picture(tmp_path):
    run = write_log(tmp_path / "run", [2.0, 1.0, 0.5])
    keep_reference(run, tmp_path / "decoder.csv")
    assert plot_loss(run, tmp_path / "decoder.csv").read_bytes().startswith(b"\x89PNG")


def test_a_run_too_short_for_its_log_has_no_picture(tmp_path):
    assert plot_loss(write_log(tmp_path / "run", [])) is None


@pytest.mark.parametrize("text", [
    None, "", "a,b\n1,2\n", "step,loss\n", "step,loss\none,2\n", "step,loss\n1\n"])
def test_what_is_no_curve_is_refused(tmp_path, text):
    path = tmp_path / "curve.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MavliteError, match="curve.csv"):
        read_curve(path)
