"""What the applications are given: pictures and videos, as tensors, arrays or files, made into one form."""

import os
from dataclasses import replace

import numpy as np
import torch

from mavlite.checked import require, shown
from mavlite.inputs import read_image, read_video
from mavlite.video import Video

ROUNDING = 1e-3                              # what a resized picture may be beyond [0, 1]


def given_pictures(name, value, data, invert="auto"):
    """A picture or several -> float32 (b, c, s, s) in [0, 1], s the finished size; never the caller's own.

    value: a path, read as `read_image` reads it (invert); or a tensor or array (b, c, s, s), (c, s, s) or
    (s, s), float in [0, 1] or uint8. Raises MavliteError, which calls it `name`, for anything else.
    """
    size, channels = data.sizes[-1], data.channels
    if isinstance(value, (str, os.PathLike)):
        return read_image(value, size, channels, invert)[None]
    require(isinstance(value, (torch.Tensor, np.ndarray)),
            f"{name}: must be a path, or a tensor or array (b, {channels}, {size}, {size}), "
            f"not {shown(value)}")
    pictures = torch.as_tensor(value)
    pictures = pictures[(None,) * max(0, 4 - pictures.ndim)]
    return _checked(name, pictures, (channels, size, size))


def given_video(video, data, invert="auto"):
    """A `Video`, or the path of one, as a Video with float32 frames (b, c, f, s, s) in [0, 1].

    Frames are checked as pictures are. A file without a rate (.npy) has that of the finished videos.
    """
    size, channels = data.sizes[-1], data.channels
    if isinstance(video, (str, os.PathLike)):
        frames, fps = read_video(video, size, channels, invert, min_frames=2)
        return Video(frames[None], fps or data.fps * data.frame_skip)
    require(isinstance(video, Video), f"video: must be a Video, or the path of one, not {shown(video)}")
    frames = _checked("video", video.frames, (channels, None, size, size))
    return replace(video, frames=frames)


def _checked(name, frames, shape):
    """float32, in [0, 1], of any batch and otherwise of this shape, where None is any length."""
    wanted = " x ".join("f" if length is None else str(length) for length in shape)
    fits = frames.ndim == len(shape) + 1 and len(frames) > 0 and all(
        had > 0 if length is None else had == length for had, length in zip(frames.shape[1:], shape))
    require(fits, f"{name}: {tuple(frames.shape)} is not a batch of {wanted}; "
                  "mavlite.inputs reads any picture or video so")
    require(frames.is_floating_point() or frames.dtype == torch.uint8,
            f"{name}: must be float in [0, 1] or uint8, not {frames.dtype}")
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
    low, high = frames.min().item(), frames.max().item()             # NaN is within nothing
    require(-ROUNDING <= low and high <= 1 + ROUNDING,
            f"{name}: values from {low:g} to {high:g} are not within 0 ... 1")
    return frames.clamp(0, 1)
