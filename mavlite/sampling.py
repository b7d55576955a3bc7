"""From noise to data: guidance, and three samplers that differ in one line each.

A sampler knows no network. It takes `denoise(x_t, t) -> x_0`, which `make_denoiser` builds from a network,
its conditions and a guidance scale, and walks t from 1 to 0. Every coefficient of the walk is computed
beforehand, in float64 on the CPU, so a step never waits for the device.
"""

import functools
import math

import torch

from mavlite.diffusion import expand_to, interpolate_log_variance

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")
VARIANCE_TYPES = ("estimated", "fixed_small", "fixed_large")     # of ddpm's steps


def make_denoiser(diffusion, model, conditions=None, guidance_scale=1.0, clip=1.0, learned_variance=False,
                  *, guidance_until=0.0, away_from=None):
    """Build denoise(x_t, t) -> x_0 from a network.

    Args:
        diffusion: a Diffusion; it says what the network predicts.
        model: called as model(x_t, t, drop=drop, **conditions) -> prediction, in x_t's shape (with
            learned_variance twice the channels, dim 1). drop is None or bool (batch,): True where the model
            is to forget its image embedding, and nothing else: fps, masks and low-resolution input stay.
        conditions: name -> tensor whose first dimension is the batch.
        guidance_scale: classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) with
            conditional + (scale - 1) * (conditional - unconditional). 1 is no guidance, and half the work.
        clip: x_0 is held in [-clip, clip], element by element; None does not clip.
        learned_variance: the network was trained with the hybrid loss.
        guidance_until: below this time there is none (Kynkaanniemi et al. 2024, arXiv 2404.07724): what is in
            the picture is settled by then, and going on would only make it bolder.
        away_from: denoise(x_t, t) -> x_0 of another model, which takes the place of the unconditional. A
            weaker model of the same data errs in the same places, only more (autoguidance, Karras et al.
            2024, arXiv 2406.02507); what it does not know is what the guidance brings out.

    Returns:
        denoise(x_t, t), with x_t (b, c, ...) and t (b,). It returns x_0, or with learned_variance the pair
        (x_0, v) where v, of x_t's shape, interpolates the log-variance of an ancestral step.
    """
    conditions = conditions or {}
    doubled = guidance_scale != 1.0 and away_from is None
    if doubled:
        # Once, not once a step. The batch of a guided step is [conditional; unconditional].
        both = {name: torch.cat([value, value]) for name, value in conditions.items()}

    def denoise(x_t, t):
        # On a CPU it costs nothing to look at t, and what would be multiplied by 0 is not computed.
        guided = guidance_scale != 1.0 and not (t.device.type == "cpu" and (t < guidance_until).all())
        if guided and doubled:
            drop = torch.arange(2 * len(t), device=t.device) >= len(t)           # (2b,): False..., True...
            output = model(torch.cat([x_t, x_t]), torch.cat([t, t]), drop=drop, **both)
        else:
            output = model(x_t, t, drop=None, **conditions)
        output = output.to(t.dtype)              # (b or 2b, c or 2c, ...); t is never in half precision

        # The variance is no direction to be guided along: take it apart first, and from the conditional half.
        prediction, v = output, None
        if learned_variance:
            prediction, v = output.chunk(2, dim=1)                               # (b or 2b, c, ...) each
            v = v[: len(t)]                                                      # (b, c, ...)
        # x_0 = x_c + (scale - 1) (x_c - x_u). (For one x_t, x_0 and what a network predicts are the same
        # thing up to a factor and a term that both share, so it does not matter which of them is guided.)
        x_0 = diffusion.predict_x_0(prediction[: len(t)], x_t, t)                # (b, c, ...)
        if guided:
            if doubled:
                unconditional = diffusion.predict_x_0(prediction[len(t):], x_t, t)
            else:
                unconditional = away_from(x_t, t)
            strength = (guidance_scale - 1) * (t >= guidance_until).to(t.dtype)      # (b,)
            x_0 = x_0 + expand_to(strength, x_0) * (x_0 - unconditional)
        if clip is not None:
            x_0 = x_0.clamp(-clip, clip)
        x_0 = x_0.to(x_t.dtype)
        return (x_0, v.to(x_t.dtype)) if learned_variance else x_0

    return denoise


def time_steps(num_inference_steps, device=None, start_time=1.0):
    """The num_inference_steps + 1 times of a walk, (n + 1,) in float64: from 1 to 0, evenly.

    However few the steps, they span the whole schedule. A walk that starts below t = 1 from pure noise feeds
    the network an input it never saw.

    start_time below 1: the rest of that walk, from the time nearest to it on, but at least one step. (A
    student of distillation knows these times and no others: asked in between, it leaves noise behind.)
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; at least 1 is needed")
    if not 0 < start_time <= 1:
        raise ValueError(f"start_time is {start_time}, not within (0, 1]")
    times = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64, device=device)
    left = max(1, min(round(start_time * num_inference_steps), num_inference_steps))
    return times[num_inference_steps - left:]


def sample(
    denoise, x, diffusion, *, sampler="ddim", num_inference_steps=20, draw_noise=None, callback=None,
    start_time=1.0, variance_type="estimated"
):
    """Walk from noise to data with one of SAMPLERS.

    Args:
        denoise: denoise(x_t, t) -> x_0 or (x_0, v), see `make_denoiser`. Called once a step.
        x: (b, ...), standard normal noise: the start.
        diffusion: the Diffusion that the network was trained with.
        sampler: "ddpm" (random), "ddim" or "dpmpp_2m" (both deterministic).
        num_inference_steps: how many steps, at least 1; of a walk that starts part-way its share.
        draw_noise: draw_noise() -> fresh standard normal noise of x's shape, dtype and device. Needed by
            "ddpm", which calls it once a step but the last; ignored by the others.
        callback: callback(step_index, x_t, x_0), called in every step before x_t is left.
        start_time: in (0, 1]. Below 1 the walk starts part-way, at t = time_steps(..., start_time=...)[0],
            from x = add_noise(data, noise, t): the result keeps to the data, the more the lower t is (SDEdit,
            Meng et al. 2021).
        variance_type: of the noise in a step of "ddpm", see there.

    Returns:
        x_0, in x's shape and dtype. No gradients are recorded.

    Raises:
        ValueError: for an unknown sampler or variance_type, no steps, or "ddpm" without draw_noise.
    """
    functions = {"ddpm": functools.partial(ddpm, variance_type=variance_type), "ddim": ddim,
                 "dpmpp_2m": dpmpp_2m}
    if sampler not in functions:
        raise ValueError(f"sampler is {sampler!r}; it must be one of {SAMPLERS}")
    return functions[sampler](denoise, x, diffusion, num_inference_steps, draw_noise, callback, start_time)


@torch.no_grad()
def ddim(denoise, x, diffusion, num_inference_steps=20, draw_noise=None, callback=None, start_time=1.0):
    """DDIM with eta = 0 (Song et al. 2020, arXiv 2010.02502, eq. 12). Arguments as in `sample`."""
    times, alpha, sigma = _schedule(diffusion, num_inference_steps, start_time)
    for i in range(len(times) - 1):
        # 1. Look at x_t: what is its clean part?
        x_0, _ = _denoise(denoise, x, times[i])                                  # like x
        if callback is not None:
            callback(i, x, x_0)
        # 2. The rest is noise. (From this x_0, which may have been clipped, not from the network's output.)
        epsilon = (x - alpha[i] * x_0) / sigma[i]                                # like x
        # 3. x_s = alpha_s x_0 + sigma_s epsilon
        x = alpha[i + 1] * x_0 + sigma[i + 1] * epsilon
    return x


@torch.no_grad()
def ddpm(denoise, x, diffusion, num_inference_steps=20, draw_noise=None, callback=None, start_time=1.0,
         variance_type="estimated"):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), between any two times. Arguments as in `sample`.

    The true variance of a step depends on the data, and mostly lies between two (their section 3.2):
    beta_tilde, "fixed_small", is right if x_0 is known, and beta, "fixed_large", if x_0 ~ N(0, I). The small
    one makes data a little too narrow, the large one leaves noise in them when steps are few. "estimated" is
    what lies between: see `x_0_variance`. A learned variance, which a pair (x_0, v) from denoise brings,
    takes the place of all three.
    """
    if variance_type not in VARIANCE_TYPES:
        raise ValueError(f"variance_type is {variance_type!r}; it must be one of {VARIANCE_TYPES}")
    if draw_noise is None:
        raise ValueError("the sampler 'ddpm' adds fresh noise in every step: pass draw_noise, () -> like x")
    times, alpha, sigma = _schedule(diffusion, num_inference_steps, start_time)
    grid = torch.tensor(times, dtype=torch.float64)
    c_t, c_0, beta, beta_tilde = (value.tolist() for value in diffusion.posterior(grid[:-1], grid[1:]))
    for i in range(len(times) - 1):
        # 1. Look at x_t: what is its clean part, and how sure are we?
        x_0, v = _denoise(denoise, x, times[i])                                  # like x each, v may be None
        if callback is not None:
            callback(i, x, x_0)
        # 2. Go to the mean of q(x_s | x_t, x_0); the last step lands on x_0.
        mean = c_t[i] * x + c_0[i] * x_0
        if i == len(times) - 2:
            return mean
        # 3. Add the noise of the step: x_s = mean + sqrt(variance) noise
        if v is not None:
            # deviation = exp(log variance / 2)
            log_variance = interpolate_log_variance(v, math.log(beta[i]), math.log(beta_tilde[i]))
            deviation = torch.exp(0.5 * log_variance)
        elif variance_type == "estimated":
            # variance = beta_tilde + c_0^2 Var[x_0 | x_t], for x_s = c_t x_t + c_0 x_0 + noise of beta_tilde
            deviation = (beta_tilde[i] + c_0[i] ** 2 * x_0_variance(x, x_0, alpha[i], sigma[i])).sqrt()
        else:
            deviation = math.sqrt(beta[i] if variance_type == "fixed_large" else beta_tilde[i])
        x = mean + deviation * draw_noise()


def x_0_variance(x_t, x_0, alpha, sigma):
    """Var[x_0 | x_t], as far as the denoiser's own answer tells: one number a sample, (b, 1, ...), in [0, 1].

    A denoiser that knows no better than the mean E[x_0 | x_t] finds less noise in x_t than there is. Noise
    has variance 1; what it takes for noise has less, and what is missing is what it does not know of x_0:

        Var[x_0 | x_t] = (sigma / alpha)^2 (1 - mean epsilon^2),     epsilon = (x_t - alpha x_0) / sigma,

    on average over x_t (Bao et al. 2022, arXiv 2201.06503, theorem 1). They take that average over data,
    beforehand; here it goes over the elements of the sample itself, which needs no data, and no sample hears
    of its neighbours. It is 0 where alpha is, as x_t says nothing there.
    """
    if alpha == 0:
        return torch.zeros(len(x_t), *[1] * (x_t.ndim - 1), dtype=x_t.dtype, device=x_t.device)
    noise = ((x_t - alpha * x_0) ** 2).flatten(1).mean(dim=1)                    # (b,), sigma^2 epsilon^2
    # Data within [-1, 1], or of variance 1, leave no more than 1 open.
    return expand_to(((sigma**2 - noise) / alpha**2).clamp(0, 1), x_t)           # (b, 1, ...)


@torch.no_grad()
def dpmpp_2m(denoise, x, diffusion, num_inference_steps=20, draw_noise=None, callback=None, start_time=1.0):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2). Arguments as in `sample`.

    With lambda = log(alpha / sigma) and h = lambda_s - lambda_t, a step is

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) D,     e^-h = (alpha_t sigma_s) / (sigma_t alpha_s)

    where D is x_0, extrapolated along lambda from the step before. At t = 1 and at s = 0, h is infinite, but
    e^-h is simply 0. Steps of infinite length give no slope along lambda: the first, the second (if the first
    began at t = 1) and the last step are of first order, which is DDIM's step; the whole is of second order.
    """
    times, alpha, sigma = _schedule(diffusion, num_inference_steps, start_time)
    previous_x_0, previous_h = None, math.inf
    for i in range(len(times) - 1):
        # 1. Look at x_t: what is its clean part?
        x_0, _ = _denoise(denoise, x, times[i])                                  # like x
        if callback is not None:
            callback(i, x, x_0)
        # 2. How long is the step in lambda?
        decay = alpha[i] * sigma[i + 1] / (sigma[i] * alpha[i + 1])              # e^-h
        h = -math.log(decay) if decay > 0 else math.inf
        # 3. D = x_0 + h / (2 h_previous) (x_0 - previous x_0), where both lengths are finite
        D = x_0
        if math.isfinite(h) and math.isfinite(previous_h):
            D = x_0 + h / (2 * previous_h) * (x_0 - previous_x_0)                # like x
        # 4. Step.
        x = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * (1 - decay) * D
        previous_x_0, previous_h = x_0, h
    return x


def _schedule(diffusion, num_inference_steps, start_time):
    """times, alpha, sigma of a walk: three lists of one float more than it has steps.

    A truncated schedule (log_snr_min) starts at its own last time instead of at 1.
    """
    last = diffusion.max_time
    times = last * time_steps(num_inference_steps, start_time=start_time)            # (n + 1,), float64, CPU
    alpha, sigma = diffusion.alpha_sigma(times)
    return times.tolist(), alpha.tolist(), sigma.tolist()


def _denoise(denoise, x, time):
    """(x_0, v), with v None if the network did not learn the variance."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    t = torch.full((x.shape[0],), time, dtype=dtype, device=x.device)            # (b,)
    output = denoise(x, t)
    return output if isinstance(output, tuple) else (output, None)
