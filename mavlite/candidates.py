"""Several candidates of every video, of which one is kept half way, or at the end of a short walk.

A sampler knows early what it is going to make: about half way from t = 1, x_0 already shows which digits
there will be. So all candidates walk that far, and the closest to what was asked for walks on alone. (DALL-E
ranks its finished samples by CLIP: Ramesh et al. 2021, arXiv 2102.12092, 2.6. Make-A-Video says nothing of
it; docs/candidates.md has what n and half way are worth.) Of finished clips it counts as well whether the
digits stay who they are, and a critic has a say.
"""

import torch
import torch.nn.functional as F
from einops import rearrange

from mavlite.device import full_precision
from mavlite.faults import RATES
from mavlite.flat_memory import WINDOWS
from mavlite.likeness import changes, margins, third_digits

FEW = 4                                      # steps of a walk that all candidates finish
FAULT = 1 / 150                              # cosine: what log-odds of a fault cost, a unit
EXCHANGE = 1 / 3                             # cosine: ... a margin below 0, a unit
CHANGE = 1 / 4                               # cosine: ... a pair that turns into another, a unit of distance
THIRD = 1 / 50                               # cosine: ... each frame with a third digit


def closeness(clip, candidates, image_embeds):
    """The mean over a clip's frames of cosine(C_y(frame), y_e), for n candidates of each video: (b, n).

    candidates (b n) c f h w, or (b n) c h w, in [-1, 1], a video's side by side; image_embeds (b, d).
    """
    return _closeness(frame_embeds(clip, candidates), image_embeds)


def frame_embeds(clip, candidates):
    """C_y of every frame: clips (k, c, f, h, w), or images (k, c, h, w), in [-1, 1] -> (k, f, d)."""
    if candidates.ndim == 4:
        candidates = candidates[:, :, None]
    f = candidates.shape[2]
    folded = rearrange((candidates + 1) / 2, "k c f h w -> (k f) c h w").clamp(0, 1)
    with full_precision(candidates.device):                  # the choice must not hang on a rounding
        folded = folded if folded.dtype == torch.float64 else folded.float()
        return rearrange(clip.image_embeds(folded), "(k f) d -> k f d", f=f)


def _closeness(embeds, image_embeds):
    embeds = rearrange(embeds, "(b n) f d -> b n f d", b=len(image_embeds))
    return F.cosine_similarity(embeds, image_embeds.to(embeds.dtype)[:, None, None], dim=-1).mean(dim=2)


def costs(clip, critic, candidates, embeds, fps):
    """What counts against finished clips (k, c, f, h, w) of `fps` frames/s: name -> cosine (k,).

        exchange: EXCHANGE max over frames of max(0, -margin)    does each digit stay who it is? (likeness.py)
        change:   CHANGE change                                  ... and the pair what it is?
        third:    THIRD frames with a third digit                (two_digits.py)
        fault:    FAULT max over frames of the critic's log-odds of a fault

    Mostly, a clip is no better than its worst frame. embeds (k, f, d): C_y of the frames. Without a critic
    (None), and at rates of which it knows nothing, no frame is at fault.
    """
    found = {"exchange": [], "change": [], "third": [], "fault": []}
    low, high = RATES
    with full_precision(candidates.device):
        clips = candidates if candidates.dtype == torch.float64 else candidates.float()
        for part, seen in zip(clips.split(WINDOWS), embeds.split(WINDOWS)):          # in flat memory
            rates = part.new_full((len(part),), fps)
            exchanged = F.relu(-margins(clip, part, rates)).flatten(1)
            found["exchange"].append(EXCHANGE * exchanged.amax(dim=1))
            found["change"].append(CHANGE * changes(seen, part))
            found["third"].append(THIRD * third_digits(part).to(part.dtype))
            known = critic is not None and low <= fps <= high
            found["fault"].append(FAULT * critic(part, rates.log())[0].amax(dim=1) if known else 0 * rates)
    return {name: torch.cat(parts) for name, parts in found.items()}


def merit(clip, critic, candidates, image_embeds, fps):
    """What n candidates of each video are worth, finished clips of `fps` frames/s: closeness - costs, (b, n).

    Arguments as in `closeness` and `costs`.
    """
    embeds = frame_embeds(clip, candidates)
    against = torch.stack(list(costs(clip, critic, candidates, embeds, fps).values())).sum(dim=0)
    close = _closeness(embeds, image_embeds)
    return close - against.view_as(close)


def best_candidates(clip, critic, candidates, image_embeds, fps):
    """Of n candidates of each video the one of most `merit`: its row in the batch, (b,)."""
    return _rows(merit(clip, critic, candidates, image_embeds, fps))


def closest_candidates(clip, candidates, image_embeds):
    """Of n candidates of each video the one that C finds closest to y_e: its row in the batch, (b,).

    Arguments as in `closeness`.
    """
    return _rows(closeness(clip, candidates, image_embeds))


def _rows(scores):
    return scores.argmax(dim=1) + scores.shape[1] * torch.arange(len(scores), device=scores.device)


def half_way(times):
    """After how many of a walk's evaluations, at these times, the choice is made: the first at t <= 0.6.

    Of a walk of few steps all are made: they are soon over, and what a critic has taught a student is how a
    clip ends, not what x_0 looks like on the way (docs/candidates.md).
    """
    if len(times) <= FEW:
        return len(times)
    return next((i + 1 for i, t in enumerate(times) if t <= 0.6 + 1e-9), len(times))


class ChosenHalfWay:
    """denoise(x_t, t) for all candidates, and from half way on for the chosen alone.

    build: conditions -> denoise, for as many rows as the conditions have. choose: x_0 of all candidates ->
    the rows (b,) to keep, asked once, after `half` calls. From then on the network is asked about those only,
    and x_0 of the others stays as it was: they walk on unattended, and a sampler need not know of any of
    this. What was chosen comes out as if it had been alone from the start; `rows` says where.
    """

    def __init__(self, build, conditions, choose, half):
        self.build, self.conditions, self.choose, self.left = build, conditions, choose, half
        self.denoise, self.rows, self.output = build(conditions), None, None

    def __call__(self, x_t, t):
        if self.rows is None:
            self.output = self.denoise(x_t, t)               # x_0, or (x_0, v) with a learned variance
            self.left -= 1
            if self.left == 0:
                x_0 = self.output[0] if isinstance(self.output, tuple) else self.output
                self.rows = self.choose(x_0)
                self.denoise = self.build({name: x[self.rows] for name, x in self.conditions.items()})
            return self.output
        made = self.denoise(x_t[self.rows], t[self.rows])
        if isinstance(made, tuple):
            return tuple(map(self._put, self.output, made))
        return self._put(self.output, made)

    def _put(self, everyone, chosen):
        return everyone.index_copy(0, self.rows, chosen)
