"""Pictures and videos of one's own, made into what the stages were taught on: square, small, white on black.

Files come from anywhere, so sizes are checked before anything is decoded, frames are made small one by one
as they are read, and whatever a decoder stumbles over becomes one MavliteError that names the file.
"""

import contextlib
import logging
import os
import warnings
from itertools import islice
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from mavlite.errors import MavliteError

MIN_SIDE, MAX_SIDE = 8, 4096                 # px, of frames; larger pictures are reduced as they are read
MAX_PHOTO, MAX_PHOTO_PIXELS = 9999, 80_000_000               # a side and in all: the largest picture opened
BOARD, FAINT = 0.05, (0.02, 0.5)             # grey of a border that is not black; peak of strokes to stretch
MAX_PIXELS = 2**31                           # of all frames that are read: half a minute of HD video
# Not all that Pillow and ffmpeg could open: EPS starts Ghostscript, playlists lead to other files and hosts.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
CONTAINERS = "mov,mp4,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,ogg,h264,hevc,m4v,ivf"
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it remarks on every video held upright


def read_image(path, size, channels=1, invert="auto"):
    """A picture, or the first frame of a video, as float32 (channels, size, size) in [0, 1], white on black.

    Grey is the luminance 0.299 R + 0.587 G + 0.114 B. What is not square is padded with its background; then
    it is made smaller by exact area averages or larger by bicubic interpolation. invert: "auto" swaps dark
    and light where the digits seem dark, see `_dark_on_light`; "always"; "never". What is inverted is freed
    of its paper, see `_strokes`; with "auto", what is light on grey is freed of its board, and what is faint
    on black made bright. What is bright on black stays as it is, at size x size bit for bit. Transparent is
    black, but white behind dark ink that will be inverted.

    Raises MavliteError if the file cannot be read, or has a side outside 8 ... 9999 px or more than 80
    megapixels (videos and arrays: a side above 4096 px); nothing larger is decoded.
    """
    return _read(path, size, channels, invert, limit=1)[0][:, 0]


def read_video(path, size, channels=1, invert="auto", max_frames=4000, min_frames=1):
    """A video as (frames float32 (channels, f, size, size) in [0, 1], frames per second or None).

    Frames become what `read_image` makes of pictures; whether and how to invert is decided once for all. GIFs
    time every frame by itself: those that stay longer are repeated, so that the rate is constant. NPY files
    hold (f, h, w) or (f, h, w, c), uint8 or float in [0, 1], and know no rate.

    Raises MavliteError as `read_image` does, and for less than min_frames or more than max_frames frames, or
    if they hold more than 2^31 pixels; where the file says how many there are, before any is decoded.
    """
    frames, times = _read(path, size, channels, invert, limit=max_frames + 1)
    as_is = np.ones(len(times), int), None
    repeats, fps = as_is if None in times else _constant_rate(times, max_frames)
    if repeats.sum() > max_frames:
        raise _refusal(path, f"it has more than {max_frames} frames", "cut it shorter")
    if repeats.sum() < min_frames:
        raise _refusal(path, f"it has {repeats.sum()} frame(s)", f"give a video of {min_frames} or more")
    return frames.repeat_interleave(torch.from_numpy(repeats), dim=1), fps


def _refusal(path, wrong, remedy):
    return MavliteError(f"cannot read {path}: {wrong}; {remedy}")


def _read(path, size, channels, invert, limit):
    """At most `limit` frames: (frames (c, f, size, size), milliseconds of each, or None)."""
    if invert not in ("auto", "always", "never"):
        raise MavliteError(f"invert must be auto, always or never, not {invert!r}")
    path, shapes, frames, levels, times = Path(os.path.expanduser(path)), set(), [], [], []
    behind = {"always": 1, "never": 0}.get(invert)           # what shows where a picture is transparent
    pixels = 0
    with contextlib.closing(_pictures(path, limit)) as pictures:
        for picture, milliseconds in islice(pictures, limit):
            pixels += picture.shape[0] * picture.shape[1]    # a file may hold more than it says
            _check_total(path, 0, limit, pixels)
            behind = _behind(picture) if behind is None else behind
            planes = _planes(picture, channels, behind or 0)
            shapes.add(planes.shape[1:])
            if len(shapes) > 1:
                raise _refusal(path, "its frames differ in size", "make them alike")
            frames.append(_fit(planes, size))
            k = max(1, min(planes.shape[1:]) // 16)          # px, how wide the border is
            border = planes[:, :k], planes[:, -k:], planes[:, :, :k], planes[:, :, -k:]
            levels.append(np.median(np.concatenate([edge.ravel() for edge in border])))
            times.append(milliseconds)
    if not frames:
        raise _refusal(path, "it holds no frame", "give a picture or a video")
    frames, level = np.stack(frames, axis=1), np.float32(np.median(levels))
    covered = _fit(np.ones((1, *shapes.pop()), np.float32), size)[0].clip(0, 1)      # s s, 0 where padded
    whole = frames / np.maximum(covered, 1e-3)               # where covered in part, as bright as the rest
    if invert == "always" or (invert == "auto" and _dark_on_light(whole, covered, level)):
        frames = _strokes(1 - whole, covered)
    elif invert == "auto" and level > BOARD:
        frames = _strokes(whole, covered)
    else:
        frames = frames + level * (1 - covered)
        if invert == "auto" and FAINT[0] < frames.max() < FAINT[1]:
            frames = frames / np.quantile(frames[frames > frames.max() / 3], 0.95)
    return torch.from_numpy(frames.clip(0, 1)), times


def _constant_rate(times, limit):
    """Milliseconds of each frame -> (how often to show each, frames per second)."""
    times = np.array(times)
    for count in range(len(times), limit + 1):               # the fewest frames that fit
        period = times.sum() / count
        repeats = np.rint(times / period).clip(1)
        if abs(times - repeats * period).max() <= 10:        # 30 fps are 30, 40, 30 ms in a GIF
            break
    else:
        repeats = np.rint(times / times.min())
    return repeats.astype(int), round(1000 * repeats.sum() / times.sum(), 3)


def _pictures(path, limit):
    """Yields (picture, milliseconds or None); (h, w) or (h, w, c) uint8, int32 to 65535, or float to 1.

    limit: how many of them will be taken.
    """
    try:
        if not path.is_file() or path.stat().st_size == 0:
            wrong = "it is empty" if path.is_file() else "it is no file" if path.exists() else "it is missing"
            raise _refusal(path, wrong, "name a picture or a video")
        yield from _decode(path, limit)
    except MavliteError:
        raise
    except Exception as error:               # decoders raise almost anything over a broken file
        wrong = getattr(error, "strerror", None) or "it is damaged, or in no known format"
        raise _refusal(path, wrong, "give a PNG, JPEG, GIF, BMP, WebP, NPY or MP4 file") from error


def _decode(path, limit):
    """What the file holds decides how it is read, not what it is called."""
    with open(path, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            return _decode_array(path, limit)
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            return _decode_image(path, Image.open(path, formats=FORMATS), limit)
    except UnidentifiedImageError:
        return _decode_video(path, limit)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _refusal(path, "it has too many pixels", f"give at most {MAX_PHOTO} px a side and "
                       f"{MAX_PHOTO_PIXELS / 1e6:g} megapixels") from error


def _check_sides(path, h, w, most=MAX_SIDE):
    if min(h, w) < MIN_SIDE or max(h, w) > most:
        raise _refusal(path, f"it is {w} x {h} px", f"give one of {MIN_SIDE} to {most} px a side")
    if h * w > MAX_PHOTO_PIXELS:
        raise _refusal(path, f"it is {w} x {h} px", f"give at most {MAX_PHOTO_PIXELS / 1e6:g} megapixels")


def _check_total(path, count, limit, pixels):
    """count: the frames that the file says it has; pixels: in those of them that will be read."""
    if limit > 1 and count >= limit:
        raise _refusal(path, f"it has more than {limit - 1} frames", "cut it shorter")
    if pixels > MAX_PIXELS:
        raise _refusal(path, f"its frames hold more than {MAX_PIXELS:,} pixels", "make it smaller or shorter")


def _decode_array(path, limit):
    remedy = "save one clip, uint8 or float in [0, 1], of shape (f, h, w, c), (f, h, w), (h, w, c) or (h, w)"
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    axes = array.ndim - (array.ndim > 2 and array.shape[-1] in (1, 3, 4))            # without the channels
    if axes not in (2, 3) or (array.dtype != np.uint8 and array.dtype.kind != "f"):
        raise _refusal(path, f"its array is {array.dtype} of shape {array.shape}", remedy)
    frames = array if axes == 3 else array[None]
    h, w = frames.shape[1:3]
    _check_sides(path, h, w)
    _check_total(path, len(frames), limit, min(len(frames), limit) * h * w)
    for frame in frames:
        if array.dtype.kind == "f" and not (frame.min() >= 0 and frame.max() <= 1):  # false for NaN too
            raise _refusal(path, "its values are not all in [0, 1]", remedy)
        yield np.asarray(frame), None


def _decode_image(path, image, limit):
    with image:
        moves = getattr(image, "is_animated", False)
        if moves and limit > 1:
            _check_total(path, image.n_frames, limit, image.n_frames * image.height * image.width)
        for frame in ImageSequence.Iterator(image):
            _check_sides(path, frame.height, frame.width, MAX_PHOTO) # every one, since a GIF can grow
            delay = frame.info.get("duration") or 0          # ms; viewers take what is below 20 for 100
            if not moves:                                    # JPEG: decoded to 1/2, 1/4 or 1/8 at once
                frame.draft(None, (frame.width // _share(frame), frame.height // _share(frame)))
            clear = frame.mode in ("LA", "PA", "RGBA") or "transparency" in frame.info
            mode = "I" if frame.mode.startswith("I") else "RGBA" if clear else "RGB" # I: grey of 16 bits
            still = frame if frame.mode == mode else frame.convert(mode)
            still = still.reduce(_share(still)) if _share(still) > 1 else still      # means of whole squares
            still = ImageOps.exif_transpose(still)           # phones store how they were held
            yield np.asarray(still), (delay if delay >= 20 else 100) if moves else None


def _share(image):
    """By which whole number to divide the sides so that none is above MAX_SIDE."""
    return -(-max(image.size) // MAX_SIDE)


def _decode_video(path, limit):
    safe = ["-protocol_whitelist", "file", "-format_whitelist", CONTAINERS]
    safe += ["-max_pixels", str(MAX_PHOTO_PIXELS)]           # it decodes a frame before it tells of the size
    with contextlib.closing(imageio_ffmpeg.read_frames(str(path.absolute()), input_params=safe)) as frames:
        about = next(frames)
        w, h = about["size"]
        _check_sides(path, h, w)
        count = int(0.99 * about["duration"] * about["fps"])             # for what the file says is not exact
        _check_total(path, count, limit, min(count, limit) * h * w)
        delay = 1000 / about["fps"] if about["fps"] else None
        for frame in frames:
            yield np.frombuffer(frame, np.uint8).reshape(h, w, 3), delay


def _behind(picture):
    """What to put behind a decoded picture, so that its ink shows: 1 (white), 0, or None if it has no ink."""
    if picture.ndim < 3 or picture.shape[-1] != 4 or not picture[..., 3].any():
        return None
    ink = np.average(_planes(picture[..., :3], 1)[0], weights=picture[..., 3])       # its luminance
    return int(ink < 0.5)


def _planes(picture, channels, behind=0):
    """A decoded picture -> float32 (channels, h, w) in [0, 1], `behind` where it is transparent."""
    unit = {"uint8": 255, "int32": 65535}.get(picture.dtype.name, 1)
    picture = picture if picture.ndim == 3 else picture[..., None]
    c = picture.shape[-1]
    red, green, blue = (picture[..., min(i, c - 1)].astype(np.float64) for i in range(3))
    # Whole-number weights in float64: a grey v becomes 1000 v / 1000 unit, hence v / unit exactly.
    grey = (299 * red + 587 * green + 114 * blue) / 1000
    planes = np.stack([red, green, blue] if channels == 3 else [grey])
    if c == 4:
        alpha = picture[..., 3] / unit
        return (planes / unit * alpha + behind * (1 - alpha)).astype(np.float32)
    return (planes / unit).astype(np.float32)


def _fit(planes, size):
    """(c, h, w), in the middle of a square of zeros -> (c, size, size). Linear, but for rounding."""
    (h, w), side = planes.shape[1:], max(planes.shape[1:])
    top, left = (side - h) // 2, (side - w) // 2
    if side > size:                          # exact areas; in float64, so that equal numbers keep their mean
        edges, cells = np.arange(size + 1)[:, None] * side / size, np.arange(side)
        weights = (np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)).clip(0) * size / side
        return (weights[:, top:top + h] @ planes @ weights[:, left:left + w].T).astype(np.float32)
    square = torch.from_numpy(np.pad(planes, [(0, 0), (top, side - h - top), (left, side - w - left)]))
    if side < size:
        square = F.interpolate(square[None], (size, size), mode="bicubic", antialias=True)[0]
    return square.numpy()


def _dark_on_light(frames, covered, level):
    """Whether the digits in frames (c f s s) are darker than what they stand on. level: of the border.

    A light border says so at once. A dim photo's border need not be light: there it is where what stands out
    of the background does so towards black. Below 0.1 there is no light that ink could take away.
    """
    if not 0.1 < level <= 0.5:
        return level > 0.5
    inside = covered > 0.5 * covered.max()
    usual = np.median(frames, axis=(0, 1))                                           # s s
    rest = (usual - _surface(usual, inside))[inside]
    strokes = rest[abs(rest) > max(3 * 1.4826 * np.median(abs(rest)), level / 4)]    # no noise, no stains
    return strokes.sum() < 0


def _surface(light, inside):
    """A quadratic surface (s, s) through the background of light (s, s), whatever stands out of it."""
    y, x = np.mgrid[-1:1:1j * len(light), -1:1:1j * len(light)]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)          # s s 6
    surface = np.median(light[inside])
    for _ in range(8):
        rest = abs(light - surface)
        some = inside & (rest < 3 * np.median(rest[inside]) + 0.01)
        surface = terms @ np.linalg.lstsq(terms[some], light[some], rcond=None)[0]
    return surface


def _without_strokes(light):
    """Grey opening of light (s, s): what is left when all that no square of s / 3 px fits into is taken away.

    Strokes are narrower, shadows are wider.
    """
    reach = len(light) // 6
    around = sliding_window_view(np.pad(light, 1, mode="edge"), (3, 3))              # s s 3 3
    x = torch.from_numpy(np.median(around, axis=(2, 3)))[None]                       # less noise, edges stay
    for sign in (-1, 1):                                     # the least, then the most of a square
        x = sign * F.max_pool2d(sign * x, 2 * reach + 1, 1, reach)
    return x[0].numpy()


def _strokes(frames, covered):
    """Strokes that are lighter than what they stand on (c f s s), 0 where `covered` (s, s) is -> white on
    black.

    What the board looks like without strokes: a quadratic surface through it, and the lights on that, see
    `_without_strokes`. Strokes are what share they take of the way to white,

        (seen - board) / (1 - board)

    less three standard deviations of the noise, stretched so that the brightest twentieth is 1. One board and
    one stretch for all frames. Ink on paper is chalk on a board with dark and light exchanged.
    """
    inside, result = covered > 0.5 * covered.max(), []
    for light in frames:                                     # f s s
        some = light[::max(1, len(light) // 64)]             # enough for the statistics
        usual = np.median(some, axis=0)                      # few strokes, if they move
        board = _surface(usual, inside)
        board = board + _without_strokes(usual - board)
        board = board + np.median((usual - board)[inside])   # the least of a square is below its middle
        light, some = ((x - board) / (1 - board).clip(0.1) for x in (light, some))   # f s s
        rest = some[:, inside]
        black = 3 * 1.4826 * np.median(abs(rest))            # 1.4826: from median to standard deviation
        strokes = rest[rest > black + 0.05]
        white = max(np.quantile(strokes, 0.95), black + 0.1) if strokes.size else 1  # 0.1: stains stay faint
        result.append(((light - black) / (white - black)).clip(0, 1) * covered)
    return np.stack(result).astype(np.float32)
