"""Pictures and videos from outside: what comes back, and one clear line for what cannot be read."""

import pickle
import struct
import time
import zlib

import imageio.v3
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from mavlite import inputs
from mavlite.errors import MavliteError
from mavlite.inputs import read_image, read_video
from mavlite.video import Video


def strokes(size=64):
    """Two thick strokes, white on black, as no square or mirrored picture: uint8 (size, size)."""
    y, x = np.mgrid[:size, :size] * (64 / size)
    ring = abs(np.hypot(y - 20, x - 20) - 9)                 # a zero
    bar = np.where(abs(y - 42) < 13, abs(x - 46 + (y - 42) * 0.2), 99)               # a one
    return (255 * (3.5 - np.minimum(ring, bar)).clip(0, 1)).astype(np.uint8)


def clip(f=6, size=64):
    """The strokes on their way down, with pixels of all grey levels: uint8 (f, size, size)."""
    frames = np.stack([np.roll(strokes(size), i, axis=0) for i in range(f)])
    return np.maximum(frames, (frames > 0) * np.arange(size, dtype=np.uint8))


def as_float(array):
    return torch.from_numpy(array).float() / 255


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def write_video(path, frames, fps=10.0, **options):
    return Video(as_float(frames)[None, None], fps).save(path, **options)


# --- pictures

@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".webp", ".npy"])
def test_a_picture_of_the_right_size_stays_bit_for_bit(tmp_path, suffix):
    levels, path = np.maximum(strokes(), np.arange(64, dtype=np.uint8) // 6), tmp_path / f"a{suffix}"
    np.save(path, levels) if suffix == ".npy" else save(path, levels, lossless=True)
    image = read_image(path, 64)
    assert image.dtype == torch.float32 and image.shape == (1, 64, 64)
    assert torch.equal(image[0], as_float(levels))
    assert torch.equal(read_image(path, 64, channels=3), as_float(levels).expand(3, 64, 64))


def test_the_suffix_may_be_wrong_or_missing(tmp_path):
    save(tmp_path / "a.png", strokes())
    (tmp_path / "a.png").rename(tmp_path / "a")
    assert torch.equal(read_image(str(tmp_path / "a"), 64)[0], as_float(strokes()))


def test_every_grey_level_and_every_16_bit_level_is_exact(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = save(tmp_path / "a.png", levels)
    assert torch.equal(read_image(path, 16, invert="never")[0], as_float(levels))
    deep = levels.astype(np.uint16) * 257 - (levels > 0)
    image = read_image(save(tmp_path / "deep.png", deep), 16, invert="never")
    assert torch.equal(image[0], torch.from_numpy(deep.astype(np.float32)) / 65535)


def test_colour_becomes_luminance_or_stays(tmp_path):
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[4:8, :, 0], colour[8:10, :, 1], colour[10:12, :, 2] = 255, 255, 255
    full = Image.fromarray(colour)
    for image in (full, full.convert("P", palette=Image.Palette.ADAPTIVE)):
        image.save(tmp_path / "a.png")
        rows = read_image(tmp_path / "a.png", 16)[0, :, 5]
        assert rows[[0, 5, 9, 11]].tolist() == pytest.approx([0, 0.299, 0.587, 0.114], abs=1e-6)
        kept = read_image(tmp_path / "a.png", 16, channels=3)
        assert torch.equal(kept, as_float(colour).permute(2, 0, 1))


def test_transparency_is_black_behind_light_ink(tmp_path):
    picture = np.full((32, 32, 4), 255, np.uint8)
    picture[..., 3] = 0
    picture[8:16, 8:16, 3], picture[20:24, 8:16, 3] = 255, 51
    for array in (picture, picture[..., [0, 3]]):
        image = read_image(save(tmp_path / "a.png", np.ascontiguousarray(array)), 32)[0]
        assert image.sum() == pytest.approx(64 + 32 * 0.2, abs=1e-4)
        assert image[8:16, 8:16].min() == 1 and image[22, 10] == pytest.approx(0.2)
    index = Image.fromarray((picture[..., 3] == 255).astype(np.uint8))
    index.putpalette([200, 200, 200, 255, 255, 255])
    index.save(tmp_path / "p.gif", transparency=0)
    assert torch.equal(read_image(tmp_path / "p.gif", 32)[0], as_float(picture[..., 3]).floor())


@pytest.mark.parametrize("colour", [0, 60])
def test_dark_ink_on_a_transparent_ground(tmp_path, colour):
    ink = as_float(strokes())
    picture = np.full((64, 64, 4), colour, np.uint8)
    picture[..., 3] = strokes()
    picture[strokes() == 0, :3] = 255                        # what nobody sees must not matter
    grey = Image.fromarray(picture).convert("LA")
    palette = Image.fromarray((strokes() > 127).astype(np.uint8))
    palette.putpalette([9, 200, 9, colour, colour, colour])
    for name, image, expected in (("a.png", Image.fromarray(picture), ink), ("a.webp", grey, ink),
                                  ("g.png", grey, ink), ("p.png", palette, (ink > 0.5).float())):
        image.save(tmp_path / name, **({"transparency": 0} if name == "p.png" else {"lossless": True}))
        for invert in ("auto", "always"):
            assert (read_image(tmp_path / name, 64, invert=invert)[0] - expected).abs().max() < 0.02
        assert read_image(tmp_path / name, 64, invert="never").max() <= colour / 255 + 1e-6
    pages = [Image.fromarray(np.roll(picture, k, axis=1)) for k in range(3)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=40, disposal=2)
    frames = read_video(tmp_path / "a.gif", 64)[0][0]
    for k in range(3):                                       # a GIF's alpha is 0 or 1
        assert ((frames[k] > 0.5) != (ink.roll(k, dims=1) > 0.5)).float().mean() < 0.03


@pytest.mark.parametrize("kind", ["CMYK", "YCbCr", "L"])
def test_jpeg_of_every_colour_model(tmp_path, kind):
    Image.fromarray(255 - strokes()).convert("RGB").convert(kind).save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg", 64)[0]
    assert (image - as_float(strokes())).abs().mean() < 0.02


@pytest.mark.parametrize("h, w", [(32, 64), (64, 24)])
def test_what_is_not_square_is_padded_not_cropped_or_stretched(tmp_path, h, w):
    array = np.full((h, w), 51, np.uint8)
    array[h // 4:h - h // 4, w // 4:w - w // 4] = 255
    top, left = (64 - h) // 2, (64 - w) // 2
    expected = np.pad(array, [(top, top), (left, left)], constant_values=51)
    given = save(tmp_path / "a.png", array)
    assert torch.equal(read_image(given, 64, invert="never")[0], as_float(expected))
    half = read_image(given, 32, invert="never")[0]
    smaller = as_float(expected).unflatten(0, (32, 2)).unflatten(2, (32, 2)).mean((1, 3))
    assert (half - smaller).abs().max() < 1e-6
    for path in (given, save(tmp_path / "b.png", 255 - array)):                      # and dark on light
        image = read_image(path, 64)[0]                      # black around
        assert (image - (as_float(expected) - 0.2) / 0.8).abs().max() < 0.01


def test_photos_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                         # held on its side
    array = np.zeros((40, 24), np.uint8)
    array[:8] = 200
    path = save(tmp_path / "a.jpg", array, exif=exif)
    image = read_image(path, 40)[0]
    assert image[20, 36] > 0.7 and image[12, 2] < 0.1 and image[2].max() < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_every_way_of_holding_a_camera(tmp_path, orientation, suffix):
    stored = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
              6: np.rot90, 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, 3)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(strokes(256))))
    image.save(tmp_path / f"a{suffix}", exif=exif, quality=95)
    upright = read_image(save(tmp_path / "b.png", strokes(256)), 64)
    assert (read_image(tmp_path / f"a{suffix}", 64) - upright).abs().mean() < 0.01


def test_a_phones_picture_with_another_one_inside(tmp_path):
    page = Image.fromarray(255 - strokes(256)).convert("RGB")
    page.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[page.resize((64, 64))], quality=95)
    assert (read_image(tmp_path / "a.jpg", 64)[0] - as_float(strokes())).abs().mean() < 0.02


# --- sizes

@pytest.mark.parametrize("source", [128, 192, 256, 448])
def test_enlarged_by_a_whole_factor_comes_back_exactly(tmp_path, source):
    levels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    large = levels.repeat(source // 64, axis=0).repeat(source // 64, axis=1)
    image = read_image(save(tmp_path / "a.png", large), 64, invert="never")
    assert torch.equal(image[0], as_float(levels))


def test_shrinking_takes_exact_areas(tmp_path):
    row = np.array([0, 30, 60, 90] * 4, np.uint8)            # 16 -> 12: 4 pixels of 1 become 3 of 4/3
    image = read_image(save(tmp_path / "a.png", np.tile(row, (16, 1))), 12, invert="never")[0]
    assert (image[5] * 255).tolist() == pytest.approx([7.5, 45, 82.5] * 4, abs=1e-4)


def test_enlarging_is_smooth_centred_and_in_range(tmp_path):
    image = read_image(save(tmp_path / "a.png", strokes(16)), 64)[0]
    assert 0 <= image.min() and image.max() <= 1
    small = image.unflatten(0, (16, 4)).unflatten(2, (16, 4)).mean((1, 3))
    assert (small - as_float(strokes(16))).abs().mean() < 0.04
    path = save(tmp_path / "b.png", np.tile(np.arange(0, 128, 8, dtype=np.uint8), (16, 1)))
    ramp = read_image(path, 64, invert="never")[0]
    assert (ramp[32, 8:-8].diff() * 255).tolist() == pytest.approx([2.0] * 47, abs=1e-3)


@pytest.mark.parametrize("name, mode, w, h", [
    ("a.jpg", "L", 6000, 4500), ("a.jpg", "RGB", 1500, 9000), ("a.png", "P", 9990, 1600),
    ("a.png", "LA", 4100, 3000), ("deep.png", "I;16", 5000, 1000)])
def test_a_large_photo_is_reduced(tmp_path, name, mode, w, h):
    side = min(w, h)
    page = np.full((h, w), 255, np.uint8)
    top, left = (h - side) // 2, (w - side) // 2
    drawn = Image.fromarray(255 - strokes(256)).resize((side, side))
    page[top:top + side, left:left + side] = np.asarray(drawn)
    deep = mode == "I;16"
    image = Image.fromarray(page.astype(np.uint16) * 257) if deep else Image.fromarray(page).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 3                                         # upside down
    image.save(tmp_path / name, exif=exif)
    small = save(tmp_path / "small.png", np.asarray(Image.fromarray(page).reduce(10).rotate(180)))
    difference = (read_image(tmp_path / name, 64) - read_image(small, 64)).abs()
    assert difference.mean() < 0.003 and read_image(small, 64).mean() > 0.003


# --- dark on light

def test_dark_on_light_is_recognised(tmp_path):
    path = save(tmp_path / "a.png", 255 - strokes())
    assert (read_image(path, 64)[0] - as_float(strokes())).abs().max() < 0.01
    assert torch.equal(read_image(path, 64, invert="never")[0], as_float(255 - strokes()))
    assert (read_image(path, 64, channels=3) - as_float(strokes())).abs().max() < 0.01
    white = save(tmp_path / "b.png", strokes())
    assert torch.equal(read_image(white, 64)[0], as_float(strokes()))
    for invert, level in (("auto", 0.95), ("always", 0.95), ("never", 0.05)):
        for paper in (120, 50):                              # dark on 0.47, and on 0.2
            grey = save(tmp_path / "c.png", (paper - strokes() * 0.9 * paper / 255).astype(np.uint8))
            assert read_image(grey, 64, invert=invert)[0, 20, 11] == pytest.approx(level, abs=0.06)


@pytest.mark.parametrize("board, share", [(50, 0.4), (80, 0.5), (0, 0.11), (0, 0.3)])        # chalk; faint
def test_light_on_grey_and_faint_strokes_become_white_on_black(tmp_path, board, share):
    levels = (board + strokes() * share).astype(np.uint8)
    light = save(tmp_path / "a.png", levels)
    assert (read_image(light, 64)[0] - as_float(strokes())).abs().max() < 0.04
    assert torch.equal(read_image(light, 64, invert="never")[0], as_float(levels))


def test_what_is_bright_on_black_stays_as_it_is(tmp_path):
    for peak in (0.51, 0.8, 1.0):
        levels = (strokes() * peak).astype(np.uint8)
        assert torch.equal(read_image(save(tmp_path / "a.png", levels), 64)[0], as_float(levels))


def test_a_board_is_taken_off_under_a_lamp(tmp_path):
    y, x = np.mgrid[0:1:64j, 0:1:64j]
    board = 0.3 - 0.15 * x - 0.05 * y
    levels = (255 * (board + (0.9 - board) * strokes() / 255)).astype(np.uint8)
    image = read_image(save(tmp_path / "a.png", levels), 64)[0]
    assert (image - as_float(strokes())).abs().max() < 0.1 and image.median() == 0


def test_the_border_decides_even_if_strokes_fill_the_picture(tmp_path):
    array = np.full((64, 64), 255, np.uint8)
    array[:3], array[-3:], array[:, :3], array[:, -3:] = 0, 0, 0, 0
    assert torch.equal(read_image(save(tmp_path / "a.png", array), 64)[0], as_float(array))


LIGHTS = {                                   # on a page whose shorter side is 1: y and x to light
    "lamp": lambda y, x: 0.85 - 0.15 * x - 0.1 * y * y,
    "dim": lambda y, x: 0.42 - 0.1 * x - 0.12 * y,
    "strong": lambda y, x: 0.95 - 0.55 * x,
    "vignette": lambda y, x: 0.85 - 0.9 * ((y - 0.5)**2 + (x - 0.65)**2),
    "soft shadow": lambda y, x: 0.85 - 0.35 / (1 + np.exp(-(x + 0.3 * y - 0.8) / 0.05)),
    "hard shadow": lambda y, x: np.where(x - 0.4 * y > 0.55, 0.45, 0.85),
}


def photo(generator, h=300, w=400, light="lamp"):
    """Pen on rough paper, noise of 0.03, under one of LIGHTS; (uint8 (h, w), where ink is)."""
    page = np.zeros((h, w))
    side = min(h, w)
    drawn = Image.fromarray(strokes()).resize((side, side))
    page[:, (w - side) // 2:(w + side) // 2] = np.asarray(drawn) / 255
    y, x = np.mgrid[:h, :w] / side
    rough = generator.standard_normal((h // 6 + 1, w // 6 + 1)).repeat(6, axis=0).repeat(6, axis=1)[:h, :w]
    seen = LIGHTS[light](y, x) * (1 - 0.75 * page) * (1 + 0.015 * rough)
    seen += 0.03 * generator.standard_normal((h, w))
    return (seen.clip(0, 1) * 255).astype(np.uint8), page


@pytest.mark.parametrize("channels, light", [(3, "lamp"), *((1, light) for light in LIGHTS)])
def test_a_photo_of_paper(tmp_path, channels, light):
    picture, page = photo(np.random.default_rng(0), light=light)
    if channels == 3:                                        # yellowish paper
        picture = (picture[..., None] * [1.0, 0.95, 0.8]).astype(np.uint8)
    image = read_image(save(tmp_path / "a.jpg", picture, quality=90), 64, channels)
    ink = read_image(save(tmp_path / "ink.png", (page * 255).astype(np.uint8)), 64)[0]
    for plane in image:
        paper, drawn = plane[ink < 0.01], plane[ink > 0.95]
        assert paper.mean() < 0.01 and paper.quantile(0.99) < (0.2 if light == "hard shadow" else 0.1)
        assert drawn.min() > 0.6 and drawn.mean() > 0.85


def test_blank_paper_stays_blank(tmp_path):
    generator = np.random.default_rng(0)
    noise = (200 + 8 * generator.standard_normal((128, 128))).clip(0, 255).astype(np.uint8)
    assert read_image(save(tmp_path / "a.png", noise), 64).mean() < 0.01
    assert read_image(save(tmp_path / "b.png", np.full((64, 64), 255, np.uint8)), 64).abs().max() < 1e-6


def test_one_decision_for_a_whole_video(tmp_path):
    frames = clip()
    frames[2] = 255                                          # a flash
    np.save(tmp_path / "a.npy", frames)
    assert torch.equal(read_video(tmp_path / "a.npy", 64)[0][0], as_float(frames))
    np.save(tmp_path / "b.npy", 255 - frames)
    back = read_video(tmp_path / "b.npy", 64)[0][0]
    assert (back - as_float(frames)).abs().max() < 0.03


# --- videos

@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("suffix", [".gif", ".npy"])
def test_own_videos_come_back_exactly(tmp_path, suffix, size):
    path = write_video(tmp_path / f"a{suffix}", clip(size=size))                     # a GIF of 256 px
    frames, fps = read_video(path, size)
    assert frames.dtype == torch.float32 and torch.equal(frames, as_float(clip(size=size))[None])
    assert fps == (10 if suffix == ".gif" else None)
    assert torch.equal(read_video(path, size, channels=3)[0], frames.expand(3, -1, -1, -1))
    assert torch.equal(read_image(path, size), frames[:, 0])


@pytest.mark.parametrize("fps", [10.0, 30.0])
def test_frames_that_a_gif_merges_come_back(tmp_path, fps):
    frames = clip(12)[[0, 1, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5]]
    path = write_video(tmp_path / "a.gif", frames, fps, scale=1)
    assert len(list(imageio.v3.imiter(path))) < 16
    back, rate = read_video(path, 64)
    assert torch.equal(back[0], as_float(frames)) and rate == pytest.approx(fps, rel=0.01)


def test_a_gif_of_no_regular_rate_keeps_its_frames_in_proportion(tmp_path):
    pages = [Image.fromarray(frame) for frame in clip(4)]
    times = [1010, 2370, 4150, 3030]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=times)
    frames, fps = read_video(tmp_path / "a.gif", 64, max_frames=20)
    assert torch.equal(frames[0], as_float(clip(4))[[0, 1, 1, 2, 2, 2, 2, 3, 3, 3]])
    assert fps == pytest.approx(1, abs=0.06)


def test_a_colour_gif_with_transparency(tmp_path):
    pages = []
    for i in range(3):
        page = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        page.paste((255, 0, 0, 255), (8 * i, 8, 8 * i + 8, 24))
        pages.append(page)
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=40, disposal=2)
    frames, fps = read_video(tmp_path / "a.gif", 32, invert="never")
    assert frames.shape == (1, 3, 32, 32) and fps == 25
    for i in range(3):
        assert frames[0, i, 8:24, 8 * i:8 * i + 8].min() == pytest.approx(0.299, abs=1e-5)
        assert frames[0, i].sum() == pytest.approx(0.299 * 128, abs=1e-2)


@pytest.mark.parametrize("fps", [6.0, 30.0])
def test_mp4_round_trip(tmp_path, fps):
    path = write_video(tmp_path / "a.mp4", clip(), fps)
    frames, rate = read_video(path, 64)
    assert rate == pytest.approx(fps, abs=0.01) and frames.shape == (1, 6, 64, 64)
    assert (frames[0] - as_float(clip())).abs().mean() < 0.005   # a shift by a frame gives 0.023
    assert torch.equal(read_image(path, 64), frames[:, 0])


@pytest.mark.parametrize("shape", [(5, 20, 12, 3), (5, 20, 12, 1), (5, 20, 12)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_npy_of_every_shape_and_kind(tmp_path, shape, kind):
    array = np.random.default_rng(0).integers(0, 100, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", array if kind is np.uint8 else array.astype(kind) / 255)
    frames, fps = read_video(tmp_path / "a.npy", 20, channels=3, invert="never")
    expected = as_float(array if len(shape) == 4 else array[..., None]).permute(3, 0, 1, 2)
    assert fps is None and torch.equal(frames[..., 4:16], expected.expand(3, -1, -1, -1))


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    path = save(tmp_path / "a.png", strokes())
    frames, fps = read_video(path, 64)
    assert frames.shape == (1, 1, 64, 64) and fps is None
    with pytest.raises(MavliteError, match="1 frame.*2 or more"):
        read_video(path, 64, min_frames=2)


@pytest.mark.parametrize("suffix", [".gif", ".npy", ".mp4"])
def test_too_many_frames(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", clip(), scale=1)
    assert read_video(path, 64, max_frames=6, min_frames=6)[0].shape[1] == 6
    with pytest.raises(MavliteError, match="more than 5 frames"):
        read_video(path, 64, max_frames=5)


@pytest.mark.parametrize("suffix", [".gif", ".npy", ".mp4"])
def test_too_many_pixels_are_refused_before_one_is_decoded(tmp_path, suffix, monkeypatch):
    path = write_video(tmp_path / f"a{suffix}", clip(), scale=1)
    size = {".gif": 6, ".npy": 6, ".mp4": 5}[suffix] * 64 * 64           # an MP4 gives its length roughly
    monkeypatch.setattr(inputs, "MAX_PIXELS", size)
    assert read_image(path, 64).shape == (1, 64, 64)         # of one frame there are not
    monkeypatch.setattr(inputs, "MAX_PIXELS", size - 1)
    monkeypatch.setattr(inputs, "_planes", None)
    with pytest.raises(MavliteError, match="pixels"):
        read_video(path, 64)


def test_ffmpeg_decodes_no_frame_that_is_too_large(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", clip(), scale=1)
    monkeypatch.setattr(inputs, "MAX_PHOTO_PIXELS", 64 * 64 - 1)
    with pytest.raises(MavliteError, match="damaged"):       # not by its size, which nobody came to know
        read_video(path, 64)


def test_a_file_may_hold_more_than_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_PIXELS", 5 * 64 * 64)
    pages = [(page, None) for page in clip()]
    monkeypatch.setattr("mavlite.inputs._decode", lambda path, limit: iter(pages))
    with pytest.raises(MavliteError, match="pixels"):
        read_video(save(tmp_path / "a.png", strokes()), 64)


def test_a_home_that_does_not_exist():
    with pytest.raises(MavliteError, match="it is missing"):
        read_image("~nobody-of-this-name/a.png", 64)


def test_a_gif_that_stands_still_for_minutes(tmp_path):
    pages = [Image.fromarray(frame) for frame in clip(3)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=[20, 600_000, 20])
    with pytest.raises(MavliteError, match="more than 4000 frames"):
        read_video(tmp_path / "a.gif", 64)


# --- files that cannot be read

def png_header(w, h):
    """A PNG that says how large it is and then holds next to nothing."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)) \
        + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def npy(array):
    return lambda path: np.save(path, array)


def mp4_of(w, h):
    def write(path):
        writer = imageio_ffmpeg.write_frames(str(path), (w, h), codec="mpeg4", macro_block_size=1)
        writer.send(None)
        writer.send(bytes(3 * w * h))
        writer.close()
    return write


def npz(path):
    with open(path, "wb") as file:
        np.savez(file, strokes())


def cut(array):
    def write(path):
        np.save(path, array)
        path.write_bytes(path.read_bytes()[:-9])
    return write


FAULTS = {
    "missing.png": (lambda path: None, "it is missing"),
    "folder.png": (lambda path: path.mkdir(), "it is no file"),
    "empty.png": (b"", "empty"),
    "text.png": (b"these are not pixels\n" * 50, "damaged"),
    "text.mp4": (b"these are not pixels\n" * 50, "damaged"),
    "text.txt": (b"these are not pixels\n" * 50, "damaged"),             # ffmpeg would draw the letters
    "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nhttp://example.com/a.ts\n", "damaged"),
    "page.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n", "damaged"),
    "cut.png": (png_header(64, 64), "damaged"),
    "noise.jpg": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4, "damaged"),
    "noise.gif": (b"GIF89a" + bytes([64, 0, 64, 0, 0x80, 0, 0]) + bytes(range(256)), "damaged"),
    "noise.mp4": (b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40, "damaged"),
    "pickle.npy": (pickle.dumps({"frames": [1, 2]}), "damaged"),
    "objects.npy": (npy(np.array([{"a": 1}], dtype=object)), "damaged"),
    "archive.npz": (npz, "damaged"),
    "cut.npy": (cut(clip()), "damaged"),
    "header.npy": (b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order': False, "
                   b"'shape': (99999999, 4096, 4096), }".ljust(118) + b"\n", "damaged"),
    "whole.npy": (npy(clip().astype(np.int64)), "int64"),
    "complex.npy": (npy(clip().astype(complex)), "complex128"),
    "flat.npy": (npy(np.zeros(64, np.uint8)), r"shape \(64,\)"),
    "clips.npy": (npy(clip()[None, ..., None]), "save one clip"),
    "first.npy": (npy(clip()[:, None]), r"shape \(6, 1, 64, 64\)"),
    "nan.npy": (npy(np.full((2, 16, 16), np.nan, np.float32)), r"in \[0, 1\]"),
    "bright.npy": (npy(clip().astype(np.float32)), r"in \[0, 1\]"),
    "dark.npy": (npy(np.full((2, 16, 16), -0.1)), r"in \[0, 1\]"),
    "dot.png": (lambda path: save(path, np.zeros((1, 1), np.uint8)), "1 x 1 px"),
    "thin.png": (lambda path: save(path, np.zeros((7, 64), np.uint8)), "64 x 7 px"),
    "thin.npy": (npy(np.zeros((4, 64, 7), np.uint8)), "7 x 64 px"),
    "small.mp4": (mp4_of(6, 16), "6 x 16 px"),
    "wide.png": (png_header(10_000, 64), "10000 x 64 px; give one of 8 to 9999"),
    "wide.gif": (b"GIF89a\x11\x27\x40\0\0\0\0,\0\0\0\0\x11\x27\x40\0\0\x08\x01\0\0;", "10001 x 64 px"),
    "many.png": (png_header(9_999, 8_500), "80 megapixels"),
    "wide.npy": (npy(np.zeros((2, 16, 4097), np.uint8)), "4097 x 16 px"),
    "wide.mp4": (mp4_of(4112, 16), "4112 x 16 px"),
    "large.mp4": (mp4_of(8000, 4080), "8000 x 4080 px"),
    "large.png": (png_header(10_000, 10_000), "too many pixels"),
    "bomb.png": (png_header(60_000, 60_000), "too many pixels"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_files_are_refused_quickly_in_one_line(tmp_path, name):
    content, said = FAULTS[name]
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    for read in (read_image, read_video):
        start = time.perf_counter()
        with pytest.raises(MavliteError, match=said) as caught:
            read(path, 64)
        assert time.perf_counter() - start < 3
        message = str(caught.value)
        assert str(path) in message and "\n" not in message and "; " in message


def test_frames_of_different_sizes_are_refused(tmp_path, monkeypatch):
    pages = [np.zeros((16, 16), np.uint8), np.zeros((16, 24), np.uint8)]
    monkeypatch.setattr("mavlite.inputs._decode", lambda path, limit: iter([(page, None) for page in pages]))
    with pytest.raises(MavliteError, match="differ in size"):
        read_video(save(tmp_path / "a.png", strokes()), 64)


@pytest.mark.parametrize("invert", ["yes", -1, None, True])
def test_unknown_inversion(tmp_path, invert):
    path = save(tmp_path / "a.png", strokes())
    for read in (read_image, read_video):
        with pytest.raises(MavliteError, match="auto, always or never"):
            read(path, 64, invert=invert)
