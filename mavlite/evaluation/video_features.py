"""The network whose features MM-FVD compares: which digits, how fast, and where to?

FVD (Unterthiner et al. 2018) compares the features of a network trained on human actions, which has never
seen a digit move. This one is trained to read real Moving MNIST clips of the train split, so its features
hold what matters here. Distances between them are called MM-FVD, and no others are comparable.
"""

import torch
from einops import rearrange
from torch import nn

from mavlite.config import VideoFeaturesConfig
from mavlite.evaluation.judge import pair_logits, resize
from mavlite.layers import PseudoConv3d

FEATURES_SIZE = 32                           # px: clips of any size are brought to it


class VideoFeatures(nn.Module):
    """Clips (b, c, f, h, w) in [0, 1], any size and frame count -> logits over the 55 pairs (b, 55),
    directions of the two digits at the start (b, 2, 2), log of the frame rate (b,). `embed` gives the
    features (b, d)."""

    def __init__(self, config: VideoFeaturesConfig):
        super().__init__()
        w = config.width
        layers, width = [], 1
        for wider, stride in [(w, 2), (2 * w, 2), (2 * w, 1), (4 * w, 2), (4 * w, 1)]:
            layers += [PseudoConv3d(width, wider, stride=stride, temporal=True),
                       nn.GroupNorm(1, wider), nn.SiLU()]
            width = wider
        self.features = nn.Sequential(*layers)                                       # f 32 32 -> f 4 4
        self.hidden = nn.Linear(width * 16, config.features)
        self.scores = nn.Sequential(nn.SiLU(), nn.Linear(config.features, 25))

    def embed(self, frames):
        f = frames.shape[2]
        x = resize(rearrange(frames, "b c f h w -> (b f) c h w"), FEATURES_SIZE)
        x = self.features(rearrange(x, "(b f) c h w -> b c f h w", f=f))             # b 4w f 4 4
        return self.hidden(x.mean(dim=2).flatten(1))                                 # b d

    def forward(self, frames):
        scores = self.scores(self.embed(frames)).float()
        single, double, directions, log_fps = scores.split([10, 10, 4, 1], dim=1)
        return pair_logits(single, double), rearrange(directions, "b (k yx) -> b k yx", k=2), log_fps[:, 0]


@torch.no_grad()
def embed_clips(network, frames, batch=64):
    """Features (b, d) of clips (b, c, f, h, w) in [0, 1], on the CPU."""
    device = next(network.parameters()).device
    return torch.cat([network.embed(part.to(device)).float().cpu() for part in frames.split(batch)])
