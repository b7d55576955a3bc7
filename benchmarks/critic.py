"""What does the critic find: in rendered faults that it never met, and in D^t's clips beside real ones?

    python -m benchmarks.critic [--weights ...] [--clips 256] [--out docs/critic.md]

All are of the train split, from a seed that no training uses, under little noise and under much. A frame is
called at fault where the critic's log-odds are above 0. Of D^t's clips nobody knows where they are wrong:
what counts there is how much more often than in real ones something is found.
"""

import argparse
from dataclasses import dataclass

import torch
from tqdm import tqdm

from benchmarks.command import command_line, machine, run, table, write
from mavlite import cascade
from mavlite.checkpoint import SHIPPED
from mavlite.critic import NOISE, noised
from mavlite.device import autocast
from mavlite.digits import load_digits
from mavlite.errors import MavliteError
from mavlite.faults import FAULTS, FaultyClips
from mavlite.moving_mnist import UnlabelledClips
from mavlite.pipeline import MakeAVideo
from mavlite.stages import load_network

SEED, BATCH = 50_000, 16


@dataclass
class Pairs:
    """Clips with faults, or made, beside right ones: (n, c, f, h, w) in [-1, 1] each."""
    wrong: torch.Tensor
    right: torch.Tensor
    fps: torch.Tensor                        # (n,)
    at_fault: torch.Tensor                   # (n, f) bool


def rendered(clips, data, count):
    """(`Pairs` of clips with a rendered fault, which fault it is (n,))"""
    parts = []
    for start in range(0, count, BATCH):
        pair = clips.pairs(range(start, min(start + BATCH, count)), data.fps, data.num_frames, data.sizes[0])
        parts.append([x[pair.kind > 0] for x in (pair.frames * 2 - 1, pair.right * 2 - 1, pair.fps,
                                                 pair.at_fault, pair.kind)])
    *pairs, kind = (torch.cat(part) for part in zip(*parts))
    return Pairs(*pairs), kind


@torch.no_grad()
def made(pipe, clips, count):
    """`Pairs` of clips that D^t makes for the embeddings of real ones, beside these, at the default rate."""
    network, config, data = pipe.networks["decoder_t"], pipe.configs["decoder_t"], pipe.data
    parts = []
    for start in tqdm(range(0, count, BATCH), desc="clips"):
        indices = range(start, min(start + BATCH, count))
        real, _ = clips.clips(indices, data.fps, data.num_frames, data.sizes[0])
        y_e = pipe.networks["clip"].image_embeds(clips.condition_frames(indices, data.sizes[0]))
        noise = cascade.Noise(SEED, indices, "decoder_t", pipe.device)
        with autocast(pipe.device, pipe.precision):
            parts.append((cascade.run_decoder_t(network, config, noise, y_e, data.fps).float(), real * 2 - 1))
    wrong, right = (torch.cat(part) for part in zip(*parts))
    return Pairs(wrong, right, torch.full((count,), data.fps, device=pipe.device),
                 torch.ones(count, data.num_frames, dtype=torch.bool, device=pipe.device))


@torch.no_grad()
def log_odds(critic, pairs, level):
    """What the critic says of each frame of both, under the same noise: (n, f) each."""
    generator = torch.Generator(device=pairs.fps.device).manual_seed(SEED)
    said = []
    for wrong, right, fps in zip(*(x.split(BATCH) for x in (pairs.wrong, pairs.right, pairs.fps))):
        noise = torch.randn(wrong.shape, generator=generator, device=wrong.device)
        levels = torch.full_like(fps, level)
        said.append([critic(noised(clips, noise, levels), fps.log())[0] for clips in (wrong, right)])
    return [torch.cat(part) for part in zip(*said)]


def cells(wrong, right, at_fault):
    """A row's cells: clips told apart by their mean; found of the frames at fault; false alarms."""
    told = (wrong.mean(dim=1) > right.mean(dim=1)).float().mean()
    return [f"{told:.0%}", f"{(wrong > 0)[at_fault].float().mean():.0%}", f"{(right > 0).float().mean():.0%}"]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--clips", type=int, default=256, help="of D^t; ten times as many are rendered")
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if args.clips < 1:
        raise MavliteError(f"--clips {args.clips}: must be 1 or more")
    pipe = MakeAVideo.from_pretrained(args.weights)
    critic, _, _ = load_network(args.weights, "critic", device=pipe.device)
    images = load_digits("train", pipe.data.digits).images.to(pipe.device)
    faulty, kind = rendered(FaultyClips(images, SEED, pipe.data.channels), pipe.data, 10 * args.clips)
    real = made(pipe, UnlabelledClips(images, SEED, pipe.data.channels), args.clips)
    names, rows = list(FAULTS), []
    said = [[log_odds(critic, pairs, level) for level in NOISE] for pairs in (faulty, real)]
    for row in [*range(1, len(names)), None]:
        mine = slice(None) if row is None else kind == row
        at_fault = (faulty if row is not None else real).at_fault[mine]
        found = [cells(wrong[mine], right[mine], at_fault) for wrong, right in said[row is None]]
        rows.append([names[row] if row is not None else "D^t's clips, beside real ones", len(at_fault),
                     *found[0], *found[1]])
    header = ["fault", "pairs"]
    for level in NOISE:
        header += [f"noise {level:g}: told apart", "frames found", "false alarms"]
    write(f"What the critic finds, `{command_line()}`: {machine(pipe.device, pipe.precision)}. Told apart: "
          "of a clip and the same without its fault (of D^t's: a real one of the same embedding), the first "
          "has the higher mean log-odds; 50 % is guessing. Frames found: of those at fault (of D^t's: of "
          "all), how many are called so. False alarms: of the other clip's frames.\n\n"
          + table(header, rows), args.out)


if __name__ == "__main__":
    run(main)
