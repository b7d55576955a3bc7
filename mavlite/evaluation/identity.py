"""Does each digit stay who it is? Both are cut out and asked about alone.

The pair of a frame cannot tell (`motion.identity_switches`): a 2 and a 6 may turn into a 6 and a 2 before
one's eyes, and the pair remains. So each digit is cut out around its tracked centre and shown to the judge
as a pair of two like itself, which the judge knows how to name.
"""

import math

import torch
import torch.nn.functional as F

from mavlite.evaluation.judge import JUDGE_SIZE, judge_clips, resize
from mavlite.evaluation.tracker import separated
from mavlite.moving_mnist import CANVAS
from mavlite.prompts import PAIRS

SURE = 0.9                                   # probability of a judge that has no doubts
REACH = 20                                   # px: half a digit's diagonal, so no part of a digit is farther
SHOWN_AT = (16.0, 48.0)                      # px, y and x alike, of the two copies: far enough apart
DOUBLES = [i for i, (first, second) in enumerate(PAIRS) if first == second]         # 0 and 0, 1 and 1, ...


def alone(frames, centres):
    """Each digit of a clip by itself, shown twice: (b, f, 2, 64, 64) in [0, 1], grey.

    frames (b, c, f, h, w) in [0, 1]; centres (b, f, 2, 2) px on the 64-px canvas. A pixel belongs to the
    digit whose centre is nearer, if within 20 px.
    """
    b, _, f = frames.shape[:3]
    grey = (resize(frames.transpose(1, 2).flatten(0, 1), JUDGE_SIZE) + 1) / 2
    at = torch.arange(CANVAS, device=frames.device) + 0.5
    canvas = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1)              # 64 64 2, y and x
    distance = (canvas - centres[..., None, None, :]).norm(dim=-1)                   # b f 2 64 64
    own = (distance <= distance.flip(2)) & (distance < REACH)
    cut = (grey.view(b, f, 1, CANVAS, CANVAS) * own).view(-1, 1, CANVAS, CANVAS)
    copies = []
    for place in SHOWN_AT:
        source = canvas + (centres - place)[..., None, None, :]                      # b f 2 64 64 2
        source = source.flip(-1).view(-1, CANVAS, CANVAS, 2) * (2 / CANVAS) - 1      # as x and y in [-1, 1]
        copies.append(F.grid_sample(cut, source, align_corners=False))
    return torch.maximum(*copies).view(b, f, 2, CANVAS, CANVAS)


def in_order(centres):
    """Centres whose digits are called the same in neighbouring frames: (b, f, 2, 2) px, whichever order

        |p_1[t+1] - p_1[t]| + |p_2[t+1] - p_2[t]|

    is smaller in. Between frames with the digits 20 px apart the other is impossible: too far to go.
    """
    now, then = centres[:, 1:], centres[:, :-1]
    turned = ((now.flip(2) - then).norm(dim=-1).sum(dim=-1)
              < (now - then).norm(dim=-1).sum(dim=-1))                               # b f-1
    turned = F.pad(turned.cumsum(dim=1) % 2 == 1, (1, 0))                            # b f
    return torch.where(turned[..., None, None], centres.flip(2), centres)


def changed_in_sight(log_probabilities, apart):
    """Share of clips in which a digit becomes another while the two are apart: (share, clips that can tell).

    log_probabilities (b, f, 2, 55): the judge's of `alone`, digits `in_order`. apart: bool (b, f). From one
    meeting of the digits to the next, what is named with a probability above 0.9 must stay the same, and a
    clip can tell where two such names are given. What happens while one digit hides the other is not asked:
    who came out where is hard to tell.
    """
    best, digit = log_probabilities[..., DOUBLES].max(dim=-1)                        # b f 2
    sure = apart[..., None] & (best > math.log(SURE))
    run = (~apart).cumsum(dim=1)[..., None].expand_as(digit)                         # b f 2: span of time
    b, f = apart.shape

    def of_runs(values, start, reduce):
        return torch.full((b, f + 1, 2), start).scatter_reduce(1, run, values, reduce)
    named = of_runs(sure.long(), 0, "sum")
    lowest, highest = of_runs(digit.where(sure, 10), 10, "amin"), of_runs(digit.where(sure, -1), -1, "amax")
    told = (named >= 2).flatten(1).any(dim=1)                                        # b
    changed = (highest > lowest).flatten(1).any(dim=1)[told]
    return (changed.float().mean().item() if len(changed) else 0.0), len(changed)


def look(judge, frames, centres):
    """`changed_in_sight` of clips (b, c, f, h, w) in [0, 1] with tracked centres (b, f, 2, 2) px."""
    digits = alone(frames.float().cpu(), in_order(centres))                          # b f 2 64 64
    said = judge_clips(judge, digits.flatten(1, 2)[:, None])                         # b (f 2) 55
    return changed_in_sight(said.unflatten(1, digits.shape[1:3]), separated(centres))
