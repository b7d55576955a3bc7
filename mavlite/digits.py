"""Where the digits come from: MNIST if it can be had, else glyphs drawn from matplotlib's fonts.

Everything that moves in a clip is one of these 28 × 28 images. MNIST is read by torchvision. With no files
and no network, vector glyphs stand in for it, so that every command still works; they are not MNIST, and
numbers measured on them compare with nothing but themselves.
"""

import contextlib
import functools
import http.client
import io
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mavlite.errors import MavliteError

DOWNLOAD_TIMEOUT = 8.0  # seconds that a silent server may take

# Fonts that every matplotlib ships. No file serves both splits, as no MNIST writer does.
GLYPH_FONTS = {
    "train": ["DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic",
              "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "cmss10"],
    "test": ["DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta", "cmr10", "cmtt10"],
}
STROKES = [0, 1, 2]  # pixels added around the outline of a 64-px font: light, medium, heavy
GLYPH_COUNT = {"train": 6000, "test": 1000}


@dataclass
class Digits:
    """Images of single digits, white on black, as MNIST has them.

    images: uint8 (n, 28, 28), 0 is black. labels: int64 (n,), 0..9.
    source: "mnist" or "glyphs". split: "train" or "test".
    """

    images: torch.Tensor
    labels: torch.Tensor
    source: str
    split: str

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device) -> "Digits":
        """The same digits with both tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_digits(split: str, source: str = "auto", data_dir=None) -> Digits:
    """The digits of one split, "train" or "test".

    source: "mnist" looks for MNIST in $MAVLITE_DATA, then `data_dir`, then ./data, and downloads it to
    `data_dir` (or ./data) if none has it. "glyphs" draws digits from fonts: 6000 for training, 1000 for
    testing. "auto" is MNIST, or glyphs and a notice on stderr where MNIST cannot be had. With
    MAVLITE_OFFLINE=1 or HF_HUB_OFFLINE=1 in the environment nothing is downloaded. Of torchrun's processes
    the first of a machine alone downloads; the others are to call this when it has.

    Raises MavliteError for an unknown argument, for damaged MNIST files, and, if source="mnist", where
    MNIST cannot be had.
    """
    if split not in ("train", "test"):
        raise MavliteError(f"unknown split {split!r}; use train or test")
    if source not in ("auto", "mnist", "glyphs"):
        raise MavliteError(f"unknown digit source {source!r}; use auto, mnist or glyphs")
    if source == "glyphs":
        return _glyph_digits(split)

    folder, problem = _find_or_download(data_dir)
    if folder is not None:
        return _read_mnist(folder, split)
    if source == "mnist":
        raise MavliteError(f"MNIST was not found and not downloaded ({problem}); put its files under "
                           f"data/MNIST/raw, or set MAVLITE_DATA to the folder that holds MNIST/raw")
    _say_glyphs_once(problem)
    return _glyph_digits(split)


# --- MNIST -------------------------------------------------------------------------------------------------

def _find_or_download(data_dir) -> tuple[Path | None, str]:
    """The folder that holds MNIST/raw, or None and the reason why there is none."""
    import torchvision

    target = Path(data_dir if data_dir is not None else "data")
    folders = [Path(folder) for folder in (os.environ.get("MAVLITE_DATA"), data_dir, "data") if folder]
    names = [Path(url).stem for url, _ in torchvision.datasets.MNIST.resources]  # without their .gz
    for folder in folders:
        if all((folder / "MNIST" / "raw" / name).is_file() for name in names):
            return folder, ""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
           for name in ("MAVLITE_OFFLINE", "HF_HUB_OFFLINE")):
        return None, "offline mode is set"
    if not first_process():
        return None, "the first process of this machine has found none"
    problem = _download(str(target.resolve()))
    return (None, problem) if problem else (target, "")


@functools.cache  # a failure is remembered: the other split need not wait for it again
def _download(target: str) -> str:
    """Download MNIST to target/MNIST/raw. The reason if that fails, else ""."""
    import torchvision

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none and could hang
    print(f"mavlite: downloading MNIST (12 MB) to {target}", file=sys.stderr)
    try:
        # Elsewhere first, so that a failure leaves neither empty folders nor half a file behind.
        with tempfile.TemporaryDirectory() as temporary, \
                contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            torchvision.datasets.MNIST(temporary, download=True)
            raw = Path(target) / "MNIST" / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            for file in (Path(temporary) / "MNIST" / "raw").iterdir():
                if file.suffix != ".gz":
                    shutil.move(file, raw / file.name)
    except (OSError, http.client.HTTPException, RuntimeError, EOFError) as error:
        # no network or a read-only folder, an answer cut short, a wrong checksum, a bad archive
        return "download failed: " + " ".join(str(error).split())
    finally:
        socket.setdefaulttimeout(timeout)
    return ""


def _read_mnist(folder: Path, split: str) -> Digits:
    import torchvision

    raw = folder / "MNIST" / "raw"
    try:
        data = torchvision.datasets.MNIST(folder, train=split == "train")
        images, labels = data.data, data.targets.long()
        intact = (images.shape[1:] == (28, 28) and len(images) == len(labels) > 0
                  and 0 <= labels.min() and labels.max() <= 9)
    except OSError as error:
        raise MavliteError(f"cannot read the MNIST {split} files in {raw} ({error.strerror}); "
                           f"check their permissions") from error
    except (AssertionError, ValueError, LookupError, RuntimeError, TypeError):
        intact = False  # torchvision has an error of its own for each way in which a file can be cut or wrong
    if not intact:
        raise MavliteError(f"the MNIST {split} files in {raw} are damaged; "
                           f"delete them and run again to download them anew")
    return Digits(images, labels, "mnist", split)


# --- Glyphs ------------------------------------------------------------------------------------------------

_notice_given = False


def first_process() -> bool:
    """Of torchrun's processes on a machine, the first one downloads, and speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _say_glyphs_once(problem: str) -> None:
    global _notice_given
    if not _notice_given and first_process():
        if named := os.environ.get("MAVLITE_DATA"):
            problem = f"MAVLITE_DATA={named} holds no MNIST/raw, {problem}"
        print(f"mavlite: NOTE: the digits are glyphs of fonts, NOT MNIST ({problem}). Scores do not compare "
              f"with MNIST's. For MNIST, go online, or set MAVLITE_DATA to a folder that holds MNIST/raw "
              f"(see data/README.md).", file=sys.stderr)
    _notice_given = True


def _glyph_digits(split: str) -> Digits:
    images, labels = _draw_glyphs(split)
    return Digits(images.clone(), labels.clone(), "glyphs", split)  # whoever changes them changes a copy


@functools.cache
def _draw_glyphs(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Glyphs under random affine maps, the same on every call: uint8 (n, 28, 28) and int64 (n,)."""
    masters = torch.stack([_master(font, digit, stroke) for font in map(_open_font, GLYPH_FONTS[split])
                           for stroke in STROKES for digit in range(10)])            # (looks * 10) 57 57
    # Blurred over the size of an output pixel, so that sampling once a pixel gives smooth edges.
    masters = F.avg_pool2d(masters, kernel_size=2, stride=1)                         # (looks * 10) 56 56
    count = GLYPH_COUNT[split]
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)

    def uniform(low, high):
        return low + (high - low) * torch.rand(count, generator=generator)           # n

    labels = torch.randperm(count, generator=generator) % 10                         # n, n / 10 of each digit
    looks = torch.randint(len(masters) // 10, (count,), generator=generator)         # n, a font and a stroke
    angle, slant, shear = uniform(-0.2, 0.2), uniform(-0.15, 0.4), uniform(-0.12, 0.12)
    height, width = uniform(0.92, 1.08), uniform(0.85, 1.1)
    cos, sin, one = angle.cos(), angle.sin(), torch.ones(count)

    rotate = _matrix(cos, -sin, sin, cos)                                            # n 2 2
    skew = _matrix(one, -slant, shear, one)      # y points down, so a minus leans the digit to the right
    scale = _matrix(width, 0 * one, 0 * one, height)
    inverse = torch.linalg.inv(rotate @ skew @ scale)   # grid_sample asks where each output pixel comes from
    theta = torch.cat([inverse, torch.zeros(count, 2, 1)], dim=2)                    # n 2 3

    grid = F.affine_grid(theta, (count, 1, 28, 28), align_corners=False)
    chosen = masters[looks * 10 + labels].unsqueeze(1)                               # n 1 56 56
    images = F.grid_sample(chosen, grid, align_corners=False).squeeze(1)             # n 28 28
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels


def _matrix(a, b, c, d):
    return torch.stack([torch.stack([a, b], dim=-1), torch.stack([c, d], dim=-1)], dim=-2)


def _open_font(name: str):
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    try:
        return ImageFont.truetype(str(path), 64)
    except OSError as error:
        raise MavliteError(f"matplotlib's font {path} cannot be read; reinstall matplotlib") from error


def _master(font, digit: int, stroke: int) -> torch.Tensor:
    """One upright glyph at twice the final size: (57, 57) in [0, 1].

    As in MNIST the longer side is 20 px of 28, and the centre of mass is in the middle; the affine maps
    leave it there.
    """
    from PIL import Image, ImageDraw

    page = Image.new("L", (160, 160))
    ImageDraw.Draw(page).text((50, 40), str(digit), fill=255, font=font, stroke_width=stroke)
    glyph = page.crop(page.getbbox())
    ratio = 40 / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * ratio)) for side in glyph.size], Image.Resampling.LANCZOS)

    ink = torch.from_numpy(np.array(glyph)).float() / 255                            # h w
    h, w = ink.shape
    centre_y = float(ink.sum(1) @ (torch.arange(h) + 0.5) / ink.sum())
    centre_x = float(ink.sum(0) @ (torch.arange(w) + 0.5) / ink.sum())
    top, left = round(28.5 - centre_y), round(28.5 - centre_x)
    return F.pad(ink, (left, 57 - left - w, top, 57 - top - h))
