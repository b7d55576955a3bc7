"""What each stage is trained to do: one small class per kind of stage, each a loss of (network, batch).

Who sees what is decided here. `clip`, `prior` and `judge` get text-frame pairs; every other stage of the
cascade gets `UnlabelledClips`, which hold pixels and frame rates and nothing else. `LabelledClips` are for
the other networks that measure, `FaultyClips` for the critic.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange

from mavlite.adversarial import Contest
from mavlite.clip import PairClipLoss
from mavlite.config import DataConfig
from mavlite.critic import NOISE, first_lesson
from mavlite.device import full_precision
from mavlite.diffusion import Diffusion
from mavlite.digits import load_digits
from mavlite.distillation import Lessons, student_times
from mavlite.faults import FaultyClips
from mavlite.losses import diffusion_loss
from mavlite.moving_mnist import (
    DRAW_FPS,
    LabelledClips,
    TextFramePairs,
    UnlabelledClips,
    box_resize,
)
from mavlite.prior import renormalise
from mavlite.prompts import pair_index
from mavlite.stages import STAGES


def draw_fps(u, use_uniform, progress, data: DataConfig):
    """Key-frame rates (b,) from uniform numbers u (b,) at a training progress in [0, 1].

        fps = low (high / low)^x,    x ~ Beta(a, 1): x = u^(1/a)

    A curriculum from high rates (little motion) to low ones: a falls from `fps_concentration` to 1, where
    all octaves of the range are drawn alike. The paper (3.4) names a beta function for fps and gives no
    parameters; these are ours. Rates count in ratios: were fps itself uniform, five clips in six would
    show less motion than the 6 fps that the cascade makes. use_uniform (b,) bool: a = 1 at all times.
    """
    low, high = data.fps_range
    a = 1 + (data.fps_concentration - 1) * (1 - progress)
    return low * (high / low) ** torch.where(use_uniform, u, u ** (1 / a))


def with_default(fps, coin, data: DataConfig):
    """Key-frame rates (b,), but the default one where uniform numbers coin (b,) choose it."""
    return torch.where(coin >= 1 - data.fps_default, data.fps, fps)


# Shares of windows: below the first they are given every skip-th frame, above the second any two.
REGULAR, TWO = 0.5, 0.8


def known_frames(u, skip, num_frames):
    """Which frames a training window of the interpolation network is given: bool (b, f).

    u: dict of uniform numbers (b,). 50 % every `skip`-th frame; 10 % each: only the start, only the end, one
    frame; 20 % any two frames, which `interpolate` gives and which leave the most to infer. One network then
    interpolates, extrapolates both ways and animates one image.
    """
    i = torch.arange(num_frames, device=skip.device)
    kind, count = u["kind"][:, None], 1 + (u["count"] * (num_frames // 2)).long()[:, None]
    first = (u["first"] * num_frames).long()[:, None]
    second = (first + 1 + (u["second"] * (num_frames - 1)).long()[:, None]) % num_frames
    mask = i % skip[:, None] == 0
    mask = torch.where(kind > REGULAR, i < count, mask)
    mask = torch.where(kind > 0.6, i >= num_frames - count, mask)
    mask = torch.where(kind > 0.7, i == first, mask)
    return torch.where(kind > TWO, (i == first) | (i == second), mask)


def degrade(low, blur, noise_level, noise):
    """Blur (Gaussian, sigma px) and add noise: low (b, c, ..., h, w) in [-1, 1], blur and level (b,)."""
    size = low.shape[-1]
    i = torch.arange(size, device=low.device, dtype=low.dtype)
    kernel = torch.exp(-(i - i[:, None]) ** 2 / (2 * blur.clamp(min=0.05)[:, None, None] ** 2))
    kernel = kernel / kernel.sum(dim=-1, keepdim=True)                               # b h h
    kernel = kernel.view(len(low), *(1,) * (low.ndim - 3), size, size)
    with full_precision(low.device):
        blurred = kernel @ low @ kernel.transpose(-1, -2)
    return blurred + noise_level.view(-1, *(1,) * (low.ndim - 1)) * noise


def upsample(frames, size):
    """Bilinear enlargement of images (b c h w) or clips (b c f h w)."""
    if frames.ndim == 4:
        return F.interpolate(frames, (size, size), mode="bilinear")
    f = frames.shape[2]
    large = F.interpolate(rearrange(frames, "b c f h w -> (b f) c h w"), (size, size), mode="bilinear")
    return rearrange(large, "(b f) c h w -> b c f h w", f=f)


class Objective:
    """What all objectives share: configuration, device, the digits of a split, the frozen C."""

    def __init__(self, config, clip, device, dtype=torch.float32, split="train"):
        self.config, self.data, self.clip, self.device, self.dtype = config, config.data, clip, device, dtype
        self.stage = STAGES[config.stage]
        digits = load_digits(split, config.data.digits).to(device)
        self.digits_source = digits.source
        seed = config.data.seed * 101 + list(STAGES).index(config.stage)         # no two stages share clips
        options = {"seed": seed, "channels": config.data.channels, "dtype": dtype,
                   "num_clips": config.data.num_clips}
        if self.stage.trained_on == "text-frame pairs":
            self.pairs = self.clips = TextFramePairs(digits, **options)
        elif self.stage.trained_on == "rendered faults":
            self.clips = FaultyClips(digits.images, **options)
        elif self.stage.trained_on == "labelled clips":
            self.clips = LabelledClips(digits, **options)
        else:
            self.clips = UnlabelledClips(digits.images, **options)
        self.diffusion = Diffusion(config.diffusion.prediction_type, config.diffusion.log_snr_min)
        self.size = config.data.sizes[self.stage.size[0]]
        self.lessons = self.contest = None                   # a student's
        if config.distill.teacher is not None:
            self.lessons = Lessons(config, self.diffusion, clip, device, dtype)
        if config.adversarial.critic is not None:
            self.contest = Contest(config, self.diffusion, clip, self.clips, device, dtype)

    def diffuse(self, network, x_0, draws, weight=None, contest=None, **conditions):
        """The diffusion loss of x_0 in [-1, 1] under conditions, or a student's loss."""
        d = self.config.diffusion
        taught = contest is not None or self.lessons is not None
        # A student has its teacher's guidance within. But D without its embedding is what others are guided
        # by (guidance.py), so between contests it goes on as it was.
        if taught or self.config.student and self.stage.temporal:
            conditions.pop("drop", None)
        if contest is not None:
            return contest.loss(network, x_0, draws, conditions, weight)
        if self.lessons is not None:
            return self.lessons.loss(network, x_0, draws, conditions, weight)
        # A logit-logistic density, close to the logit-normal of Esser et al. 2024 (arXiv 2403.03206, 3.1),
        # but with an inverse in closed form, so that stratified times stay stratified.
        t = torch.sigmoid(d.time_shift + d.time_scale * torch.logit(draws.times()))
        if self.contest is not None:
            # Beside a contest every other sample at a time at which that asks, to the digit: what it teaches
            # there must not be all that is known there.
            every_other = torch.tensor(draws.batch.indices, device=t.device) % 2 == 0
            t = torch.where(every_other, student_times(draws.uniform(), self.config.walk.steps), t)
        return diffusion_loss(self.diffusion, lambda x, t: network(x, t, **conditions), x_0, t,
                              draws.normal(*x_0.shape[1:]), loss_type=d.loss, min_snr_gamma=d.min_snr_gamma,
                              weight=weight)

    def drop(self, draws):
        return draws.uniform() < self.config.diffusion.drop_condition

    @torch.no_grad()
    def condition(self, indices):
        """y_e (b, d): the embedding of each clip's conditioning frame (the clearest, by default)."""
        size = self.data.sizes[0]
        if self.data.condition == "clearest":
            return self.clip.image_embeds(self.clips.condition_frames(indices, size)).to(self.dtype)
        frames = self.clips.condition_clips(indices, size)
        if self.data.condition == "first":
            return self.clip.image_embeds(frames[:, :, 0]).to(self.dtype)
        return self.mean_embeds(frames)

    @torch.no_grad()
    def mean_embeds(self, frames):
        """The mean embedding of a clip's frames, at a single embedding's length: (b c f h w) -> (b, d)."""
        embeds = self.clip.image_embeds(rearrange(frames, "b c f h w -> (b f) c h w"))
        embeds = rearrange(embeds, "(b f) d -> b f d", f=frames.shape[2])
        return renormalise(embeds.mean(dim=1)).to(self.dtype)


class ClipObjective(Objective):
    """Contrastive: a frame and the prompt that names its digits (C)."""

    def loss(self, network, batch, draws, progress):
        frames, prompts = self.pairs.pairs(batch.indices, self.data.sizes[0])
        tokens = _unwrap(network).tokenizer(prompts).to(self.device)
        digits = self.pairs.labels(batch.everywhere)
        # Over ranks, features are gathered with their gradients: every rank sees the whole contrast.
        world = dist.get_world_size() if dist.is_initialized() else 1
        contrast = PairClipLoss(gather_with_grad=True, rank=batch.rank, world_size=world)
        return contrast(*network(frames, tokens), pair_index(digits[:, 0], digits[:, 1]))


class PriorObjective(Objective):
    """Diffusion on the embeddings that D and the video stages are conditioned on, given the prompt (P)."""

    def loss(self, network, batch, draws, progress):
        with torch.no_grad():
            tokens, text_embeds = self.clip.text(self.pairs.prompts(batch.indices))
        return self.diffuse(network, self.condition(batch.indices), draws, tokens=tokens.to(self.dtype),
                            text_embeds=text_embeds.to(self.dtype), drop=self.drop(draws))


class DecoderObjective(Objective):
    """One frame of a clip, given the embedding of the clip's clearest frame (D).

    Every other sample is the clearest frame itself, as an unCLIP decoder gives back the image that an
    embedding was made from (arXiv 2204.06125, 2.1); the others are any frame, as D^t will need them all. With
    a critic, every other step is a contest; the others go on as they did.
    """

    SHARE = 4                                # samples of one clip: C is run once for four

    def loss(self, network, batch, draws, progress):
        clips = [index // self.SHARE for index in batch.indices]
        row = torch.tensor(clips, device=self.device) - clips[0]
        every_other = torch.tensor(batch.indices, device=self.device) % 2 == 0
        clips = range(clips[0], clips[-1] + 1)
        x_0 = self.clips.frames(batch.indices, self.size, self.SHARE)
        if self.data.condition == "clearest":
            clearest = self.clips.condition_frames(clips, self.data.sizes[0])
            x_0 = torch.where(every_other[:, None, None, None], clearest[row], x_0)
            embeds = self.clip.image_embeds(clearest).to(self.dtype)
        else:
            embeds = self.condition(clips)
        return self.diffuse(network, x_0 * 2 - 1, draws, contest=self.contest if batch.step % 2 else None,
                            image_embeds=embeds[row], drop=self.drop(draws))


class VideoDecoderObjective(Objective):
    """A clip, given the embedding of its clearest frame (for some: the mean of all) and its rate (D^t)."""

    def loss(self, network, batch, draws, progress):
        u, coin = (self.clips.uniform(batch.indices, DRAW_FPS + k) for k in range(2))
        fps = with_default(draw_fps(u, coin < self.data.fps_uniform, progress, self.data), coin, self.data)
        frames, fps = self.clips.clips(batch.indices, fps, self.data.num_frames, self.size)
        embeds = self.condition(batch.indices)
        percent = round(100 * self.data.mean_condition)      # evenly spread, known without asking the device
        rows = [row for row, i in enumerate(batch.indices) if (i + 1) * percent // 100 > i * percent // 100]
        if rows:
            chosen = [batch.indices[row] for row in rows]
            embeds[rows] = self.mean_embeds(self.clips.condition_clips(chosen, self.size))
        return self.diffuse(network, frames * 2 - 1, draws, image_embeds=embeds, drop=self.drop(draws),
                            fps=fps.log(), contest=self.contest)


class InterpolationObjective(Objective):
    """The hidden frames of a window, given the others (upF).

    fps is the key-frame rate, fps * skip the window's. With a critic, every other step is a contest over
    windows that are given on one side only, where it makes up what D^t would; the others go on as they did.
    """

    def loss(self, network, batch, draws, progress):
        u = {name: self.clips.uniform(batch.indices, DRAW_FPS + k) for k, name in
             enumerate(("fps", "uniform", "skip", "kind", "count", "first", "second"))}
        fps = draw_fps(u["fps"], u["uniform"] < self.data.fps_uniform, 1.0, self.data)
        fps = with_default(fps, u["uniform"], self.data)
        contest = self.contest if batch.step % 2 else None
        if contest is not None:
            u["kind"] = REGULAR + (TWO - REGULAR) * u["kind"]
        elif self.contest is not None:
            u["kind"] = (1 - TWO + REGULAR) * u["kind"]
            u["kind"] = torch.where(u["kind"] > REGULAR, u["kind"] + TWO - REGULAR, u["kind"])
        skip = 2 + (u["skip"] * (self.data.max_frame_skip - 1)).long()
        skip = torch.where(u["kind"] > REGULAR, 1, skip)     # extrapolation works on the key-frame grid
        frames, _ = self.clips.clips(batch.indices, fps * skip, self.data.num_frames, self.size)
        known = known_frames(u, skip, self.data.num_frames)
        known = rearrange(known, "b f -> b 1 f 1 1").to(self.dtype)
        x_0 = frames * 2 - 1
        concat = torch.cat([x_0 * known, known.expand(-1, 1, -1, *x_0.shape[-2:])], dim=1)
        return self.diffuse(network, x_0, draws, weight=1 - known, contest=contest, concat=concat,
                            image_embeds=self.condition(batch.indices), drop=self.drop(draws),
                            fps=fps.log(), frame_skip=skip.to(self.dtype).log())


class SuperResolutionObjective(Objective):
    """The large frame, given the small one, blurred, noised and enlarged (SR_l, SR_l^t, SR_h)."""

    def loss(self, network, batch, draws, progress):
        small = self.data.sizes[self.stage.size[1]]
        if self.stage.temporal:
            low, high = self.data.fps_range
            fps = low + (high - low) * self.clips.uniform(batch.indices, DRAW_FPS)
            full, _ = self.clips.clips(batch.indices, fps, self.data.num_frames, 64)
        else:
            full = self.clips.frames(batch.indices, 64)
        low, x_0 = box_resize(full, small) * 2 - 1, box_resize(full, self.size) * 2 - 1
        level = self.config.diffusion.max_noise_level * draws.uniform()
        blur = self.config.diffusion.max_blur * draws.uniform()
        low = degrade(low, blur, level, draws.normal(*low.shape[1:]))
        return self.diffuse(network, x_0, draws, concat=upsample(low, self.size), noise_level=level)


class JudgeObjective(Objective):
    """Cross-entropy over the 55 pairs on frames of any time, drawn at each of the cascade's sizes in turn."""

    def loss(self, network, batch, draws, progress):
        frames = self.pairs.frames(batch.indices, self.data.sizes[batch.step % len(self.data.sizes)])
        digits = self.pairs.labels(batch.indices)
        return F.cross_entropy(network(frames), pair_index(digits[:, 0], digits[:, 1]))


class MeasuringObjective(Objective):
    """What tracker and video_features share: labelled clips of any rate, at the cascade's sizes in turn."""

    def batch(self, batch):
        """(frames (b, c, f, h, w), fps (b,)): the rate is log-uniform, as it counts in ratios."""
        low, high = self.data.fps_range
        fps = low * (high / low) ** self.clips.uniform(batch.indices, DRAW_FPS)
        size = self.data.sizes[batch.step % len(self.data.sizes)]
        return self.clips.clips(batch.indices, fps, self.data.num_frames, size)


class TrackerObjective(MeasuringObjective):
    """Distance of the two tracked centres from the true ones, in px, up to which digit is called first."""

    def loss(self, network, batch, draws, progress):
        frames, fps = self.batch(batch)
        found, true = network(frames), self.clips.centres(batch.indices, fps, self.data.num_frames)
        return either_order(lambda true: F.smooth_l1_loss(found, true, reduction="none").mean(dim=(1, 3)),
                            true, dim=2)


class VideoFeaturesObjective(MeasuringObjective):
    """Cross-entropy over the 55 pairs, cosine of both directions, square error of the log rate."""

    def loss(self, network, batch, draws, progress):
        frames, fps = self.batch(batch)
        pair, directions, log_fps = network(frames)
        digits, true = self.clips.labels(batch.indices), self.clips.directions(batch.indices)
        turned = either_order(lambda true: 1 - F.cosine_similarity(directions, true, dim=-1), true, dim=1)
        return (F.cross_entropy(pair, pair_index(digits[:, 0], digits[:, 1])) + turned
                + F.mse_loss(log_fps, fps.log().to(log_fps.dtype)))


class CriticObjective(Objective):
    """What is at fault in clips whose faults were rendered, and where digits are.

    Means over those of a batch that have a fault: with ranks or micro-batches, not quite the whole batch's.
    """

    def loss(self, network, batch, draws, progress):
        pair = self.clips.pairs(batch.indices, self.data.fps, self.data.num_frames, self.size)
        level = NOISE[0] + (NOISE[1] - NOISE[0]) * draws.uniform()
        return first_lesson(network, pair, draws.normal(*pair.frames.shape[1:]), level)


def either_order(error, true, dim):
    """The mean over clips of the smaller of two errors: of `true` as it is, and with its digits exchanged.

    error: true -> (b, 2), an error for each digit. Nothing in a picture says which digit is the first.
    """
    return torch.minimum(error(true).mean(dim=1), error(true.flip(dim)).mean(dim=1)).mean()


OBJECTIVES = {"clip": ClipObjective, "prior": PriorObjective, "decoder": DecoderObjective,
              "decoder_t": VideoDecoderObjective, "interpolation": InterpolationObjective,
              "sr_l": SuperResolutionObjective, "sr_l_t": SuperResolutionObjective,
              "sr_h": SuperResolutionObjective, "judge": JudgeObjective, "tracker": TrackerObjective,
              "video_features": VideoFeaturesObjective, "critic": CriticObjective}


def _unwrap(network):
    """The network inside DistributedDataParallel."""
    return network.module if hasattr(network, "module") else network


def frames_per_sample(config):
    """How many frames one training sample holds."""
    return config.data.num_frames if STAGES[config.stage].temporal else 1
