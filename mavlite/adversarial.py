"""A student's last lesson: no frame of its finished clips must be at fault.

A teacher passes on its own faults, and D^t's are of motion: it knows the single frame from D, and makes two
digits into three where it does not know which way they went. A critic sees whole clips, and knows such
faults when it sees them (critic.py). So the student walks from noise to a clip, all its steps, with gradients
through the whole walk (as DRaFT does for a reward: Clark et al. 2023, arXiv 2309.17400), and learns from what
a critic says of each frame, as few-step image generators do (Sauer et al. 2023, arXiv 2311.17042); and from
what C recognises in it, or prompts would be forgotten. D's walk ends in single frames, and the critic that
has seen through those can look at each frame of D^t's clips alone, beside the one for whole clips (as two
discriminators do in MoCoGAN: Tulyakov et al. 2018, arXiv 1707.04993). Nothing of this is in the paper.
"""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from einops import rearrange
from torch import nn

from mavlite.candidates import closeness
from mavlite.checkpoint import save_weights
from mavlite.critic import NOISE, critic_loss, generator_loss, noised
from mavlite.device import full_precision
from mavlite.distillation import own_walk
from mavlite.faults import RATES, FaultyClips
from mavlite.sampling import make_denoiser
from mavlite.stages import load_network

FRAMES = 3.0                                 # what the word for single frames counts


def shifted(clips, way):
    """Clips (b, c, f, h, w) in [-1, 1], moved by part of a pixel: way (b, 2), y and x, in px of [-1, 1].

        M[i, j] = max(0, 1 - |i - way - j|),    M_y x M_x^T: bilinear interpolation, black from outside

    A reward must not hang on where the pixels of its network's patches begin. Left where it is, a clip soon
    has strokes of dots, every second pixel, which say nothing of a digit but please C.
    """
    def moving(n, by):                                                               # -> b 1 1 n n
        i = torch.arange(n, device=by.device)
        return (1 - (i[:, None] - by[:, None, None] - i).abs()).clamp(min=0)[:, None, None]
    h, w = clips.shape[-2:]
    return moving(h, way[:, 0]) @ (clips + 1) @ moving(w, way[:, 1]).mT - 1


class Contest:
    """Critics that go on learning, their optimizer, and the loss that the generator has from them.

    clips: the `UnlabelledClips` that the generator learns from; of their digits faults are rendered. One
    critic looks at what is made, D's frames or whole clips. Another may look at each frame of clips alone.
    """

    def __init__(self, config, diffusion, clip, clips, device, dtype):
        self.config, self.diffusion, self.clip = config, diffusion, clip
        own, critics = config.adversarial, {}
        for name, weights in (("whole", own.critic), ("frames", own.frame_critic)):
            if weights is not None:
                critic, self.critic_config, _ = load_network(weights, "critic", device=device)
                critics[name] = critic.to(device, dtype, memory_format=torch.channels_last_3d)
        self.critics = nn.ModuleDict(critics).train().requires_grad_(True)
        # Little momentum: what a generator did some steps ago, it no longer does.
        self.optimizer = torch.optim.AdamW(self.critics.parameters(), own.critic_lr, betas=(0.5, 0.99),
                                           weight_decay=0.0)
        simulator, seed = clips.simulator, clips.seed + 50   # of no stage
        self.faults = FaultyClips(simulator.images, seed, simulator.channels, dtype)

    def loss(self, network, x_0, draws, conditions, hidden=None):
        """generator_loss + FRAMES generator_loss(each alone) + reward (1 - cosine(C_y(made, shifted), y_e)).

        x_0 (b, c, f, h, w): the real clips whose embeddings and rates are the condition; D's frames (b, c, h,
        w) are clips of one. hidden (b, 1, f, 1, 1): 0 where a frame is known, and is the truth in every step
        of the walk. The critics' own gradients come by the way, for `step`.
        """
        walk, noise = self.config.walk, draws.normal(*x_0.shape[1:])
        alone = make_denoiser(self.diffusion, network, conditions)

        def denoise(x_t, t):
            made = alone(x_t, t)
            return made if hidden is None else torch.where(hidden > 0, made, x_0)
        made, _ = own_walk(self.diffusion, denoise, noise, walk.steps, walk.steps)
        if made.ndim == 4:
            made, x_0 = made[:, :, None], x_0[:, :, None]                            # b c 1 h w

        shown = made.new_ones(made.shape[0], made.shape[2])  # b f: 0 what is known
        if hidden is not None:
            shown = shown * hidden[:, 0, :, 0, 0]
        log_fps, asked = conditions.get("fps"), shown
        if log_fps is None:
            log_fps = self._any_rate(made)
        else:
            known = (log_fps.exp() >= RATES[0]) & (log_fps.exp() <= RATES[1])
            asked = shown * known[:, None]
        word = self._meet("whole", made, x_0, log_fps, asked, draws)
        if "frames" in self.critics:
            each, real = (rearrange(clips, "b c f h w -> (b f) c 1 h w") for clips in (made, x_0))
            word = word + FRAMES * self._meet("frames", each, real, self._any_rate(each), shown.view(-1, 1),
                                              draws)
        way = torch.stack([draws.uniform(), draws.uniform()], dim=-1)                # b 2
        with full_precision(x_0.device):
            unlike = 1 - closeness(self.clip, shifted(made, 2 * way - 1), conditions["image_embeds"]).mean()
        return word + self.config.adversarial.reward * unlike

    def _any_rate(self, clips):
        """log_fps (b,) of clips of one frame, of which it says nothing."""
        return clips.new_full((len(clips),), math.log(self.config.data.fps))

    def _meet(self, name, made, real, log_fps, asked, draws):
        """A critic's word, generator_loss; its own gradients come by the way.

        made, real (b n, c, f, h, w), log_fps (b n,): n of each sample. asked (b n, f): 1 where it looks.
        """
        critic, n = self.critics[name], len(made) // len(draws.batch.indices)
        level = (NOISE[0] + (NOISE[1] - NOISE[0]) * draws.uniform()).repeat_interleave(n)
        veil = draws.normal(n, *made.shape[1:]).flatten(0, 1)
        indices = [n * i + k for i in draws.batch.indices for k in range(n)]
        rendered = self.faults.pairs(indices, self.config.data.fps, *made.shape[2:4])
        seen = noised(made, veil, level)
        shown = [seen.detach(), noised(real, veil, level), noised(rendered.frames * 2 - 1, veil, level)]
        said, _ = critic(torch.cat(shown), torch.cat([log_fps, log_fps, rendered.fps.log()]))
        of_made, of_real, of_rendered = said.chunk(3)
        lesson = critic_loss(of_real, of_made, of_rendered, rendered.at_fault.to(said.dtype), asked)
        (lesson / self.config.train.accumulate).backward()
        critic.requires_grad_(False)                         # the generator's loss is no lesson for it
        word = generator_loss(critic(seen, log_fps)[0], asked)
        critic.requires_grad_(True)
        return word

    def step(self):
        """The critics' own step, after the generator's gradients were taken, if there was a contest."""
        learned = [p for p in self.critics.parameters() if p.grad is not None]
        if dist.is_initialized():                            # each rank has seen its own share
            for p in learned:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def export(self, folder, provenance):
        """Write the first critic as it is by now, as a weights folder within `folder`."""
        save_weights(Path(folder) / "critic", self.critics["whole"].state_dict(), self.critic_config,
                     provenance, half=True)
