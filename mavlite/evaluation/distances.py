"""MM-FID and MM-FVD: Fréchet distances between features of networks that were trained on Moving MNIST.

The formula is that of FID (Heusel et al. 2017, arXiv 1706.08500) and FVD (Unterthiner et al. 2018, arXiv
1812.01717), the features are not: numbers compare with each other and never with published ones. Whether a
distance sees anything is tested as FVD's authors tested theirs, by corrupting real clips in known ways.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torchvision.transforms.functional import gaussian_blur

from mavlite.layers import fold, unfold

# Strengths of corruptions at 64 px; at another size they scale with it.
JITTER = 3                                   # px, the largest offset of a frame
BLUR = 1.5                                   # px, standard deviation

BATCH = 256                                  # clips corrupted at a time: no memory for a second test set


def _moments(features):
    """Mean (d,) and covariance (d, d) of features (n, d), in float64."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError("a covariance needs features (n, d) of at least 2 rows, "
                         f"not {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("features hold NaN or infinity")
    mean = features.double().mean(dim=0)
    centred = features.double() - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(a, b):
    """Features (n, d) and (m, d) -> Fréchet distance of the normal distributions with their moments.

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2)

    Few rows make it larger (Chong and Forsyth 2020, arXiv 1911.07023): compare distances of equal n only.
    """
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    if len(mean_a) != len(mean_b):
        raise ValueError(f"features of {len(mean_a)} and of {len(mean_b)} numbers cannot be compared")
    # S_a S_b has the eigenvalues of S_a^1/2 S_b S_a^1/2, which is symmetric; below 0 there is only rounding.
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T                      # d d
    trace_of_root = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_of_root
    return distance.clamp(min=0).item()


# ---------------------------------------------------------------- corruptions: clips b c f h w in [0, 1]

def freeze(clips, generator):
    """The first frame throughout: every frame real, no motion."""
    return clips[:, :, :1].expand_as(clips)


def shuffle(clips, generator):
    """Frames in random order, another one for each clip: every frame real, motion wrong."""
    order = torch.rand(clips.shape[0], clips.shape[2], generator=generator).argsort(dim=1).to(clips.device)
    return clips.gather(2, rearrange(order, "b f -> b 1 f 1 1").expand_as(clips))


def jitter(clips, generator):
    """Each frame moved by up to `JITTER` px up or down and left or right, whole pixels, black coming in."""
    b, c, f, h, w = clips.shape
    reach = round(JITTER * h / 64)
    offset = torch.randint(2 * reach + 1, (2, b, f), generator=generator).to(clips.device)           # yx b f
    pixel = torch.arange(h, device=clips.device)
    y, x = offset[..., None] + pixel                                                 # b f h: from where
    padded = F.pad(clips, (reach, reach, reach, reach))
    rows = padded.gather(3, rearrange(y, "b f h -> b 1 f h 1").expand(-1, c, -1, -1, w + 2 * reach))
    return rows.gather(4, rearrange(x, "b f w -> b 1 f 1 w").expand(-1, c, -1, h, -1))


def blur(clips, generator):
    """Each frame blurred by a Gaussian of `BLUR` px: motion real, frames not sharp."""
    sigma = BLUR * clips.shape[-1] / 64
    frames, f = fold(clips)
    return unfold(gaussian_blur(frames, 2 * math.ceil(4 * sigma) + 1, sigma), f)


def mix(clips, generator):
    """Every other frame from the next clip of the batch: every frame real, digits changing to and fro."""
    odd = torch.arange(clips.shape[2], device=clips.device) % 2 == 1
    return torch.where(odd.view(1, 1, -1, 1, 1), clips.roll(-1, dims=0), clips)


CORRUPTIONS = {"freeze": freeze, "shuffle": shuffle, "jitter": jitter, "blur": blur, "mix": mix}


def corruption_table(features, real_a, real_b, seed):
    """Distances from real clips to other real clips and to corruptions of those: (dict by name, all worse?).

    features: clips (b, c, f, h, w) -> (n, d). real_a, real_b: clips in [0, 1], as many of each. "real" is
    what the distance shows for no difference at all; it is of use where every corruption ranks as worse.
    """
    reference = features(real_a)

    def distance(corrupt):
        generator = torch.Generator().manual_seed(seed)      # its own: no corruption changes another's draws
        made = [features(corrupt(part, generator)) for part in real_b.split(BATCH)]
        return frechet_distance(reference, torch.cat(made))

    table = {"real": frechet_distance(reference, features(real_b))}
    table |= {name: distance(corrupt) for name, corrupt in CORRUPTIONS.items()}
    return table, all(table[name] > table["real"] for name in CORRUPTIONS)
