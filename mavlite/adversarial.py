"""A student's last lesson: its finished clips must not be told from real ones.

A teacher passes on its own faults, and D^t's are of motion: it knows the single frame from D, and makes two
digits into three where it does not know which way they went. A critic sees whole clips and finds that at
once. So the student walks from noise to a clip, all its steps, with gradients through the whole walk (as
DRaFT does for a reward: Clark et al. 2023, arXiv 2309.17400), and learns from what a critic says of the
clip, as few-step image generators do (Sauer et al. 2023, arXiv 2311.17042); and from what C recognises in
it, or prompts would be forgotten. Nothing of this is in the paper.
"""

import torch
import torch.distributed as dist

from mavlite.candidates import closeness
from mavlite.critic import NOISE, Critic, compare, critic_loss, noised
from mavlite.device import full_precision
from mavlite.distillation import own_walk
from mavlite.sampling import make_denoiser


class Contest:
    """A critic and its optimizer, and the loss that the generator has from it."""

    def __init__(self, config, diffusion, clip, device, dtype):
        self.config, self.diffusion, self.clip = config, diffusion, clip
        own = config.adversarial
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.critic = Critic(config.data.channels, clip.embed_dim, 1, own.critic_width)
        self.critic.to(device, dtype, memory_format=torch.channels_last_3d)
        # No momentum: what a generator did some steps ago, it no longer does.
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), own.critic_lr, betas=(0.0, 0.99),
                                           weight_decay=0.0)

    def loss(self, network, x_0, draws, conditions, hidden=None):
        """weight softplus(D(real) - D(made)) + reward (1 - cosine(C_y(made), y_e)).

        x_0 (b, c, f, h, w): the real clips whose embeddings and rates are the condition. hidden (b, 1, f, 1,
        1): 0 where a frame is known, and is the truth in every step of the walk. The critic's own gradients
        come by the way, for `step`.
        """
        own, walk = self.config.adversarial, self.config.walk
        noise, level = draws.normal(*x_0.shape[1:]), NOISE[0] + (NOISE[1] - NOISE[0]) * draws.uniform()
        alone = make_denoiser(self.diffusion, network, conditions)

        def denoise(x_t, t):
            made = alone(x_t, t)
            return made if hidden is None else torch.where(hidden > 0, made, x_0)
        made, _ = own_walk(self.diffusion, denoise, noise, walk.steps, walk.steps)

        def judge(clips):
            return self.critic(clips, conditions["image_embeds"], conditions["fps"][:, None])
        with full_precision(x_0.device):
            real, seen = (noised(clips, draws.normal(*x_0.shape[1:]), level) for clips in (x_0, made))
            (critic_loss(judge, real, seen, own.penalty) / self.config.train.accumulate).backward()
            self.critic.requires_grad_(False)                # the generator's loss is no lesson for it
            with torch.no_grad():
                better = judge(real)
            word = compare(judge(seen), better)
            self.critic.requires_grad_(True)
            unlike = 1 - closeness(self.clip, made, conditions["image_embeds"]).mean()
        return own.weight * word + own.reward * unlike

    def step(self):
        """The critic's own step, after the generator's gradients were taken, if there was a contest."""
        learned = [p for p in self.critic.parameters() if p.grad is not None]
        if dist.is_initialized():                            # each rank has seen its own share
            for p in learned:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
