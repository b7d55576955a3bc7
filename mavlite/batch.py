"""Which samples a step trains on, and which random numbers, on any number of ranks and micro-batches."""

from dataclasses import dataclass

import torch

from mavlite.moving_mnist import hash_uniform


@dataclass
class Batch:
    """One micro-batch of one rank. "Step k" names its own data: its sample i has index first + k size + i."""
    step: int
    size: int                                # the whole step's batch, all ranks and micro-batches
    accumulate: int = 1
    micro: int = 0
    rank: int = 0
    world: int = 1
    first: int = 0                           # samples of earlier trainings, which are not shown again

    @property
    def everywhere(self):
        """Indices of this micro-batch on all ranks."""
        share = self.size // self.accumulate
        start = self.first + self.step * self.size + self.micro * share
        return range(start, start + share)

    @property
    def indices(self):
        """Indices of this micro-batch on this rank: its slice."""
        share = len(self.everywhere) // self.world
        return self.everywhere[self.rank * share:(self.rank + 1) * share]


class Draws:
    """Training noise: a generator seeded by (seed, step), so an exact resume saves no random state.

    Numbers are drawn for the whole step and sliced, so that any number of ranks and micro-batches sees the
    same. (The rest is thrown away: next to a network's work, drawing costs nothing.)
    """

    def __init__(self, seed, batch, device, dtype=torch.float32):
        mixed = hash_uniform(seed, torch.tensor([batch.step]), 0)
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(int(mixed.double() * 2**24) * 1_000_003 + batch.step)
        self.batch, self.device, self.dtype = batch, device, dtype

    def _slice(self, x):
        start = self.batch.indices[0] - self.batch.first - self.batch.step * self.batch.size
        return x[start:start + len(self.batch.indices)]

    def normal(self, *shape):
        return self._slice(torch.randn(self.batch.size, *shape, generator=self.generator, device=self.device,
                                       dtype=self.dtype))

    def uniform(self):
        return self._slice(torch.rand(self.batch.size, generator=self.generator, device=self.device,
                                      dtype=self.dtype))

    def times(self):
        """Diffusion times, stratified over the step: one in each n-th of [0, 1), which steadies the loss."""
        n = self.batch.size
        shift = torch.rand(1, generator=self.generator, device=self.device, dtype=self.dtype)
        return self._slice((torch.arange(n, device=self.device, dtype=self.dtype) / n + shift) % 1)
