"""The tracker: where are the two digits in each frame of a clip?

It is trained on real clips of the train split, whose true positions the simulator knows, and finds motion
in generated ones: speed, straightness, bounces. Its own error stands in every report.
"""

import torch
from einops import rearrange
from torch import nn

from mavlite.config import TrackerConfig
from mavlite.evaluation.judge import resize

TRACKER_SIZE = 32                            # px: clips of any size are brought to it


class Tracker(nn.Module):
    """Clips (b, c, f, h, w) in [0, 1], any size and frame count -> centres (b, f, 2, 2) px on a 64-px canvas.

    Frames are encoded one by one; 1-D convolutions over time then see the whole clip (their reach is 29
    frames each way), since a frame in which one digit hides the other says little by itself. Which digit
    comes first is free, but the same in all frames of a clip.
    """

    def __init__(self, config: TrackerConfig):
        super().__init__()
        w, hidden = config.width, config.hidden
        layers, width = [], 1
        for wider, stride in [(w, 1), (2 * w, 2), (2 * w, 1), (4 * w, 2), (2 * w, 1)]:
            layers += [nn.Conv2d(width, wider, 3, stride, padding=1, bias=False),
                       nn.GroupNorm(1, wider), nn.SiLU()]
            width = wider
        self.features = nn.Sequential(*layers)                                       # 32 px -> 8 x 8
        self.hidden = nn.Linear(width * 64, hidden)
        self.over_time = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, hidden), nn.SiLU(),
                          nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation))
            for dilation in (1, 2, 4, 8, 8, 4, 2))
        self.scores = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 4))

    def forward(self, frames):
        f = frames.shape[2]
        x = resize(rearrange(frames, "b c f h w -> (b f) c h w"), TRACKER_SIZE)
        x = self.features(x.contiguous(memory_format=torch.channels_last)).flatten(1)
        x = rearrange(self.hidden(x), "(b f) d -> b d f", f=f)
        for block in self.over_time:
            x = x + block(x)
        centres = self.scores(rearrange(x, "b d f -> b f d")).float()
        return 32 + 18 * rearrange(centres, "b f (k yx) -> b f k yx", k=2)           # within 14 ... 50


@torch.no_grad()
def track(tracker, frames, batch=64):
    """Centres (b, f, 2, 2) px of clips (b, c, f, h, w) in [0, 1], on the CPU."""
    device = next(tracker.parameters()).device
    return torch.cat([tracker(part.to(device)).cpu() for part in frames.split(batch)])


def match(found, true):
    """`found` (b, f, 2, 2) with each clip's digits in the order that fits `true` better."""
    error = [(found - order).norm(dim=-1).mean(dim=(1, 2)) for order in (true, true.flip(2))]        # b each
    return torch.where((error[0] <= error[1])[:, None, None, None], found, found.flip(2))
