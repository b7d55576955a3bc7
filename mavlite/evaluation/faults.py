"""Does the critic, which taught D^t, know a fault when it sees one, on digits that it never saw?"""

from pathlib import Path

import torch

from mavlite.critic import NOISE, noised
from mavlite.digits import load_digits
from mavlite.evaluation.accuracy import interval
from mavlite.faults import FaultyClips
from mavlite.stages import load_network

SEED, BATCH = 70_000, 64


@torch.no_grad()
def told_apart(critic, pair, generator):
    """Whether the faulty one of each pair of clips has the higher mean log-odds, under noise: bool (b,)."""
    noise = torch.randn(pair.frames.shape, generator=generator).to(pair.frames.device)
    level = torch.full_like(pair.fps, sum(NOISE) / 2)
    faulty, right = (critic(noised(clips * 2 - 1, noise, level), pair.fps.log())[0].mean(dim=1)
                     for clips in (pair.frames, pair.right))
    return faulty > right


def measure(e):
    """A row of the report, if these weights have a critic: the cascade itself needs none."""
    if not (Path(e.weights) / "critic").is_dir():
        return
    critic, _, _ = load_network(e.weights, "critic", device=e.pipe.device)
    images = load_digits("test", e.data.digits).images.to(e.pipe.device)
    clips, generator = FaultyClips(images, SEED, e.data.channels), torch.Generator().manual_seed(e.seed)
    told = []
    for start in range(0, e.sizes.videos, BATCH):
        indices = range(start, min(start + BATCH, e.sizes.videos))
        pair = clips.pairs(indices, e.data.fps, e.data.num_frames, e.data.sizes[0])
        told.append(told_apart(critic, pair, generator)[pair.kind > 0].cpu())
    told = torch.cat(told).float()
    share = told.mean().item() if len(told) else 0.0
    e.add("critic", "rendered faults told apart", share, len(told), unit="pairs", stage="critic", floor=0.5,
          interval=interval(share, len(told)) if len(told) else None)
