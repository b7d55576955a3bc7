"""Frames of a video as pictures to try the applications on.

    python -m benchmarks.pictures VIDEO --at 0 10 --out a.png b.png
    python -m benchmarks.pictures VIDEO --at 0 --paper --out photo.jpg

Frames are enlarged fourfold, which every command undoes exactly. With --paper they look like a photo: ink on
rough paper, 1200 x 1200 px, a lamp on the left.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mavlite.errors import MavliteError
from mavlite.inputs import read_video

SIZE, ENLARGED = 64, 256                     # px
PHOTO = 1200                                 # px


def on_paper(frame, generator):
    """A frame (h, w) in [0, 1], light on dark, as ink on paper: (1200, 1200) in [0, 1]."""
    large = F.interpolate(frame[None, None], (PHOTO, PHOTO), mode="bicubic", antialias=True)
    ink = large[0, 0].clamp(0, 1).numpy()
    y, x = np.mgrid[:PHOTO, :PHOTO] / PHOTO
    grain = generator.standard_normal((PHOTO // 8, PHOTO // 8)).repeat(8, axis=0).repeat(8, axis=1)
    light = (0.9 - 0.45 * x - 0.2 * y) * (1 + 0.01 * grain)
    return light * (1 - 0.8 * ink) + 0.02 * generator.standard_normal(ink.shape)


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("video")
    p.add_argument("--at", type=int, nargs="+", required=True, metavar="FRAME", help="counted from 0")
    p.add_argument("--out", nargs="+", required=True, metavar="PATH", help="a picture for each frame")
    p.add_argument("--paper", action="store_true", help="as a photo of ink on paper")
    return p


def main():
    args = parser().parse_args()
    try:
        frames = read_video(args.video, SIZE)[0][0]                                  # f h w
    except MavliteError as error:
        raise SystemExit(str(error)) from None
    if len(args.at) != len(args.out) or not all(0 <= k < len(frames) for k in args.at):
        raise SystemExit(f"{args.video} has the frames 0 ... {len(frames) - 1}; name one for each picture")
    generator = np.random.default_rng(0)
    for k, path in zip(args.at, args.out):
        if args.paper:
            picture = on_paper(frames[k], generator)
        else:
            picture = frames[k].repeat_interleave(ENLARGED // SIZE, 0).repeat_interleave(ENLARGED // SIZE, 1)
        levels = (torch.as_tensor(picture).clamp(0, 1) * 255).round().to(torch.uint8)
        Image.fromarray(levels.numpy()).save(path)
        print("wrote", path)


if __name__ == "__main__":
    main()
