"""Checks of assignment 2, attention: linear distance bias, causal, scaled, head by head."""

import math

import torch

from mavlite.teaching.checks.common import call, close, expect, normal, tensor_like


def check_distance_bias(distance_bias, slopes=(0.5, 0.125), num_frames=5):
    """bias = distance_bias(slopes, num_frames): (heads, f, f), -slope * age of key j for query i."""
    name, f = "distance_bias", num_frames
    slopes = torch.tensor(slopes, dtype=torch.float64)
    bias = tensor_like(call(distance_bias, slopes, f), (len(slopes), f, f), name)
    expect(not bias.isnan().any(), f"{name}: there is nan in it; 0 * infinity is one way to get it.")
    future = torch.ones(f, f).triu(1).bool()
    expect(not (bias[:, future.T] == -math.inf).all() or (bias[:, future] == -math.inf).any(),
           f"{name}: rows and columns are exchanged: entry i, j is for query i and key j, and j > i is the "
           "future.")
    expect((bias[:, future] == -math.inf).all(),
           f"{name}: it sees the future: entries with j > i should be -infinity, so that softmax gives them "
           "0.")
    diagonal = bias.diagonal(dim1=1, dim2=2)
    expect(not (diagonal == -math.inf).any(),
           f"{name}: a frame may not look at itself. Then frame 0 sees nothing at all and softmax gives nan.")
    expect(not diagonal.any(), f"{name}: the diagonal should be 0: a frame is no distance away from itself.")
    past = bias[:, 1:, 0]                                    # (heads, f - 1), ages 1 ... f - 1
    age = torch.arange(1, f, dtype=torch.float64)
    expect(not (past > 0).all(),
           f"{name}: the sign is wrong: frames longer ago should score lower, so the bias is negative.")
    expect(len(slopes) == 1 or not close(past, (-slopes[0] * age).expand(len(slopes), -1)),
           f"{name}: all heads have the same slope; head h has slopes[h].")
    wanted = -slopes[:, None, None] * (torch.arange(f)[:, None] - torch.arange(f)).double()
    expect(close(bias[:, ~future], wanted[:, ~future]),
           f"{name}: entry i, j should be -slope * (i - j) for j <= i. Entry 1, 0 of head 0 is "
           f"{bias[0, 1, 0]:g}, it should be {-slopes[0]:g}.")


def last_over_all(temporal_attention, q, k, slopes):
    """log(weight of the last frame / weight of frame j) as the last frame sees them, (b, c, f, h, w)."""
    weights = []
    for j in range(q.shape[2]):
        v = torch.zeros_like(q)
        v[:, :, j] = 1                                       # the output is the weight of frame j
        y = tensor_like(call(temporal_attention, q, k, v, slopes), q.shape, "temporal_attention")
        weights.append(y[:, :, -1].double())
    return torch.stack([torch.log(weights[-1] / weight) for weight in weights], dim=2)


def check_temporal_attention(temporal_attention, shape=(2, 8, 5, 3, 2), heads=2):
    """y = temporal_attention(q, k, v, slopes), all b c f h w; channels are (heads d), slopes (heads,)."""
    name = "temporal_attention"
    b, c, f, h, w = shape
    d, none = c // heads, torch.zeros(heads, dtype=torch.float64)
    hint = "q, k, v are b (heads d) f h w; attention wants b heads (h w) f d."
    q, k, v = (normal(*shape, seed=seed) for seed in (1, 2, 3))

    # Nothing to choose by: every frame is the mean of what it may see.
    zero = torch.zeros_like(q)
    y = tensor_like(call(temporal_attention, zero, zero, v, none, hint=hint), shape, name)
    expect(y.isfinite().all(), f"{name}: there is nan in it. Does every frame see at least itself?")
    running = v.cumsum(dim=2) / torch.arange(1, f + 1).view(1, 1, f, 1, 1)
    expect(not close(y, v.mean(dim=2, keepdim=True).expand(shape)),
           f"{name}: it sees the future: every frame is the mean of all. Is distance_bias added to the "
           "scores?")
    expect(not close(y.mean(dim=2), v.mean(dim=(3, 4), keepdim=True).mean(dim=2).expand(b, c, h, w)),
           f"{name}: it attends over positions, not over frames. {hint}")
    expect(close(y, running),
           f"{name}: with q = k = 0 and no slopes, frame i should be the mean of frames 0 ... i of v, "
           f"channel by channel and position by position. {hint} Do the weights add up to 1, and over the "
           "keys?")

    # Two frames: one weight tells the score.
    q2, k2 = q[:, :, :2], k[:, :, :2]
    difference = q2[:, :, 1] * (k2[:, :, 1] - k2[:, :, 0])                           # b c h w
    per_head = difference.view(b, heads, d, h, w).sum(dim=2).repeat_interleave(d, dim=1)
    found = last_over_all(temporal_attention, q2, k2, none)[:, :, 0]
    scale = (found / per_head).median().item()
    if not close(found, scale * per_head, 1e-4):             # a logarithm: rounding counts for more
        other = difference.view(b, d, heads, h, w).sum(dim=1).repeat(1, d, 1, 1)
        ratio = (found / other).median().item()
        expect(not close(found, ratio * other, 1e-4),
               f"{name}: channels are split as (d heads); they are (heads d): head 0 owns the first d "
               "channels.")
        raise AssertionError(f"{name}: the scores are not q . k summed over the {d} channels of each head. "
                             f"{hint}")
    for value, reason in ((1, "the scale 1/√d is missing"), (c**-0.5, "the scale is 1/√channels"),
                          (1 / d, "the scale is 1/d"), (d**0.5, "the scores are multiplied by √d")):
        expect(abs(scale - value) > 1e-4 * value or abs(value - d**-0.5) < 1e-4,
               f"{name}: {reason}: scores are q . k / √d, d = {d} the channels of one head.")
    expect(abs(scale - d**-0.5) < 1e-4,
           f"{name}: scores are multiplied by {scale:.4g}, not by 1/√d = {d**-0.5:.4g}.")

    slopes = torch.linspace(0.25, 1.5, heads, dtype=torch.float64)
    found = last_over_all(temporal_attention, q2 * 0, k2, slopes)[:, :, 0]
    wanted = slopes.repeat_interleave(d).view(1, c, 1, 1).expand_as(found)
    expect(found.abs().max() > 1e-9,
           f"{name}: the slopes have no effect. Is distance_bias added *before* softmax?")
    expect(not close(found, wanted * d**-0.5, 1e-4) or d == 1,
           f"{name}: the bias is scaled by 1/√d with the scores: add it after the scaling.")
    expect(close(found, wanted, 1e-4),
           f"{name}: a frame's distance should cost slopes[head]; it does not. {hint}")

    # All frames, as the last one sees them: distances first, then scores too.
    cost = slopes.repeat_interleave(d).view(1, c, 1, 1, 1)
    wanted = (cost * torch.arange(f - 1, -1, -1).view(1, 1, f, 1, 1)).expand(shape)  # slope * (i - j)
    found = last_over_all(temporal_attention, zero, k, slopes)
    expect(f < 3 or not close(found[:, :, :-1], cost.expand(shape)[:, :, :-1], 1e-4),
           f"{name}: every past frame costs slopes[head], however long ago it is; frame j should cost query "
           "frame i slopes[head] * (i - j).")
    at = torch.unravel_index((found - wanted).abs().argmax(), shape)                 # where it is worst
    expect(close(found, wanted, 1e-4),
           f"{name}: key frame {at[2]} should cost query frame {f - 1} in head {at[1] // d} slopes[head] * "
           f"{f - 1 - at[2]} = {wanted[at]:.4g} of its score; it costs {found[at]:.4g}.")
    scores = (q[:, :, -1:] * (k[:, :, -1:] - k)).view(b, heads, d, f, h, w).sum(dim=2)
    wanted = wanted + scores.repeat_interleave(d, dim=1) * d**-0.5
    expect(close(last_over_all(temporal_attention, q, k, slopes), wanted, 1e-4),
           f"{name}: two frames get the right weights, {f} frames do not: the score of query frame i and key "
           "frame j should be q_i . k_j / √d + bias[i, j], each with its own q, k and bias.")

    y = tensor_like(call(temporal_attention, q, k, v, slopes), shape, name)
    for n in range(1, f):
        start = [x[:, :, :n].clone() for x in (q, k, v)]
        made = tensor_like(call(temporal_attention, *start, slopes, hint=hint), (b, c, n, h, w), name)
        expect(close(made, y[:, :, :n]),
               f"{name}: the first {n} frames of a clip come out in another way when {f - n} more follow: "
               "frames to come have an influence. Does each query frame i use its own q_i?")
    turned = call(temporal_attention, *(x.flip(0, 3, 4) for x in (q, k, v)), slopes)
    expect(close(tensor_like(turned, shape, name).flip(0, 3, 4), y),
           f"{name}: positions or videos see each other: turning the pictures changes more than their order. "
           f"{hint}")
