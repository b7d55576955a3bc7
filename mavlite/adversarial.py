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
from torch import nn

from mavlite.candidates import closeness
from mavlite.critic import NOISE, Critic, compare, critic_loss, noised
from mavlite.device import full_precision
from mavlite.distillation import own_walk
from mavlite.sampling import make_denoiser

REMEMBERED = 16                              # steps whose clips the critic goes on learning from


class Past(nn.Module):
    """The clips of the last steps with their conditions, real and made, as tensors that checkpoints hold.

    A walk costs far more than a critic's step. So the critic takes several for each walk, on clips drawn
    from these: on the newest alone it would learn by heart which few are real (experience replay for GANs:
    Shrivastava et al. 2017, arXiv 1612.07828, 2.3).
    """

    def __init__(self, count, *shapes):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        for i, shape in enumerate(shapes):
            self.register_buffer(f"tensor_{i}", torch.zeros(count, *shape))
        self.count, self.tensors = count, len(shapes)

    def add(self, *tensors):
        """Keep rows (b, ...) of each, in place of the oldest."""
        at = (self.seen + torch.arange(len(tensors[0]), device=self.seen.device)) % self.count
        for i, tensor in enumerate(tensors):
            held = getattr(self, f"tensor_{i}")
            held[at] = tensor.to(held.dtype)
        self.seen += len(at)

    def draw(self, u):
        """The rows that uniform numbers u (b,) choose, of each tensor."""
        rows = (u * self.seen.clamp(max=self.count)).long()
        return [getattr(self, f"tensor_{i}")[rows] for i in range(self.tensors)]


class Contest:
    """A critic and its optimizer, and the loss that the generator has from it."""

    def __init__(self, config, diffusion, clip, device, dtype):
        self.config, self.diffusion, self.clip = config, diffusion, clip
        own, data = config.adversarial, config.data
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.critic = Critic(data.channels, clip.embed_dim, 1, own.critic_width)
        self.critic.to(memory_format=torch.channels_last_3d)
        frames = (data.channels, data.num_frames, data.sizes[0], data.sizes[0])
        self.past = Past(REMEMBERED * config.train.batch_size, frames, frames, (clip.embed_dim,), (1,))
        self.state = nn.ModuleDict({"critic": self.critic, "past": self.past}).to(device, dtype)
        # No momentum: what a generator did some steps ago, it no longer does.
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), own.critic_lr, betas=(0.0, 0.99),
                                           weight_decay=0.0)
        self.new, self.draws = [], None

    def loss(self, network, x_0, draws, conditions, hidden=None):
        """weight softplus(D(real) - D(made)) + reward (1 - cosine(C_y(made), y_e)).

        x_0 (b, c, f, h, w): the real clips whose embeddings and rates are the condition. hidden (b, 1, f, 1,
        1): 0 where a frame is known, and is the truth in every step of the walk.
        """
        own, walk = self.config.adversarial, self.config.walk
        noise, level = draws.normal(*x_0.shape[1:]), _level(draws)
        alone = make_denoiser(self.diffusion, network, conditions)

        def denoise(x_t, t):
            made = alone(x_t, t)
            return made if hidden is None else torch.where(hidden > 0, made, x_0)
        made, _ = own_walk(self.diffusion, denoise, noise, walk.steps, walk.steps)
        asked = conditions["image_embeds"], conditions["fps"][:, None]
        self.new.append((x_0, made.detach(), *asked))
        self.draws = draws
        with full_precision(x_0.device):
            real, seen = (noised(clips, draws.normal(*x_0.shape[1:]), level) for clips in (x_0, made))
            self.critic.requires_grad_(False)                # the generator's loss is no lesson for it
            word = compare(self.critic(seen, *asked), self.critic(real, *asked))
            self.critic.requires_grad_(True)
            unlike = 1 - closeness(self.clip, made, asked[0]).mean()
        return own.weight * word + own.reward * unlike

    def step(self):
        """The critic's own steps, after the generator's gradients were taken, if there was a contest."""
        if not self.new:
            return
        for tensors in self.new:                             # each rank has seen its own share
            self.past.add(*map(_of_all_ranks, tensors))
        self.new, draws = [], self.draws.of_all_micro_batches()
        for _ in range(self.config.adversarial.critic_steps):
            level = _level(draws)
            real, _, *of_real = self.past.draw(draws.uniform())
            _, made, *of_made = self.past.draw(draws.uniform())
            real, made = (noised(clips, draws.normal(*clips.shape[1:]), level) for clips in (real, made))
            self.optimizer.zero_grad(set_to_none=True)
            critic_loss(self.critic, (real, *of_real), (made, *of_made),
                        self.config.adversarial.penalty).backward()
            if dist.is_initialized():
                for p in self.critic.parameters():
                    dist.all_reduce(p.grad)
                    p.grad /= dist.get_world_size()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _level(draws):
    """Deviations of the noise (b,) under which clips are compared."""
    return NOISE[0] + (NOISE[1] - NOISE[0]) * draws.uniform()


def _of_all_ranks(tensor):
    """Rows (b, ...) of this rank -> the rows of all, in their order."""
    if not dist.is_initialized():
        return tensor
    gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format)
                for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.cat(gathered)
