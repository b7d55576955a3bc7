"""Attention written out against the fused kernel, forward and backward, at this project's sizes.

    python -m benchmarks.attention
"""

import math

import torch
import torch.nn.functional as F

from benchmarks.timing import median_seconds
from mavlite.device import autocast, keep_freed_memory, pick_device, pick_precision


def written_out(q, k, v):
    return ((q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def main():
    keep_freed_memory()
    device = pick_device()
    precision = pick_precision(device)
    print(f"{device.type}, {precision}: milliseconds for forward and backward")
    print(f"{'sequences':>9s} {'tokens':>6s} {'written out':>12s} {'fused':>8s}")
    for sequences, tokens in ((128, 64), (128, 16), (2048, 16), (160, 64)):
        q, k, v = (torch.randn(sequences, 2, tokens, 32, device=device, requires_grad=True) for _ in range(3))
        row = []
        for attention in (written_out, F.scaled_dot_product_attention):
            def step():
                with autocast(device, precision):
                    attention(q * 1, k * 1, v * 1).float().sum().backward()
            row.append(1e3 * median_seconds(step, device))
        print(f"{sequences:9d} {tokens:6d} {row[0]:12.2f} {row[1]:8.2f}")


if __name__ == "__main__":
    main()
