"""The clips that an evaluation looks at: real ones of the test split, generated ones for all 55 prompts."""

import copy
from dataclasses import dataclass

import torch
from tqdm import tqdm

from mavlite import cascade
from mavlite.device import autocast
from mavlite.digits import load_digits
from mavlite.moving_mnist import LabelledClips, clearest
from mavlite.prompts import PAIRS, make_prompt, pair_index
from mavlite.session import to_unit

TEST_SEED = 20_000                           # of the simulator: test clips are no stage's training clips
BLOCK = 2**18                                # indices from which one set of matched clips is taken
STRIDE = 7                                   # through the 55 pairs: few clips see many digits, too


class RealClips:
    """`count` clips of the test split, with all that is known about them. start: index of the first."""

    def __init__(self, data, count, start=0):
        digits = load_digits("test", data.digits)
        self.data, self.indices, self.source = data, range(start, start + count), digits.source
        self.clips = LabelledClips(digits, TEST_SEED, data.channels)
        labels = self.clips.labels(self.indices)
        self.pairs = pair_index(labels[:, 0], labels[:, 1])                          # n

    def only(self, rows):
        """Those of these clips at positions `rows` (a sequence of ints)."""
        chosen = copy.copy(self)
        chosen.indices = [self.indices[row] for row in rows]
        chosen.pairs = self.pairs[torch.as_tensor(rows, dtype=torch.long)]
        return chosen

    def _fps(self, fps):
        return torch.full((len(self.indices),), float(fps or self.data.fps))

    def frames(self, size, fps=None, num_frames=None):
        """(n, c, f, size, size) in [0, 1], key frames by default."""
        num_frames = num_frames or self.data.num_frames
        return self.clips.clips(self.indices, fps or self.data.fps, num_frames, size)[0]

    def centres(self, fps=None):
        """(n, f, 2, 2) px on the 64-px canvas."""
        return self.clips.centres(self.indices, self._fps(fps), self.data.num_frames)

    def conditions(self):
        """Conditioning frames (n, c, h, w)."""
        return self.clips.condition_frames(self.indices, self.data.sizes[0])


def pairs_in_turn(count):
    """`count` indices into `prompts.PAIRS`, (n,): each pair equally often, if 55 divides `count`."""
    return STRIDE * torch.arange(count) % len(PAIRS)


def matched_clips(data, pairs, block=0):
    """`RealClips` that hold the given pairs (n,), one for one.

    Drawn blindly, a set of real clips would hold some pairs more often than others and one half as many
    doubles as `generate` makes, a difference that is no fault of what was generated. block: which of many
    sets without a common clip.
    """
    wanted = pairs.tolist()
    pool = RealClips(data, 2000 + 4 * len(wanted), start=block * BLOCK)              # doubles are one in 100
    rows = {pair: iter((pool.pairs == pair).nonzero()[:, 0].tolist()) for pair in set(wanted)}
    return pool.only([next(rows[pair]) for pair in wanted])


@dataclass
class Generated:
    """Videos from prompts, all pairs in turn, numerals and words, either digit first.

    frames: stage -> (n, c, f, h, w) in [0, 1], the frames at key times as that stage left them; of upF,
    which copies those through, the ones halfway between.
    """
    prompts: list
    pairs: torch.Tensor                      # (n,) index into `prompts.PAIRS`
    frames: dict
    image_embeds: torch.Tensor               # (n, d) what P made of the prompts
    text_embeds: torch.Tensor                # (n, d)


STAGES_OF_A_VIDEO = ("decoder_t", "interpolation", "sr_l_t", "sr_h")


def generate(pipe, count, *, seed=0, batch=8, progress=False):
    """`count` videos with the default settings; not all frames are kept, so that thousands fit in memory."""
    pairs = pairs_in_turn(count)
    prompts = [make_prompt(*PAIRS[pair][::-1 if k // 4 % 2 else 1], k % 2 == 0, k // 2 % 2 == 0)
               for k, pair in enumerate(pairs.tolist())]
    parts = {name: [] for name in (*STAGES_OF_A_VIDEO, "image_embeds", "text_embeds")}
    for start in tqdm(range(0, count, batch), desc="videos", disable=not progress, leave=False):
        stages = pipe(prompts[start:start + batch], seed=seed, index=start).stages
        for name, kept in parts.items():
            x = stages[name]
            first = pipe.data.frame_skip // 2 if name == "interpolation" else 0
            complete = name in ("decoder_t", "image_embeds", "text_embeds")
            # A copy: a view would keep all the other frames in memory.
            kept.append(x if complete else x[:, :, first::pipe.data.frame_skip].clone())
    whole = {name: torch.cat(kept) for name, kept in parts.items()}
    return Generated(prompts, pairs, {name: whole[name] for name in STAGES_OF_A_VIDEO}, whole["image_embeds"],
                     whole["text_embeds"])


@torch.no_grad()
def decode(pipe, stage, embeds, *, fps=None, seed=1, batch=32, candidates=1):
    """What `decoder` or `decoder_t` makes of image embeddings (n, d): key frames (n, c, f, h, w) in [0, 1]
    (for `decoder` f = 1). candidates: drawn for each, of which one is kept."""
    network, config, parts, fps = pipe.networks[stage], pipe.configs[stage], [], fps or pipe.data.fps
    with autocast(pipe.device, pipe.precision):
        for start in range(0, len(embeds), batch):
            y_e = embeds[start:start + batch].to(pipe.device)
            noise = cascade.Noise(seed, range(start, start + len(y_e)), stage, pipe.device, candidates)
            several = y_e.repeat_interleave(candidates, dim=0)
            if stage == "decoder":
                frames = cascade.run_decoder(network, config, noise, several,
                                             choose=pipe.choice(candidates, y_e))[:, :, None]
            else:
                choose = pipe.choice(candidates, y_e, fps, config.sample.steps)
                frames = cascade.run_decoder_t(network, config, noise, several, fps, choose=choose,
                                               away_from=pipe.single_frames)
            parts.append(to_unit(frames).float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def image_embeds(pipe, frames, batch=256):
    """C_y of frames (n, c, h, w) in [0, 1]: (n, d), on the CPU."""
    with autocast(pipe.device, pipe.precision):
        return torch.cat([pipe.networks["clip"].image_embeds(part.to(pipe.device)).float().cpu()
                          for part in frames.split(batch)])


def clearest_embeds(pipe, frames):
    """C_y of the clearest frame of each clip (n, c, f, h, w): (n, d). Give it what may be known only."""
    best = clearest(frames)                                                          # n
    return image_embeds(pipe, frames[torch.arange(len(frames)), :, best])


@torch.no_grad()
def text_embeds(pipe, prompts):
    """C_x of prompts: (n, d), on the CPU."""
    with autocast(pipe.device, pipe.precision):
        return pipe.networks["clip"].text(prompts)[1].float().cpu()
