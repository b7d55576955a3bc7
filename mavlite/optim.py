"""AdamW, and Muon for matrices and convolution kernels.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers") replaces a matrix's momentum by the
nearest orthogonal matrix before the step, so that every direction moves by the same amount.
`torch.optim.Muon` (torch >= 2.9) takes 2-D parameters only; a U-Net is mostly 4-D kernels, which are
flattened to (out, in * k * k) here.
"""

import torch

from mavlite.device import fast_bf16


def orthogonalise(matrices, iterations=5):
    """Newton-Schulz iteration towards U V^T of each matrix's SVD: (n, rows, columns) -> the same.

    The quintic's coefficients are Jordan's: they trade exactness (singular values end within about
    0.7 ... 1.2) for few iterations.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    if matrices.dtype == torch.float32 and fast_bf16(matrices.device):
        matrices = matrices.bfloat16()                       # stable in 16 bits, and several times faster
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices           # the smaller Gram matrix
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for parameters of two or more dimensions."""

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = {}                                    # equal shapes are orthogonalised as one batch
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                nesterov = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                by_shape.setdefault(nesterov.shape, []).append((p, nesterov))
            for (rows, columns), members in by_shape.items():
                updates = orthogonalise(torch.stack([u for _, u in members]))
                scale = -group["lr"] * max(1.0, rows / columns) ** 0.5
                for (p, _), update in zip(members, updates):
                    update = update.reshape(p.shape).to(p.dtype)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=scale)


INPUTS_AND_OUTPUTS = ("conv_in.", "conv_out.", "embed.", "to_context.",       # U-Net
                      "input_gain.", "concat_gain.",
                      "token_in.", "text_in.", "image_in.", "out.",           # prior
                      "features.0.", "scores.",                               # judge
                      "model.visual.conv1.", "model.token_embedding.")        # clip


def build_optimizers(network, train):
    """One or two optimizers for a network's parameters (`TrainConfig`).

    As its author recommends, Muon takes the hidden layers' matrices and convolution kernels only; biases,
    norms, embeddings, input and output layers go to AdamW.
    """
    hidden, rest = [], []
    for name, p in network.named_parameters():
        if not p.requires_grad:
            continue
        matrix = p.ndim >= 2 and name.endswith("weight") and not name.startswith(INPUTS_AND_OUTPUTS)
        (hidden if matrix and train.optimizer == "muon" else rest).append(p)
    optimizers = [torch.optim.AdamW(rest, lr=train.lr, betas=(0.9, 0.99), weight_decay=train.weight_decay)]
    if hidden:
        optimizers.append(Muon(hidden, lr=train.muon_lr, weight_decay=train.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def rate(step, train):
    """The share of the peak learning rate at a step: linear warm-up, constant, linear decay to zero."""
    warmup = min(1.0, (step + 1) / max(1, train.warmup_steps))
    remaining = (train.steps - step) / max(1.0, train.decay_share * train.steps)
    return min(warmup, remaining, 1.0)
