"""Clips with a fault: what a generator gets wrong about motion, rendered, and so known to the frame.

A critic that must find out by itself what is wrong with made clips finds nothing at all: two clips differ in
their digits and ways, and a jump is a small part of that (`python -m benchmarks.critic`). So it first learns
from pairs that differ in nothing but a fault. Real video would be cut, spliced and warped for that; here a
simulator draws it. As everywhere, a clip is a pure function of (seed, index).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange

from mavlite.moving_mnist import (
    DIGIT,
    RANGE,
    SPEED,
    Trajectories,
    UnlabelledClips,
    box_resize,
    draw,
    hash_uniform,
    reflected,
)

# How often which fault is rendered.
FAULTS = {
    "none": 0.20,
    "jump": 0.08,                            # one digit goes on elsewhere
    "turn": 0.09,                            # ... in another direction, far from any wall
    "identity": 0.10,                        # ... as another digit, at once or by degrees
    "exchange": 0.20,                        # each of the two goes on as the other, at once
    "speed": 0.07,                           # one or both are too slow or too fast for the frame rate
    "wobble": 0.03,                          # one digit trembles
    "third": 0.11,                           # a third digit, maybe like one of the two, for a while or always
    "vanish": 0.04,                          # one digit fades for some frames, or is not there at all
    "shape": 0.04,                           # one digit is bent, in each frame otherwise
    "strokes": 0.04,                         # striped or dotted, too thin, too bold or blurred
}
OFTEN_AT_DEFAULT = 0.5                       # share of clips at the rate that most videos are asked for
RATES = (2.0, 24.0)                          # key frames/s of the others: below, nothing hangs together

BENDS = 4                                    # places along either axis of a digit that go their own ways

_FIRST_DRAW = 64                             # of a clip's numbers: other uses have those below


@dataclass
class Faulty:
    """Clips with a fault and the same without."""
    frames: torch.Tensor                     # (b, c, f, s, s) in [0, 1]
    right: torch.Tensor                      # (b, c, f, s, s) in [0, 1], equal but for the fault
    fps: torch.Tensor                        # (b,)
    kind: torch.Tensor                       # (b,) int64, the row of FAULTS
    at_fault: torch.Tensor                   # (b, f) bool: the frames in which it shows
    centres: torch.Tensor                    # (b, f, 2, 2) px on the 64-px canvas, of the two digits as drawn


class FaultyClips(UnlabelledClips):
    """Pairs of clips, of which the first may have a fault."""

    def pairs(self, indices, default_fps, num_frames, size):
        """The `Faulty` clips of those indices, at their own rates."""
        simulator = self.simulator
        index = torch.as_tensor(indices, device=simulator.device, dtype=torch.int64)
        draws = iter(range(_FIRST_DRAW, _FIRST_DRAW + 64))

        def uniform(low=0.0, high=1.0, shape=(-1,)):         # one number a clip, the next one every time
            return (low + (high - low) * hash_uniform(self.seed, index, next(draws))).view(shape)

        def coin(share=0.5, shape=(-1,)):
            return uniform(shape=shape) < share

        steps = torch.tensor(list(FAULTS.values()), device=index.device).cumsum(dim=0)
        kind = torch.bucketize(uniform(), steps, right=True).clamp(max=len(FAULTS) - 1)

        def has(fault, shape=(-1, 1)):
            return (kind == list(FAULTS).index(fault)).view(shape)

        low, high = RATES
        fps = torch.where(coin(OFTEN_AT_DEFAULT), default_fps, low * (high / low) ** uniform())
        frame = torch.arange(num_frames, device=index.device)                        # f
        times = frame / fps[:, None]                                                 # b f
        first = (1 + (num_frames - 1) * uniform(shape=(-1, 1))).floor()              # b 1: the first at fault
        turning = (first - 1) / fps[:, None]                 # s: the last moment at which all was well
        since = frame >= first                                                       # b f

        trajectories = simulator.trajectories(self.seed, index)
        others = simulator.trajectories(self.seed + 1, index)
        true = trajectories.positions(times)                                         # b f 2 2
        which = coin(shape=(-1, 1, 1, 1))
        who = torch.cat([which, ~which], dim=2)              # b 1 2 1: the digit at fault
        four = (-1, 1, 1, 1)

        # ---- where digits are
        angle, far = uniform(0, 2 * math.pi, four), uniform(4, 24, four)
        offset = far * torch.cat([angle.sin(), angle.cos()], dim=-1)                 # b 1 1 2, px
        jumped = Trajectories(trajectories.images, trajectories.start + offset[:, 0],
                              trajectories.velocity).positions(times)
        angle = uniform(0, 2 * math.pi, four)
        away = SPEED * torch.cat([angle.sin(), angle.cos()], dim=-1)                 # b 1 1 2, px/s
        before, after = times.minimum(turning), (times - turning).clamp(min=0)       # b f: times = their sum
        turned = reflected(trajectories.start[:, None]
                           + trajectories.velocity[:, None] * before[..., None, None]
                           + away * after[..., None, None])
        factor = torch.where(coin(shape=(-1, 1)), uniform(0.3, 0.8, (-1, 1)), uniform(1.25, 2.0, (-1, 1)))
        changing = torch.where(coin(shape=(-1, 1)), 0.0, turning)      # from the start, or later
        warped = times.minimum(changing) + factor * (times - changing).clamp(min=0)
        paced = trajectories.positions(warped)
        trembling = self._trembling(index, num_frames, next(draws)) * uniform(2, 6, four)
        trembling = torch.where(coin(shape=four), trembling, _smooth(trembling))
        positions = torch.where(has("jump", four) & since[..., None, None] & who, jumped, true)
        positions = torch.where(has("turn", four) & who, turned, positions)
        positions = torch.where(has("speed", four) & (who | coin(shape=four)), paced, positions)
        positions = torch.where(has("wobble", four) & who, (true + trembling).clamp(0, RANGE), positions)

        # ---- what is drawn there
        digits, strange = (simulator.images[t.images].float() / 255 for t in (trajectories, others))
        changed = torch.where(who[:, 0, :, :, None], torch.where(has("vanish", four), 0.0, strange), digits)
        changed = torch.where(has("exchange", four), digits.flip(1), changed)
        degrees = 1 + (3 * uniform(shape=(-1, 1))).floor()   # frames over which it comes
        degrees = torch.where(has("exchange"), 1, degrees)   # a cross-fade would show without a look at who
        ramp = ((frame - first + 1) / degrees).clamp(0, 1)                           # b f
        span = frame < first + 2 + (6 * uniform(shape=(-1, 1))).floor()
        always = coin(0.4, (-1, 1))
        some = ramp * span
        some = torch.where(coin(shape=(-1, 1)), some, some.flip(1))      # clips may begin with a fault, too
        passing, part = torch.where(always, 1.0, some), uniform(0.4, 1.0, (-1, 1))
        other = has("identity") | has("exchange")
        share = torch.where(coin(0.3, (-1, 1)), ramp * span, ramp) * other
        share = share + passing * part * has("vanish")                               # b f
        alike = torch.where(coin(shape=(-1, 1, 1)), digits[:, 0], strange[:, 0])
        third = torch.stack([alike, torch.zeros_like(alike)], dim=1)                 # b 2 28 28

        way = self._trembling(index, num_frames, next(draws), (2, BENDS, BENDS))     # b f 2 n n
        five = (-1, 1, 1, 1, 1)
        way = torch.where(coin(shape=five), way, _smooth(way)) * uniform(1.5, 5, five)
        bending = (has("shape") * passing)[..., None, None]                          # b f 1 1
        bent = _bent(digits, way * bending[..., None])                               # b f 2 28 28
        digits = digits[:, None].expand_as(bent)
        shown = torch.where(who[..., None] & (bending[..., None] > 0), bent, digits)

        frames = torch.lerp(_draw(shown, positions), draw(changed, positions), share[..., None, None])
        light = passing * part * has("third")
        frames = frames.maximum(draw(third, others.positions(times)) * light[..., None, None])
        inked = _inked(frames, uniform(), size)
        frames = torch.lerp(frames, inked, (passing * part * has("strokes"))[..., None, None])

        at_fault = (has("third") | has("vanish") | has("shape") | has("strokes")) & (passing > 0)
        if num_frames > 1:                                   # of one frame nobody can tell how it moves
            at_fault |= ((has("jump") | has("turn")) & (frame >= first - 1) & (frame <= first)
                         | other & (frame >= first - 1) & (frame <= first + 1)
                         | has("speed") & (times > changing) | has("wobble"))
        frames, right = (self._sized(clip, size) for clip in (frames, _draw(digits, true)))
        return Faulty(frames, right, fps, kind, at_fault, positions + DIGIT / 2)

    def _trembling(self, index, num_frames, number, shape=(2, 2)):
        """Independent numbers in [-1, 1): (b, f, *shape), of which each digit has one for y and one for x."""
        count = num_frames * math.prod(shape)
        each = index[:, None] * count + torch.arange(count, device=index.device)
        return (2 * hash_uniform(self.seed, each, number) - 1).view(-1, num_frames, *shape)

    def _sized(self, frames, size):
        frames = box_resize(frames, size).to(self.simulator.dtype)
        return frames[:, None].expand(-1, self.simulator.channels, -1, -1, -1)


def _smooth(x):
    """The mean of three neighbouring frames of (b, f, ...), at about the old strength."""
    padded = F.pad(x.flatten(2).mT, (1, 1), mode="replicate")                        # b d f+2
    return 3**0.5 * F.avg_pool1d(padded, 3, 1).mT.unflatten(2, x.shape[2:])


def _bent(digits, way):
    """Digits (b, 2, s, s) whose every part is taken from some px away: (b, f, 2, s, s).

    way (b, f, 2, n, n): how far, right and down, at n x n places, and in between by bilinear interpolation.
    """
    b, f = way.shape[:2]
    s = digits.shape[-1]
    way = F.interpolate(way.flatten(0, 1), (s, s), mode="bilinear", align_corners=True)
    at = (2 * torch.arange(s, device=way.device) + 1) / s - 1                        # of pixels, in [-1, 1]
    here = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)                # s s 2
    there = here + rearrange(way, "n xy h w -> n h w xy") * (2 / s)
    each = digits[:, None].expand(-1, f, -1, -1, -1).flatten(0, 1)                   # (b f) 2 s s
    return F.grid_sample(each, there, align_corners=False).unflatten(0, (b, f))


def _draw(digits, positions):
    """`draw` of digits that have a shape of their own in every frame: (b, f, 2, s, s) -> (b, f, c, c)."""
    drawn = draw(digits.flatten(0, 1), positions.flatten(0, 1)[:, None])             # (b f) 1 c c
    return drawn[:, 0].unflatten(0, positions.shape[:2])


def _inked(frames, u, size):
    """Frames (b, f, c, c) in other ink, of seven kinds by numbers u in [0, 1): stripes along either axis or
    both, dots (period 2 where there are `size` pixels), blurred, too bold, too thin."""
    canvas = frames.shape[-1]
    odd = torch.arange(canvas, device=frames.device) * size // canvas % 2 == 1
    rows, columns = odd[:, None], odd[None, :]
    inks = [frames * ~rows, frames * ~columns, frames * (rows ^ columns), frames * ~(rows | columns),
            F.avg_pool2d(frames, 5, 1, 2), F.max_pool2d(frames, 3, 1, 1), -F.max_pool2d(-frames, 3, 1, 1)]
    chosen = frames
    for k, ink in enumerate(inks):
        chosen = torch.where((u * len(inks)).long().view(-1, 1, 1, 1) == k, ink, chosen)
    return chosen
