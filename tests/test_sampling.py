"""Samplers against exact answers: a Gaussian whose denoiser is known, and diffusers on the same grid."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

from mavlite.diffusion import PREDICTION_TYPES, Diffusion
from mavlite.sampling import (
    SAMPLERS,
    ddim,
    ddpm,
    dpmpp_2m,
    make_denoiser,
    sample,
    time_steps,
    x_0_variance,
)

torch.set_num_threads(1)


def noise_source(x, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def start(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def network(x_t, t, drop=None):
    """Stands for a trained network: smooth, bounded, different for every element and time."""
    return torch.tanh(0.7 * x_t + torch.sin(3 * t).reshape(-1, 1, 1, 1) + 0.3 * x_t.roll(1, dims=-1))


def network_with_variance(x_t, t, drop=None):
    return torch.cat([network(x_t, t), torch.tanh(2 * x_t)], dim=1)



# --- the exact Gaussian: x_0 ~ N(MU, S^2) ------------------------------------------------------------------

MU, S = 0.3, 0.6


def gaussian_denoiser(diffusion, spread=S):
    """E[x_0 | x_t] for x_0 ~ N(MU, spread^2), which is what a perfect network would find."""

    def denoise(x_t, t):
        alpha, sigma = diffusion.alpha_sigma(t[:, None])
        return MU + alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * (x_t - alpha * MU)

    return denoise


def mean_and_deviation(sampler, num_inference_steps, diffusion, denoise=None, **options):
    """Of the sampler's output for standard normal noise: exact, because every step is affine in the noises.

    The batch holds one run without any noise, and for each of the noises one run with that noise alone.
    """
    noises = num_inference_steps if sampler == "ddpm" else 1     # the start; one for every step but the last
    options = {"variance_type": "fixed_small", **options}        # an estimate is not affine, see `drawn`
    x = torch.zeros(1 + noises, 1, dtype=torch.float64)
    x[1] = 1.0
    draws = iter(range(2, 1 + noises))

    def draw_noise():
        noise = torch.zeros_like(x)
        noise[next(draws)] = 1.0
        return noise

    x_0 = sample(
        denoise or gaussian_denoiser(diffusion),
        x,
        diffusion,
        sampler=sampler,
        num_inference_steps=num_inference_steps,
        draw_noise=draw_noise,
        **options,
    )
    assert next(draws, None) is None                                             # every noise was used
    return x_0[0].item(), (x_0[1:] - x_0[0]).norm().item()


def deviation_errors(sampler, step_counts, diffusion):
    errors = []
    for num_inference_steps in step_counts:
        mean, deviation = mean_and_deviation(sampler, num_inference_steps, diffusion)
        assert abs(mean - MU) < 1e-10                    # a straight path: exact with any number of steps
        errors.append(deviation / S - 1)
    return errors


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_first_order_samplers_converge_to_the_gaussian(sampler):
    errors = deviation_errors(sampler, (64, 128, 256, 512), Diffusion())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.85 < slope < 1.05 for slope in slopes)
    assert abs(errors[2]) < (0.013 if sampler == "ddpm" else 0.006)              # 256 steps
    assert abs(errors[3]) < 0.01
    assert abs(2 * errors[3] - errors[2]) < 1e-3                                 # ... and it is S they go to


def drawn(num_inference_steps, spread, shape, **options):
    """Mean and deviation of what ddpm makes of that many numbers, relative to the data's deviation."""
    diffusion, x = Diffusion(), start(*shape)

    def denoise(x_t, t):
        return gaussian_denoiser(diffusion, spread)(x_t.flatten(1), t).view_as(x_t)

    made = sample(denoise, x, diffusion, sampler="ddpm", num_inference_steps=num_inference_steps,
                  draw_noise=noise_source(x), **options)
    return (made.mean().item() - MU) / spread, made.std().item() / spread


@pytest.mark.parametrize("spread, shape", [
    (0.3, (200_000, 1)), (0.6, (200_000, 1)), (1.0, (200_000, 1)), (0.3, (1, 1, 500, 400)),
    (0.6, (100, 2, 25, 40))])
def test_ddpm_brings_the_variance_within_one_percent_in_256_steps(spread, shape):
    """As it comes, without options; of 200,000 numbers, whose own variance is known to 0.3 %."""
    mean, deviation = drawn(256, spread, shape)
    assert abs(mean) < 0.01 and abs(deviation**2 - 1) < 0.01


def test_an_estimated_variance_helps_most_where_steps_are_few():
    shape = (1, 1, 500, 400)
    for kind, low, high in (("estimated", -0.05, 0), ("fixed_small", -0.35, -0.2),
                            ("fixed_large", 0.04, 0.1)):
        assert low < drawn(16, S, shape, variance_type=kind)[1] ** 2 - 1 < high, kind


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_at_most_one_percent_of_the_variance_is_lost_in_256_steps(sampler):
    """Of data whose variance is 1."""
    diffusion = Diffusion()
    mean, deviation = mean_and_deviation(sampler, 256, diffusion, gaussian_denoiser(diffusion, 1.0))
    assert abs(mean - MU) < 1e-10 and abs(deviation**2 - 1) < 0.01


@pytest.mark.parametrize("sampler, options, most", [
    ("ddpm", {"variance_type": "fixed_large"}, 0.01), ("dpmpp_2m", {}, 0.001), ("ddim", {}, 0.011),
    ("ddpm", {"variance_type": "fixed_small"}, 0.026)])
def test_the_variance_of_narrower_data_in_256_steps(sampler, options, most):
    diffusion = Diffusion()
    mean, deviation = mean_and_deviation(sampler, 256, diffusion, **options)
    assert abs(mean - MU) < 1e-10 and abs((deviation / S) ** 2 - 1) < most


@pytest.mark.parametrize("num_inference_steps", [4, 32, 256])
def test_what_ddim_loses_is_the_turn_between_two_steps(num_inference_steps):
    """u = (alpha S, sigma) turns by a right angle; a step keeps cos(turn) of the deviation.

    So with n steps the variance is at most cos(pi / 2n)^2n, 0.990 for 256: for data of variance 1, whose
    turns are even. Data of another variance lose a little more.
    """
    diffusion, best = Diffusion(), math.cos(math.pi / (2 * num_inference_steps)) ** num_inference_steps
    for spread in (0.6, 1.0, 1.5):
        alpha, sigma = diffusion.alpha_sigma(time_steps(num_inference_steps))
        turns = torch.atan2(sigma, alpha * spread).diff()
        _, deviation = mean_and_deviation("ddim", num_inference_steps, diffusion,
                                          gaussian_denoiser(diffusion, spread))
        assert deviation / spread == pytest.approx(turns.cos().prod().item(), rel=1e-9)
        assert deviation / spread <= best * (1 + 1e-9)
    assert mean_and_deviation("ddim", num_inference_steps, diffusion, gaussian_denoiser(diffusion, 1.0)
                              )[1] == pytest.approx(best, rel=1e-9)


def test_the_two_variances_of_ddpm_enclose_the_data(num_inference_steps=128):
    small, large = (mean_and_deviation("ddpm", num_inference_steps, Diffusion(), variance_type=kind)[1]
                    for kind in ("fixed_small", "fixed_large"))
    assert small < S < large
    with pytest.raises(ValueError, match="estimated.*fixed_small.*fixed_large"):
        mean_and_deviation("ddpm", 4, Diffusion(), variance_type="learned")


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_what_is_not_known_of_x_0_is_read_off_the_denoiser(time):
    # Var[x_0 | x_t] = S^2 sigma^2 / (alpha^2 S^2 + sigma^2)
    diffusion, x_0 = Diffusion(), MU + S * start(3, 400_000)
    t = torch.full((3,), time, dtype=torch.float64)
    x_t = diffusion.add_noise(x_0, start(3, 400_000, seed=2), t)
    alpha, sigma = (value[0].item() for value in diffusion.alpha_sigma(t))
    found = x_0_variance(x_t, gaussian_denoiser(diffusion)(x_t, t), alpha, sigma)
    wanted = S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)
    # The mean of n squares of variance sigma^2 errs by about root(2 / n) of itself.
    torch.testing.assert_close(found, torch.full((3, 1), wanted, dtype=torch.float64), rtol=0.01,
                               atol=4 * (2 / 400_000) ** 0.5 * (sigma / alpha) ** 2)
    # Between nothing, where the true x_0 is known, and 1, where only the mean is; each sample for itself.
    half = x_0_variance(x_t, torch.cat([x_0[:1], 0 * x_0[1:]]), alpha, sigma)
    assert half[0] < 0.01 * wanted + 0.01 * (sigma / alpha) ** 2 and (half[1:] <= 1).all()
    torch.testing.assert_close(half[:1], x_0_variance(x_t[:1], x_0[:1], alpha, sigma))
    assert (x_0_variance(x_t, x_0, 0.0, 1.0) == 0).all()     # t = 1


def test_an_estimated_variance_hears_of_no_neighbour():
    x, diffusion = start(3, 2, 4, 4), Diffusion()
    noises = [start(3, 2, 4, 4, seed=seed) for seed in range(10, 17)]
    denoise = make_denoiser(diffusion, network)
    together, alone = (
        sample(denoise, x[rows], diffusion, sampler="ddpm", num_inference_steps=8,
               draw_noise=iter([noise[rows] for noise in noises]).__next__)
        for rows in (slice(0, 3), slice(1, 2)))
    torch.testing.assert_close(together[1:2], alone)


def test_second_order_sampler_converges_to_the_gaussian():
    errors = deviation_errors("dpmpp_2m", (64, 128, 256, 512, 1024, 2048), Diffusion())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    # On even times the k-th step from either end is about 1 / k long in lambda, and adds about 1 / (n^2 k) to
    # the error: n^-2 log n in all. So the slope climbs to 2 from below: 1.5, 1.65, 1.73, 1.77, 1.81.
    assert slopes == sorted(slopes) and slopes[0] > 1.4 and slopes[-1] > 1.8
    assert abs(errors[0]) < 0.003 and abs(errors[2]) < 0.0003                    # 64 and 256 steps


def test_samplers_converge_on_a_truncated_schedule_too():
    diffusion = Diffusion("epsilon", log_snr_min=-20)
    for sampler, tolerance in (("ddpm", 0.013), ("ddim", 0.006), ("dpmpp_2m", 0.0003)):
        mean, deviation = mean_and_deviation(sampler, 256, diffusion)
        assert abs(mean - MU) < 1e-4                     # the start lacks alpha MU = 4.5e-5 MU
        assert abs(deviation / S - 1) < tolerance


@pytest.mark.parametrize("num_inference_steps", [4, 16, 64, 256])
def test_ddpm_with_the_true_variance_is_exact_for_a_gaussian(num_inference_steps):
    # p(x_s | x_t) = N(c_t x_t + c_0 E[x_0 | x_t], beta_tilde + c_0^2 Var[x_0 | x_t]). Only the last step,
    # which lands on E[x_0 | x_t] without noise, loses something: Var[x_0 | x_t] at its start.
    diffusion = Diffusion()
    find_x_0 = gaussian_denoiser(diffusion)

    def x_0_variance(t):
        alpha, sigma = diffusion.alpha_sigma(t)
        return S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)

    def denoise(x_t, t):
        s = t - 1 / num_inference_steps
        _, c_0, beta, beta_tilde = diffusion.posterior(t, s)
        variance = beta_tilde + c_0**2 * x_0_variance(t)
        v01 = (variance / beta_tilde).log() / (beta / beta_tilde).log()
        return find_x_0(x_t, t), (2 * v01 - 1)[:, None].expand_as(x_t)

    _, deviation = mean_and_deviation("ddpm", num_inference_steps, diffusion, denoise)
    lost = x_0_variance(torch.tensor(1 / num_inference_steps, dtype=torch.float64)).item()
    assert deviation**2 == pytest.approx(S**2 - lost, rel=1e-9)
    assert num_inference_steps < 256 or lost < 0.001 * S**2


# --- diffusers on the same grid ----------------------------------------------------------------------------


def alpha_bars(diffusion, num_train_timesteps):
    """alpha^2 at (k + 1) / T for k = 0 ... T - 1: diffusers' timestep k is our time (k + 1) / T."""
    alpha, _ = diffusion.alpha_sigma(time_steps(num_train_timesteps).flip(0)[1:] * diffusion.max_time)
    return alpha**2


def their_scheduler(scheduler_class, diffusion, num_train_timesteps, **kwargs):
    bars = alpha_bars(diffusion, num_train_timesteps)
    betas = 1 - bars / torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    scheduler = scheduler_class(
        num_train_timesteps=num_train_timesteps,
        trained_betas=betas.tolist(),
        prediction_type=diffusion.prediction_type,
        timestep_spacing="trailing",
        **kwargs,
    )
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), bars, rtol=1e-4, atol=1e-7)
    scheduler.alphas_cumprod = bars                      # theirs are float32; now we can compare in float64
    return scheduler


def their_sample(scheduler, model, x, diffusion, num_inference_steps, sigmas=None, **kwargs):
    scheduler.set_timesteps(num_inference_steps)
    if sigmas is not None:
        scheduler.sigmas = sigmas
    for timestep in scheduler.timesteps:
        time = (timestep.item() + 1) / scheduler.config.num_train_timesteps * diffusion.max_time
        t = torch.full((x.shape[0],), time, dtype=torch.float64)
        x = scheduler.step(model(x, t), timestep, x, **kwargs).prev_sample
    return x.double()


def make(prediction_type):
    return Diffusion(prediction_type, log_snr_min=-20 if prediction_type == "epsilon" else None)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddim_agrees_with_diffusers(prediction_type, clip):
    diffusion, x = make(prediction_type), start(3, 2, 4, 4)
    scheduler = their_scheduler(
        diffusers.DDIMScheduler, diffusion, 100, clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    theirs = their_sample(scheduler, network, x, diffusion, 20, use_clipped_model_output=True)
    ours = sample(make_denoiser(diffusion, network, clip=clip), x, diffusion, num_inference_steps=20)
   # Without clipping, "epsilon" begins by dividing by alpha = 4.5e-5: x_0 is large, its last digits are gone.
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddpm_agrees_with_diffusers(prediction_type, clip):
    diffusion, x = make(prediction_type), start(3, 2, 4, 4)
    scheduler = their_scheduler(
        diffusers.DDPMScheduler, diffusion, 100, clip_sample=clip is not None, clip_sample_range=clip or 1.0,
        variance_type="fixed_small",
    )
    theirs = their_sample(scheduler, network, x, diffusion, 20, generator=torch.Generator().manual_seed(0))
    denoise = make_denoiser(diffusion, network, clip=clip)
    ours = sample(denoise, x, diffusion, sampler="ddpm", num_inference_steps=20, draw_noise=noise_source(x),
                  variance_type="fixed_small")
    # Their last step adds noise of variance 1e-20, ours none.
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_ddpm_with_the_larger_variance_agrees_with_diffusers():
    diffusion, x = Diffusion(), start(3, 2, 4, 4)            # all of 20 steps: their last one adds no noise
    scheduler = their_scheduler(diffusers.DDPMScheduler, diffusion, 20, clip_sample=True,
                                variance_type="fixed_large")
    theirs = their_sample(scheduler, network, x, diffusion, 20, generator=torch.Generator().manual_seed(0))
    ours = sample(make_denoiser(diffusion, network), x, diffusion, sampler="ddpm", num_inference_steps=20,
                  draw_noise=noise_source(x), variance_type="fixed_large")
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_ddpm_with_learned_variance_agrees_with_diffusers():
    diffusion, x = Diffusion(), start(3, 2, 4, 4)
    scheduler = their_scheduler(
        diffusers.DDPMScheduler, diffusion, 20, clip_sample=True, variance_type="learned_range"
    )
    theirs = their_sample(
        scheduler, network_with_variance, x, diffusion, 20, generator=torch.Generator().manual_seed(0)
    )
    denoise = make_denoiser(diffusion, network_with_variance, learned_variance=True)
    ours = sample(denoise, x, diffusion, sampler="ddpm", num_inference_steps=20, draw_noise=noise_source(x))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    fixed = sample(
        make_denoiser(diffusion, network), x, diffusion, sampler="ddpm", num_inference_steps=20,
        draw_noise=noise_source(x),
    )
    assert (ours - fixed).abs().max() > 1e-3                                     # the variance did something


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_dpmpp_2m_agrees_with_diffusers(prediction_type):
    # Truncated, because diffusers turns alpha = 0 into inf - inf.
    diffusion, x = Diffusion(prediction_type, log_snr_min=-8), start(3, 2, 4, 4)
    scheduler = their_scheduler(
        diffusers.DPMSolverMultistepScheduler, diffusion, 20, algorithm_type="dpmsolver++", solver_order=2,
        solver_type="midpoint", final_sigmas_type="zero",
    )
    bars = alpha_bars(diffusion, 20).flip(0)
    sigmas = torch.cat([((1 - bars) / bars).sqrt(), torch.zeros(1, dtype=torch.float64)])
    theirs = their_sample(scheduler, network, x, diffusion, 20, sigmas=sigmas)
    denoise = make_denoiser(diffusion, network, clip=None)
    ours = sample(denoise, x, diffusion, sampler="dpmpp_2m", num_inference_steps=20)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)               # they work in float32
    first_order = sample(denoise, x, diffusion, sampler="ddim", num_inference_steps=20)
    assert (ours - first_order).abs().max() > 1e-3


# --- the walk ----------------------------------------------------------------------------------------------


def test_time_steps_span_the_whole_schedule():
    for num_inference_steps in (1, 3, 20, 1000):
        times = time_steps(num_inference_steps)
        assert times.dtype == torch.float64 and times.shape == (num_inference_steps + 1,)
        assert times[0] == 1 and times[-1] == 0
        torch.testing.assert_close(times.diff(), torch.full_like(times[1:], -1 / num_inference_steps))
    with pytest.raises(ValueError, match="at least 1"):
        time_steps(0)
    for start_time in (0, -1, 1.5, math.nan):
        with pytest.raises(ValueError, match="start_time"):
            time_steps(4, start_time=start_time)


@pytest.mark.parametrize("steps, start_time, expected", [
    (4, 0.75, [0.75, 0.5, 0.25, 0]), (4, 0.7, [0.75, 0.5, 0.25, 0]), (4, 0.05, [0.25, 0]), (1, 0.4, [1, 0]),
    (10, 0.32, [0.3, 0.2, 0.1, 0]), (3, 0.99, [1, 2 / 3, 1 / 3, 0])])
def test_a_walk_that_starts_part_way_is_the_rest_of_a_whole_one(steps, start_time, expected):
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(time_steps(steps, start_time=start_time), wanted)
    seen, diffusion = [], Diffusion()

    def denoise(x_t, t):
        seen.append(t[0].item())
        return 0 * x_t
    for sampler in SAMPLERS:
        seen.clear()
        x = sample(denoise, start(2, 3), diffusion, sampler=sampler, num_inference_steps=steps,
                   draw_noise=lambda: torch.randn(2, 3), start_time=start_time)
        assert seen == pytest.approx(expected[:-1]) and torch.equal(x, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_call_a_step_from_t_1_in_xs_own_dtype(sampler, dtype):
    x, diffusion, calls = start(3, 2, 4, 4, dtype=dtype), Diffusion(), []

    def model(x_t, t, drop):
        calls.append((x_t, t))
        return network(x_t, t)

    kept = x.clone()
    x_0 = sample(
        make_denoiser(diffusion, model), x, diffusion, sampler=sampler, num_inference_steps=4,
        draw_noise=noise_source(x),
    )
    assert x_0.shape == x.shape and x_0.dtype == dtype and x_0.isfinite().all()
    assert torch.equal(x, kept)                                                # the caller's noise is its own
    assert [t[0].item() for _, t in calls] == [1.0, 0.75, 0.5, 0.25]
    for x_t, t in calls:
        assert x_t.dtype == dtype and t.shape == (3,)
        assert t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("learned_variance", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_waits_for_no_device_and_draws_nothing_itself(sampler, learned_variance):
    # A tensor on "meta" has no values: whatever reads one (.item(), bool(), a copy to the host) raises.
    x = torch.empty(2, 1, 3, 4, 4, device="meta")

    def model(x_t, t, drop, embeds):
        return torch.cat([x_t, x_t], dim=1) if learned_variance else x_t

    denoise = make_denoiser(
        Diffusion(), model, {"embeds": torch.empty(2, 5, device="meta")}, guidance_scale=3.0,
        learned_variance=learned_variance,
    )
    state = torch.get_rng_state()
    x_0 = sample(
        denoise, x, Diffusion(), sampler=sampler, num_inference_steps=5,
        draw_noise=lambda: torch.empty_like(x),
    )
    assert x_0.shape == x.shape and x_0.device.type == "meta"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback_watches_every_step_and_one_step_is_x_0(sampler):
    x, diffusion, seen = start(3, 2, 4, 4), Diffusion(), []
    denoise = make_denoiser(diffusion, network)
    x_0 = sample(
        denoise, x, diffusion, sampler=sampler, num_inference_steps=3, draw_noise=noise_source(x),
        callback=lambda *step: seen.append(step),
    )
    assert [index for index, _, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[0][1], x)
    torch.testing.assert_close(seen[-1][2], x_0)                                 # the last step lands on x_0
    one = sample(
        denoise, x, diffusion, sampler=sampler, num_inference_steps=1, draw_noise=noise_source(x)
    )
    torch.testing.assert_close(one, denoise(x, torch.ones(3, dtype=torch.float64)))


def test_ddim_stays_consistent_when_it_clips():
    x, diffusion, seen = start(3, 2, 4, 4), Diffusion(), []
    denoise = make_denoiser(diffusion, lambda x_t, t, drop: 3 * network(x_t, t), clip=0.25)
    sample(denoise, x, diffusion, num_inference_steps=8, callback=lambda *step: seen.append(step))
    assert sum((x_0.abs() == 0.25).double().mean().item() for _, _, x_0 in seen) / 8 > 0.3
    for i in range(7):
        _, x_t, x_0 = seen[i]
        t, s = (torch.full((3,), 1 - k / 8, dtype=torch.float64) for k in (i, i + 1))
        epsilon = diffusion.epsilon(x_0, x_t, t)
        torch.testing.assert_close(diffusion.add_noise(x_0, epsilon, s), seen[i + 1][1])


def test_same_noise_same_result_and_ddpm_uses_its_noise():
    x, diffusion = start(3, 2, 4, 4, dtype=torch.float32), Diffusion()
    denoise = make_denoiser(diffusion, network)
    first, again, other = (ddpm(denoise, x, diffusion, 5, noise_source(x, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not first.requires_grad
    # One signature: the deterministic ones take the same arguments, and leave the noise alone.
    for function in (ddim, dpmpp_2m):
        without, with_noise = (function(denoise, x, diffusion, 5, draw) for draw in (None, noise_source(x)))
        assert torch.equal(without, with_noise)


def test_errors_explain_themselves():
    x = start(3, 2, 4, 4)
    denoise = make_denoiser(Diffusion(), network)
    with pytest.raises(ValueError, match="draw_noise"):
        sample(denoise, x, Diffusion(), sampler="ddpm")
    with pytest.raises(ValueError, match="dpmpp_2m"):
        sample(denoise, x, Diffusion(), sampler="euler")


# --- guidance ----------------------------------------------------------------------------------------------


class Recorder:
    """A model whose output tells its branches apart: 2 with the embedding, 0.5 without, plus fps."""

    def __init__(self, learned_variance=False):
        self.calls = []
        self.learned_variance = learned_variance

    def __call__(self, x_t, t, drop=None, **conditions):
        self.calls.append((x_t, t, drop, conditions))
        kept = torch.ones(len(t), dtype=torch.bool) if drop is None else ~drop
        value = torch.where(kept, 2.0, 0.5).to(x_t.dtype) + conditions["fps"]
        prediction = value.reshape(-1, 1, 1, 1).expand_as(x_t)
        return torch.cat([prediction, 10 * prediction], dim=1) if self.learned_variance else prediction


def guided(model, guidance_scale, clip=None, learned_variance=False):
    conditions = {"image_embeds": torch.arange(6.0).reshape(3, 2), "fps": torch.tensor([0.1, 0.2, 0.3])}
    denoise = make_denoiser(
        Diffusion("sample"), model, conditions, guidance_scale, clip, learned_variance=learned_variance
    )
    return denoise, conditions


def test_guidance_is_one_doubled_batch_a_step():
    model = Recorder()
    denoise, conditions = guided(model, 3.0)
    x_t, t = start(3, 1, 4, 4, dtype=torch.float32), torch.tensor([0.5, 0.6, 0.7])
    x_0 = denoise(x_t, t)
    denoise(x_t, t)
    assert len(model.calls) == 2
    for doubled_x_t, doubled_t, drop, doubled in model.calls:
        assert torch.equal(doubled_x_t, torch.cat([x_t, x_t])) and torch.equal(doubled_t, torch.cat([t, t]))
        assert drop.dtype == torch.bool and drop.tolist() == [False] * 3 + [True] * 3
        for name, value in conditions.items():                                  # the null half keeps them all
            assert torch.equal(doubled[name], torch.cat([value, value]))
    for name in conditions:                                                    # doubled once, not once a step
        assert model.calls[0][3][name] is model.calls[1][3][name]
    # unconditional + 3 (conditional - unconditional) = 0.5 + 3 * 1.5, and fps, which both saw, once
    expected = (5.0 + conditions["fps"]).reshape(3, 1, 1, 1).expand_as(x_t)
    torch.testing.assert_close(x_0, expected)


def test_no_guidance_is_the_conditional_model_alone():
    model = Recorder()
    denoise, conditions = guided(model, 1.0)
    x_t, t = start(3, 1, 4, 4, dtype=torch.float32), torch.full((3,), 0.5)
    x_0 = denoise(x_t, t)
    (seen_x_t, _, drop, seen) = model.calls[0]
    assert seen_x_t is x_t and drop is None and seen["fps"] is conditions["fps"]
    torch.testing.assert_close(x_0[:, 0, 0, 0], 2.0 + conditions["fps"])
    # Scale 0 is the unconditional model, and scales between 0 and 1 lie between the two.
    for guidance_scale, value in ((0.0, 0.5), (0.5, 1.25)):
        x_0 = guided(Recorder(), guidance_scale)[0](x_t, t)
        torch.testing.assert_close(x_0[:, 0, 0, 0], value + conditions["fps"])


def test_clipping_comes_after_guidance():
    x_t, t = start(3, 1, 4, 4, dtype=torch.float32), torch.full((3,), 0.5)
    # Guided, x_0 is 5 + fps: clipped, 4 exactly. Branches that were clipped first would give 5 + fps.
    assert (guided(Recorder(), 3.0, clip=4.0)[0](x_t, t) == 4.0).all()
    assert (guided(Recorder(), 3.0, clip=1.0)[0](x_t, t) == 1.0).all()
    assert (guided(Recorder(), -3.0, clip=1.0)[0](x_t, t) == -1.0).all()


def test_guidance_leaves_the_variance_alone():
    x_t, t = start(3, 1, 4, 4, dtype=torch.float32), torch.full((3,), 0.5)
    denoise, conditions = guided(Recorder(learned_variance=True), 3.0, learned_variance=True)
    x_0, v = denoise(x_t, t)
    assert x_0.shape == v.shape == x_t.shape
    torch.testing.assert_close(x_0[:, 0, 0, 0], 5.0 + conditions["fps"])
    torch.testing.assert_close(v[:, 0, 0, 0], 10 * (2.0 + conditions["fps"]))    # the conditional branch's


def test_half_precision_output_does_not_shrink_x():
    x_t, t = start(3, 2, 4, 4, dtype=torch.float32), torch.full((3,), 0.5)
    denoise = make_denoiser(Diffusion(), lambda x_t, t, drop: network(x_t, t).bfloat16())
    assert denoise(x_t, t).dtype == torch.float32


# --- guidance away from another model, and up to a time ----------------------------------------------------

def guided_network(x_t, t, drop=None):
    """With an embedding it predicts something, without it something else."""
    prediction = network(x_t, t)
    if drop is None:
        return prediction
    return torch.where(drop.reshape(-1, 1, 1, 1), 0.4 * prediction, prediction)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_guidance_is_the_same_for_every_parameterisation(prediction_type):
    # Ho & Salimans 2022, eq. 6, as it is written: in the network's own prediction.
    diffusion = Diffusion(prediction_type, -12.0 if prediction_type == "epsilon" else None)
    x, t = start(3, 2, 4, 4), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    prediction = network(x, t)
    wanted = diffusion.predict_x_0(0.4 * prediction + 3.0 * (prediction - 0.4 * prediction), x, t)
    made = make_denoiser(diffusion, guided_network, guidance_scale=3.0, clip=None)(x, t)
    torch.testing.assert_close(made, wanted)


def test_away_from_another_model_takes_the_place_of_the_unconditional():
    diffusion, x = Diffusion(), start(3, 2, 4, 4)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    unconditional = make_denoiser(diffusion, lambda x_t, t, drop: 0.4 * network(x_t, t), clip=None)
    own = make_denoiser(diffusion, guided_network, guidance_scale=3.0, clip=0.8)
    other = make_denoiser(diffusion, guided_network, guidance_scale=3.0, clip=0.8, away_from=unconditional)
    torch.testing.assert_close(other(x, t), own(x, t))
    unguided = make_denoiser(diffusion, guided_network, guidance_scale=1.0, away_from=None)
    ignored = make_denoiser(diffusion, guided_network, guidance_scale=1.0, away_from=lambda x_t, t: 1 / 0)
    assert torch.equal(ignored(x, t), unguided(x, t))        # scale 1: nobody is asked


@pytest.mark.parametrize("own", [True, False])
def test_there_is_no_guidance_below_its_time(own):
    asked = []

    def model(x_t, t, drop=None):
        asked.append(len(x_t))
        return guided_network(x_t, t, drop)
    diffusion, x = Diffusion(), start(3, 2, 4, 4)
    other = None if own else make_denoiser(diffusion, lambda x_t, t, drop: 0.4 * model(x_t, t), clip=None)
    guided, until, without = (make_denoiser(diffusion, model, guidance_scale=scale, guidance_until=time,
                                            away_from=other)
                              for scale, time in ((3.0, 0.0), (3.0, 0.5), (1.0, 0.0)))
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    row = torch.tensor([True, False, False]).reshape(-1, 1, 1, 1)
    assert torch.equal(until(x, t), torch.where(row, without(x, t), guided(x, t)))
    asked.clear()
    low = torch.full((3,), 0.4, dtype=torch.float64)
    assert torch.equal(until(x, low), without(x, low))
    assert asked == [3, 3]                                   # nothing was computed to be thrown away
