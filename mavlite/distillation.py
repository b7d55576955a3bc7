"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): a student's step is two of its teacher's.

A student of N steps starts as a copy of a teacher that samples in 2 N, and learns to land where two of the
teacher's DDIM steps land. Guidance is folded in: the teacher is guided, the student is run once and alone.
Done again and again, 8 -> 4 -> 2 -> 1, it makes sampling cheap where steps are the cost.

A student that can walk may then learn on its own walk: from where its own steps lead, faults and all, instead
of from noised data (DAgger: Ross et al. 2011, arXiv 1011.0686), and for a reward beside the teacher's word:
that C recognises in every frame what was asked for. A teacher that errs in half of the frames cannot teach
that. (A reward on the x_0 of few-step students: T2V-Turbo, Li et al. 2024, arXiv 2405.18750, 4.1.)
"""

import torch

from mavlite.candidates import closeness
from mavlite.diffusion import expand_to
from mavlite.guidance import single_frames
from mavlite.losses import weighted_mean
from mavlite.sampling import make_denoiser
from mavlite.stages import load_network


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


def own_walk(diffusion, denoise, noise, turn, steps):
    """Where a student's own first `turn` steps of N lead from noise: (x_t (b, ...), t (b,)); N lead to x_0.

    denoise: the student, (x_t, t) -> x_0, as it is sampled.
    """
    walk = [noise.new_full((len(noise),), 1 - i / steps) for i in range(turn + 1)]
    x_t = noise
    for t, s in zip(walk, walk[1:]):
        x_t = ddim_step(diffusion, denoise(x_t, t), x_t, t, s)
    return x_t, walk[turn]


def distillation_loss(diffusion, model, denoise, x_t, t, steps, weight=None, penalty=None):
    """Squared error of the student's x_0, weighted max(SNR, 1) ("truncated SNR", section 4).

    model: the student, called as model(x_t, t) -> prediction. weight: as in `losses.diffusion_loss`. penalty:
    the student's x_0 -> a number to be added. In v, whose error is 1/sigma times that of x_0, the weight is
    max(alpha^2, sigma^2): it never explodes.
    """
    wanted = two_steps_as_one(diffusion, denoise, x_t, t, steps)
    target = diffusion.target(wanted, diffusion.epsilon(wanted, x_t, t), t)
    prediction = model(x_t, t).to(x_t.dtype)
    alpha, sigma = (expand_to(value, x_t) for value in diffusion.alpha_sigma(t))
    truncated = torch.maximum(alpha, sigma) ** 2                                 # max(SNR, 1) sigma^2
    if diffusion.prediction_type == "sample":
        truncated = truncated / sigma**2
    elif diffusion.prediction_type == "epsilon":
        truncated = truncated / alpha**2
    loss = weighted_mean((prediction - target) ** 2 * truncated, weight)
    if penalty is not None:
        loss = loss + penalty(diffusion.predict_x_0(prediction, x_t, t))
    return loss


class Lessons:
    """What a student is trained with: the frozen teacher, guided as it is when it makes videos, and C."""

    def __init__(self, config, diffusion, clip, device, dtype):
        def load(stage):
            network, its_config, _ = load_network(config.distill.teacher, stage, clip, device)
            return network.to(dtype, memory_format=torch.channels_last), its_config
        self.config, self.diffusion, self.clip = config, diffusion, clip
        self.teacher, its_config = load(config.stage)
        self.guided = {"guidance_scale": config.distill.guidance_scale,
                       "guidance_until": its_config.sample.guidance_until,
                       "away_from": single_frames(*load("decoder")) if config.stage == "decoder_t" else None}

    def loss(self, network, x_0, draws, conditions, weight=None):
        """The distillation loss of x_0, with its reward. A student is never asked without its condition."""
        steps, clip = self.config.sample.steps, None if self.config.stage == "prior" else 1.0
        denoise = make_denoiser(self.diffusion, self.teacher, conditions, clip=clip, **self.guided)

        def model(x_t, t):
            return network(x_t, t, drop=None, **conditions)
        noise = draws.normal(*x_0.shape[1:])
        if self.config.distill.own_walk:
            alone = make_denoiser(self.diffusion, network, conditions, clip=clip)
            with torch.no_grad():
                x_t, t = own_walk(self.diffusion, alone, noise, draws.batch.step % steps, steps)
            torch.clear_autocast_cache()                     # of 16-bit weights made without a gradient
        else:
            t = student_times(draws.times(), steps)
            x_t = self.diffusion.add_noise(x_0, noise, t)
        reward = self.config.distill.reward

        def penalty(made):
            return reward * (1 - closeness(self.clip, made, conditions["image_embeds"]).mean())
        return distillation_loss(self.diffusion, model, denoise, x_t, t, steps, weight,
                                 penalty if reward else None)
