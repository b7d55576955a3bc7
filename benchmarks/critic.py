"""How well can a critic tell D^t's clips from real ones, after how many clips, asked how often about each?

    python -m benchmarks.critic [--weights ...] [--batches 40 140] [--out docs/critic.md]

D^t makes clips once for the embeddings and rates of real ones of the train split. A critic then meets both in
batches, as in a training (adversarial.py), but for the generator, which stands still, and is at last asked
about pairs that it never met. What it cannot tell, a student cannot learn from it.
"""

import argparse
import time

import torch
from tqdm import tqdm

from benchmarks.command import command_line, machine, run, table, write
from mavlite import cascade
from mavlite.checkpoint import SHIPPED
from mavlite.critic import NOISE, Critic, critic_loss, noised
from mavlite.device import autocast, synchronize
from mavlite.digits import load_digits
from mavlite.errors import MavliteError
from mavlite.moving_mnist import UnlabelledClips
from mavlite.pipeline import MakeAVideo
from mavlite.student_config import AdversarialConfig

SEED, BATCH, HELD_OUT = 50_000, 8, 128
STEPS = (1, 4)                               # for each batch


@torch.no_grad()
def pairs(pipe, count):
    """Clips real and made (n, c, f, h, w) in [-1, 1], and what both were asked for: (n, d), (n, 1)."""
    network, config, data = pipe.networks["decoder_t"], pipe.configs["decoder_t"], pipe.data
    clips = UnlabelledClips(load_digits("train", data.digits).images.to(pipe.device), SEED, data.channels)
    parts = []
    for start in tqdm(range(0, count, 2 * BATCH), desc="clips"):
        indices = range(start, min(start + 2 * BATCH, count))
        real, fps = clips.clips(indices, torch.full((len(indices),), data.fps, device=pipe.device),
                                data.num_frames, data.sizes[0])
        y_e = pipe.networks["clip"].image_embeds(clips.condition_frames(indices, data.sizes[0]))
        noise = cascade.Noise(SEED, indices, "decoder_t", pipe.device)
        with autocast(pipe.device, pipe.precision):
            made = cascade.run_decoder_t(network, config, noise, y_e, data.fps)
        parts.append((real * 2 - 1, made.float(), y_e.float(), fps.log()[:, None]))
    return [torch.cat(part) for part in zip(*parts)]


def learn(known, own, steps):
    """(a critic that has met `known`, batch by batch, seconds a step)"""
    torch.manual_seed(SEED)
    device, (channels, embed_dim) = known[0].device, (known[0].shape[1], known[2].shape[1])
    critic = Critic(channels, embed_dim, 1, own.critic_width)
    critic.to(device, memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(critic.parameters(), own.critic_lr, betas=(0.0, 0.99), weight_decay=0.0)
    started = time.perf_counter()
    for real, made, *asked in zip(*(tensor.split(BATCH) for tensor in known)):
        for _ in range(steps):
            level = NOISE[0] + (NOISE[1] - NOISE[0]) * torch.rand(len(real), device=device)
            seen = (noised(clips, torch.randn_like(clips), level) for clips in (real, made))
            optimizer.zero_grad(set_to_none=True)
            critic_loss(lambda clips: critic(clips, *asked), *seen, own.penalty).backward()
            optimizer.step()
    synchronize(device)
    return critic, (time.perf_counter() - started) / (len(known[0]) // BATCH * steps)


@torch.no_grad()
def told_apart(critic, pairs, level):
    """The share of pairs whose real clip has the higher score, under noise of a deviation."""
    right = []
    for real, made, *asked in zip(*(tensor.split(BATCH) for tensor in pairs)):
        levels = torch.full((len(real),), level, device=real.device)
        scores = [critic(noised(clips, torch.randn_like(clips), levels), *asked) for clips in (real, made)]
        right.append(scores[0] > scores[1])
    return torch.cat(right).float().mean().item()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--batches", type=int, nargs="+", default=[40, 140], help=f"of {BATCH} clips of each kind")
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if min(args.batches) < 1:
        raise MavliteError(f"--batches {min(args.batches)}: must be 1 or more")
    pipe, own = MakeAVideo.from_pretrained(args.weights), AdversarialConfig()
    made = pairs(pipe, HELD_OUT + BATCH * max(args.batches))
    rows = []
    for steps in STEPS:
        for batches in args.batches:
            known = [tensor[HELD_OUT:HELD_OUT + BATCH * batches] for tensor in made]
            critic, seconds = learn(known, own, steps)
            rows.append([BATCH * batches, steps,
                         *(f"{told_apart(critic, [tensor[:HELD_OUT] for tensor in made], level):.0%}"
                           for level in NOISE), f"{seconds:.3f}"])
    write(f"A critic of D^t as it is, `{command_line()}`: {machine(pipe.device, pipe.precision)}. Told "
          f"apart is a pair whose real clip has the higher score, of {HELD_OUT} pairs that the critic has "
          f"not met, under noise of deviation {NOISE[0]:g} and {NOISE[1]:g}; 50 % is guessing.\n\n"
          + table(["clips met of each kind", "steps for each 8", "told apart, little noise", "much noise",
                   "s a step"], rows), args.out)


if __name__ == "__main__":
    run(main)
