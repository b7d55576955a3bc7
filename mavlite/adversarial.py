"""A student's last lesson: no frame of its finished clips must be at fault.

A teacher passes on its own faults, and D^t's are of motion: it knows the single frame from D, and makes two
digits into three where it does not know which way they went. A critic sees whole clips, and knows such
faults when it sees them (critic.py). So the student walks from noise to a clip, all its steps, with gradients
through the whole walk (as DRaFT does for a reward: Clark et al. 2023, arXiv 2309.17400), and learns from what
a critic says of each frame, as few-step image generators do (Sauer et al. 2023, arXiv 2311.17042); and from
what C recognises in it, or prompts would be forgotten. Some frames are looked at by themselves, too, where no
motion draws the eye away (as by the two discriminators of MoCoGAN: Tulyakov et al. 2018, arXiv 1707.04993);
D's all are. Nothing of this is in the paper.
"""

import math

import torch
import torch.distributed as dist
from einops import rearrange

from mavlite.candidates import closeness
from mavlite.critic import NOISE, critic_loss, generator_loss, noised
from mavlite.device import full_precision
from mavlite.distillation import own_walk
from mavlite.faults import RATES, FaultyClips
from mavlite.sampling import make_denoiser
from mavlite.stages import load_network

ALONE = 4                                    # frames of each clip that are looked at by themselves as well


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


def frames_alone(clips, frame):
    """Frames `frame` (b, n) of clips (b, c, f, h, w), as clips of one frame: (b n, c, 1, h, w)."""
    b, c, _, h, w = clips.shape
    chosen = clips.gather(2, frame[:, None, :, None, None].expand(b, c, frame.shape[1], h, w))
    return rearrange(chosen, "b c n h w -> (b n) c 1 h w")


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
        """generator_loss of clips, and of some frames alone, + reward (1 - cosine(C_y(made, shifted), y_e)).

        x_0 (b, c, f, h, w): the real clips whose embeddings and rates are the condition; D's frames (b, c, h,
        w) belong to no clip. hidden (b, 1, f, 1, 1): 0 where a frame is known, and is the truth in every step
        of the walk.
        """
        own, walk = self.config.adversarial, self.config.walk
        noise = draws.normal(*x_0.shape[1:])
        alone = make_denoiser(self.diffusion, network, conditions)

        def denoise(x_t, t):
            made = alone(x_t, t)
            return made if hidden is None else torch.where(hidden > 0, made, x_0)
        made, _ = own_walk(self.diffusion, denoise, noise, walk.steps, walk.steps)

        if made.ndim == 4:
            made = made[:, :, None]                                                  # b c 1 h w
            word = self.meet(made, x_0[:, :, None], draws)
        else:
            fps = conditions["fps"].exp()
            asked = (fps >= RATES[0]) & (fps <= RATES[1])                            # b
            asked = asked.to(x_0.dtype)[:, None].expand(made.shape[0], made.shape[2])
            shown = torch.ones_like(asked) if hidden is None else hidden[:, 0, :, 0, 0].to(x_0.dtype)
            word = self.meet(made, x_0, draws, conditions["fps"], asked * shown)
            frame = (torch.arange(ALONE, device=fps.device) + draws.uniform()[:, None]) / ALONE
            frame = (frame * made.shape[2]).long().clamp(max=made.shape[2] - 1)      # b n
            each = (frames_alone(clips, frame) for clips in (made, x_0))
            word = word + self.meet(*each, draws, asked=shown.gather(1, frame).flatten()[:, None])
        way = torch.stack([draws.uniform(), draws.uniform()], dim=-1)                # b 2
        with full_precision(x_0.device):
            unlike = 1 - closeness(self.clip, shifted(made, 2 * way - 1), conditions["image_embeds"]).mean()
        return word + own.reward * unlike

    def meet(self, made, real, draws, log_fps=None, asked=1.0):
        """generator_loss of clips made. The critic's own gradients come by the way, for `step`.

        made, real (b n, c, f, h, w): n of each sample. log_fps: of clips; it says nothing of a single frame.
        asked (b n, f): 1 where real and made frames are looked at, 0 elsewhere.
        """
        data, n = self.config.data, len(made) // len(draws.batch.indices)
        if log_fps is None:
            log_fps = made.new_full((len(made),), math.log(data.fps))
        level = NOISE[0] + (NOISE[1] - NOISE[0]) * draws.uniform().repeat_interleave(n)
        veil = draws.normal(n, *made.shape[1:]).flatten(0, 1)
        indices = [n * i + k for i in draws.batch.indices for k in range(n)]
        rendered = self.faults.pairs(indices, data.fps, *made.shape[2:4])
        seen = noised(made, veil, level)
        shown = [seen.detach(), noised(real, veil, level), noised(rendered.frames * 2 - 1, veil, level)]
        said, _ = self.critic(torch.cat(shown), torch.cat([log_fps, log_fps, rendered.fps.log()]))
        of_made, of_real, of_rendered = said.chunk(3)
        lesson = critic_loss(of_real, of_made, of_rendered, rendered.at_fault.to(said.dtype), asked)
        (lesson / self.config.train.accumulate).backward()
        self.critic.requires_grad_(False)                    # the generator's loss is no lesson for it
        word = generator_loss(self.critic(seen, log_fps)[0], asked)
        self.critic.requires_grad_(True)
        return word

    def step(self):
        """The critic's own step, after the generator's gradients were taken, if there was a contest."""
        learned = [p for p in self.critic.parameters() if p.grad is not None]
        if dist.is_initialized():                            # each rank has seen its own share
            for p in learned:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
