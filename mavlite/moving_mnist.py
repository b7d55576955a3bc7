"""Moving MNIST as a continuous-time simulator (Srivastava et al. 2015, arXiv 1502.04681).

Two 28-px digits start uniformly inside a 64-px box, move with constant velocity, bounce off the walls
and overlap by maximum. Time is continuous and reflection exact, so a clip can be asked for at any frame
rate; the canonical 3.6 px a frame is called 10 fps here, hence 36 px/s.

Nothing is stored and nothing is shuffled: a clip is a pure function of (seed, index), and whole batches
are computed as tensors on the device that trains. The simulator holds digit *images* only. Labels live in
`TextFramePairs`, which the text stages use, and in `LabelledClips`, for the networks that measure; the video
stages get `UnlabelledClips`, which has none to leak.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from mavlite.prompts import make_prompt

CANVAS = 64                      # px, the size at which every frame is drawn first
DIGIT = 28                       # px
RANGE = CANVAS - DIGIT           # px, how far a digit's corner can go
SPEED = 36.0                     # px/s at 64 px: 3.6 px a frame at the canonical 10 fps
CONDITION_FPS, CONDITION_FRAMES = 6.0, 16   # the clip among whose frames the clearest is looked for

_MASK = 0xFFFFFFFF


# ---------------------------------------------------------------- counter-based random numbers

def _hash32(x):
    """A bijective 32-bit integer hash (xor-shift-multiply) on int64 tensors: equal on every device."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def hash_uniform(seed, index, draw):
    """Uniform numbers in [0, 1), a pure function of three integers.

    seed: int. index: int64 tensor (b,). draw: int, which of a clip's numbers. Returns float32 (b,).
    No state and no order: element i is the same whatever batch it is drawn in.
    """
    h = _hash32(torch.full_like(index, seed) + 0x9E3779B9)
    h = _hash32(h ^ index)
    h = _hash32(h ^ (draw * 0x85EBCA6B))
    return (h >> 8).float() * 2.0**-24                       # 24 bits: exact in float32


# Which number of a clip is used for what. New uses take new numbers, so that old clips stay the same.
_FIRST, _SECOND, _START, _ANGLE, DRAW_PROMPT, DRAW_FRAME, DRAW_FPS, DRAW_MASK = 0, 1, 2, 6, 8, 16, 20, 30


# ---------------------------------------------------------------- geometry

def reflected(straight):
    """Where a digit is that walls have turned back: straight ways in px, any shape -> px in [0, 36].

    A triangle wave of period 2R unfolds all bounces at once: R - |(p mod 2R) - R|.
    """
    return RANGE - (straight.remainder(2 * RANGE) - RANGE).abs()


@dataclass
class Trajectories:
    """What a batch of clips is made of: which digit images, where they start, how they move."""
    images: torch.Tensor         # (b, 2) int64, rows of the digit set
    start: torch.Tensor          # (b, 2, 2) px in [0, 36): clip, digit, (y, x) of the upper left corner
    velocity: torch.Tensor       # (b, 2, 2) px/s

    def __getitem__(self, rows):
        return Trajectories(self.images[rows], self.start[rows], self.velocity[rows])

    def positions(self, times):
        """Corners at `times` (f,) or (b, f) seconds -> (b, f, 2, 2) px in [0, 36], exactly reflected."""
        times = times.expand(len(self.start), -1)
        straight = self.start[:, None] + self.velocity[:, None] * times[:, :, None, None]
        return reflected(straight)                                                   # b f 2 2

    def bounces(self, times):
        """Which digit meets a wall between consecutive frames -> bool (b, f-1, 2)."""
        times = times.expand(len(self.start), -1)
        straight = self.start[:, None] + self.velocity[:, None] * times[:, :, None, None]
        return (straight / RANGE).floor().diff(dim=1).ne(0).any(dim=-1)


def canonical_positions(trajectories, num_frames):
    """The original generator's walk: 3.6 px a step, clamp and flip at the wall, whole pixels.

    Returns (positions (b, f, 2, 2) whole px, bounced (b, f-1, 2) bool). Each step depends on the clamp
    of the one before, so this is the one loop over frames; it runs for the whole batch at once.
    """
    p = trajectories.start / RANGE                                                   # in [0, 1)
    v = trajectories.velocity / RANGE / 10.0                                         # a step of 0.1
    positions, bounced = [], []
    for _ in range(num_frames):
        p = p + v
        hit = (p <= 0) | (p >= 1)
        p, v = p.clamp(0, 1), torch.where(hit, -v, v)
        positions.append((p * RANGE).floor())
        bounced.append(hit.any(dim=-1))
    return torch.stack(positions, 1), torch.stack(bounced, 1)[:, 1:]


def statistics(positions, bounced):
    """Shares of frames with overlapping and heavily overlapping boxes, and of digit-steps with a bounce."""
    offset = (positions[:, :, 0] - positions[:, :, 1]).abs().amax(dim=-1)            # b f
    return {"overlap": (offset < DIGIT).float().mean().item(),
            "heavy_overlap": (offset < DIGIT / 2).float().mean().item(),
            "bounce": bounced.float().mean().item()}


# ---------------------------------------------------------------- drawing

def draw(digits, positions, canvas=CANVAS):
    """Place two digits on a canvas at sub-pixel corners and take the maximum.

    digits (b, 2, s, s) in [0, 1]; positions (b, f, 2, 2) px -> (b, f, canvas, canvas).
    A corner is a whole pixel plus a rest in [0, 1); the rest is linear interpolation,

        D'[i, j] = (1 - r_y) ((1 - r_x) D[i, j] + r_x D[i, j-1]) + r_y (...)[i-1, ...]

    on s + 1 pixels a side, and the whole pixel says where those are written.
    """
    s, wide = digits.shape[-1], canvas + 1                   # one more row and column: s + 1 may stick out
    p = rearrange(positions, "b f k yx -> yx b k f")
    corner = p.floor()
    rest_y, rest_x = (p - corner)[..., None, None]
    d = F.pad(digits, (1, 1, 1, 1))[:, :, None]                                      # b k 1 s+2 s+2
    d = torch.lerp(d[..., 1:, :], d[..., :-1, :], rest_y)                            # b k f s+1 s+2
    d = torch.lerp(d[..., 1:], d[..., :-1], rest_x)                                  # b k f s+1 s+1
    y, x = corner.long()
    pixel = torch.arange(s + 1, device=digits.device)
    index = (y * wide + x)[..., None, None] + pixel[:, None] * wide + pixel          # b k f s+1 s+1
    blank = torch.zeros(*y.shape, wide * wide, device=digits.device, dtype=digits.dtype)
    drawn = blank.scatter_(-1, index.flatten(-2), d.flatten(-2)).unflatten(-1, (wide, wide))
    return drawn[..., :canvas, :canvas].amax(dim=1)                                  # b f canvas canvas


def box_matrix(source, target, device=None):
    """Exact area weights (target, source): each target pixel averages its share of source pixels."""
    # In float64, which MPS does not have, hence on the CPU.
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    cells = torch.arange(source, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return (covered.clamp(min=0) * target / source).float().to(device)


def box_resize(frames, size):
    """(..., h, w) -> (..., size, size) by exact area averaging, also for 64 -> 48.

    `interpolate(mode="area")` is wrong for ratios like 4/3: it rounds windows to whole pixels and so
    shifts pixel centres by up to a quarter.
    """
    source = frames.shape[-1]
    if source == size:
        return frames
    if source % size == 0:                                   # whole windows: plain pooling is exact
        return F.avg_pool2d(frames.flatten(0, -3), source // size).unflatten(0, frames.shape[:-2])
    weights = box_matrix(source, size, frames.device).to(frames.dtype)
    with torch.autocast(frames.device.type, enabled=False):  # targets are not to be rounded to 16 bits
        return weights @ (frames @ weights.T)


def clearest(frames):
    """Index (b,) of each clip's clearest frame: the one with most light, since overlap takes light away.

    frames (b, c, f, h, w). Total brightness is the bright area weighted by grey level: unlike a count of
    bright pixels it does not change when a digit moves by part of a pixel. Frames without any overlap are
    equally bright up to rounding: of those the first is taken, whatever the device's order of summation.
    """
    light = frames.sum(dim=(1, 3, 4))                                                # b f
    return (light >= 0.9999 * light.amax(dim=1, keepdim=True)).int().argmax(dim=1)


class MovingMNIST:
    """The simulator. images: uint8 (n, 28, 28) on any device; channels repeats the grey level.

    num_clips: indices from there on show the first clips again; 0: every index has its own clip.
    """

    def __init__(self, images, channels=1, dtype=torch.float32, num_clips=0):
        self.images, self.channels, self.dtype, self.num_clips = images, channels, dtype, num_clips
        # Digits at a quarter of the size, for looking through 16 frames at the price of one.
        self.previews = F.avg_pool2d(images.float() / 255, 4)                        # n 7 7
        self.device = images.device

    def trajectories(self, seed, indices):
        """indices: int64 (b,) or a sequence of ints -> Trajectories of those clips."""
        index = torch.as_tensor(indices, device=self.device, dtype=torch.int64)
        if self.num_clips:
            index = index % self.num_clips
        u = torch.stack([hash_uniform(seed, index, k) for k in range(8)], dim=1)     # b 8
        images = (u[:, :2] * len(self.images)).long()
        angle = 2 * math.pi * u[:, 6:8]
        velocity = SPEED * torch.stack([angle.sin(), angle.cos()], dim=-1)           # b 2 2
        return Trajectories(images, RANGE * u[:, 2:6].unflatten(1, (2, 2)), velocity)

    def draw(self, trajectories, positions, size=CANVAS):
        """Frames (b, c, f, size, size) in [0, 1] at given positions (b, f, 2, 2)."""
        digits = self.images[trajectories.images].float() / 255                      # b 2 28 28
        frames = box_resize(draw(digits, positions), size).to(self.dtype)
        return repeat(frames, "b f h w -> b c f h w", c=self.channels)

    def render(self, trajectories, times, size=CANVAS):
        """Frames (b, c, f, size, size) in [0, 1] at `times` (f,) or (b, f) seconds."""
        return self.draw(trajectories, trajectories.positions(times), size)

    def clip(self, seed, index, fps=10.0, num_frames=16, size=CANVAS):
        """One clip (c, f, size, size): a pure function of its arguments. ValueError for fps <= 0 or NaN."""
        if not fps > 0:
            raise ValueError(f"a clip of {fps} frames a second has no times")
        times = torch.arange(num_frames, device=self.device) / fps
        return self.render(self.trajectories(seed, [index]), times, size)[0]

    def canonical(self, seed, indices, num_frames=20):
        """Clips as the original generator makes them: (b, c, f, 64, 64)."""
        trajectories = self.trajectories(seed, indices)
        return self.draw(trajectories, canonical_positions(trajectories, num_frames)[0])

    def condition_times(self):
        return torch.arange(CONDITION_FRAMES, device=self.device) / CONDITION_FPS

    def clearest_frame(self, trajectories, size):
        """The conditioning frame (b, c, size, size): the clearest of 16 frames at 6 fps.

        The sixteen are compared on a 16-px preview; only the chosen one is drawn in full.
        """
        times = self.condition_times()
        positions = trajectories.positions(times)
        preview = draw(self.previews[trajectories.images], positions * (7 / DIGIT), canvas=16)
        best = clearest(preview[:, None])                                            # b
        chosen = positions.gather(1, best[:, None, None, None].expand(-1, 1, 2, 2))  # b 1 2 2
        return self.draw(trajectories, chosen, size)[:, :, 0]

    def condition_clip(self, trajectories, size):
        """All 16 frames (b, c, 16, size, size) among which `clearest_frame` chooses."""
        return self.render(trajectories, self.condition_times(), size)


# ---------------------------------------------------------------- data sets: seed and index name a sample

def _any_frames(simulator, seed, indices, size, share=1):
    """A frame of clip index // share, uniformly one of the 16 that the conditioning frame is chosen from."""
    index = torch.as_tensor(indices, device=simulator.device, dtype=torch.int64)
    which = (hash_uniform(seed, index, DRAW_FRAME) * CONDITION_FRAMES).floor()
    trajectories = simulator.trajectories(seed, index // share)
    return simulator.render(trajectories, which[:, None] / CONDITION_FPS, size)[:, :, 0]


class Clips:
    """Clips that a seed and an index name, and the frames of each that embeddings are made from."""

    def __init__(self, images, seed, channels=1, dtype=torch.float32, num_clips=0):
        self.simulator, self.seed = MovingMNIST(images, channels, dtype, num_clips), seed

    def trajectories(self, indices):
        return self.simulator.trajectories(self.seed, indices)

    def condition_frames(self, indices, size):
        return self.simulator.clearest_frame(self.trajectories(indices), size)

    def condition_clips(self, indices, size):
        return self.simulator.condition_clip(self.trajectories(indices), size)


class UnlabelledClips(Clips):
    """What the image-decoder, video and super-resolution stages see: pixels and frame rates, nothing else."""

    def uniform(self, indices, draw):
        index = torch.as_tensor(indices, device=self.simulator.device, dtype=torch.int64)
        return hash_uniform(self.seed, index, draw)

    def clips(self, indices, fps, num_frames, size):
        """(frames (b, c, f, size, size), fps (b,)): the whole of what an unlabelled video tells."""
        fps = torch.as_tensor(fps, device=self.simulator.device, dtype=torch.float32).expand(len(indices))
        times = torch.arange(num_frames, device=fps.device) / fps[:, None]
        return self.simulator.render(self.trajectories(indices), times, size), fps

    def frames(self, indices, size, share=1):
        """(b, c, size, size): each is one of the 16 frames that the conditioning frame is chosen from.

        Sample i shows clip i // share, so that `share` neighbours can share a conditioning frame.
        """
        return _any_frames(self.simulator, self.seed, indices, size, share)


class LabelledClips(UnlabelledClips):
    """What the networks that measure are taught with: clips, and all that the simulator knows about them."""

    def __init__(self, digits, seed, channels=1, dtype=torch.float32, num_clips=0):
        super().__init__(digits.images, seed, channels, dtype, num_clips)
        self._labels = digits.labels

    def labels(self, indices):
        """Digits (b, 2) of each clip."""
        return self._labels[self.trajectories(indices).images]

    def centres(self, indices, fps, num_frames):
        """Where both digits are, (b, f, 2, 2) px on the 64-px canvas, (y, x): each within 14 ... 50."""
        times = torch.arange(num_frames, device=fps.device) / fps[:, None]
        return self.trajectories(indices).positions(times) + DIGIT / 2

    def directions(self, indices):
        """Unit vectors (b, 2, 2) in which the digits set out, (y, x)."""
        return self.trajectories(indices).velocity / SPEED


class TextFramePairs(Clips):
    """What `clip` and `prior` see: a clip's clearest frame, and one of the prompts that name its digits."""

    def __init__(self, digits, seed, channels=1, dtype=torch.float32, num_clips=0):
        super().__init__(digits.images, seed, channels, dtype, num_clips)
        self._labels = digits.labels

    def labels(self, indices):
        """Digits (b, 2) of each clip."""
        return self._labels[self.trajectories(indices).images]

    def frames(self, indices, size):
        """A frame at any of 16 times, overlaps included, (b, c, size, size); `labels` says what it shows."""
        return _any_frames(self.simulator, self.seed, indices, size)

    def pairs(self, indices, size):
        """(frames (b, c, size, size), prompts: list of str): a clip's clearest frame and what names it."""
        return self.condition_frames(indices, size), self.prompts(indices)

    def prompts(self, indices):
        """One of the prompts that name each clip's digits: order and spelling are drawn."""
        index = torch.as_tensor(indices, device=self.simulator.device, dtype=torch.int64)
        choice = torch.stack([hash_uniform(self.seed, index, DRAW_PROMPT + k) < 0.5 for k in range(3)], 1)
        rows = torch.cat([self.labels(indices), choice.long()], 1).tolist()
        return [make_prompt(*((b, a) if swap else (a, b)), bool(w), bool(x)) for a, b, swap, w, x in rows]
