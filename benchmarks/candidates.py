"""How many candidates should a video's key frames have, and when should C choose among them?

    python -m benchmarks.candidates [--videos 55] [--candidates 8] [--out docs/candidates.md]

D^t draws every candidate of every prompt to the end, and what C thinks of it is noted in every step. What a
choice among fewer, or at another step, would have given follows without drawing again: for 4 of 8 it is the
mean over all 70 ways to pick them.
"""

import argparse
import functools
import itertools

import torch
from tqdm import tqdm

from benchmarks import cost
from benchmarks.command import command_line, machine, run, table, write
from mavlite import cascade
from mavlite.candidates import closeness, half_way
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast
from mavlite.diffusion import Diffusion
from mavlite.errors import MavliteError
from mavlite.evaluation.accuracy import score
from mavlite.flat_memory import in_batches
from mavlite.pipeline import MOST_CANDIDATES, MakeAVideo
from mavlite.prompts import PAIRS, make_prompt
from mavlite.sampling import make_denoiser, sample, time_steps
from mavlite.session import to_unit
from mavlite.stages import load_network

SEED = 40_000                                # of the noise: no video of the report


@torch.no_grad()
def draw(pipe, judge, videos, candidates):
    """What becomes of every candidate: three tensors.

    close (n, k, steps): C's closeness of x_0 to the embedding in each step. right (n, k): whether the judge
    finds the prompt's pair in the finished key frames. frames (n, k): in which share of single frames.
    """
    network, config, clip = pipe.networks["decoder_t"], pipe.configs["decoder_t"], pipe.networks["clip"]
    s, size = config.sample, pipe.data.sizes[0]
    diffusion = Diffusion(config.diffusion.prediction_type, config.diffusion.log_snr_min)
    pairs, parts = torch.arange(videos) % len(PAIRS), {"close": [], "right": [], "frames": []}
    for i, pair in enumerate(tqdm(pairs.tolist(), desc="prompts")):
        tokens, text = clip.text([make_prompt(*PAIRS[pair], True, False)])
        noise = cascade.Noise(SEED, [i], "prior", pipe.device)
        y_e = cascade.run_prior(pipe.networks["prior"], pipe.configs["prior"], noise, tokens, text)
        conditions = {"image_embeds": y_e.repeat(candidates, 1),
                      "fps": torch.full((candidates,), float(pipe.data.fps), device=pipe.device).log()}
        denoise = make_denoiser(diffusion, in_batches(network), conditions, s.guidance_scale,
                                learned_variance=config.diffusion.loss == "hybrid",
                                guidance_until=s.guidance_until, away_from=pipe.single_frames)
        noise, seen = cascade.Noise(SEED, [i], "decoder_t", pipe.device, candidates), []
        draw_noise = functools.partial(noise, pipe.data.channels, pipe.data.num_frames, size, size)
        with autocast(pipe.device, pipe.precision):
            keys = sample(denoise, draw_noise(), diffusion, sampler=s.sampler, num_inference_steps=s.steps,
                          draw_noise=draw_noise,
                          callback=lambda step, x_t, x_0: seen.append(closeness(clip, x_0, y_e)[0]))
        found = [score(judge, to_unit(one[None]).float(), pairs[i:i + 1]) for one in keys]
        parts["close"].append(torch.stack(seen, dim=1).cpu())
        parts["right"].append(torch.tensor([one["clip"] for one in found]))
        parts["frames"].append(torch.tensor([one["frame"] for one in found]))
    return tuple(torch.stack(parts[name]) for name in ("close", "right", "frames"))


def chosen(close, values, count):
    """The mean of values (n, k) at what C would choose among `count` of the k, over all ways to pick those.

    close (n, k): of one step.
    """
    subsets = torch.tensor(list(itertools.combinations(range(close.shape[1]), count)))      # m count
    best = close[:, subsets].argmax(dim=-1, keepdim=True)                            # n m 1
    rows = subsets.expand(len(close), -1, -1).gather(2, best)[..., 0]                # n m
    return values.gather(1, rows).mean().item()


def evaluations(settings, count, after):
    """Of one clip, for a choice among `count` after so many steps. settings: a SampleConfig."""
    first = cost.evaluations(settings, after)
    return count * first + cost.evaluations(settings) - first


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--videos", type=int, default=55, help="prompts, all pairs of digits in turn")
    p.add_argument("--candidates", type=int, default=8, help="drawn for each")
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if args.videos < 1 or not 2 <= args.candidates <= min(16, MOST_CANDIDATES):
        raise MavliteError("--videos must be 1 or more, --candidates 2 ... 16")
    pipe = MakeAVideo.from_pretrained(args.weights)
    judge, _, _ = load_network(args.weights, "judge", device=pipe.device)
    close, right, frames = draw(pipe, judge, args.videos, args.candidates)
    settings, rows = pipe.configs["decoder_t"].sample, []
    half = half_way(time_steps(settings.steps)[:-1])
    counts = [2**i for i in range(args.candidates.bit_length()) if 2**i < args.candidates]
    for count in [*counts, args.candidates]:
        steps = {half} if count == 1 else {
            half, *(max(1, quarters * settings.steps // 4) for quarters in (1, 2, 3, 4))}
        for after in sorted(steps):
            rows.append([count, "" if count == 1 else after,
                         *(f"{chosen(close[:, :, after - 1], x, count):.1%}" for x in (right, frames)),
                         evaluations(settings, count, after)])
    write(f"Key frames for {args.videos} prompts, {args.candidates} candidates each, {settings.sampler} with "
          f"{settings.steps} steps, `{command_line()}`: {machine(pipe.device, pipe.precision)}. A guided "
          "evaluation counts twice.\n\n"
          + table(["candidates", "chosen after step", "clips right", "frames right", "evaluations"], rows),
          args.out)


if __name__ == "__main__":
    run(main)
