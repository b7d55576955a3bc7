"""Each stage of eq. 1 as one function: from its conditions and its noise to its output.

Frames are (b, c, f, h, w) or (b, c, h, w) in [-1, 1] in here. `Noise` gives every video its own generator,
so that a video depends on its seed and index and not on its neighbours in the batch.
"""

import hashlib

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from mavlite.candidates import ChosenHalfWay, half_way
from mavlite.diffusion import Diffusion
from mavlite.flat_memory import in_batches, over_frames
from mavlite.objectives import upsample
from mavlite.prior import closest, renormalise
from mavlite.sampling import make_denoiser, sample, time_steps
from mavlite.stages import STAGES


class Noise:
    """Standard normal noise for a batch of videos, one CPU generator a video, seeded by (seed, index, stage).

    The stage's name is part of the seed, so that changing one stage's steps or sampler leaves the noise
    of the others alone. each: how many candidates of every video stand side by side in the batch.
    """

    def __init__(self, seed, indices, stage, device, each=1):
        self.device, self.each = device, each
        self.generators = [torch.Generator().manual_seed(self._mix(seed, index, stage)) for index in indices]

    @staticmethod
    def _mix(seed, index, stage):
        digest = hashlib.blake2b(f"{seed}/{index}/{stage}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def __call__(self, *shape):
        """(b * each, *shape)"""
        drawn = [torch.randn(self.each, *shape, generator=g) for g in self.generators]
        return torch.cat(drawn).to(self.device)


def run(network, config, draw_noise, conditions, *, settings=None, clip=1.0, start=None, strength=1.0,
        choose=None, away_from=None, correct=None):
    """Sample one stage. draw_noise() gives noise of the whole batch.

    settings: a SampleConfig, else the stage's own. start: data to begin from instead of pure noise, noised
    to that time of the walk which is nearest to `strength`, in (0, 1]. choose: x_0 (b n, ...) of all
    candidates -> the rows (b,) that go on from `half_way`, and are returned. away_from: what guidance leads
    away from, see `make_denoiser`. correct: (x_0, conditions) -> x_0, what is known better than the network
    does, in every step.
    """
    settings, d = settings or config.sample, config.diffusion
    diffusion = Diffusion(d.prediction_type, d.log_snr_min)

    def build(conditions):
        denoise = make_denoiser(diffusion, network, conditions, settings.guidance_scale, clip,
                                learned_variance=d.loss == "hybrid", away_from=away_from,
                                guidance_until=settings.guidance_until)
        if correct is None:
            return denoise

        def corrected(x_t, t):
            made = denoise(x_t, t)
            if isinstance(made, tuple):
                return correct(made[0], conditions), made[1]
            return correct(made, conditions)
        return corrected

    times = time_steps(settings.steps, start_time=strength).tolist()
    denoise = (build(conditions) if choose is None
               else ChosenHalfWay(build, conditions, choose, half=half_way(times[:-1])))
    x = draw_noise()
    if start is not None:
        first = diffusion.max_time * times[0]
        x = diffusion.add_noise(start, x, torch.full((len(x),), first, device=x.device))
    made = sample(denoise, x, diffusion, sampler=settings.sampler, num_inference_steps=settings.steps,
                  draw_noise=draw_noise, start_time=strength)
    return made if choose is None else made[denoise.rows]


def run_prior(network, config, noise, tokens, text_embeds, *, settings=None, candidates=2):
    """P: tokens (b, n, d_t) and text embeddings (b, d) -> image embeddings (b, d) of a real one's length.

    Draws two candidates and keeps the one closer to the text embedding (as unCLIP does, 2204.06125, 2.2).
    """
    # Candidates stand beside each other in one batch; each video's own generator draws its candidates.
    def draw_noise():
        return rearrange(noise(candidates, network.embed_dim), "b n d -> (n b) d")

    conditions = {"tokens": tokens.repeat(candidates, 1, 1), "text_embeds": text_embeds.repeat(candidates, 1)}
    embeds = run(network, config, draw_noise, conditions, settings=settings, clip=None)
    embeds = rearrange(renormalise(embeds), "(n b) d -> n b d", n=candidates)
    return closest(embeds, text_embeds)


def run_decoder(network, config, noise, image_embeds, *, settings=None, choose=None):
    """D: image embeddings (b, d) -> frames (b, c, h, w). choose: see `run`."""
    size, channels = config.data.sizes[0], config.data.channels
    conditions = {"image_embeds": image_embeds}
    return run(network, config, lambda: noise(channels, size, size), conditions, settings=settings,
               choose=choose)


def run_decoder_t(network, config, noise, image_embeds, fps, *, settings=None, start=None, strength=1.0,
                  choose=None, away_from=None):
    """D^t: image embeddings (b, d) and a key-frame rate -> key frames (b, c, f, h, w).

    start, strength: key frames to begin from and how far they are noised, for variations of a given clip.
    choose: see `run`; the embeddings are then each video's own, as often as it has candidates. away_from:
    `guidance.single_frames` of D; without, guidance leads away from what D^t makes without an embedding.
    """
    size, channels, f = config.data.sizes[0], config.data.channels, config.data.num_frames
    conditions = {"image_embeds": image_embeds, "fps": torch.full_like(image_embeds[:, 0], fps).log()}
    return run(in_batches(network), config, lambda: noise(channels, f, size, size), conditions,
               settings=settings, start=start, strength=strength, choose=choose, away_from=away_from)


def window_starts(num_keys, keys_per_window):
    """First key of each interpolation window. Neighbours share an end key; the last one is moved to fit."""
    last, step = num_keys - keys_per_window, keys_per_window - 1
    return sorted({min(start, last) for start in range(0, max(last, 0) + step, step)})


def fill_frames(network, config, noise, frames, known, image_embeds, fps, skip, *, settings=None,
                choose=None, away_from=None):
    """upF on windows: the unknown frames of (b, n, c, f, h, w), n windows a video; the known ones are copied.

    known: bool (f,), the same in all windows. image_embeds (b, d), fps of key frames, skip: the condition.
    In every step x_0 of the known frames is the truth, so x_t there is what training showed: truth and noise.
    choose: see `run`; then each of the b rows is a candidate, with one window, and the chosen are returned.
    away_from: as in `run_decoder_t`.
    """
    _, n, c, f, h, w = frames.shape
    known = known.to(frames.dtype).view(1, 1, 1, f, 1, 1)
    masked = rearrange(frames * known, "b n c f h w -> (b n) c f h w")
    ones = torch.ones_like(image_embeds[:, 0]).repeat_interleave(n)
    conditions = {"concat": torch.cat([masked, known[0].expand(len(masked), 1, -1, h, w)], dim=1),
                  "image_embeds": image_embeds.repeat_interleave(n, dim=0),
                  "fps": (ones * fps).log(), "frame_skip": (ones * skip).log()}

    def draw_noise():
        return rearrange(noise(n, c, f, h, w), "b n ... -> (b n) ...")

    def copy_known(x_0, conditions):
        return torch.where(known[0].bool(), conditions["concat"][:, :c], x_0)        # (b n) c f h w

    filled = run(in_batches(network), config, draw_noise, conditions, settings=settings, choose=choose,
                 away_from=away_from, correct=copy_known)
    return rearrange(filled, "(b n) c f h w -> b n c f h w", n=n)


def given_keys(num_frames):
    """How many of a window's key frames `extend_keys` gives: a quarter, which shows where digits go.

    Half of them was worse: the more is given of what was made up before, and the more windows there are, the
    more their faults add up.
    """
    return max(num_frames // 4, 2)


def extend_keys(network, config, noise, keys, num_keys, image_embeds, fps, *, settings=None, choose=None,
                away_from=None):
    """upF on the key-frame grid: key frames (b, c, k, h, w) and what comes after them, `num_keys` in all.

    Window by window: the last keys so far become the first quarter of a window, whose rest is made; y_e
    stays the same. One such walk goes on by seconds, where many small ones at the full rate would drift.
    choose: see `run`, for every window anew, where noise is for n each. away_from: as in `run_decoder_t`.
    """
    length, n = config.data.num_frames, noise.each
    while keys.shape[2] < num_keys:
        given = min(keys.shape[2], given_keys(length))
        frames = F.pad(keys[:, None, :, -given:], (0, 0, 0, 0, 0, length - given))   # b 1 c f h w
        known = torch.arange(length, device=keys.device) < given
        filled = fill_frames(network, config, noise, frames.repeat_interleave(n, dim=0), known,
                             image_embeds.repeat_interleave(n, dim=0), fps, 1, settings=settings,
                             choose=choose, away_from=away_from)
        keys = torch.cat([keys, filled[:, 0, :, given:]], dim=2)
    return keys[:, :, :num_keys]


def run_interpolation(network, config, noise, keys, image_embeds, fps, skip, *, settings=None):
    """upF: key frames (b, c, k, h, w) -> (b, c, (k - 1) skip + 1, h, w), the key frames copied through.

    At skip 5 a window of 16 frames knows frames 0, 5, 10 and 15; 16 keys are five windows that share their
    end frames, and all windows of all videos run as one batch.
    """
    b, c, k, h, w = keys.shape
    if skip == 1 or k == 1:
        return keys
    per_window = min((config.data.num_frames - 1) // skip + 1, k)                    # known in a window
    length = (per_window - 1) * skip + 1
    starts = window_starts(k, per_window)
    known = torch.arange(length, device=keys.device) % skip == 0
    frames = torch.zeros(b, len(starts), c, length, h, w, device=keys.device)
    for i, start in enumerate(starts):
        frames[:, i, :, ::skip] = keys[:, :, start:start + per_window]
    filled = fill_frames(network, config, noise, frames, known, image_embeds, fps, skip, settings=settings)
    video = torch.zeros(b, c, (k - 1) * skip + 1, h, w, device=keys.device)
    # Where the last two overlap, the first counts: a video is the beginning of a longer one.
    for i, start in reversed([*enumerate(starts)]):
        video[:, :, start * skip:start * skip + length] = filled[:, i]
    return video


def even_times(num_frames, num_keys, most):
    """num_frames out of key frames and those between: (skip, which frames), as even in time as can be.

    Of (num_keys - 1) skip + 1 frames some are nearest to even times, off by a share of the whole; `skip`, up
    to `most`, is the one at which they are off least, and the smallest of such. No more than the keys: all.
    """
    if num_frames <= num_keys:
        return 1, torch.arange(num_frames)
    gaps, steps = num_frames - 1, num_keys - 1

    def off(skip):
        rests = [i * steps * skip % gaps for i in range(num_frames)]
        return max(min(rest, gaps - rest) for rest in rests) / (steps * skip)
    skip = min(range(-(-gaps // steps), most + 1), key=off)
    return skip, torch.tensor([(2 * i * steps * skip + gaps) // (2 * gaps) for i in range(num_frames)])


def run_super_resolution(network, config, noise, low, *, settings=None, shared_noise=False):
    """SR_l, SR_l^t, SR_h: frames (b c h w) or clips (b c f h w) -> the same at the stage's size.

    An image network takes a clip frame by frame, as one batch. shared_noise gives all frames of a video the
    same initial, ancestral and augmentation noise, so that what the network makes up does not flicker
    (Make-A-Video 3.2, for SR_h).
    """
    settings = settings or config.sample
    size, c = config.data.sizes[STAGES[config.stage].size[0]], low.shape[1]

    def draw_noise(size=size):
        if low.ndim == 4:
            return noise(c, size, size)
        if shared_noise:
            return repeat(noise(c, size, size), "b c h w -> b c f h w", f=low.shape[2])
        return noise(c, low.shape[2], size, size)

    noisy = low + settings.noise_level * draw_noise(low.shape[-1])
    conditions = {"concat": upsample(noisy, size),
                  "noise_level": torch.full((len(low),), settings.noise_level, device=low.device)}
    return run(over_frames(network), config, draw_noise, conditions, settings=settings)
