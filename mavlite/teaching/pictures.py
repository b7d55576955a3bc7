"""The pictures of a lesson: small frames enlarged, with a caption each, still or moving."""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from IPython.display import Image, display
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from mavlite.video import GAP, Video, contact_sheet, gif_bytes, to_uint8

CAPTION = 18                                 # px above a moving picture
HEIGHT = 128                                 # px of a moving picture, about
GREYS = 16                                   # levels of a moving picture: a GIF of noise is four times larger


def show(*items, titles=None, columns=None, fps=6.0):
    """Show frames as pictures and clips as one looping GIF, side by side, each with its title.

    items: tensors of frames (b c h w) or clips (b c f h w) in [0, 1], on any device, or `Video`s. All are
    enlarged to about one height by whole factors. titles: one for each picture; by default a Video's prompts.
    columns: pictures a row, by default up to 8. fps: of clips given as tensors; a Video knows its own, and
    clips of several rates play each at its own.
    """
    clips, rates, names = [], [], []
    for item in items:
        frames, rate, prompts = (item.frames, item.fps, item.prompts) if isinstance(item, Video) \
            else (item, fps, [])
        if frames.ndim not in (4, 5) or frames.shape[1] not in (1, 3):
            raise ValueError(f"frames are (b c h w) and clips (b c f h w), 1 or 3 channels; "
                             f"got {tuple(frames.shape)}")
        frames = frames.detach().float().cpu()
        clips += list(frames if frames.ndim == 5 else frames[:, :, None])            # c f h w each
        rates += [rate] * len(frames)
        names += prompts or [""] * len(frames)
    if titles is not None:
        names = list(titles)
    if not clips or len(names) != len(clips):
        raise ValueError(f"{len(names)} titles for {len(clips)} pictures")
    columns = min(columns or 8, len(clips))
    if all(clip.shape[1] == 1 for clip in clips):
        _show_stills([clip[:, 0] for clip in clips], names, columns)
    else:
        _show_clips(clips, rates, names, columns)


def strip(clips, *, titles=None, columns=8):
    """Show clips (b c f h w) in [0, 1], or a `Video`, as rows of frames, time to the right.

    columns: how many frames of each, evenly spaced from the first to the last. titles: one for each row.
    """
    frames = clips.frames if isinstance(clips, Video) else clips
    columns = min(columns, frames.shape[2])
    page = contact_sheet(frames.detach().float().cpu(), columns=columns)
    height = page.shape[0] / len(frames)
    width = 10 * columns / 8
    figure, axes = plt.subplots(figsize=(width, width * page.shape[0] / page.shape[1]))
    axes.imshow(page)
    axes.set_xticks([])
    axes.set_yticks([height * (row + 0.5) for row in range(len(titles or []))], titles or [])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    plt.show()


def _show_stills(frames, names, columns):
    rows = math.ceil(len(frames) / columns)
    side = min(1.6, 10 / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(side * columns, (side + 0.25 * any(names)) * rows),
                                squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, frame, name in zip(grid.flat, frames, names):
        axes.imshow(rearrange(frame.clamp(0, 1), "c h w -> h w c"), vmin=0, vmax=1)
        axes.set_title(name, fontsize=9)
    plt.show()


def _show_clips(clips, rates, names, columns):
    """One GIF at the highest rate: a slower clip holds its frames longer, a shorter one starts again."""
    fps = min(max(rates), 50)                                # viewers play no GIF faster
    seconds = max(clip.shape[1] / rate for clip, rate in zip(clips, rates))
    times = torch.arange(max(1, round(seconds * fps))) / fps
    cells = [_enlarged(clip[:, (times * rate + 1e-4).long() % clip.shape[1]])
             for clip, rate in zip(clips, rates)]                                    # f h w 3 each
    if any(names):
        cells = [_with_caption(cell, name) for cell, name in zip(cells, names)]
    high, wide = (max(cell.shape[axis] for cell in cells) for axis in (1, 2))
    cells = [np.pad(cell, [(0, 0), (0, high - cell.shape[1]), (0, wide - cell.shape[2]), (0, 0)],
                    constant_values=GAP) for cell in cells]
    cells += [np.full_like(cells[0], GAP)] * (-len(cells) % columns)
    cells = np.pad(np.stack(cells), [(0, 0), (0, 0), (0, 2), (0, 2), (0, 0)], constant_values=GAP)
    page = rearrange(cells, "(r k) f h w c -> f (r h) (k w) c", k=columns)
    # Called a PNG: browsers look at the bytes, and code hosts show what calls itself so, moving.
    display(Image(gif_bytes(page, fps), format="png"))


def _enlarged(clip):
    """(c f h w) in [0, 1] -> uint8 (f height width 3), nearest neighbour, about HEIGHT high."""
    levels = (clip.clamp(0, 1) * (GREYS - 1)).round() / (GREYS - 1)
    array = rearrange(to_uint8(levels), "c f h w -> f h w c").numpy()
    scale = max(1, round(HEIGHT / array.shape[1]))
    array = array.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.repeat(array, 3, axis=3) if array.shape[3] == 1 else array


def _with_caption(pictures, name):
    """A line of text on a strip above each picture: uint8 (f h w 3) -> (f h+CAPTION w 3)."""
    line = Picture.new("L", (pictures.shape[2], CAPTION), GAP)
    ImageDraw.Draw(line).text((4, 2), name, fill=255, font=ImageFont.load_default(12))
    line = np.broadcast_to(np.asarray(line)[None, :, :, None], (len(pictures), *line.size[::-1], 3))
    return np.concatenate([line, pictures], axis=1)
