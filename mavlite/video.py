"""Finished clips: saved as MP4, GIF, PNG or NumPy file, shown inline in a notebook.

Small clips are enlarged by whole factors, nearest neighbour, so that every pixel stays a sharp square.
"""

import base64
import contextlib
import html
import io
import math
import os
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import imageio.v2
import imageio.v3
import imageio_ffmpeg
import numpy as np
import torch
from einops import rearrange

from mavlite.errors import MavliteError

SUFFIXES = (".mp4", ".gif", ".png", ".npy")
GAP = 64  # the grey between the clips of a grid


@dataclass
class Video:
    """One or several finished clips.

    frames: float tensor (b c f h w) in [0, 1] on the CPU. fps: frames per second of these frames.
    stages: what the stages of the cascade made on the way, by name; tensors whose first axis is b.
    seconds: how long each stage took for all clips together. prompts: one for each clip, or empty.
    key_fps: key frames per second, of those among the stages.

    len(video) is b, video[i] is clip i alone, and iteration goes over the clips.
    """

    frames: torch.Tensor
    fps: float
    stages: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    key_fps: float | None = None

    def __post_init__(self):
        if self.frames.ndim != 5 or self.frames.shape[1] not in (1, 3):
            raise ValueError(f"frames are (b c f h w), 1 or 3 channels; got {tuple(self.frames.shape)}")
        if not self.fps > 0:
            raise ValueError(f"fps must be positive, got {self.fps}")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> "Video":
        index = range(len(self))[index]  # counts from the end if negative; IndexError ends an iteration
        return Video(frames=self.frames[index:index + 1], fps=self.fps,
                     stages={name: value[index:index + 1] for name, value in self.stages.items()},
                     seconds=dict(self.seconds), prompts=self.prompts[index:index + 1],
                     key_fps=self.key_fps)

    def save(self, path, scale: int | None = None) -> Path:
        """Write all clips to one file, in the format that its suffix names. Returns the path.

        .mp4  H.264, yuv420p, exactly `fps`; several clips play side by side in a grid.
        .gif  loops; a GIF counts time in centiseconds, so delays of, say, 30, 40, 30 ms take turns for
              30 fps. Above 50 fps every second frame is left out, above 100 two of three, and so on:
              viewers ignore delays that short.
        .png  contact sheet, one row a clip.
        .npy  uint8 (F, H, W, C) for one clip, (N, F, H, W, C) for several.

        scale: by which whole factor to enlarge. By default 2 for .png, and for .mp4 and .gif what makes the
        shorter side at least 256; .npy is never enlarged.

        Raises MavliteError for an unknown suffix, or if the file cannot be written; then no part of it
        stays behind, and what was there before is untouched.
        """
        path = check_output_path(path)
        with _replacing(path) as temporary:
            suffix = path.suffix.lower()
            if suffix == ".mp4":
                _write_mp4(temporary, _page(self.frames), scale, self.fps)
            elif suffix == ".gif":
                temporary.write_bytes(gif_bytes(_pictures(self.frames, scale), self.fps))
            elif suffix == ".png":
                imageio.v3.imwrite(temporary, contact_sheet(self.frames, scale=scale or 2))
            else:
                array = rearrange(to_uint8(self.frames), "b c f h w -> b f h w c").numpy()
                np.save(temporary, array[0] if len(array) == 1 else array)
        return path

    def __repr__(self) -> str:
        b, c, f, h, w = self.frames.shape
        return f"Video({b} x {f} frames of {h}x{w}, {c} channel(s), {self.fps:g} fps, prompts={self.prompts})"

    def _repr_html_(self) -> str:
        """What Jupyter shows: every clip as a looping GIF, side by side, its prompt underneath."""
        figures = []
        for clip in self:
            pictures = _pictures(clip.frames, None, shorter_side=192)
            gif = base64.b64encode(gif_bytes(pictures, clip.fps)).decode()
            caption = html.escape(clip.prompts[0]) if clip.prompts else ""
            figures.append(f'<figure style="display:inline-block;margin:4px;text-align:center">'
                           f'<img src="data:image/gif;base64,{gif}" alt="{caption}">'
                           f'<figcaption>{caption}</figcaption></figure>')
        return "".join(figures)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> uint8 0..255, rounded, of any shape. Values outside are clamped."""
    return (frames.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)


def contact_sheet(frames: torch.Tensor, columns: int | None = None, scale: int = 2,
                  pad: int = 2) -> np.ndarray:
    """All clips on one page, one row a clip, time to the right: uint8 (H, W, 3).

    frames: (b c f h w) in [0, 1]. columns: how many frames a row shows, evenly spaced from the first to the
    last; by default all of them, up to 16. scale: whole factor of enlargement. pad: pixels between frames.
    """
    f = frames.shape[2]
    columns = min(columns or 16, f)
    shown = torch.linspace(0, f - 1, columns).round().long()
    cells = rearrange(_rgb(frames[:, :, shown]), "b f h w c -> b f 1 h w c")
    return _enlarge(_tile(cells, pad)[0], scale)


def check_output_path(path, several: bool = False) -> Path:
    """Find out before any work begins whether `path` can be written; the path as a Path.

    Its suffix must be one of SUFFIXES; with several=True it may also be a folder (no suffix, or it exists),
    which will hold one file a clip. Missing folders are made. Raises MavliteError.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:                            # ~nobody
        raise MavliteError(f"cannot write {path}: {error}") from None
    if len(path.name.encode()) > 200:                        # most disks take 255 bytes, ours gets a prefix
        raise MavliteError(f"cannot write {path.name[:40]}...: the name is too long; choose a shorter one")
    is_folder = several and (path.is_dir() or path.suffix == "")
    if not is_folder:
        if path.suffix.lower() not in SUFFIXES:
            raise MavliteError(f"cannot tell the format of {str(path)!r}; end it in {', '.join(SUFFIXES)}"
                               + (", or name a folder" if several else ""))
        if path.is_dir():
            raise MavliteError(f"cannot write {path}: it is a folder; name a file")
    folder = path if is_folder else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # the only sure test: permission bits do not bind root
            pass
    except OSError as error:
        raise MavliteError(f"cannot write into {folder}: {_reason(error)}; choose another folder") from error
    return path


# --- Pixels ------------------------------------------------------------------------------------------------

def _rgb(frames: torch.Tensor) -> np.ndarray:
    """(b c f h w) in [0, 1] -> uint8 (b f h w 3)."""
    array = rearrange(to_uint8(frames), "b c f h w -> b f h w c").numpy()
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def _tile(cells: np.ndarray, pad: int) -> np.ndarray:
    """Lay cells out in rows and columns, `pad` grey pixels between them: (r k f h w c) -> (f H W c)."""
    rows, columns, _, h, w, _ = cells.shape
    edges = [(0, 0), (0, 0), (0, 0), (0, pad), (0, pad), (0, 0)]
    page = rearrange(np.pad(cells, edges, constant_values=GAP), "r k f h w c -> f (r h) (k w) c")
    return page[:, :rows * (h + pad) - pad, :columns * (w + pad) - pad]


def _enlarge(pictures: np.ndarray, scale: int) -> np.ndarray:
    """(... h w c) -> (... h·scale w·scale c), nearest neighbour."""
    return pictures.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _page(frames: torch.Tensor) -> np.ndarray:
    """The frames to play, clips side by side in a grid about as wide as high: uint8 (f H W 3), small."""
    clips = _rgb(frames)                                                             # b f h w 3
    columns = math.ceil(math.sqrt(len(clips)))
    rows = math.ceil(len(clips) / columns)
    missing = rows * columns - len(clips)
    clips = np.pad(clips, [(0, missing)] + 4 * [(0, 0)], constant_values=GAP)
    return _tile(rearrange(clips, "(r k) f h w c -> r k f h w c", k=columns), pad=2)  # f h w 3


def _factor(page: np.ndarray, scale: int | None, shorter_side: int = 256) -> int:
    return scale or math.ceil(shorter_side / min(page.shape[1:3]))


def _pictures(frames: torch.Tensor, scale: int | None, shorter_side: int = 256) -> np.ndarray:
    """The page of the frames, enlarged: uint8 (f H W 3)."""
    page = _page(frames)
    return _enlarge(page, _factor(page, scale, shorter_side))


# --- Files -------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def _replacing(path: Path):
    """Write to a temporary neighbour, then rename it: `path` is either complete or as it was before."""
    # The suffix stays, in lower case, since imageio and NumPy look at it.
    temporary = path.with_name(f".{os.getpid()}-{path.stem}{path.suffix.lower()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise MavliteError(f"cannot write {path}: {_reason(error)}; free some space or choose another path") \
            from error
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    """One line, without the path of a temporary file."""
    return error.strerror or " ".join(str(error).split())[:200]


def gif_bytes(pictures: np.ndarray, fps: float) -> bytes:
    # Delays are whole centiseconds. Rounding the times of the frames, rather than the delay, keeps the length
    # of the clip right; viewers play delays below 2 as if they were 10.
    every = math.ceil(fps / 50 - 1e-6)
    pictures, fps = pictures[::every], fps / every
    times = [round(100 * i / fps) for i in range(len(pictures) + 1)]
    delays = [10 * max(2, end - start) for start, end in pairwise(times)]          # milliseconds
    if (pictures[..., :1] == pictures).all():
        pictures = pictures[..., 0]                  # f h w: grey needs no palette, so GIF keeps it exactly
    buffer = io.BytesIO()
    imageio.v3.imwrite(buffer, pictures, extension=".gif", plugin="pillow", is_batch=True,
                       duration=delays if len(delays) > 1 else delays[0], loop=0)
    return buffer.getvalue()


def _write_mp4(path: Path, page: np.ndarray, scale: int | None, fps: float) -> None:
    # Players and codecs like sides that are multiples of 16: add a border rather than let ffmpeg rescale.
    scale = _factor(page, scale)
    extra_h, extra_w = -page.shape[1] * scale % 16, -page.shape[2] * scale % 16
    border = [(extra_h // 2, extra_h - extra_h // 2), (extra_w // 2, extra_w - extra_w // 2), (0, 0)]

    rate = str(Fraction(fps).limit_denominator(1001))  # as a fraction: imageio may round to two decimals
    writer = imageio.v2.get_writer(path, format="FFMPEG", mode="I", fps=fps, codec="libx264", quality=8,
                                   pixelformat="yuv420p", macro_block_size=1, ffmpeg_log_level="quiet",
                                   input_params=["-r", rate])
    with writer:
        for picture in page:                         # enlarged one by one: a long video is large enough small
            writer.append_data(np.pad(_enlarge(picture, scale), border, constant_values=GAP))
    # imageio ignores how ffmpeg ended; without this, a disk that fills up at the very end goes unnoticed.
    try:
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        written = 0
    if written != len(page):
        raise OSError(f"ffmpeg wrote {written} of {len(page)} frames")
