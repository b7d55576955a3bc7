import base64
import errno
import io
import os
import re

import imageio.v2
import imageio.v3
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from mavlite import video as video_module
from mavlite.errors import MavliteError
from mavlite.video import Video, check_output_path, contact_sheet, to_uint8


def make_video(b=1, c=1, f=6, h=32, w=32, fps=10.0):
    frames = torch.rand(b, c, f, h, w, generator=torch.Generator().manual_seed(0))
    return Video(frames, fps, stages={"decoder_t": frames[:, :, ::2]}, seconds={"decoder_t": 1.5},
                 prompts=[f"{i} and two" for i in range(b)])


def mp4_rate(path):
    meta = next(imageio_ffmpeg.read_frames(str(path)))
    return meta["fps"]


# --- Video, to_uint8

def test_indexing_and_iteration():
    video = make_video(b=3)
    assert len(video) == 3 and len(list(video)) == 3
    last = video[-1]
    assert torch.equal(last.frames, video.frames[2:]) and last.prompts == ["2 and two"]
    assert torch.equal(last.stages["decoder_t"], video.stages["decoder_t"][2:])
    assert (last.fps, last.seconds) == (10.0, {"decoder_t": 1.5})
    with pytest.raises(IndexError):
        video[3]


def test_wrong_frames_are_refused():
    with pytest.raises(ValueError, match="b c f h w"):
        Video(torch.zeros(1, 6, 32, 32), 10)
    with pytest.raises(ValueError, match="fps"):
        Video(torch.zeros(1, 1, 6, 32, 32), 0)


def test_to_uint8_inverts_the_usual_scaling_and_clamps():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 255), levels)
    assert to_uint8(torch.tensor([-0.5, 1.5])).tolist() == [0, 255]


# --- formats

@pytest.mark.parametrize("b, c", [(1, 1), (1, 3), (3, 1)])
def test_npy_round_trip_is_exact(tmp_path, b, c):
    video = make_video(b=b, c=c)
    array = np.load(video.save(tmp_path / "clips.npy"))
    expected = to_uint8(video.frames).permute(0, 2, 3, 4, 1).numpy()      # b f h w c
    assert array.dtype == np.uint8
    assert np.array_equal(array, expected[0] if b == 1 else expected)


@pytest.mark.parametrize("fps, rate", [(30.0, 30.0), (6.0, 6.0), (20 / 3, 6.67)])
def test_mp4_has_every_frame_the_exact_rate_and_whole_pixels(tmp_path, fps, rate):
    video = make_video(f=16, h=64, w=64, fps=fps)
    path = video.save(tmp_path / "clip.mp4")
    frames = imageio.v3.imread(path, plugin="FFMPEG")
    assert frames.shape == (16, 256, 256, 3)
    assert mp4_rate(path) == pytest.approx(rate, abs=0.01)
    small = to_uint8(video.frames)[0, 0].numpy()
    centres = frames[:, 1::4, 1::4, 0].astype(int)
    assert np.abs(centres - small).mean() < 10        # lossy, on noise; a shift by a pixel gives about 85
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_mp4_rate_is_not_rounded_to_two_decimals(tmp_path):
    path = make_video(f=100, h=16, w=16, fps=20 / 3).save(tmp_path / "clip.mp4", scale=1)
    _, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert seconds == pytest.approx(15.0, abs=0.006)  # 14.99 at 6.67 fps


@pytest.mark.parametrize("h, w, scale", [(30, 44, 1), (33, 33, 3), (48, 48, None)])
def test_mp4_of_odd_sizes_is_bordered_not_rescaled(tmp_path, h, w, scale):
    white = Video(torch.ones(1, 1, 3, h, w), 10)
    frames = imageio.v3.imread(white.save(tmp_path / "clip.mp4", scale=scale), plugin="FFMPEG")
    factor = scale or 6                               # 6 * 48 is the first beyond 256
    assert frames.shape[1] % 16 == frames.shape[2] % 16 == 0
    assert frames.shape[1] - h * factor < 16 and frames.shape[2] - w * factor < 16
    lit = frames[0, :, :, 0] > 160
    assert abs(int(lit.any(1).sum()) - h * factor) <= 2 and abs(int(lit.any(0).sum()) - w * factor) <= 2


@pytest.mark.parametrize("c", [1, 3])
def test_gif_loops_with_every_frame_and_the_right_length(tmp_path, c):
    video = make_video(c=c, f=30, fps=30.0)
    path = video.save(tmp_path / "clip.gif", scale=2)
    frames = imageio.v3.imread(path)
    assert frames.shape == (30, 64, 64, 3)
    if c == 1:
        assert np.array_equal(frames[:, ::2, ::2, 0], to_uint8(video.frames)[0, 0].numpy())
    delays = [imageio.v3.immeta(path, index=i)["duration"] for i in range(30)]
    assert set(delays) == {30, 40} and sum(delays) == 1000
    assert imageio.v3.immeta(path)["loop"] == 0


def test_gif_delay_of_an_even_rate(tmp_path):
    path = make_video(fps=10.0).save(tmp_path / "clip.gif")
    assert [imageio.v3.immeta(path, index=i)["duration"] for i in range(6)] == [100] * 6
    assert imageio.v3.imread(path).shape == (6, 256, 256, 3)


@pytest.mark.parametrize("fps, frames, shown", [(50, 30, 30), (60, 30, 15), (150, 76, 26)])
def test_a_gif_of_a_high_rate_leaves_frames_out_and_lasts_as_long(tmp_path, fps, frames, shown):
    video = Video(torch.rand(1, 1, frames, 8, 8), fps)
    path = video.save(tmp_path / "clip.gif", scale=1)
    every = -(-frames // shown)
    assert np.array_equal(imageio.v3.imread(path)[..., 0], to_uint8(video.frames)[0, 0, ::every].numpy())
    delays = [imageio.v3.immeta(path, index=i)["duration"] for i in range(shown)]
    assert min(delays) >= 20 and sum(delays) == pytest.approx(1000 * shown * every / fps, abs=10)


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".png", ".npy"])
def test_a_single_frame_saves_in_every_format(tmp_path, suffix):
    path = make_video(f=1).save(tmp_path / f"image{suffix.upper()}")
    assert path.stat().st_size > 0


def test_several_clips_stand_in_a_grid(tmp_path):
    frames = torch.stack([torch.full((1, 4, 32, 32), value) for value in (0.2, 0.6, 1.0)])
    frames[:, :, 1::2] *= 0.9  # identical frames of a GIF would be merged into one
    page = imageio.v3.imread(Video(frames, 10).save(tmp_path / "grid.gif", scale=1))
    assert page.shape == (4, 66, 66, 3)               # 2 x 2 cells of 32 with a gap of 2
    assert [page[0, y, x, 0] for y, x in ((16, 16), (16, 50), (50, 16))] == [51, 153, 255]
    assert page[0, 50, 50, 0] == page[0, 33, 33, 0] == video_module.GAP


def test_contact_sheet_has_one_row_a_clip():
    video = make_video(b=2, f=5, h=8, w=10)
    page = contact_sheet(video.frames, scale=3, pad=2)
    assert page.dtype == np.uint8 and page.shape == (3 * (2 * 8 + 2), 3 * (5 * 10 + 4 * 2), 3)
    cell = page[3 * 10:3 * 18, 3 * 12:3 * 22]         # row 1, column 1
    assert np.array_equal(cell[::3, ::3, 0], to_uint8(video.frames)[1, 0, 1].numpy())


def test_contact_sheet_of_a_long_clip_spans_it_evenly(tmp_path):
    video = make_video(f=76, h=8, w=8)
    page = contact_sheet(video.frames, columns=4, scale=1, pad=0)
    small = to_uint8(video.frames)[0, 0].numpy()
    assert np.array_equal(page[..., 0], np.concatenate([small[i] for i in (0, 25, 50, 75)], axis=1))
    sheet = imageio.v3.imread(video.save(tmp_path / "sheet.png"))
    assert sheet.shape == (16, 2 * (16 * 8 + 15 * 2), 3)


def test_repr_html_shows_every_clip_and_escapes_its_prompt():
    video = make_video(b=2, f=4)
    video.prompts[0] = "<b>2</b> and 4"
    text = video._repr_html_()
    assert text.count("<img ") == 2 and "&lt;b&gt;2" in text and "<b>" not in text
    gifs = re.findall(r"base64,([^\"]+)\"", text)
    frames = imageio.v3.imread(io.BytesIO(base64.b64decode(gifs[0])), extension=".gif")
    assert frames.shape == (4, 192, 192, 3)
    assert video._repr_mimebundle_()["text/html"] == text
    assert "2 x 4 frames of 32x32" in repr(video)


# --- paths and failures

@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.mp4.txt"])
def test_unknown_suffix_lists_the_known_ones(tmp_path, name):
    with pytest.raises(MavliteError, match=r"\.mp4, \.gif, \.png, \.npy"):
        check_output_path(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made_and_stay_empty(tmp_path):
    path = check_output_path(str(tmp_path / "a" / "b" / "clip.mp4"))
    assert path.parent.is_dir() and list(path.parent.iterdir()) == []


def test_folder_only_for_several(tmp_path):
    assert check_output_path(tmp_path / "clips", several=True).is_dir()
    assert check_output_path(tmp_path / "clips.npy", several=True) == tmp_path / "clips.npy"
    with pytest.raises(MavliteError):
        check_output_path(tmp_path / "clips")
    (tmp_path / "odd.gif").mkdir()
    with pytest.raises(MavliteError, match="it is a folder"):
        check_output_path(tmp_path / "odd.gif")


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(MavliteError, match="taken"):
        check_output_path(tmp_path / "taken" / "clip.mp4")


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("suffix, where, name", [
    (".npy", np, "save"), (".png", imageio.v3, "imwrite"), (".gif", video_module.Path, "write_bytes"),
    (".mp4", imageio.v2, "get_writer"), (".npy", os, "replace"), (".mp4", os, "replace"),
])
@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, suffix, where, name, existing):
    path = tmp_path / f"clip{suffix}"
    if existing:
        path.write_bytes(b"precious")

    monkeypatch.setattr(where, name, disk_full)
    with pytest.raises(MavliteError, match="No space left on device") as caught:
        make_video(f=2).save(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if existing else [])
    assert not existing or path.read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", [".npy", ".gif", ".png", ".mp4"])
def test_real_full_disk(tmp_path, monkeypatch, suffix):
    """The write itself fails, half way, as on a disk that fills up: files may grow to 4 KB and no further."""
    resource = pytest.importorskip("resource")
    import signal

    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)   # then write() fails with EFBIG
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old_limit[1]))
        with pytest.raises(MavliteError) as caught:
            make_video(f=30, h=64, w=64).save(tmp_path / f"clip{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert f"clip{suffix}" in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
