"""The simulator against explicit references, and what each data set lets its readers see."""

import math

import pytest
import torch
import torch.nn.functional as F

from mavlite.digits import Digits, load_digits
from mavlite.moving_mnist import (
    DIGIT,
    RANGE,
    SPEED,
    MovingMNIST,
    TextFramePairs,
    Trajectories,
    UnlabelledClips,
    box_matrix,
    box_resize,
    canonical_positions,
    clearest,
    draw,
    hash_uniform,
    statistics,
)
from mavlite.prompts import NUMERALS, WORDS, parse_prompt


@pytest.fixture(scope="module")
def noise():
    """A simulator of random images."""
    images = torch.randint(0, 256, (20, 28, 28), generator=torch.Generator().manual_seed(1))
    return MovingMNIST(images.to(torch.uint8))


@pytest.fixture(scope="module")
def glyphs():
    return load_digits("train", "glyphs")


# --- random numbers

def test_the_hash_is_the_documented_one():
    def hash32(x):
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    for seed, index, number in [(0, 0, 0), (7, 123456, 3), (101, 1_000_000_000, 30)]:
        h = hash32((seed + 0x9E3779B9) % 2**32)
        h = hash32(h ^ index)
        h = hash32(h ^ (number * 0x85EBCA6B) % 2**32)
        assert hash_uniform(seed, torch.tensor([index]), number).item() == (h >> 8) / 2**24


def test_hashed_numbers_are_uniform_and_uncorrelated():
    index = torch.arange(20000)
    u = torch.stack([hash_uniform(seed, index, number) for seed in (0, 1) for number in range(4)])
    assert u.min() >= 0 and u.max() < 1
    counts = torch.stack([row.histc(20, 0, 1) for row in u])
    assert (counts - 1000).abs().max() < 160                 # five standard deviations
    assert (torch.corrcoef(u) - torch.eye(8)).abs().max() < 0.04
    assert torch.corrcoef(torch.stack([u[0, :-1], u[0, 1:]]))[0, 1].abs() < 0.04


# --- clips are pure functions

def test_a_clip_is_the_same_alone_in_any_batch_and_in_any_order(noise):
    times = torch.arange(5) / 6.0
    alone = noise.clip(7, 5, fps=6.0, num_frames=5)
    batch = noise.render(noise.trajectories(7, [3, 5, 900]), times)
    turned = noise.render(noise.trajectories(7, torch.tensor([900, 5, 3])), times)
    assert alone.shape == (1, 5, 64, 64)
    assert torch.equal(batch[1], alone) and torch.equal(turned, batch.flip(0))


def test_seeds_and_indices_name_different_clips(noise):
    clips = [noise.clip(seed, index, num_frames=2) for seed in (0, 1) for index in (0, 1)]
    assert len({clip.sum().item() for clip in clips}) == 4


def test_every_digit_image_is_used_about_equally(noise):
    counts = noise.trajectories(0, torch.arange(10000)).images.flatten().bincount(minlength=20)
    assert len(counts) == 20 and (counts - 1000).abs().max() < 160


def test_frames_at_twice_the_rate_hold_the_frames_at_the_rate(noise):
    slow, fast = noise.clip(0, 3, fps=5.0, num_frames=8), noise.clip(0, 3, fps=10.0, num_frames=16)
    assert torch.allclose(slow, fast[:, ::2], atol=1e-4)



@pytest.mark.parametrize("fps", [0, -1, math.nan])
def test_a_clip_without_times_is_refused(fps):
    with pytest.raises(ValueError, match="has no times"):
        MovingMNIST(torch.zeros(1, 28, 28, dtype=torch.uint8)).clip(0, 0, fps=fps)


def test_channels_repeat_the_grey_level(noise):
    colour = MovingMNIST(noise.images, channels=3).clip(0, 3, num_frames=2)
    assert torch.equal(colour, noise.clip(0, 3, num_frames=2).expand(3, -1, -1, -1))


@pytest.mark.parametrize("size", [32, 48, 64])
def test_one_clip_is_drawn_at_every_size(noise, size):
    clip, full = noise.clip(0, 3, num_frames=3, size=size), noise.clip(0, 3, num_frames=3)
    assert clip.shape == (1, 3, size, size) and clip.min() >= 0 and clip.max() <= 1
    assert torch.allclose(clip, box_resize(full, size), atol=1e-6)


# --- motion

def test_speed_is_constant_and_start_uniform(noise):
    trajectories = noise.trajectories(0, torch.arange(5000))
    assert torch.allclose(trajectories.velocity.norm(dim=-1), torch.tensor(SPEED))
    start = trajectories.start
    assert start.min() >= 0 and start.max() < RANGE
    assert (start.mean(dim=0) - RANGE / 2).abs().max() < 1


def test_digits_stay_inside(noise):
    positions = noise.trajectories(0, torch.arange(500)).positions(torch.linspace(0, 60, 601))
    assert positions.min() >= 0 and positions.max() <= RANGE


def test_reflection_agrees_with_walking_in_tiny_steps(noise):
    trajectories = noise.trajectories(0, torch.arange(50))
    p, v = trajectories.start.double(), trajectories.velocity.double()
    per_frame, frames, walked, bounced = 100, 50, [], []
    for _ in range(frames):
        walked.append(p)
        hit = torch.zeros(50, 2, dtype=torch.bool)
        for _ in range(per_frame):
            p = p + v / 10 / per_frame
            low, high = p < 0, p > RANGE
            p = torch.where(low, -p, torch.where(high, 2 * RANGE - p, p))
            v = torch.where(low | high, -v, v)
            hit |= (low | high).any(dim=-1)
        bounced.append(hit)
    times = torch.arange(frames) / 10
    assert (trajectories.positions(times) - torch.stack(walked, 1)).abs().max() < 1e-3
    assert torch.equal(trajectories.bounces(times), torch.stack(bounced[:-1], 1))


def test_a_digit_in_a_corner_turns_round(noise):
    corner = Trajectories(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[[1.0, 1.0], [35.0, 35.0]]]),
                          torch.tensor([[[-20.0, -20.0], [20.0, 20.0]]]))
    end = corner.positions(torch.tensor([0.1]))[0, 0]
    assert torch.allclose(end, torch.tensor([[1.0, 1.0], [35.0, 35.0]]), atol=1e-5)


def test_statistics_of_the_canonical_generator(noise):
    positions, bounced = canonical_positions(noise.trajectories(0, torch.arange(4000)), 20)
    measured = statistics(positions, bounced)
    assert measured == pytest.approx({"overlap": 0.866, "heavy_overlap": 0.351, "bounce": 0.119}, abs=0.01)
    assert torch.equal(positions, positions.round()) and positions.min() >= 0 and positions.max() <= RANGE


def test_statistics_of_continuous_time(noise):
    trajectories, times = noise.trajectories(0, torch.arange(4000)), torch.arange(20) / 10
    measured = statistics(trajectories.positions(times), trajectories.bounces(times))
    assert measured == pytest.approx({"overlap": 0.904, "heavy_overlap": 0.391, "bounce": 0.124}, abs=0.01)


def test_canonical_clips_show_whole_pixels(noise):
    trajectories = noise.trajectories(0, [4])
    y, x = canonical_positions(trajectories, 3)[0][0, 2, 0].long().tolist()
    frame = noise.canonical(0, [4], num_frames=3)[0, 0, 2]
    digit = noise.images[trajectories.images[0, 0]] / 255
    assert (frame[y:y + DIGIT, x:x + DIGIT] >= digit - 1e-6).all()


# --- drawing

def draw_reference(digits, positions):
    """A[i, j] = max(0, 1 - |i - (p + j)|) places rows and columns; then the maximum over digits."""
    i, j = torch.arange(64.0)[:, None], torch.arange(28.0)

    def hat(p):
        return (1 - (i - (p + j)).abs()).clamp(min=0)

    def frame(pair, corners):
        return torch.stack([hat(y) @ digit @ hat(x).T for digit, (y, x) in zip(pair, corners)]).amax(dim=0)

    return torch.stack([torch.stack([frame(pair, corners) for corners in frames])
                        for pair, frames in zip(digits, positions)])


def test_drawing_agrees_with_interpolation_matrices():
    digits = torch.rand(3, 2, 28, 28)
    positions = RANGE * torch.rand(3, 4, 2, 2)
    positions[0, 0] = torch.tensor([[0.0, 36.0], [36.0, 0.0]])
    positions[1, 1] = torch.tensor([[5.0, 7.25], [36.0, 35.999]])
    drawn = draw(digits, positions)
    assert drawn.shape == (3, 4, 64, 64)
    assert torch.allclose(drawn, draw_reference(digits, positions), atol=1e-4)


def test_overlap_is_by_maximum():
    digits = torch.stack([torch.full((28, 28), 0.25), torch.full((28, 28), 0.75)])[None]
    frame = draw(digits, torch.tensor([[[[0.0, 0.0], [10.0, 10.0]]]]))[0, 0]
    assert frame[5, 5] == 0.25 and frame[20, 20] == 0.75 and frame[50, 50] == 0


def test_box_resize_keeps_pixel_centres():
    source = torch.arange(64.0) + 0.5                        # each pixel holds the place of its centre
    target = (torch.arange(48.0) + 0.5) * 64 / 48
    ramp = source.expand(64, 64)
    resized = box_resize(ramp[None], 48)[0]
    assert torch.allclose(resized[0, :3], torch.tensor([0.75, 2.0, 3.25]), atol=1e-5)
    assert torch.allclose(resized, box_resize(ramp.T[None], 48)[0].T, atol=1e-4)
    assert (resized - target).abs().max() < 1 / 12 + 1e-4    # what averaging a pixel's steps costs
    wrong = F.interpolate(ramp[None, None], (48, 48), mode="area")[0, 0]
    assert (wrong - target).abs().max() > 0.3


@pytest.mark.parametrize("size", [16, 24, 32, 48])
def test_box_resize_keeps_the_mean(size):
    frames = torch.rand(2, 3, 64, 64)
    assert torch.allclose(box_resize(frames, size).mean(dim=(-1, -2)), frames.mean(dim=(-1, -2)), atol=1e-5)
    assert torch.allclose(box_matrix(64, size).sum(dim=1), torch.ones(size))


def test_box_resize_by_whole_windows_is_average_pooling():
    frames = torch.rand(2, 1, 3, 64, 64)
    expected = F.avg_pool2d(frames.flatten(0, 2), 2).unflatten(0, (2, 1, 3))
    assert torch.allclose(box_resize(frames, 32), expected)
    weights = box_matrix(64, 32)
    assert torch.allclose(weights @ frames @ weights.T, expected, atol=1e-6)
    assert box_resize(frames, 64) is frames


# --- the conditioning frame

def test_the_clearest_frame_overlaps_least():
    digits = torch.rand(1, 2, 28, 28)
    positions = torch.tensor([[[[0.0, 0.0], [float(p), float(p)]] for p in (0, 14, 30, 7)]])
    frames = draw(digits, positions)[:, None]
    assert clearest(frames).tolist() == [2]
    assert clearest(torch.cat([frames, frames.flip(2)])).tolist() == [2, 1]


def test_the_preview_chooses_a_frame_about_as_clear_as_the_clearest(glyphs):
    simulator = MovingMNIST(glyphs.images)
    trajectories = simulator.trajectories(0, torch.arange(120))
    light = simulator.condition_clip(trajectories, 64).sum(dim=(1, 3, 4)).amax(dim=1)
    chosen = simulator.clearest_frame(trajectories, 64).sum(dim=(1, 2, 3))
    shortfall = 1 - chosen / light
    assert (shortfall < 0.02).float().mean() > 0.97 and shortfall.max() < 0.1


def test_the_clearest_frame_is_one_of_its_clip(glyphs):
    simulator = MovingMNIST(glyphs.images)
    trajectories = simulator.trajectories(0, [1, 2, 3])
    clip, frame = simulator.condition_clip(trajectories, 32), simulator.clearest_frame(trajectories, 32)
    assert ((clip - frame[:, :, None]).abs().amax(dim=(1, 3, 4)) < 1e-5).any(dim=1).all()


# --- data sets

def test_few_clips_come_again_but_not_at_the_same_moments(glyphs):
    few, all_of_them = UnlabelledClips(glyphs.images, 5, num_clips=2), UnlabelledClips(glyphs.images, 5)
    clips, _ = few.clips([0, 1, 2, 7], 6.0, 4, 16)
    expected, _ = all_of_them.clips([0, 1, 0, 1], 6.0, 4, 16)
    assert torch.equal(clips, expected) and not torch.equal(clips[0], clips[1])
    frames = few.frames(range(0, 20, 2), 16)                 # all of clip 0
    shown = few.simulator.condition_clip(few.trajectories([0]), 16)[0].transpose(0, 1)               # f c h w
    assert ((frames[:, None] - shown).abs().amax(dim=(2, 3, 4)) < 1e-5).any(dim=1).all()
    assert len(frames.flatten(1).unique(dim=0)) > 3


def test_prompts_name_the_digits_in_either_order_and_both_spellings(glyphs):
    pairs = TextFramePairs(glyphs, seed=3)
    indices = range(600)
    _, prompts = pairs.pairs(indices, 16)
    named, shown = torch.tensor([parse_prompt(prompt) for prompt in prompts]), pairs.labels(indices)
    assert torch.equal(named.sort(dim=1).values, shown.sort(dim=1).values)
    unequal = shown[:, 0] != shown[:, 1]
    assert 0.4 < (named == shown).all(dim=1)[unequal].float().mean() < 0.6
    for place in (0, 2):
        words = [prompt.split()[place] for prompt in prompts]
        assert set(words) == {*WORDS, *NUMERALS}
        assert 0.4 < sum(word in WORDS for word in words) / 600 < 0.6


@pytest.mark.parametrize("kind", ["pairs", "frames"])
def test_frames_show_the_digits_that_their_labels_say(kind):
    labels = torch.arange(10).repeat(3)
    grey = (20 + 20 * labels).to(torch.uint8)                # tells the digit
    images = grey[:, None, None].repeat(1, 28, 28)
    pairs = TextFramePairs(Digits(images, labels, "glyphs", "train"), seed=0)
    indices = range(50)
    frames = pairs.pairs(indices, 64)[0] if kind == "pairs" else pairs.frames(indices, 64)
    brightest = (frames.amax(dim=(1, 2, 3)) * 255 - 20) / 20
    assert torch.allclose(brightest, pairs.labels(indices).amax(dim=1).float(), atol=1e-3)


def test_frames_of_any_time_come_from_the_clip(glyphs):
    clips = UnlabelledClips(glyphs.images, seed=5)
    frames, whole = clips.frames(range(40), 16), clips.condition_clips(range(40), 16)
    found = (whole - frames[:, :, None]).abs().amax(dim=(1, 3, 4)) < 1e-5
    assert found.any(dim=1).all()
    assert len(set(found.float().argmax(dim=1).tolist())) > 8


def test_unlabelled_clips_tell_frames_and_rates_and_nothing_else(glyphs):
    clips = UnlabelledClips(glyphs.images, seed=0)
    told = clips.clips(range(3), torch.tensor([2.0, 6.0, 30.0]), 4, 16)
    assert [(x.shape, x.dtype) for x in told] == [((3, 1, 4, 16, 16), torch.float32), ((3,), torch.float32)]
    assert told[1].tolist() == [2.0, 6.0, 30.0]
    assert torch.allclose(told[0][1], clips.simulator.clip(0, 1, 6.0, 4, 16), atol=1e-6)
    for frames in (clips.frames(range(3), 16), clips.condition_frames(range(3), 16)):
        assert frames.shape == (3, 1, 16, 16) and frames.dtype == torch.float32


def test_angles_cover_the_circle(noise):
    velocity = noise.trajectories(0, torch.arange(8000)).velocity
    angle = torch.atan2(velocity[..., 0], velocity[..., 1]).flatten()
    assert (angle.histc(16, -math.pi, math.pi) - 1000).abs().max() < 160
