"""A network that finds what is wrong with a clip, frame by frame, and what it and a generator learn.

It first learns from rendered faults (faults.py): with them, what a jump is; without, it would be asked to
tell made clips from real ones at once and find nothing. Then it goes on beside a generator, as the
discriminator of a GAN does (Goodfellow et al. 2014, arXiv 1406.2661), but with a word for each frame:

    L(critic)    = BCE(D(real), 0) + BCE(D(made), 1) / 2 + BCE(D(rendered), its faults)
    L(generator) = BCE(D(made), 0)

A generator that only heard "made" would learn no more than that. What was rendered keeps the critic to what
can be said of a single frame, and so the generator is told where it went wrong.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mavlite.config import CriticConfig
from mavlite.diffusion import expand_to
from mavlite.moving_mnist import CANVAS

NOISE = (0.05, 0.5)                          # deviations of the noise under which clips are looked at
SPREAD = 5.0                                 # px on the 64-px canvas, of the spots that mark centres


class Residual(nn.Module):
    """x + convolutions over time and space, (b, c, f, h, w) -> the same."""

    def __init__(self, channels):
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv3d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv3d(channels, channels, 3, padding=1))

    def forward(self, x):
        return x + self.block(x)


class Critic(nn.Module):
    """(clips (b, c, f, h, w) in [-1, 1] plus noise, log of key frames/s (b,)) -> (faults (b, f), places).

    faults: a frame's log-odds of being at fault. places (b, 3, f, h/4, w/4): log-odds of a digit's centre
    nearby, and the way (y, x) that it goes until the next frame, in eighths of the canvas. Whoever knows
    those sees a jump; they are what the first lesson also asks for. Ordinary 3-D convolutions, which see all
    that is nearby in space and time at once; colours count as grey.
    """

    def __init__(self, config: CriticConfig):
        super().__init__()
        w = config.width
        flat = {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)}
        # Smaller by means of 2 x 2: kernels that skip pixels would teach a generator their grid, as dots.
        self.body = nn.Sequential(
            nn.Conv3d(2, w // 2, **flat), nn.SiLU(), nn.AvgPool3d((1, 2, 2)),
            nn.Conv3d(w // 2, w, **flat), Residual(w), nn.SiLU(), nn.AvgPool3d((1, 2, 2)),
            nn.Conv3d(w, 2 * w, **flat), Residual(2 * w), Residual(2 * w), Residual(2 * w), nn.SiLU())
        self.places = nn.Conv3d(2 * w, 3, 1)
        self.faults = nn.Sequential(nn.Conv1d(4 * w, 4 * w, 3, padding=1), nn.SiLU(),
                                    nn.Conv1d(4 * w, 1, 3, padding=1))

    def forward(self, clips, log_fps):
        grey = clips.mean(dim=1, keepdim=True)                                       # b 1 f h w
        rate = expand_to(log_fps - 2, grey).to(grey.dtype).expand_as(grey)           # about -1 ... 1
        x = torch.cat([grey, rate], dim=1).contiguous(memory_format=torch.channels_last_3d)
        x = self.body(x)                                                             # b d f h/4 w/4
        over_space = torch.cat([x.mean(dim=(3, 4)), x.amax(dim=(3, 4))], dim=1)      # b 2d f
        said = self.faults(over_space)[:, 0], self.places(x)
        return tuple(y if y.dtype == torch.float64 else y.float() for y in said)     # losses want 32 bits


def noised(clips, noise, level):
    """Clips under noise of deviation `level` (b,): it hides faults of single pixels, and none of motion."""
    return clips + expand_to(level, clips) * noise


def spots(centres, height, width):
    """Where digits are, as a picture of one soft spot each: (b, f, 2, 2) px -> (b, f, 2, height, width)."""
    y, x = ((torch.arange(n, device=centres.device) + 0.5) * (CANVAS / n) for n in (height, width))
    apart = (y[:, None] - centres[..., 0, None, None]) ** 2 + (x - centres[..., 1, None, None]) ** 2
    return torch.exp(-apart / (2 * SPREAD**2))


def places_loss(places, centres):
    """Cross-entropy of the spots, and distance between the ways that digits went and were said to go.

    places (b, 3, f, h, w), of `Critic`; centres (b, f, 2, 2) px. Where two digits are near, their mean way.
    """
    near = spots(centres, *places.shape[-2:])                                        # b f 2 h w
    where = F.binary_cross_entropy_with_logits(places[:, 0], near.amax(dim=2))
    near = near[:, :-1]
    ways = centres.diff(dim=1) / (CANVAS / 8)                                        # b f-1 2 2
    weights = near / near.sum(dim=2, keepdim=True).clamp(min=1e-6)
    way = torch.einsum("b f k h w, b f k d -> b d f h w", weights, ways)
    there = (near.amax(dim=2) > 0.25)[:, None]                                       # b 1 f-1 h w
    wrong = ((places[:, 1:, :-1] - way).abs() * there).sum() / there.sum().clamp(min=1)
    return where + wrong


def first_lesson(critic, pair, noise, level):
    """What a critic learns from `Faulty` clips: which frames are at fault, which clip of a pair, and places.

        BCE(frames) + softplus(right - faulty) + places_loss

    The second compares whole clips (the mean over frames), under the same noise (b, c, f, h, w): all that
    differs is the fault.
    """
    both = torch.cat([noised(clips * 2 - 1, noise, level) for clips in (pair.frames, pair.right)])
    faults, places = critic(both, pair.fps.log().repeat(2))
    at_fault = pair.at_fault.to(faults.dtype)
    frames = F.binary_cross_entropy_with_logits(faults, torch.cat([at_fault, torch.zeros_like(at_fault)]))
    faulty, right = rearrange(faults.mean(dim=1), "(two b) -> two b", two=2)
    differ = (pair.kind > 0).to(faults.dtype)                                        # b
    told = (F.softplus(right - faulty) * differ).sum() / differ.sum().clamp(min=1)
    return frames + told + places_loss(places[:len(faulty)], pair.centres)


def critic_loss(real, made, rendered, at_fault, asked):
    """What a critic learns beside a generator, from log-odds (b, f) of three kinds of clips.

    at_fault (b, f): of the rendered. asked (b, f): 1 where real and made frames are looked at, 0 elsewhere.
    """
    told = F.binary_cross_entropy_with_logits(rendered, at_fault)
    return ((F.softplus(real) + F.softplus(-made) / 2) * asked).mean() + told


def generator_loss(made, asked):
    """What a generator hears of its clips' log-odds (b, f): no frame of them should be at fault."""
    return (F.softplus(made) * asked).mean()
