"""Rendered faults: each is what its name says, shows where the label says, and nothing else is changed."""

import pytest
import torch

from mavlite.digits import load_digits
from mavlite.faults import BENDS, FAULTS, OFTEN_AT_DEFAULT, RATES, FaultyClips, _bent, _inked
from mavlite.moving_mnist import CANVAS, DIGIT, RANGE, SPEED, box_resize, draw, reflected

COUNT, FRAMES, SIZE, FPS = 1200, 12, 32, 6.0


@pytest.fixture(scope="module")
def clips():
    return FaultyClips(load_digits("train", "glyphs").images, seed=11)


@pytest.fixture(scope="module")
def pair(clips):
    return clips.pairs(range(COUNT), FPS, FRAMES, SIZE)


def of(pair, fault):
    return pair.kind == list(FAULTS).index(fault)


def test_shapes_ranges_and_shares(pair):
    assert pair.frames.shape == pair.right.shape == (COUNT, 1, FRAMES, SIZE, SIZE)
    assert pair.frames.min() >= 0 and pair.frames.max() <= 1
    assert pair.at_fault.shape == (COUNT, FRAMES) and pair.centres.shape == (COUNT, FRAMES, 2, 2)
    assert sum(FAULTS.values()) == pytest.approx(1)
    found = torch.bincount(pair.kind, minlength=len(FAULTS)) / COUNT
    assert torch.allclose(found, torch.tensor(list(FAULTS.values())), atol=0.035)
    assert (pair.fps == FPS).float().mean().item() == pytest.approx(OFTEN_AT_DEFAULT, abs=0.05)
    assert pair.fps.min() >= RATES[0] and pair.fps.max() <= RATES[1]


def test_a_pair_is_a_pure_function_of_seed_and_index(clips, pair):
    again = clips.pairs([7, 700, 3], FPS, FRAMES, SIZE)
    for name in ("frames", "right", "fps", "kind", "at_fault", "centres"):
        assert torch.equal(getattr(again, name), getattr(pair, name)[[7, 700, 3]]), name


def test_only_faulty_clips_differ_and_only_they_are_at_fault(pair):
    differ = (pair.frames != pair.right).flatten(1).any(dim=1)
    assert torch.equal(differ, ~of(pair, "none"))
    assert torch.equal(pair.at_fault.any(dim=1), differ)


def test_of_a_single_frame_only_what_it_shows_is_at_fault(clips):
    pair = clips.pairs(range(COUNT), FPS, 1, SIZE)
    shown = [of(pair, fault) for fault in ("third", "vanish", "shape", "strokes")]
    assert pair.frames.shape == (COUNT, 1, 1, SIZE, SIZE) and pair.at_fault.shape == (COUNT, 1)
    assert not pair.at_fault[~torch.stack(shown).any(dim=0)].any()
    assert all(0.2 < pair.at_fault[rows].float().mean() < 0.6 for rows in shown)
    differ = (pair.frames != pair.right).flatten(1).any(dim=1)
    assert torch.equal(differ & torch.stack(shown).any(dim=0), pair.at_fault[:, 0])


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "none"])
def test_nothing_differs_before_a_fault_shows(pair, fault):
    rows = of(pair, fault)
    differ = (pair.frames != pair.right)[rows].flatten(3).any(dim=3)[:, 0]           # n f
    first = pair.at_fault[rows].int().argmax(dim=1)                                  # n
    before = torch.arange(FRAMES) < first[:, None]
    assert not (differ & before).any()


@pytest.mark.parametrize("fault", ["third", "vanish"])
def test_a_digit_too_many_or_too_few_differs_exactly_where_it_is_said(pair, fault):
    rows = of(pair, fault)
    light = (pair.frames - pair.right)[rows].sum(dim=(1, 3, 4))                      # n f
    assert not light[~pair.at_fault[rows]].any()
    more = light[pair.at_fault[rows]]
    # (It may hide behind the others, and fade in from nothing; but it never takes light, or never gives.)
    assert ((more if fault == "third" else -more) >= -1e-4).all() and more.abs().mean() > 5


@pytest.mark.parametrize("fault", ["shape", "strokes"])
def test_bent_digits_and_strange_ink_show_exactly_where_it_is_said(pair, fault):
    rows = of(pair, fault)
    differ = (pair.frames - pair.right)[rows].abs().sum(dim=(1, 3, 4))               # n f
    assert not differ[~pair.at_fault[rows]].any()
    assert (differ[pair.at_fault[rows]] > 1).float().mean() > 0.95                   # it may be hidden, too


def test_a_bent_digit_is_bent_otherwise_in_each_frame_and_keeps_its_light():
    digits = load_digits("train", "glyphs").images[:40].float().view(20, 2, 28, 28) / 255
    way = 3 * (2 * torch.rand(20, 5, 2, BENDS, BENDS, generator=torch.Generator().manual_seed(0)) - 1)
    bent = _bent(digits, way)                                                        # 20 5 2 28 28
    assert torch.allclose(_bent(digits, 0 * way), digits[:, None].expand_as(bent), atol=1e-5)
    right = torch.zeros_like(way)
    right[:, :, 0] = 1                                       # every part comes from a pixel to the right
    moved = digits[:, None, ..., 1:].expand_as(bent[..., 1:])
    assert torch.allclose(_bent(digits, right)[..., :-1], moved, atol=1e-4)
    assert (bent.diff(dim=1).abs().sum(dim=(-2, -1)) > 1).all()
    light = bent.sum(dim=(-2, -1)) / digits.sum(dim=(-2, -1))[:, None]
    assert light.mean().item() == pytest.approx(1, abs=0.1)


def test_strange_ink_is_of_seven_kinds_of_which_four_leave_every_second_pixel_out():
    frames = box_resize(torch.rand(7, 2, CANVAS, CANVAS), SIZE)
    inked = box_resize(_inked(torch.repeat_interleave(frames, 2, 2).repeat_interleave(2, 3),
                              (torch.arange(7) + 0.5) / 7, SIZE), SIZE)
    kept = [inked[k] == frames[k] for k in range(4)]
    assert all((inked[k][~kept[k]] == 0).all() for k in range(4))
    assert [k.float().mean().item() for k in kept] == [0.5, 0.5, 0.5, 0.25]
    assert all(torch.equal(k[:, 2:], k[:, :-2]) and torch.equal(k[..., 2:], k[..., :-2]) for k in kept)
    blurred, bold, thin = inked[4:]
    assert blurred.std() < 0.8 * frames[4].std()
    assert bold.mean() > 1.1 * frames[5].mean() and thin.mean() < 0.9 * frames[6].mean()


def test_who_is_exchanged_goes_on_as_the_other(clips, pair):
    rows = of(pair, "exchange").nonzero()[:, 0]
    trajectories = clips.simulator.trajectories(clips.seed, rows)
    digits = clips.simulator.images[trajectories.images].float() / 255
    exchanged = box_resize(draw(digits.flip(1), pair.centres[rows] - DIGIT / 2), SIZE)               # n f s s
    found, right = pair.frames[rows, 0], pair.right[rows, 0]
    as_other = ((found - exchanged).flatten(2).abs().amax(dim=2) < 1e-4)             # n f
    as_before = ((found - right).flatten(2).abs().amax(dim=2) < 1e-4)
    assert as_other.any(dim=1).float().mean() > 0.6          # some only begin to, at the end
    assert (as_other | as_before).float().mean() > 0.7       # few frames are in between
    explained = as_before | as_other | pair.at_fault[rows] | ~as_other.any(dim=1, keepdim=True)
    assert explained.float().mean() > 0.95


def test_who_jumps_moves_more_than_speed_allows_there_and_nowhere_else(pair):
    rows = of(pair, "jump")
    step = pair.centres[rows].diff(dim=1).norm(dim=-1).amax(dim=2)                   # n f-1, px
    allowed = SPEED / pair.fps[rows, None] + 1e-3
    label = pair.at_fault[rows]
    there = label[:, :-1] & label[:, 1:]
    assert (step <= allowed)[~there].all()
    assert (step > allowed)[there].float().mean() > 0.6      # some jump along their way, or back


@pytest.mark.parametrize("fault", ["none", "turn", "identity", "exchange", "third", "vanish", "shape",
                                   "strokes"])
def test_the_others_keep_their_speed(pair, fault):
    rows = of(pair, fault)
    step = pair.centres[rows].diff(dim=1).norm(dim=-1)                               # n f-1 2
    assert (step <= SPEED / pair.fps[rows, None, None] + 1e-3).all()
    assert (pair.centres >= DIGIT / 2).all() and (pair.centres <= CANVAS - DIGIT / 2).all()


def test_the_slow_and_the_fast_are_neither_at_their_own_speed(pair):
    rows = of(pair, "speed") & (pair.fps > 12)               # there, walls are seldom met
    step = pair.centres[rows].diff(dim=1).norm(dim=-1) * pair.fps[rows, None, None] / SPEED          # n f-1 2
    factor = step.median(dim=1).values                                               # n 2
    wrong = ((factor - 1).abs() > 0.15).any(dim=1)
    late = ~pair.at_fault[rows].sum(dim=1).gt(FRAMES // 2)   # it begins late: most steps are right
    assert (wrong | late).float().mean() > 0.9
    assert factor.max() < 2.01 and factor.min() > 0.1


def test_walls_turn_a_straight_way_back():
    straight = torch.tensor([-5.0, 0.0, 20.0, RANGE + 4.0, 2 * RANGE + 1.0])
    assert torch.allclose(reflected(straight), torch.tensor([5.0, 0.0, 20.0, RANGE - 4.0, 1.0]))


def test_no_wrong_clip_of_one_seed_is_a_clip_of_another(clips):
    other = FaultyClips(clips.simulator.images, seed=12).pairs(range(4), FPS, FRAMES, SIZE)
    mine = clips.pairs(range(4), FPS, FRAMES, SIZE)
    assert not torch.equal(mine.frames, other.frames)


def test_colour_is_grey_in_three_channels(clips):
    three = FaultyClips(clips.simulator.images, seed=11, channels=3).pairs([1, 2], FPS, FRAMES, SIZE)
    one = clips.pairs([1, 2], FPS, FRAMES, SIZE)
    assert torch.equal(three.frames, one.frames.expand(-1, 3, -1, -1, -1))
