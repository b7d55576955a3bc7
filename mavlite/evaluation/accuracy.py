"""Prompt accuracy: does the judge find both prompted digits, and where along the cascade are they lost?"""

import math

import torch

from mavlite.evaluation.judge import judge_clips, pooled
from mavlite.prompts import PAIRS


def interval(share, count, z=1.96):
    """Wilson's 95 % confidence interval of a share: (low, high)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return min(share, centre - half), max(share, centre + half)     # else rounding may part them at 0 and 1


def score(judge, frames, pairs):
    """Frames (n, c, f, h, w) in [0, 1] against the pairs wanted (n,) -> dict.

    clip, frame: shares of clips (evidence pooled over the frames) and of frames whose most likely pair is the
    one wanted, with Wilson intervals of the clips'. found (n,): the pair found in each clip.
    """
    log_p = judge_clips(judge, frames)                                               # n f 55
    found = pooled(log_p)
    clip = (found == pairs).float().mean().item()
    return {"clip": clip, "frame": (log_p.argmax(dim=-1) == pairs[:, None]).float().mean().item(),
            "clips": len(pairs), "interval": interval(clip, len(pairs)),
            "found": found, "log_probabilities": log_p}


def digit_confusion(wanted, found):
    """How often a digit that was asked for (row) was found as another (column): (10, 10).

    A digit that both pairs hold counts on the diagonal; of the others nobody knows which was taken for which,
    so each counts half for both.
    """
    matrix = torch.zeros(10, 10)
    for want, got in zip(wanted.tolist(), found.tolist()):
        asked, seen = list(PAIRS[want]), list(PAIRS[got])
        for digit in PAIRS[want]:
            if digit in seen:
                matrix[digit, digit] += 1
                asked.remove(digit)
                seen.remove(digit)
        for a in asked:
            for b in seen:
                matrix[a, b] += 1 / len(seen)
    return matrix


def accuracy_by_pair(wanted, found):
    """Share of clips judged right for each pair of digits: (10, 10), symmetric, NaN where none was asked."""
    right, asked = torch.zeros(10, 10), torch.zeros(10, 10)
    first, second = torch.tensor(PAIRS)[wanted].unbind(dim=1)
    ones = torch.ones(len(wanted))
    for a, b in ((first, second), (second, first)):
        asked.index_put_((a, b), ones, accumulate=True)
        right.index_put_((a, b), (wanted == found).float(), accumulate=True)
    return right / asked
