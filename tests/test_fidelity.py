"""Scores and baselines against closed forms; intervals cover what they should and no more."""

import math

import pytest
import torch
import torch.nn.functional as F

from mavlite.evaluation.fidelity import bicubic, bootstrap, flicker, linear_blend, nearest_frame, psnr, ssim

# --- PSNR and SSIM


def test_psnr_is_the_closed_form_for_each_clip():
    a = torch.full((3, 2, 4, 8, 8), 0.5)
    b = a + torch.tensor([0.1, -0.01, 0.5]).view(3, 1, 1, 1, 1)
    assert psnr(a, b).tolist() == pytest.approx([20, 40, -20 * math.log10(0.5)], abs=1e-3)
    assert torch.equal(psnr(a, b), psnr(b, a))


def test_psnr_averages_squared_errors_before_the_logarithm():
    a = torch.zeros(1, 1, 2, 4, 4)
    b = a.clone()
    b[:, :, 0], b[:, :, 1, :2] = 0.1, 0.4                    # 0.01 in one frame, 0.08 in the other
    assert psnr(a, b).item() == pytest.approx(-10 * math.log10(0.045), abs=1e-3)


def test_psnr_of_identical_clips_is_the_cap():
    a = torch.rand(2, 1, 3, 4, 4)
    assert psnr(a, a).tolist() == pytest.approx([100, 100], abs=1e-3)
    assert psnr(a, a + 1e-4).max() < 85                      # and no other clip's


def test_ssim_is_one_for_equal_clips_and_the_closed_form_for_grey_ones():
    a = torch.full((2, 1, 4, 16, 16), 0.5)
    b = a.clone()
    b[1, :, :2] = 0.25                                       # half of the second clip's frames
    grey = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert ssim(a, b).tolist() == pytest.approx([1, (1 + grey) / 2], abs=1e-3)
    noise = torch.rand(2, 3, 4, 16, 16)
    assert ssim(noise, noise).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert ssim(noise, noise.flip(4)).max() < 0.5


def test_ssim_keeps_clips_apart_also_when_there_are_many_frames():
    a = torch.rand(40, 1, 16, 16, 16)
    b = a.clone()
    b[34] = 1 - b[34]
    found = ssim(a, b)
    assert found.shape == (40,) and found[34] < 0
    assert (found[torch.arange(40) != 34] - 1).abs().max() < 1e-5


# --- flicker

def test_truth_does_not_flicker_nor_does_an_error_that_stays():
    truth = torch.rand(3, 2, 5, 24, 24)
    assert torch.equal(flicker(truth, truth), torch.zeros(3))
    assert flicker(truth + 0.3 * torch.rand(3, 2, 1, 24, 24), truth).max() < 1e-6


def test_flicker_of_noise_is_the_closed_form():
    truth, noise = torch.rand(3, 1, 9, 96, 96), 0.1 * torch.randn(3, 1, 9, 96, 96)
    noise[2] = noise[2, :, :1]                               # the last clip's is shared by its frames
    x = torch.arange(-4.0, 5)
    kernel = torch.exp(-x * x / 2) / torch.exp(-x * x / 2).sum()
    left = torch.zeros(9, 9)
    left[4, 4] = 1
    gain = (left - kernel[:, None] * kernel).square().sum().sqrt().item()            # of x - blur(x)
    found = flicker(truth + noise, truth)
    assert found.shape == (3,)
    assert found[:2].tolist() == pytest.approx([0.1 * math.sqrt(2) * gain] * 2, rel=0.03)
    assert found[2] < 1e-6


def test_light_that_changes_as_a_whole_is_no_flicker():
    truth = torch.rand(2, 1, 6, 24, 24)
    assert flicker(truth + torch.rand(2, 1, 6, 1, 1), truth).max() < 1e-6


def test_a_video_that_stands_still_flickers_where_the_truth_moves():
    truth = torch.rand(1, 1, 5, 24, 24)
    assert flicker(truth[:, :, :1].expand_as(truth), truth) > 0.1


# --- baselines

@pytest.mark.parametrize("skip", [1, 2, 3, 5])
def test_baselines_keep_the_keys(skip):
    keys = torch.rand(2, 3, 4, 6, 6)
    for baseline in (linear_blend, nearest_frame):
        video = baseline(keys, skip)
        assert video.shape == (2, 3, 3 * skip + 1, 6, 6) and torch.equal(video[:, :, ::skip], keys)
        assert torch.equal(baseline(keys[:, :, :1], skip), keys[:, :, :1])


@pytest.mark.parametrize("skip", [2, 3, 5])
def test_linear_blend_is_exact_for_a_ramp(skip):
    start, slope = torch.rand(2, 1, 1, 4, 4), torch.rand(2, 1, 1, 4, 4) / 10
    ramp = start + slope * torch.arange(3 * skip + 1).view(-1, 1, 1)
    assert torch.allclose(linear_blend(ramp[:, :, ::skip], skip), ramp, atol=1e-6)


@pytest.mark.parametrize("skip, expected", [
    (2, [0, 0, 1, 1, 2]),
    (3, [0, 0, 1, 1, 1, 2, 2]),
    (4, [0, 0, 0, 1, 1, 1, 1, 2, 2]),
    (5, [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]),
])
def test_nearest_frame_is_the_nearest(skip, expected):
    keys = torch.arange(3.0).view(1, 1, 3, 1, 1)
    assert nearest_frame(keys, skip).flatten().tolist() == expected


def test_bicubic_enlarges_clips_and_images_alike_and_stays_in_range():
    clips = (torch.rand(2, 3, 4, 16, 16) > 0.5).float()
    large = bicubic(clips, 24)
    assert large.shape == (2, 3, 4, 24, 24) and large.min() == 0 and large.max() == 1
    bare = F.interpolate(clips[:, :, 1], (24, 24), mode="bicubic", antialias=True)
    assert bare.min() < -0.01 and torch.allclose(bare.clamp(0, 1), large[:, :, 1], atol=1e-6)
    assert torch.allclose(bicubic(clips[:, :, 1], 24), large[:, :, 1], atol=1e-6)


def test_bicubic_reproduces_a_ramp_and_keeps_pixel_centres():
    ramp = ((torch.arange(16) + 0.5) / 16).expand(1, 1, 16, 16)
    expected = (torch.arange(32) + 0.5) / 32
    assert (bicubic(ramp, 32)[0, 0] - expected)[:, 4:-4].abs().max() < 1e-5


# --- intervals

def test_an_interval_surrounds_the_mean_and_has_the_normal_width():
    values = 3 + torch.randn(400)
    low, high = bootstrap(values)
    assert low < values.mean() < high and isinstance(low, float)
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.12)
    wide_low, wide_high = bootstrap(values[:25])
    assert (wide_high - wide_low) / (high - low) == pytest.approx(4, rel=0.4)
    assert bootstrap(values, seed=0) == (low, high) != bootstrap(values, seed=1)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    intervals = [bootstrap(torch.randn(60), seed=k, n=500) for k in range(200)]
    assert 176 <= sum(low < 0 < high for low, high in intervals) <= 198              # 190 +- four deviations


@pytest.mark.parametrize("n", [3, 5, 8])
def test_intervals_of_few_clips_are_wide_enough(n):
    intervals = [bootstrap(torch.randn(n, generator=torch.Generator().manual_seed(k)), seed=k, n=500)
                 for k in range(300)]
    assert sum(low < 0 < high for low, high in intervals) >= 261                     # 87 %; of 3 it was 60 %


def test_one_clip_has_no_interval_of_its_own():
    assert bootstrap(torch.tensor([2.0])) is None


def test_a_ratio_resamples_both_alike():
    hard = torch.rand(50) + 0.1
    assert bootstrap(0.5 * hard, hard) == pytest.approx((0.5, 0.5), abs=1e-9)
    low, high = bootstrap(0.5 * hard + 0.01 * torch.randn(50), hard)
    assert low < 0.5 < high and high - low < 0.05
    low, high = bootstrap(0.5 * hard, hard.roll(1))          # not the same clips: nothing cancels
    assert high - low > 0.05
