"""A student's last lesson: no frame of its finished clips must be at fault.

A teacher passes on its own faults, and D^t's are of motion: it knows the single frame from D, and makes two
digits into three where it does not know which way they went. A critic sees whole clips, and knows such
faults when it sees them (critic.py). So the student walks from noise to a clip, all its steps, with gradients
through the whole walk (as DRaFT does for a reward: Clark et al. 2023, arXiv 2309.17400), and learns from what
a critic says of each frame, as few-step image generators do (Sauer et al. 2023, arXiv 2311.17042); from what
C recognises in it, or prompts would be forgotten; and from how differently a digit is written in two frames.
D has the same lesson, its frames being clips of one. Nothing of this is in the paper.
"""

import math

import torch
import torch.distributed as dist

from mavlite.candidates import closeness
from mavlite.critic import NOISE, critic_loss, generator_loss, noised
from mavlite.device import full_precision
from mavlite.distillation import own_walk
from mavlite.faults import RATES, FaultyClips
from mavlite.likeness import handwriting, sameness
from mavlite.sampling import make_denoiser
from mavlite.stages import load_network


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
    """A critic that goes on learning, its optimizer, and the loss that the generator has from it.

    clips: the `UnlabelledClips` that the generator learns from; of their digits faults are rendered.
    """

    def __init__(self, config, diffusion, clip, clips, device, dtype):
        self.config, self.diffusion, self.clip = config, diffusion, clip
        critic, _, _ = load_network(config.adversarial.critic, "critic", device=device)
        self.critic = critic.to(device, dtype, memory_format=torch.channels_last_3d).train()
        self.critic.requires_grad_(True)
        # Little momentum: what a generator did some steps ago, it no longer does.
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), config.adversarial.critic_lr,
                                           betas=(0.5, 0.99), weight_decay=0.0)
        simulator, seed = clips.simulator, clips.seed + 50   # of no stage
        self.faults = FaultyClips(simulator.images, seed, simulator.channels, dtype)

    def loss(self, network, x_0, draws, conditions, hidden=None):
        """The generator's loss, from the critic's word, C's, and three of plain pictures:

            generator_loss + reward (1 - cosine(C_y(made, shifted), y_e))
                + handwriting u + sameness s + ink (i - 1)^2

        u: how differently a digit is written in two frames (likeness.py). Two things would be a way out: both
        digits the same one, and bold strokes, which have more in common with each other than fine ones. s:
        how much more alike the two digits are than the real clip's. i: ink of made, as a share of the real.

        x_0 (b, c, f, h, w): the real clips whose embeddings and rates are the condition; D's frames (b, c, h,
        w) are clips of one. hidden (b, 1, f, 1, 1): 0 where a frame is known, and is the truth in every step
        of the walk. The critic's own gradients come by the way, for `step`.
        """
        own, data, walk = self.config.adversarial, self.config.data, self.config.walk
        noise, level = draws.normal(*x_0.shape[1:]), NOISE[0] + (NOISE[1] - NOISE[0]) * draws.uniform()
        alone = make_denoiser(self.diffusion, network, conditions)

        def denoise(x_t, t):
            made = alone(x_t, t)
            return made if hidden is None else torch.where(hidden > 0, made, x_0)
        made, _ = own_walk(self.diffusion, denoise, noise, walk.steps, walk.steps)
        if made.ndim == 4:
            made, x_0 = made[:, :, None], x_0[:, :, None]                            # b c 1 h w

        rendered = self.faults.pairs(draws.batch.indices, data.fps, *x_0.shape[2:4])
        log_fps, veil = conditions.get("fps"), draws.normal(*x_0.shape[1:])
        if log_fps is None:                                  # of one frame any
            log_fps = level.new_full((len(x_0),), math.log(data.fps))
        way = torch.stack([draws.uniform(), draws.uniform()], dim=-1)                # b 2
        seen = noised(made, veil, level)
        shown = [seen.detach(), noised(x_0, veil, level), noised(rendered.frames * 2 - 1, veil, level)]
        low, high = RATES
        asked = ((log_fps.exp() >= low) & (log_fps.exp() <= high)).to(x_0.dtype)[:, None]            # b 1
        if hidden is not None:
            asked = asked * hidden[:, 0, :, 0, 0].to(x_0.dtype)                      # b f
        said, _ = self.critic(torch.cat(shown), torch.cat([log_fps, log_fps, rendered.fps.log()]))
        of_made, of_real, of_rendered = said.chunk(3)
        lesson = critic_loss(of_real, of_made, of_rendered, rendered.at_fault.to(said.dtype), asked)
        (lesson / self.config.train.accumulate).backward()
        self.critic.requires_grad_(False)                    # the generator's loss is no lesson for it
        word = generator_loss(self.critic(seen, log_fps)[0], asked)
        self.critic.requires_grad_(True)
        with full_precision(x_0.device):
            unlike = 1 - closeness(self.clip, shifted(made, 2 * way - 1), conditions["image_embeds"]).mean()
        loss = word + own.reward * unlike
        if own.handwriting:
            loss = loss + own.handwriting * handwriting(made, log_fps.exp()).mean()
        if own.sameness:
            loss = loss + own.sameness * sameness(made, x_0).mean()
        if own.ink:
            of_made, of_real = ((clips + 1).flatten(1).mean(dim=1) for clips in (made, x_0))         # b
            loss = loss + own.ink * (of_made / of_real - 1).square().mean()
        return loss

    def step(self):
        """The critic's own step, after the generator's gradients were taken, if there was a contest."""
        learned = [p for p in self.critic.parameters() if p.grad is not None]
        if dist.is_initialized():                            # each rank has seen its own share
            for p in learned:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
