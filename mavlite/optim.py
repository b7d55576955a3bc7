"""AdamW, and Muon for matrices and convolution kernels.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers") replaces a matrix's momentum by the
nearest orthogonal matrix before the step, so that every direction moves by the same amount.
`torch.optim.Muon` (torch >= 2.9) takes 2-D parameters only; a U-Net is mostly 4-D kernels, which are
flattened to (out, in * k * k) here.
"""

import torch


def orthogonalise(matrices, iterations=5):
    """Newton-Schulz iteration towards U V^T of each matrix's SVD: (n, rows, columns) -> the same.

        X <- (a I + b G + c G^2) X,     G = X X^T

    The quintic's coefficients are Jordan's: they trade exactness (singular values end within about
    0.7 ... 1.2) for few iterations. All factors are polynomials of the first G, so they commute: G follows
    by itself, and X, which is often much wider, is multiplied only once, by the product of the factors.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices           # the smaller Gram matrix
    gram = x @ x.mT
    # |X|^2 is the trace of G.
    square = gram.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] + 1e-14
    gram = gram / square
    product = None
    for step in range(iterations):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step < iterations - 1:
            gram = factor @ gram @ factor
    x = (product / square.sqrt()) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for parameters of two or more dimensions."""

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in params]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
            by_shape = {}                                    # equal shapes are orthogonalised as one batch
            for p, direction in zip(params, nesterov):
                direction = direction.flatten(1)
                by_shape.setdefault(direction.shape, []).append((p, direction))
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for (rows, columns), members in by_shape.items():
                updates = orthogonalise(torch.stack([direction for _, direction in members]))
                updates = [update.reshape(p.shape).to(p.dtype) for (p, _), update in zip(members, updates)]
                torch._foreach_add_([p for p, _ in members], updates,
                                    alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


INPUTS_AND_OUTPUTS = ("conv_in.", "conv_out.", "embed.", "to_context.",       # U-Net
                      "input_gain.", "concat_gain.",
                      "token_in.", "text_in.", "image_in.", "out.",           # prior
                      "features.0.", "scores.",                               # judge
                      "model.visual.conv1.", "model.token_embedding.")        # clip


# What the conditions say: at much noise hardly any of the loss depends on it: it would decay.
CONDITIONING = ("scale_shift.", "embed", "to_context.")


def build_optimizers(network, train):
    """One or two optimizers for a network's parameters (`TrainConfig`).

    As its author recommends, Muon takes the hidden layers' matrices and convolution kernels only; biases,
    norms, embeddings, input and output layers go to AdamW. Weights decay but for vectors and conditioning.
    """
    hidden, rest = ([], []), ([], [])                        # decayed, not decayed
    for name, p in network.named_parameters():
        if not p.requires_grad:
            continue
        matrix = p.ndim >= 2 and name.endswith("weight") and not name.startswith(INPUTS_AND_OUTPUTS)
        kept = p.ndim < 2 or any(part in name for part in CONDITIONING)
        (hidden if matrix and train.optimizer == "muon" else rest)[kept].append(p)

    def groups(parameters):
        decays = (train.weight_decay, 0.0)
        return [{"params": p, "weight_decay": decay} for p, decay in zip(parameters, decays) if p]
    optimizers = [torch.optim.AdamW(groups(rest), lr=train.lr, betas=(0.9, 0.99))]
    if any(hidden):
        optimizers.append(Muon(groups(hidden), lr=train.muon_lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def rate(step, train):
    """The share of the peak learning rate at a step: linear warm-up, constant, linear decay to zero."""
    warmup = min(1.0, (step + 1) / max(1, train.warmup_steps))
    remaining = (train.steps - step) / max(1.0, train.decay_share * train.steps)
    return min(warmup, remaining, 1.0)
