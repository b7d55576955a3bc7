"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): a student's step is two of its teacher's.

A student of N steps starts as a copy of a teacher that samples in 2 N, and learns to land where two of the
teacher's DDIM steps land. Guidance is folded in: the teacher is guided, the student is run once and alone.
Done again and again, 8 -> 4 -> 2 -> 1, it makes sampling cheap where steps are the cost.
"""

import torch

from mavlite.diffusion import expand_to
from mavlite.losses import weighted_mean


def student_times(u, steps):
    """Uniform numbers u (b,) in [0, 1) -> times at which a student of `steps` steps is asked: 1/N ... 1."""
    return ((u * steps).floor() + 1).clamp(max=steps) / steps


def ddim_step(diffusion, x_0, x_t, t, s):
    """x_s = alpha_s x_0 + sigma_s epsilon, the noise being what x_0 leaves of x_t. t, s (b,)."""
    alpha, sigma = (expand_to(value, x_t) for value in diffusion.alpha_sigma(s))
    return alpha * x_0 + sigma * diffusion.epsilon(x_0, x_t, t)


@torch.no_grad()
def two_steps_as_one(diffusion, denoise, x_t, t, steps):
    """The x_0 from which one DDIM step of 1/N goes where two of the teacher's go, half as long each.

        x_s = DDIM(DDIM(x_t, t -> t - 1/2N), -> s = t - 1/N)
        x_0 = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t)          (algorithm 2)

    denoise: the teacher, (x_t, t) -> x_0. x_t (b, ...), t (b,) from `student_times`.
    """
    m, s = t - 0.5 / steps, (t - 1 / steps).clamp(min=0)
    x_m = ddim_step(diffusion, denoise(x_t, t), x_t, t, m)
    x_s = ddim_step(diffusion, denoise(x_m, m), x_m, m, s)
    alpha_t, sigma_t = (expand_to(value, x_t) for value in diffusion.alpha_sigma(t))
    alpha_s, sigma_s = (expand_to(value, x_t) for value in diffusion.alpha_sigma(s))
    ratio = sigma_s / sigma_t
    return (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t)


def distillation_loss(diffusion, model, denoise, x_0, t, noise, steps, weight=None):
    """Squared error of the student's x_0, weighted max(SNR, 1) ("truncated SNR", section 4).

    model: the student, called as model(x_t, t) -> prediction. weight: as in `losses.diffusion_loss`.
    In v, whose error is 1/sigma times that of x_0, the weight is max(alpha^2, sigma^2): it never explodes.
    """
    x_t = diffusion.add_noise(x_0, noise, t)
    wanted = two_steps_as_one(diffusion, denoise, x_t, t, steps)
    target = diffusion.target(wanted, diffusion.epsilon(wanted, x_t, t), t)
    error = (model(x_t, t).to(x_t.dtype) - target) ** 2
    alpha, sigma = (expand_to(value, x_t) for value in diffusion.alpha_sigma(t))
    truncated = torch.maximum(alpha, sigma) ** 2                                 # max(SNR, 1) sigma^2
    if diffusion.prediction_type == "sample":
        truncated = truncated / sigma**2
    elif diffusion.prediction_type == "epsilon":
        truncated = truncated / alpha**2
    return weighted_mean(error * truncated, weight)
