"""Long videos in flat memory: a network evaluated part by part, as the same function."""

import torch

from mavlite.layers import PseudoConv3d

WINDOWS = 48                                 # of D^t or upF evaluated together
FRAMES = 152                                 # of a super-resolution stage evaluated together


def in_batches(network):
    """The network, evaluated on up to `WINDOWS` of its batch at a time: the same function in flat memory."""
    def evaluate(x, t, **conditions):
        if len(x) <= WINDOWS:
            return network(x, t, **conditions)
        parts = []
        for i in range(0, len(x), WINDOWS):
            rows = slice(i, i + WINDOWS)
            own = {name: value if value is None else value[rows] for name, value in conditions.items()}
            parts.append(network(x[rows], t[rows], **own))
        return torch.cat(parts)
    return evaluate


def over_frames(network):
    """The network, evaluated on about `FRAMES` frames at a time: the same function in flat memory.

    Each part sees as many frames more on either side as its temporal convolutions reach, so nothing shows
    where parts meet. (With temporal attention the parts would not know of each other's far frames.)
    """
    reach = sum(isinstance(m, PseudoConv3d) and m.temporal is not None for m in network.modules())

    def evaluate(x, t, *, concat, **conditions):
        f = x.shape[2] if x.ndim == 5 else 1
        if f <= FRAMES:
            return network(x, t, concat=concat, **conditions)
        parts = []
        for start in range(0, f, FRAMES):
            low, high = max(0, start - reach), min(f, start + FRAMES + reach)
            part = network(x[:, :, low:high], t, concat=concat[:, :, low:high], **conditions)
            parts.append(part[:, :, start - low:start - low + FRAMES])
        return torch.cat(parts, dim=2)
    return evaluate
