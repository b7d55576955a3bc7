"""Measures of motion on true centres, where they must be perfect, and on motion wrong in a known way."""

import json

import pytest
import torch

from mavlite.evaluation.motion import (
    apart_share,
    bounce_free,
    clean_steps,
    clip_speeds,
    identity_switches,
    median_interval,
    reflection_error,
    speed_error,
    speeds,
    still_share,
    straightness,
    summary,
)
from mavlite.moving_mnist import DIGIT, RANGE, SPEED, MovingMNIST, Trajectories
from mavlite.two_digits import separated

CLIPS, FRAMES, RATES = 1000, 16, [3.0, 6.0, 12.0, 24.0]
every_rate = pytest.mark.parametrize("fps", RATES)


@pytest.fixture(scope="module")
def trajectories():
    simulator = MovingMNIST(torch.zeros(10, DIGIT, DIGIT, dtype=torch.uint8))
    return simulator.trajectories(11, torch.arange(CLIPS))


def true_centres(trajectories, fps, frames=FRAMES, slower=1.0):
    """Centres (b, f, 2, 2) px of clips that are `slower` times as fast as they should be."""
    changed = Trajectories(trajectories.images, trajectories.start, trajectories.velocity * slower)
    return changed.positions(torch.arange(frames) / fps) + DIGIT / 2


def noisy(centres, pixels=0.5):
    return centres + pixels * torch.randn(centres.shape, generator=torch.Generator().manual_seed(0))


def clip_of(moving, other):
    """One clip (1, f, 2, 2) of two lists of (y, x)."""
    return torch.tensor([moving, other], dtype=torch.float32).transpose(0, 1)[None]


# --- what can be trusted

def test_separation_is_the_larger_of_both_distances():
    places = [(34, 14), (33.9, 14), (14, 34), (30, 30), (50, 50)]
    assert separated(clip_of([(14, 14)] * 5, places)).tolist() == [[True, False, True, False, True]]


@every_rate
def test_no_step_with_a_bounce_is_called_free_of_one(trajectories, fps):
    bounced = trajectories.bounces(torch.arange(FRAMES) / fps)
    free = bounce_free(true_centres(trajectories, fps), fps)
    assert free.shape == bounced.shape == (CLIPS, FRAMES - 1, 2)
    assert bounced.float().mean() > 0.04 and not (free & bounced).any()
    # On each axis the middle of a step must keep (36 / fps + 1) / 2 from both walls.
    assert free.float().mean().item() == pytest.approx(((RANGE - SPEED / fps - 1) / RANGE) ** 2, abs=0.03)


def test_a_clean_step_has_both_frames_separated():
    centres = clip_of([(20, 32)] * 4, [(44, 32), (36, 32), (44, 32), (44, 32)])
    assert clean_steps(centres, 24.0).tolist() == [[[False] * 2, [False] * 2, [True] * 2]]


# --- speed

@every_rate
def test_true_clips_have_the_true_speed(trajectories, fps):
    centres = true_centres(trajectories, fps)
    speed, clean = speeds(centres, fps)
    steps = {3.0: 1, 6.0: 2, 12.0: 3, 24.0: 6}[fps]
    assert speed.shape == clean.shape == (CLIPS, FRAMES - steps, 2)
    assert (speed[clean] - SPEED).abs().max() < 0.01         # no window with a bounce among them
    assert speed[~clean].min() < SPEED / 2                   # where there are such
    error, count = speed_error(centres, fps)
    assert error < 0.001 and count == len(clip_speeds(centres, fps)) and CLIPS / 3 < count < CLIPS


@every_rate
def test_half_the_speed_is_an_error_of_half(trajectories, fps):
    centres = true_centres(trajectories, fps, slower=0.5)
    assert speed_error(centres, fps)[0] == pytest.approx(0.5, abs=1e-3)
    assert summary(centres, fps)["speed"] == pytest.approx(SPEED / 2, abs=0.02)


def test_the_error_is_one_clip_by_clip(trajectories):
    """Fast and slow clips do not cancel, and a clip counts once however many windows it has."""
    slow, fast = true_centres(trajectories, 12.0, slower=0.8), true_centres(trajectories, 12.0, slower=1.2)
    both = torch.cat([slow[:500], fast[500:]])
    assert speed_error(both, 12.0)[0] == pytest.approx(0.2, abs=5e-3)
    assert clip_speeds(both, 12.0).shape == (speed_error(both, 12.0)[1],)


@every_rate
def test_still_clips(trajectories, fps):
    moving = true_centres(trajectories, fps)
    frozen = moving[:, :1].expand_as(moving)
    crawling = true_centres(trajectories, fps, slower=0.2)
    assert still_share(moving, fps) == (0.0, CLIPS)
    for still in (frozen, noisy(frozen), crawling):
        assert still_share(still, fps) == (1.0, CLIPS)
    assert still_share(torch.cat([moving[:300], frozen[:100]]), fps) == (0.25, 400)


def test_the_share_of_frames_with_digits_apart(trajectories):
    near_then_far = clip_of([(14, 14)] * 4, [(20, 20), (33, 33), (34, 14), (50, 50)])
    assert apart_share(near_then_far) == (0.5, 4)
    true = true_centres(trajectories, 6.0)
    assert apart_share(true)[0] == pytest.approx(separated(true).float().mean().item())
    assert 0.3 < apart_share(true)[0] < 0.5 and apart_share(true)[1] == CLIPS * FRAMES


# --- straight lines and walls

@every_rate
def test_true_clips_are_straight_and_reflect_exactly(trajectories, fps):
    centres = true_centres(trajectories, fps)
    (bend, pairs), (miss, bounces) = straightness(centres, fps), reflection_error(centres, fps)
    assert bend < 1e-4 and pairs > 100
    assert miss < 1e-3 and bounces > 100


def test_a_zigzag_is_not_straight(trajectories):
    zigzag = torch.tensor([1.0, -1.0]).repeat(FRAMES // 2)[:, None, None]            # 1 px to and fro
    centres = true_centres(trajectories, 6.0)
    centres[..., :1] += zigzag
    assert straightness(centres, 6.0)[0] == pytest.approx(4 / 6, abs=1e-3)


def test_a_bounce_is_compared_with_the_exact_one():
    """6 fps: (22, 32) to (17, 32) continues to 12, so reflection puts it at 16; the other digit stays."""
    path, far = [(22, 32), (17, 32), (19, 32)], [(44, 32)] * 3
    assert reflection_error(clip_of(path, far), 6.0) == (pytest.approx(3.0), 1)
    assert reflection_error(clip_of(far, path), 6.0) == (pytest.approx(3.0), 1)
    assert reflection_error(clip_of(path, far[:2] + [(30, 32)]), 6.0) == (0.0, 0)    # p2 overlapped
    assert reflection_error(clip_of([(28, 32), (23, 32), (18, 32)], far), 6.0) == (0.0, 0)
    assert reflection_error(clip_of([(17, 32), (15, 32), (17, 32)], far), 6.0) == (0.0, 0)    # p1 in doubt
    upwards = [(64 - y, x) for y, x in path]
    assert reflection_error(clip_of(upwards, [(20, 32)] * 3), 6.0) == (pytest.approx(3.0), 1)


def test_digits_that_stick_to_walls_do_not_reflect(trajectories):
    times = torch.arange(4)[:, None, None] / 6.0
    straight = trajectories.start[:, None] + trajectories.velocity[:, None] * times
    error, count = reflection_error(straight.clamp(0, RANGE) + DIGIT / 2, 6.0)
    assert count > 50 and 1 < error < 6


# --- noise

@every_rate
def test_noise_raises_errors_but_speed_hardly(trajectories, fps):
    true = summary(true_centres(trajectories, fps), fps)
    found = summary(noisy(true_centres(trajectories, fps)), fps)
    assert true["speed_error"] < found["speed_error"] < 0.05
    assert found["speed"] == pytest.approx(SPEED, rel=0.02)
    assert found["straightness"] > 0.5 / (SPEED / fps)
    assert 0.5 < found["reflection_error"] < 2.5
    assert found["still_share"] == 0


# --- identity

def test_identity_switches_count_on_clear_frames_only():
    def judged(*frames):                                     # (pair, its probability) for each frame
        p = torch.stack([torch.full((55,), (1 - q) / 54) for _, q in frames])
        p[range(len(frames)), [pair for pair, _ in frames]] = torch.tensor([q for _, q in frames])
        return p.log()

    log_p = torch.stack([
        judged((7, 0.99), (7, 0.99), (7, 0.99), (7, 0.99)),  # none
        judged((7, 0.99), (7, 0.99), (0, 0.99), (7, 0.99)),  # for a frame
        judged((7, 0.99), (9, 0.99), (7, 0.99), (7, 0.99)),  # on the overlapped frame
        judged((7, 0.99), (7, 0.99), (9, 0.85), (7, 0.95)),  # without being sure
        judged((54, 0.99), (9, 0.99), (9, 0.8), (9, 0.8)),   # one clear frame: cannot tell
    ])
    centres = clip_of([(14, 14)] * 4, [(50, 50), (20, 20), (50, 50), (50, 50)]).expand(5, -1, -1, -1)
    assert identity_switches(log_p, centres) == (0.25, 4)
    assert identity_switches(log_p[1:2], centres[1:2]) == (1.0, 1)
    assert identity_switches(log_p[4:], centres[4:]) == (0.0, 0)


# --- edge cases

def test_without_separated_frames_nothing_but_stillness_is_measured(trajectories):
    centres = true_centres(trajectories, 6.0)[:5, :, :1].expand(-1, -1, 2, -1)       # one on the other
    found = summary(centres, 6.0, torch.zeros(5, FRAMES, 55))
    assert found.pop("still_share_count") == 5 and found.pop("apart_share_count") == 5 * FRAMES
    assert found.pop("speed_error_interval") is None and found.pop("still_share_interval")[1] < 0.5
    assert len(found) == 12 and set(found.values()) == {0}


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    assert median_interval(torch.rand(5)) is None
    assert median_interval(torch.arange(6.0)) == (0, 5)      # wrong if all six lie on one side: 1 in 32
    assert median_interval(torch.arange(100.0).flip(0)) == (39, 60)                  # of any table
    generator = torch.Generator().manual_seed(0)
    intervals = [median_interval(torch.rand(25, generator=generator)) for _ in range(400)]
    assert 368 <= sum(low < 0.5 < high for low, high in intervals) <= 395            # 0.957 of them


@every_rate
def test_two_frames_are_enough_for_speed(trajectories, fps):
    found = summary(true_centres(trajectories, fps, frames=2), fps)
    assert found["speed"] == pytest.approx(SPEED, abs=0.02) and found["speed_count"] > 50
    assert found["straightness_count"] == found["reflection_error_count"] == 0


def test_the_summary_holds_each_measure_as_plain_numbers(trajectories):
    centres = true_centres(trajectories, 6.0)
    log_p = torch.randn(CLIPS, FRAMES, 55).mul(9).log_softmax(dim=-1)
    found = summary(centres, 6.0, log_p, changed_in_sight=(0.25, 8))
    assert found["changed_in_sight_interval"][0] < found["changed_in_sight"] == 0.25
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name, measured in {"speed_error": speed_error(centres, 6.0), "still_share": still_share(centres, 6.0),
                           "straightness": straightness(centres, 6.0),
                           "reflection_error": reflection_error(centres, 6.0),
                           "changed_in_sight": (0.25, 8), "apart_share": apart_share(centres),
                           "identity_switches": identity_switches(log_p, centres)}.items():
        assert (found[name], found[f"{name}_count"]) == measured
    assert found["identity_switches"] > 0.5 and "identity_switches" not in summary(centres, 6.0)
