"""MM-FID and MM-FVD: Fréchet distances between features of networks that were trained on Moving MNIST.

The formula is that of FID (Heusel et al. 2017, arXiv 1706.08500) and FVD (Unterthiner et al. 2018, arXiv
1812.01717), the features are not: numbers compare with each other and never with published ones. Whether a
distance sees anything is tested as FVD's authors tested theirs, by corrupting real clips in known ways.

Few clips make a Fréchet distance larger, and by how much depends on the clips. MM-KID and MM-KVD are kernel
distances (Binkowski et al. 2018, arXiv 1801.01401) of the same features, which on average do not depend on
how many there are.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torchvision.transforms.functional import gaussian_blur

from mavlite.evaluation.samples import matched_clips, pairs_in_turn
from mavlite.evaluation.video_features import embed_clips
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


def kernel_distance(reference, made):
    """Features (m, d) and (n, d), n >= 3 -> (squared maximum mean discrepancy, its 95 % interval).

        MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),    k(a, b) = (a.b / d + 1)^3

    over x' other than x and y' other than y, after both sets are centred and scaled to the reference's
    spread. Without bias: 0 on average where there is no difference, so it may fall below 0. The interval is
    the jackknife's over `made`.
    """
    mean = reference.double().mean(dim=0)
    unit = (reference.double() - mean).square().mean().sqrt()
    x, y = ((features.double() - mean) / unit for features in (reference, made))

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3
    m, n, among_x, among_y = len(x), len(y), kernel(x, x), kernel(y, y)
    fixed = (among_x.sum() - among_x.trace()) / (m * (m - 1))
    own, cross = among_y.sum(dim=1) - among_y.diagonal(), kernel(y, x).mean(dim=1)   # n each, one a clip
    value = fixed + own.sum() / (n * (n - 1)) - 2 * cross.mean()
    without = (fixed + (own.sum() - 2 * own) / ((n - 1) * (n - 2))
               - 2 * (cross.sum() - cross) / (n - 1))                                # n: each clip left out
    half = 1.96 * ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return value.item(), ((value - half).item(), (value + half).item())


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


def corrupted_features(features, clips, seed, names=tuple(CORRUPTIONS)):
    """Features of real clips as they are, "real", and of corruptions of them: {name: of `features`}.

    features: clips (b, c, f, h, w) in [0, 1] -> (b, ...).
    """
    def of(name):
        generator = torch.Generator().manual_seed(seed)      # its own: no corruption changes another's draws
        return torch.cat([features(CORRUPTIONS[name](part, generator)) for part in clips.split(BATCH)])
    return {"real": features(clips)} | {name: of(name) for name in names}


def all_worse(table):
    """Does each corruption in a table {name: distance} rank as worse than "real"? Else it is of no use."""
    return all(value > table["real"] for name, value in table.items() if name in CORRUPTIONS)


# ---------------------------------------------------------------- the report's part

def measure(e):
    """Distances of what was generated, of other real clips and of their corruptions, all of the same digits.

    The Fréchet distances are from as many real clips, the kernel distances from `e.sizes.reference`.
    e: the report's `Evaluation`, which gets the rows. Returns the tables.
    """
    size, n, tables = e.data.sizes[-1], e.sizes.videos, {}
    real, made = e.real.frames(size), e.made.frames["sr_h"]
    other = matched_clips(e.data, e.made.pairs, block=2).frames(size)
    reference = matched_clips(e.data, pairs_in_turn(e.sizes.reference), block=1)
    parts = [reference.only(range(start, min(start + BATCH, e.sizes.reference)))
             for start in range(0, e.sizes.reference, BATCH)]

    def of_frames(clips):                                    # b f d
        found = [e.judge.embed(part.to(e.pipe.device)).float().cpu() for part in fold(clips)[0].split(512)]
        return torch.cat(found).unflatten(0, (len(clips), -1))

    def of_clips(clips):                                     # b 1 d
        return embed_clips(e.features, clips)[:, None]

    def compare(letter, stage, features, names, shown):
        """shown: the frames of a reference clip that are looked at."""
        found = corrupted_features(features, other, e.seed, names) | {"generated": features(made)}
        near, far = features(real), torch.cat([features(part.frames(size)[:, :, shown]) for part in parts])
        frechet = {name: frechet_distance(near.flatten(0, 1), x.flatten(0, 1)) for name, x in found.items()}
        # Frames of a clip are alike, which a kernel distance takes for a difference: one frame of each.
        kernel = {name: kernel_distance(far[:, 0], x[:, x.shape[1] // 2]) for name, x in found.items()}
        tables[f"MM-F{letter}D"] = frechet
        tables[f"MM-K{letter}D"] = {name: value for name, (value, _) in kernel.items()}
        for name, between in ((f"MM-F{letter}D", None), (f"MM-K{letter}D", kernel["generated"][1])):
            table = tables[name]
            e.add(name, "generated against real", table["generated"], n, unit="distance", interval=between,
                  ceiling=table["real"], floor=min(table[corruption] for corruption in names), stage=stage)

    middle = e.data.num_frames // 2
    compare("I", "judge", of_frames, ["blur"], slice(middle, middle + 1))           # others leave frames real
    compare("V", "video_features", of_clips, list(CORRUPTIONS), slice(None))
    return {"distances": {name: dict(sorted(table.items(), key=lambda item: item[1]))
                          for name, table in tables.items()},
            "corruptions rank as worse": {name: all_worse(table) for name, table in tables.items()}}
