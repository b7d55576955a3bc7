"""How near frames come to the true ones, pixel by pixel, the baselines for that, and intervals of the means.

Frames are in [0, 1] in here, clips (b, c, f, h, w); every score is one number for each clip, (b,).
"""

import math

import torch
import torch.nn.functional as F
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms.functional import gaussian_blur

from mavlite.layers import fold, unfold

PSNR_CAP = 100.0                             # dB, what identical clips get
BATCH = 512                                  # frames whose SSIM is computed at a time


# ---------------------------------------------------------------- scores

def psnr(a, b):
    """Peak signal-to-noise ratio (b,) in dB, peak 1, of a clip's squared error averaged over all its frames.

        PSNR = -10 log10 mean (a - b)^2,   at most 100 dB
    """
    mse = (a - b).square().flatten(1).mean(dim=1)                                    # b
    return -10 * mse.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim(a, b):
    """Structural similarity (b,) (Wang et al. 2004, Gaussian window of 1.5 px), mean over a clip's frames.

    Where both frames are black it is 1, so Moving MNIST lifts it: read it beside a baseline's.
    """
    pairs = zip(fold(a)[0].split(BATCH), fold(b)[0].split(BATCH))
    parts = [structural_similarity_index_measure(x, y, data_range=1.0, reduction="none") for x, y in pairs]
    return torch.cat(parts).unflatten(0, (len(a), -1)).mean(dim=1)


def flicker(video, truth):
    """Fine detail that changes between frames and should not, (b,): RMS over space and time, 0 at best.

        H(x) = x - Gaussian_blur(x, 1 px)
        (H(video)_t+1 - H(video)_t) - (H(truth)_t+1 - H(truth)_t)

    True motion cancels, and so does whatever is wrong in all frames alike. Clips of two frames or more.
    """
    change, f = fold((video - truth).diff(dim=2))            # H is linear: differences first cost one blur
    detail = unfold(change - gaussian_blur(change, 9, 1.0), f)                       # b c f-1 h w
    return detail.square().flatten(1).mean(dim=1).sqrt()


# ---------------------------------------------------------------- baselines: what needs no network

def linear_blend(keys, skip):
    """Frames between key frames by cross-fading: (b, c, k, h, w) -> (b, c, (k-1) skip + 1, h, w).

    Beyond the last key there is nothing to blend with: there the baseline is to hold the nearest frame.
    """
    last = keys.shape[2] - 1
    t = torch.arange(last * skip + 1, device=keys.device)
    before = t // skip
    weight = ((t % skip).to(keys.dtype) / skip).view(-1, 1, 1)                       # f 1 1, 0 at the keys
    return torch.lerp(keys[:, :, before], keys[:, :, (before + 1).clamp(max=last)], weight)


def nearest_frame(keys, skip):
    """Frames between key frames by repeating the nearest, halfway the earlier: shapes as `linear_blend`."""
    t = torch.arange((keys.shape[2] - 1) * skip + 1, device=keys.device)
    return keys[:, :, (t + (skip - 1) // 2) // skip]


def bicubic(frames, size):
    """Bicubic enlargement of images (b, c, h, w) or clips to size x size, overshoot clamped to [0, 1]."""
    x, f = fold(frames)
    # antialias widens nothing when enlarging, but brings the usual kernel, Keys' a = -0.5, which is exact for
    # a ramp. Without it the kernel has a = -0.75 and ripples.
    return unfold(F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1), f)


# ---------------------------------------------------------------- intervals

def bootstrap(values, over=None, seed=0, n=1000):
    """95 % percentile interval (low, high) of the mean of values (b,), by n resamples of clips (Efron 1979).

    With `over` (b,), of mean(values) / mean(over) of the same clips: both are resampled together, so that
    what makes a clip hard for both cancels. Of few clips percentiles are too near: both ends are moved from
    the mean as Student's interval of the mean is wider (Hesterberg 2015, arXiv 1411.5279). None for one clip.
    """
    if len(values) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (n, len(values)), generator=generator)
    means = values.cpu().double()[rows].mean(dim=1)                                  # n
    if over is not None:
        means = means / over.cpu().double()[rows].mean(dim=1)
    low, high = means.quantile(means.new_tensor([0.025, 0.975])).tolist()
    mean = (values.double().mean() / (1 if over is None else over.double().mean())).item()
    wider = widening(len(values))
    return mean - wider * (mean - low), mean + wider * (high - mean)


def widening(b):
    """How much wider Student's 95 % interval is than the percentile bootstrap's of b values, on average.

        t_0.975(b - 1) / z * sqrt(b / (b - 1)),   z = 1.96

    t by its series in 1/(b - 1) (Abramowitz and Stegun 26.7.5): 3 % too small for b = 3, then nearly exact;
    of two values it would be wider still than this.
    """
    z, v = 1.96, b - 1
    t = (z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
         + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3))
    return t / z * math.sqrt(b / v)
