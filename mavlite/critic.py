"""A network that tells real clips from made ones, and what it and a generator learn from each other.

The loss is that of R3GAN (Huang et al. 2024, arXiv 2501.05441, sections 2 and 3), for a pair of a real and a
made clip under the same condition:

    L(critic)    = softplus(D(made) - D(real)) + gamma / 2 (|dD/dreal|^2 + |dD/dmade|^2)
    L(generator) = softplus(D(real) - D(made))

Both only compare: no clip is real by itself. The two penalties (R1 and R2) keep D flat where it has nothing
to say, and let the two networks come to rest.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mavlite.diffusion import expand_to

NOISE = (0.1, 0.7)                           # deviations of the noise under which clips are compared


class Critic(nn.Module):
    """(clip (b, c, f, h, w) in [-1, 1] plus noise, y_e (b, embed_dim), scalars (b, k)) -> scores (b,).

    Ordinary strided 3-D convolutions: what it judges is what pseudo-3D layers find hard, whether a whole clip
    hangs together. The condition comes in by projection (Miyato & Koyama 2018, arXiv 1802.05637, eq. 3):

        D(x, y) = <w, h(x)> + <V(y), h(x)>
    """

    def __init__(self, channels, embed_dim, scalars, width, features=256):
        super().__init__()
        strides = [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
        widths = [channels, width, 2 * width, 4 * width, 4 * width]
        layers = []
        for before, after, stride in zip(widths, widths[1:], strides):
            layers += [nn.Conv3d(before, after, 3, stride, padding=1), nn.LeakyReLU(0.2)]
        self.clip = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(2), nn.Flatten(),
                                  nn.Linear(8 * widths[-1], features), nn.LeakyReLU(0.2))
        self.score = nn.Linear(features, 1, bias=False)       # only differences count
        self.condition = nn.Sequential(nn.Linear(embed_dim + scalars, features), nn.LeakyReLU(0.2),
                                       nn.Linear(features, features))

    def forward(self, clip, image_embeds, scalars):
        h = self.clip(clip)                                                          # b d
        asked = self.condition(torch.cat([image_embeds, scalars], dim=1))            # b d
        return self.score(h)[:, 0] + (h * asked).mean(dim=1) * h.shape[1] ** 0.5


def noised(clips, noise, level):
    """Clips under noise of deviation `level` (b,): it hides faults of single pixels, and none of motion."""
    return clips + expand_to(level, clips) * noise


def compare(better, worse):
    """softplus(worse - better), the mean over pairs of scores (b,)."""
    return F.softplus(worse - better).mean()


def critic_loss(critic, real, made, gamma):
    """What the critic learns from clips (b, ...) of both kinds. critic: clips -> scores (b,)."""
    real, made = (clips.detach().requires_grad_() for clips in (real, made))
    scores = critic(real), critic(made)
    penalty = 0
    for score, clips in zip(scores, (real, made)):
        slope, = torch.autograd.grad(score.sum(), clips, create_graph=True)
        penalty = penalty + slope.square().flatten(1).sum(dim=1).mean()
    return compare(*scores) + gamma / 2 * penalty
