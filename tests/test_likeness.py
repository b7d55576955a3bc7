"""Each digit must look more like itself than like the other, from frame to frame."""

import math

import pytest
import torch

from mavlite.checkpoint import SHIPPED
from mavlite.digits import load_digits
from mavlite.faults import FAULTS, FaultyClips
from mavlite.likeness import MOST, SLOWEST, USUAL, changes, handwriting, margins, sameness
from mavlite.moving_mnist import SPEED, UnlabelledClips
from mavlite.stages import load_clip, read_config
from mavlite.two_digits import APART, separated, two_centres

SIX = torch.tensor([6.0])


class Shades:
    """Stands for C: a frame's embedding turns by 90 degrees as its brightest pixel goes from 0.4 to 1."""

    def image_embeds(self, frames):
        assert frames.ndim == 4 and frames.min() >= 0 and frames.max() <= 1
        angle = (frames.amax(dim=(1, 2, 3)) - 0.4) / 0.6 * math.pi / 2
        return 8 * torch.stack([angle.cos(), angle.sin()], dim=1)


def clip_of(first, second, at=((16, 16), (48, 48)), size=32):
    """A clip (1, 1, f, size, size) in [-1, 1] of two blocks whose shades in each frame are given."""
    frames = torch.zeros(1, 1, len(first), size, size)
    for shades, (y, x) in zip((first, second), at):
        y, x = y * size // 64, x * size // 64
        frames[..., y - 3:y + 3, x - 3:x + 3] = torch.tensor(shades)[:, None, None]
    return 2 * frames - 1


@pytest.mark.parametrize("size", [32, 64])
def test_margins_in_closed_form(size):
    bright_and_dim = clip_of([1, 1, 0.4, 0.7], [0.4, 0.4, 1, 0.7], size=size)
    found = margins(Shades(), bright_and_dim, SIX)           # they stay, exchange, and become equal
    assert torch.allclose(found, torch.tensor([[[MOST, 2, -2, 0], [2, MOST, -2, 0], [-2, -2, MOST, 0],
                                                [0, 0, 0, MOST]]]), atol=1e-4)
    alike = margins(Shades(), clip_of([1, 1], [1, 1], size=size), SIX)
    assert torch.allclose(alike, MOST * torch.eye(2)[None], atol=1e-4)


def test_colours_and_doubles_are_looked_at_as_well():
    clips = clip_of([1, 0.4], [0.4, 1]).expand(-1, 3, -1, -1, -1)
    wanted = torch.tensor([[[MOST, -2], [-2, MOST]]])
    assert torch.allclose(margins(Shades(), clips, SIX), wanted, atol=1e-4)
    precise = margins(Shades(), clips.double(), SIX.double())
    assert precise.dtype == torch.float64 and torch.allclose(precise, wanted.double(), atol=1e-6)


def test_nothing_is_told_of_digits_that_are_near_or_of_slow_clips():
    near = clip_of([1, 0.4], [0.4, 1], at=((24, 24), (40, 40)))
    assert (margins(Shades(), near, SIX) == MOST).all()
    exchanged = clip_of([1, 0.4], [0.4, 1]).expand(3, -1, -1, -1, -1)
    found = margins(Shades(), exchanged, torch.tensor([SLOWEST - 0.1, SLOWEST, 30.0]))
    assert (found[0] == MOST).all() and torch.allclose(found[1:, 0, 1], torch.tensor(-2.0), atol=1e-4)


def test_nobody_is_compared_across_a_meeting():
    apart, near = clip_of([1, 0.4], [0.4, 1]), clip_of([1], [0.4], at=((24, 24), (40, 40)))
    found = margins(Shades(), torch.cat([apart, near, apart], dim=2), SIX)
    wanted = torch.full((5, 5), MOST)
    wanted[0, 1] = wanted[1, 0] = wanted[3, 4] = wanted[4, 3] = -2
    assert torch.allclose(found[0], wanted, atol=1e-4)


def bars(*shapes):
    """A clip (1, 1, f, 32, 32) in [-1, 1] of two bars of 12 x 2 pixels, "-" or "|", or crosses "+"."""
    frames = torch.zeros(1, 1, len(shapes), 32, 32)
    for i, pair in enumerate(shapes):
        for shape, at in zip(pair, (8, 24)):
            if shape in "-+":
                frames[0, 0, i, at - 1:at + 1, at - 6:at + 6] = 1
            if shape in "|+":
                frames[0, 0, i, at - 6:at + 6, at - 1:at + 1] = 1
    return 2 * frames - 1


def test_handwriting_in_closed_form():
    """Bars of 24 pixels have 4 in common where they cross; a cross has 44."""
    across, with_cross = 1 - 4 / 24, 1 - 24 / (24 * 44) ** 0.5
    for shapes, wanted in ((["-|", "-|", "-|"], 0), (["-|", "||"], across / 2),
                           (["-|", "+|"], with_cross / 2),
                           (["--", "--", "|-"], across / 3)):    # two of three pairs of frames, one digit
        assert handwriting(bars(*shapes), SIX).item() == pytest.approx(wanted, abs=1e-3)
    for names, wanted in (("||", across / 2), ("|-", 0), ("-|", 0)):
        changed = bars("-|", names)
        found = handwriting(changed.expand(2, 3, -1, -1, -1), torch.tensor([SLOWEST, SLOWEST - 0.1]))
        in_sight = across if names == "|-" else wanted       # slower, who is who is not known; both coloured
        assert found.tolist() == pytest.approx([in_sight, wanted], abs=1e-3)
        met = clip_of([1], [1], at=((24, 24), (40, 40)))     # nor is it when they have met
        meeting = torch.cat([changed[:, :, :1], met, changed[:, :, 1:]], dim=2)
        assert handwriting(meeting, SIX).item() == pytest.approx(wanted, abs=1e-3)
    assert handwriting(torch.cat([bars("-|"), met, met], dim=2), SIX).item() == 0    # nobody to compare with


def test_two_digits_need_differ_no_more_than_the_real_clip_s():
    """Two bars that cross have 4 of 24 pixels in common."""
    across, met = 1 - 4 / 24, clip_of([1], [1], at=((24, 24), (40, 40)))
    for made, real, wanted in (("-- --", "-| -|", across), ("-| --", "-| -|", across / 2),
                               ("-- --", "-| --", across / 2), ("|| --", "|| ||", 0), ("|- -|", "-- --", 0)):
        made, real = bars(*made.split()), bars(*real.split())
        assert sameness(made, real).item() == pytest.approx(wanted, abs=1e-3)
        now_and_then = (torch.cat([made, met], dim=2), torch.cat([met, real], dim=2))
        assert sameness(*now_and_then).item() == pytest.approx(wanted, abs=1e-3)
        assert sameness(made, torch.cat([met, met], dim=2)).item() == 0              # who is never apart
        assert sameness(torch.cat([met, met], dim=2), real).item() == 0
    made = (0.9 * bars("-+", "-+")).requires_grad_()     # nothing is learned beyond black and white
    sameness(made, bars("-|", "-|")).sum().backward()
    assert made.grad.isfinite().all() and made.grad.abs().max() > 0


def test_handwriting_of_real_clips_hardly_changes_and_its_gradient_makes_others_alike():
    simulator = UnlabelledClips(load_digits("test", "glyphs").images, seed=9)
    real = simulator.clips(range(48), 6.0, 16, 32)[0] * 2 - 1
    found = handwriting(real, torch.full((48,), 6.0))
    assert found[found > 0].mean() < 0.03
    generator = torch.Generator().manual_seed(0)
    clips = real + 0.6 * (real > 0) * torch.randn(real.shape, generator=generator)
    clips = clips.clamp(-0.999, 0.999).requires_grad_()
    noisy = handwriting(clips, torch.full((48,), 6.0))
    before = noisy.mean()
    slope, = torch.autograd.grad(before, clips)
    assert slope.isfinite().all()
    alone = noisy == 0                                       # never apart in two frames
    assert alone.any() and slope[alone].abs().max() == 0     # who cannot tell learns nothing
    after = handwriting((clips - 0.05 * slope / slope.abs().max()).detach(), torch.full((48,), 6.0)).mean()
    assert before > 2 * found.mean() and after < before


def test_at_the_slowest_rate_the_order_is_just_sure():
    way = SPEED / SLOWEST                                    # px that each goes in a frame
    assert 2 * way == pytest.approx(2 * APART - 2 * way)     # as far to its own place as to the other's


def test_changes_in_closed_form():
    def embeds(*angles):                                     # 1 f 2, of any length
        angles = torch.tensor(angles)
        return 3 * torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    apart = clip_of([1, 1, 1], [1, 1, 1])
    near = clip_of([1, 1, 1], [1, 1, 1], at=((24, 24), (40, 40)))
    one_near = torch.cat([apart[:, :, :2], near[:, :, 2:]], dim=2)
    seen = embeds(0.0, 0.3, 1.2)                             # neighbours differ less than the first and last
    assert changes(seen, apart).item() == pytest.approx(1 - math.cos(1.2) - USUAL, abs=1e-6)
    assert changes(seen, near).item() == 0                   # one hides the other: not asked
    assert changes(seen, one_near).item() == 0               # 1 - cos(0.3) is usual
    assert changes(embeds(1.0, 1.0, 1.0), apart).item() == 0


@torch.no_grad()
def test_clips_whose_digits_become_others_change_more_than_usual():
    clip = load_clip(SHIPPED, read_config(SHIPPED, "decoder"))
    simulated = UnlabelledClips(load_digits("test", "glyphs").images, seed=9)
    real = simulated.clips(range(60), torch.full((60,), 6.0), 16, 32)[0] * 2 - 1
    mixed = torch.cat([real[:, :, :8], real.roll(1, dims=0)[:, :, 8:]], dim=2)
    centres = two_centres((mixed[:, 0].flatten(0, 1) + 1) / 2).unflatten(0, (60, 16))
    halves = separated(centres).unflatten(1, (2, 8))
    can_tell = halves.any(dim=2).all(dim=1)                  # before and after

    def seen(clips):
        frames = (clips.transpose(1, 2).flatten(0, 1) + 1) / 2
        return changes(clip.image_embeds(frames).view(60, 16, -1), clips)
    assert seen(real).median() == 0 and seen(real).quantile(0.9) < 0.15
    assert can_tell.sum() > 20 and (seen(mixed)[can_tell] > 0.3).float().mean() > 0.8


@torch.no_grad()
def test_the_shipped_C_knows_rendered_exchanges():
    clip = load_clip(SHIPPED, read_config(SHIPPED, "decoder"))
    faulty = FaultyClips(load_digits("test", "glyphs").images, seed=4).pairs(range(400), 6.0, 16, 32)
    rows = (faulty.kind == list(FAULTS).index("exchange")) & (faulty.fps >= SLOWEST)
    found, true = (margins(clip, clips[rows] * 2 - 1, faulty.fps[rows])
                   for clips in (faulty.frames, faulty.right))
    found, true = (of.diagonal(offset=1, dim1=1, dim2=2) for of in (found, true))    # neighbours: b f-1
    told = true[true < MOST]                                 # some pairs are doubles, or look alike
    assert len(told) > 200 and (told > 0.2).float().mean() > 0.9
    at = faulty.at_fault[rows].int().argmax(dim=1, keepdim=True)     # its last frame as it was
    found, true = found.gather(1, at)[:, 0], true.gather(1, at)[:, 0]
    could = (true > 0.2) & (true < MOST) & (found < MOST)
    assert could.sum() > 10 and (found < -0.2)[could].float().mean() > 0.9
