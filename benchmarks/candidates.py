"""How many candidates should a video's key frames have, and who should choose among them, and when?

    python -m benchmarks.candidates [--videos 55] [--candidates 8] [--out docs/candidates.md]

D^t draws every candidate of every prompt to the end, and what C thinks of it is noted in every step; at the
last, whether each digit stays who it is, and what the critic thinks, too. What a choice among fewer, or at
another step, would have given follows without drawing again: for 4 of 8 it is the mean over all 70 ways to
pick them.
"""

import argparse
import functools
import itertools
import math

import torch
from tqdm import tqdm

from benchmarks import cost
from benchmarks.command import command_line, machine, run, table, write
from mavlite import cascade
from mavlite.candidates import closeness, costs, frame_embeds, half_way
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast
from mavlite.diffusion import Diffusion
from mavlite.errors import MavliteError
from mavlite.evaluation import identity, motion
from mavlite.evaluation.accuracy import score
from mavlite.evaluation.tracker import track
from mavlite.flat_memory import in_batches
from mavlite.moving_mnist import SPEED
from mavlite.options import MOST_CANDIDATES
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import PAIRS, make_prompt
from mavlite.sampling import make_denoiser, sample, time_steps
from mavlite.session import to_unit
from mavlite.stages import load_network

SEED = 40_000                                # of the noise: no video of the report


def look(judge, tracker, keys, pair, fps):
    """One clip's key frames (c, f, h, w) in [0, 1] -> seven numbers: whether the judge finds the `pair`, in
    which share of single frames, whether that pair changes, whether a digit does before one's eyes, whether
    there is a third, how much the handwriting changes, and the error of their speed as a share of what it
    should be. NaN: cannot be told.
    """
    seen = score(judge, keys[None], torch.tensor([pair]))
    centres = track(tracker, keys[None])
    switched, told = motion.identity_switches(seen["log_probabilities"], centres)
    changed, seen_twice = identity.look(judge, keys[None], centres)
    written = identity.handwriting(keys[None], centres)                              # of one clip, or of none
    errors = (motion.clip_speeds(centres, fps) - SPEED).abs() / SPEED
    return [seen["clip"], seen["frame"], switched if told else math.nan,
            changed if seen_twice else math.nan, identity.third_digit_share(keys[None])[0],
            written.item() if len(written) else math.nan, errors.item() if len(errors) else math.nan]


@torch.no_grad()
def draw(pipe, judge, tracker, videos, candidates):
    """What becomes of every candidate: (close (n, k, steps), against, seen (n, k, 7)).

    close: C's closeness of x_0 to the embedding in each step. against: what counts against the finished
    clips, name -> (n, k) (`costs`). seen: what `look` says of them.
    """
    network, config, clip = pipe.networks["decoder_t"], pipe.configs["decoder_t"], pipe.networks["clip"]
    s, size, fps = config.sample, pipe.data.sizes[0], float(pipe.data.fps)
    diffusion = Diffusion(config.diffusion.prediction_type, config.diffusion.log_snr_min)
    pairs, parts = torch.arange(videos) % len(PAIRS), []
    for i, pair in enumerate(tqdm(pairs.tolist(), desc="prompts")):
        tokens, text = clip.text([make_prompt(*PAIRS[pair], True, False)])
        noise = cascade.Noise(SEED, [i], "prior", pipe.device)
        y_e = cascade.run_prior(pipe.networks["prior"], pipe.configs["prior"], noise, tokens, text)
        conditions = {"image_embeds": y_e.repeat(candidates, 1),
                      "fps": torch.full((candidates,), fps, device=pipe.device).log()}
        denoise = make_denoiser(diffusion, in_batches(network), conditions, s.guidance_scale,
                                learned_variance=config.diffusion.loss == "hybrid",
                                guidance_until=s.guidance_until, away_from=pipe.single_frames)
        noise, close = cascade.Noise(SEED, [i], "decoder_t", pipe.device, candidates), []
        draw_noise = functools.partial(noise, pipe.data.channels, pipe.data.num_frames, size, size)
        with autocast(pipe.device, pipe.precision):
            keys = sample(denoise, draw_noise(), diffusion, sampler=s.sampler, num_inference_steps=s.steps,
                          draw_noise=draw_noise,
                          callback=lambda step, x_t, x_0: close.append(closeness(clip, x_0, y_e)[0]))
        seen = [look(judge, tracker, to_unit(one).float(), pair, fps) for one in keys]
        against = costs(clip, pipe.critic, keys, frame_embeds(clip, keys), fps)
        parts.append((torch.stack(close, dim=1).cpu(), torch.tensor(seen),
                      *(cost_of.cpu() for cost_of in against.values())))
    close, seen, *of_each = map(torch.stack, zip(*parts))
    return close, dict(zip(against, of_each)), seen


def chosen(scores, values, count):
    """The mean of values (n, k) at the highest of `count` of the k scores (n, k), over all ways to pick.

    A value that is NaN could not be told and does not count.
    """
    subsets = torch.tensor(list(itertools.combinations(range(scores.shape[1]), count)))     # m count
    best = scores[:, subsets].argmax(dim=-1, keepdim=True)                           # n m 1
    rows = subsets.expand(len(scores), -1, -1).gather(2, best)[..., 0]               # n m
    return values.gather(1, rows).nanmean().item()


def told_apart(scores, wrong):
    """Share of pairs of clips, one of them wrong, of which that one has the higher score, half of those with
    equal ones ("AUC"). Chance is 1/2. scores, wrong: (n, k); wrong is 1, 0, or NaN where nobody can tell.
    """
    bad, good = scores[wrong == 1][:, None], scores[wrong == 0]
    return ((bad > good).float() + (bad == good).float() / 2).mean().item() if bad.numel() else math.nan


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
    judge, tracker = (load_network(args.weights, stage, device=pipe.device)[0]
                      for stage in ("judge", "tracker"))
    close, against, seen = draw(pipe, judge, tracker, args.videos, args.candidates)
    settings = pipe.configs["decoder_t"].sample
    write(f"Key frames for {args.videos} prompts, {args.candidates} candidates each, {settings.sampler} with "
          f"{settings.steps} steps, `{command_line()}`: {machine(pipe.device, pipe.precision)}. A guided "
          "evaluation counts twice. Switches: clips in which the pair changes; in sight: in which a digit "
          "becomes another while the two are apart; third: with a third digit in some frame; handwriting: "
          "how much it changes; it and speed error are means over clips.\n\n"
          + choices(settings, close, against, seen)
          + "\n\nWho can tell clips in which that happens from others? The share of pairs of both in which "
          "the wrong one is less close, or costs more (chance: 0.5).\n\n"
          + tellers(close, against, seen), args.out)


def choices(settings, close, against, seen):
    """The table of who chooses, among how many, when; of finished clips one thing more counts in each row."""
    n, rows = close.shape[1], []
    half = half_way(time_steps(settings.steps)[:-1])
    for count in [*(2**i for i in range(n.bit_length()) if 2**i < n), n]:
        steps = {half} if count == 1 else {
            half, *(max(1, quarters * settings.steps // 4) for quarters in (1, 2, 3, 4))}
        ways = [("C", after, close[:, :, after - 1]) for after in sorted(steps)]
        left = close[:, :, -1]
        for name in against if count > 1 else ():
            left = left - against[name]
            ways.append((f"... less {name}", settings.steps, left))
        for who, after, scores in ways:
            rows.append([count, *(("", "") if count == 1 else (who, after)),
                         *(f"{chosen(scores, values, count):.1%}" for values in seen.unbind(dim=-1)),
                         evaluations(settings, count, after)])
    return table(["candidates", "chosen by", "after step", "clips right", "frames right", "switches",
                  "in sight", "third", "handwriting", "speed error", "evaluations"], rows)


def tellers(close, against, seen):
    """The table of how well each score tells wrong clips from right ones."""
    scores = {"closeness": -close[:, :, -1], **against}
    wrong = {"switches": seen[..., 2], "in sight": seen[..., 3]}
    return table(["", *scores], [[what, *(f"{told_apart(score, flags):.2f}" for score in scores.values())]
                                 for what, flags in wrong.items()])


if __name__ == "__main__":
    run(main)
