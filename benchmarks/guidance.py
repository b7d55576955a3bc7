"""What D^t should be guided away from: its own unconditional prediction, or D's of each frame by itself?

    python -m benchmarks.guidance [--weights ...] [--videos 110] [--scales 2 3 4] [--until 0 0.3] [--out ...]

Key frames for P's embeddings of all pairs of digits in turn, each drawn once and from the same noise in every
row. A student, such as the shipped D^t, has its guidance within: its only row stands beside those of its
teacher, which another call with the teacher's weights measures from the same noise. The real clips are of the
train split: settings may be chosen by this table, and `mavlite evaluate` still measures what it never chose.
"""

import argparse
import dataclasses
import itertools
import time

import torch
from tqdm import tqdm

from benchmarks.command import command_line, machine, run, table, write
from mavlite import cascade
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast, synchronize
from mavlite.digits import load_digits
from mavlite.errors import MavliteError
from mavlite.evaluation import identity, motion
from mavlite.evaluation.accuracy import score
from mavlite.evaluation.distances import kernel_distance
from mavlite.evaluation.tracker import track
from mavlite.evaluation.video_features import embed_clips
from mavlite.moving_mnist import LabelledClips
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import PAIRS, make_prompt, pair_index
from mavlite.session import to_unit
from mavlite.stages import MEASURING, load_network

SEED, BATCH = 30_000, 16
REFERENCE = 1024                             # real clips from which MM-KVD is measured
OWN, SINGLE = "D^t, of no embedding", "single frames of D"


def ways(scales, until, student):
    """(what is led away from, scale, until when) of each row."""
    yield "nothing", 1.0, 0.0
    if not student:
        yield from itertools.product((OWN, SINGLE), scales, until)


class Scores:
    """The networks that measure, the real clips, and the embeddings that all rows start from."""

    def __init__(self, weights, videos):
        self.pipe = pipe = MakeAVideo.from_pretrained(weights)
        self.judge, self.tracker, self.features = (load_network(weights, stage, device=pipe.device)[0]
                                                   for stage in MEASURING)
        self.pairs = torch.arange(videos) % len(PAIRS)
        clips = LabelledClips(load_digits("train", pipe.data.digits), SEED, pipe.data.channels)

        def real(indices):
            return clips.clips(indices, pipe.data.fps, pipe.data.num_frames, pipe.data.sizes[0])[0]
        self.real = real(range(videos))
        parts = [real(range(start, start + 128)) for start in range(videos, videos + REFERENCE, 128)]
        self.reference = torch.cat([embed_clips(self.features, part) for part in parts])
        labels = clips.labels(range(videos))
        self.real_pairs = pair_index(labels[:, 0], labels[:, 1])
        prompts = [make_prompt(*PAIRS[pair], True, False) for pair in self.pairs.tolist()]
        with torch.no_grad():
            tokens, text = pipe.networks["clip"].text(prompts)
            noise = cascade.Noise(SEED, range(videos), "prior", pipe.device)
            self.embeds = cascade.run_prior(pipe.networks["prior"], pipe.configs["prior"], noise, tokens,
                                            text)

    @torch.no_grad()
    def sample(self, away, scale, until):
        """Key frames (n, c, f, h, w) in [0, 1] and the seconds a clip took."""
        pipe, parts = self.pipe, []
        network, config = pipe.networks["decoder_t"], pipe.configs["decoder_t"]
        settings = dataclasses.replace(config.sample, guidance_scale=scale, guidance_until=until)
        started = time.perf_counter()
        with autocast(pipe.device, pipe.precision):
            for start in tqdm(range(0, len(self.embeds), BATCH), desc=f"{away}, {scale:g}", leave=False):
                y_e = self.embeds[start:start + BATCH]
                noise = cascade.Noise(SEED, range(start, start + len(y_e)), "decoder_t", pipe.device)
                keys = cascade.run_decoder_t(network, config, noise, y_e, pipe.data.fps, settings=settings,
                                             away_from=pipe.single_frames if away == SINGLE else None)
                parts.append(to_unit(keys).float())
        synchronize(pipe.device)
        return torch.cat(parts).cpu(), (time.perf_counter() - started) / len(self.embeds)

    def measure(self, frames, pairs):
        """The cells of a row about key frames (n, c, f, h, w) in [0, 1] that should show `pairs` (n,)."""
        seen = score(self.judge, frames, pairs)
        centres = track(self.tracker, frames)
        m = motion.summary(centres, self.pipe.data.fps, seen["log_probabilities"],
                           changed_in_sight=identity.look(self.judge, frames, centres))
        changed = identity.handwriting(frames, centres)
        distance, (low, high) = kernel_distance(self.reference, embed_clips(self.features, frames))
        return [f"{seen['clip']:.0%}", f"{seen['frame']:.0%}", f"{m['identity_switches']:.0%}",
                f"{m['changed_in_sight']:.0%}", f"{identity.third_digit_share(frames)[0]:.0%}",
                f"{changed.mean():.3f}", f"{m['speed_error']:.0%}", f"{m['straightness']:.2f}",
                f"{m['reflection_error']:.1f}", f"{distance:.2f} ({low:.2f} … {high:.2f})"]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--videos", type=int, default=110)
    p.add_argument("--scales", type=float, nargs="+", default=[2.0, 3.0, 4.0])
    p.add_argument("--until", type=float, nargs="+", default=[0.0, 0.3])
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if args.videos < 3:
        raise MavliteError(f"--videos {args.videos}: must be 3 or more")
    scores = Scores(args.weights, args.videos)
    config, rows = scores.pipe.configs["decoder_t"], []
    for way in ways(args.scales, args.until, student=config.student):
        frames, seconds = scores.sample(*way)
        away, scale, until = way
        rows.append([away, f"{scale:g}", f"{until:g}", *scores.measure(frames, scores.pairs),
                     f"{seconds:.2f}"])
    rows.append(["(real clips)", "", "", *scores.measure(scores.real, scores.real_pairs), ""])
    header = ["away from", "scale", "until t", "clips right", "frames right", "identity switches",
              "changed in sight", "third digit", "handwriting", "speed error",
              "bend, steps", "error after a wall, px", "MM-KVD",
              "s a clip"]
    write(f"Key frames drawn once for each of {args.videos} prompts, {config.sample.sampler} with "
          f"{config.sample.steps} steps, `{command_line()}`: "
          f"{machine(scores.pipe.device, scores.pipe.precision)}. MM-KVD is the kernel distance to "
          f"{REFERENCE} clips of the train split, with its 95 % interval. "
          "Motion counts where digits are apart.\n\n"
          + table(header, rows), args.out)


if __name__ == "__main__":
    run(main)
