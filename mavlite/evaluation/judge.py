"""The judge: a classifier that says which unordered pair of digits a frame, or a clip, shows.

It is trained on real frames of the train split at random places, overlaps included, and scored on the
test split. It shares neither weights nor data draws with the networks that generate.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mavlite.config import JudgeConfig

JUDGE_SIZE = 64                              # px: frames of any size are brought to it


class Judge(nn.Module):
    """Frames (b, c, h, w) in [0, 1], any size -> logits over the 55 pairs of `prompts.PAIRS`.

    The network gives 20 scores: for each digit, "there is one" and "there are two". A pair's logit is the
    sum of its two singles, or the double's score: digits are learned once, not once for each pair.
    """

    def __init__(self, config: JudgeConfig):
        super().__init__()
        w = config.width
        layers, width = [], 1
        for wider, stride in [(w, 2), (w, 1), (2 * w, 2), (2 * w, 1), (4 * w, 2), (4 * w, 1), (4 * w, 2)]:
            kernel = 5 if width == 1 else 3
            layers += [nn.Conv2d(width, wider, kernel, stride, padding=kernel // 2, bias=False),
                       nn.GroupNorm(1, wider), nn.SiLU()]
            width = wider
        self.features = nn.Sequential(*layers)                                       # 64 px -> 4 x 4
        self.hidden = nn.Sequential(nn.Linear(width * 16, 256), nn.SiLU())
        self.scores = nn.Linear(256, 20)

    def embed(self, frames):
        """Features (b, 256), which MM-FID compares."""
        x = resize(frames, JUDGE_SIZE)
        x = self.features(x.contiguous(memory_format=torch.channels_last))           # b 4w 4 4
        return self.hidden(x.flatten(1))

    def forward(self, frames):
        return pair_logits(*self.scores(self.embed(frames)).chunk(2, dim=1))


def resize(frames, size):
    """What the measuring networks look at: grey frames (b, 1, size, size) in [-1, 1]."""
    x = frames.mean(dim=1, keepdim=True) * 2 - 1
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, (size, size), mode="bilinear", antialias=x.shape[-1] > size)


def pair_logits(single, double):
    """Scores of "there is one" and "there are two" of each digit (b, 10) -> logits of the pairs (b, 55)."""
    first, second = torch.triu_indices(10, 10, device=single.device)                 # as `prompts.PAIRS`
    return torch.where(first == second, double[:, first], single[:, first] + single[:, second])


@torch.no_grad()
def judge_clips(judge, frames, batch=512):
    """Frames (b, c, f, h, w) -> log-probabilities of the 55 pairs for each frame, (b, f, 55)."""
    b, _, f = frames.shape[:3]
    folded = frames.transpose(1, 2).flatten(0, 1)
    device = next(judge.parameters()).device
    parts = [judge(part.to(device)).log_softmax(dim=-1).cpu() for part in folded.split(batch)]
    return torch.cat(parts).unflatten(0, (b, f))


def pooled(log_probabilities):
    """Evidence over a clip's frames: log-probabilities added up, (b, f, 55) -> the likeliest pair (b,)."""
    return log_probabilities.sum(dim=1).argmax(dim=-1)
