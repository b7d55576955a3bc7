"""Does each digit stay who it is, and written as it is? Both are cut out and looked at alone.

The pair of a frame cannot tell (`motion.identity_switches`): a 2 and a 6 may turn into a 6 and a 2 before
one's eyes, and the pair remains. So each digit is cut out around its tracked centre and shown to the judge
as a pair of two like itself, which the judge knows how to name.
"""

import math

import torch

from mavlite.evaluation.judge import JUDGE_SIZE, judge_clips, resize
from mavlite.prompts import PAIRS
from mavlite.two_digits import between_meetings, cut_out, in_order, separated, third_digit, unlike

SURE = 0.9                                   # probability of a judge that has no doubts
CLIPS = 64                                   # looked at together: thousands at once would need 20 GB
REACH = 3                                    # px of 64: digits are cut out around tracked centres, which err
DOUBLES = [i for i, (first, second) in enumerate(PAIRS) if first == second]         # 0 and 0, 1 and 1, ...


def alone(frames, centres):
    """Each digit of a clip by itself, shown twice: (b, f, 2, 64, 64) in [0, 1], grey.

    frames (b, c, f, h, w) in [0, 1]; centres (b, f, 2, 2) px on the 64-px canvas.
    """
    grey = resize(frames.transpose(1, 2).flatten(0, 1), JUDGE_SIZE)[:, 0]            # (b f) h w in [-1, 1]
    return cut_out((grey + 1) / 2, centres.flatten(0, 1)).unflatten(0, centres.shape[:2])


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
    said = []
    for part, own in zip(frames.split(CLIPS), in_order(centres).split(CLIPS)):
        digits = alone(part.float().cpu(), own)                                      # CLIPS f 2 64 64
        said.append(judge_clips(judge, digits.flatten(1, 2)[:, None]))               # CLIPS (f 2) 55
    return changed_in_sight(torch.cat(said).unflatten(1, (-1, 2)), separated(centres))


def third_digit_share(frames):
    """Share of clips (b, c, f, h, w) in [0, 1] with a third digit in some frame: (share, clips)."""
    third = torch.cat([third_digit(part.float().mean(dim=1).flatten(0, 1)).view(len(part), -1).any(dim=1)
                       for part in frames.split(CLIPS)])
    return third.float().mean().item(), len(third)


def handwriting(frames, centres):
    """How much the handwriting of clips changes, (n,) in [0, 1]: of the clips that can tell.

    frames (b, c, f, h, w) in [0, 1], centres (b, f, 2, 2) px. From one meeting of the digits to the next, a
    digit cut out of one frame is compared with itself in every other one (`unlike`); the mean over all such
    pairs of frames and both digits. In Moving MNIST a digit is the same picture all along, so real clips have
    little more than 0: what half a pixel does to a stroke.
    """
    found = []
    for part, own in zip(frames.split(CLIPS), in_order(centres).split(CLIPS)):
        half = JUDGE_SIZE // 2                               # one of the two copies that `alone` shows
        looks = alone(part.float().cpu(), own)[..., :half, :half]                    # CLIPS f 2 32 32
        told = between_meetings(separated(own)).triu(diagonal=1)                     # CLIPS f f
        digits = looks.transpose(1, 2).flatten(0, 1)         # (CLIPS 2) f 32 32
        changed = torch.cat([unlike(few, few, REACH) for few in digits.split(16)])   # (CLIPS 2) f f
        changed = changed.unflatten(0, (-1, 2)).mean(dim=1) * told                   # CLIPS f f
        count = told.sum(dim=(1, 2))
        found.append((changed.sum(dim=(1, 2)) / count)[count > 0])
    return torch.cat(found)
