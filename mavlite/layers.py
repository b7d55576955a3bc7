"""Pseudo-3D building blocks (Make-A-Video, section 3.2) and what a diffusion U-Net needs around them.

One set of layers serves images and clips: 4-D input `b c h w` is a batch of images, 5-D input
`b c f h w` a batch of clips. A clip's frames are folded into the batch for everything spatial, so a
video network at initialisation computes for each frame exactly what its image network computes.

Memory layout: channels last throughout. Then (b f) c h w, b c f h w and b c f (h w) are three views of
the same memory, and going back and forth between space and time costs no copy.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn


def fold(x):
    """b c f h w -> (b f) c h w, and the frame count (None for images)."""
    if x.ndim == 4:
        return x, None
    return rearrange(x, "b c f h w -> (b f) c h w"), x.shape[2]


def unfold(x, num_frames):
    """The inverse of `fold`."""
    return x if num_frames is None else rearrange(x, "(b f) c h w -> b c f h w", f=num_frames)


def zero_linear(in_features, out_features):
    """A linear layer that starts without a say."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ChannelNorm(nn.Module):
    """LayerNorm over channels at each position: it mixes neither positions nor frames.

    With channels last this is one pass over contiguous memory, where GroupNorm on CPU takes several.
    """

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):                                    # b c ... -> b c ...
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class PseudoConv3d(nn.Module):
    """2-D convolution over space, then 1-D convolution over frames (eq. 2).

        Conv_P3D(h) = Conv_1D(Conv_2D(h) o T) o T

    The temporal kernel (size 3, zero padding at both ends) starts as the identity: a Dirac weight and a
    zero bias. temporal=False builds the image layer, which treats the frames of a clip as a batch.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, temporal=False):
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        self.temporal = None
        if temporal:
            self.temporal = nn.Conv1d(out_channels, out_channels, 3, padding=1)
            nn.init.dirac_(self.temporal.weight)
            nn.init.zeros_(self.temporal.bias)

    def forward(self, x):                                    # b c h w  or  b c f h w
        x, f = fold(x)
        x = self.spatial(x)                                  # (b f) d h' w'
        if self.temporal is not None and f is not None:
            h = x.shape[2]
            x = rearrange(x, "(b f) c h w -> b c f (h w)", f=f)
            # A 1-D convolution over f for every position: kernel 3 x 1 on the "image" f x (h w).
            x = F.conv2d(x, self.temporal.weight[..., None], self.temporal.bias, padding=(1, 0))
            x = rearrange(x, "b c f (h w) -> (b f) c h w", h=h)
        return unfold(x, f)


class HeadNorm(nn.LayerNorm):
    """Query-key normalisation (Henry et al. 2020, arXiv 2010.04245): before scores are taken, the queries and
    keys of each head are brought to one length, times a learned gain for each component.

    Without weight decay nothing else bounds the scores: they reached hundreds in a long training, softmax
    became a choice of one position, which passes no gradient on, and spatial attention learned no further.
    """

    def __init__(self, head_dim):
        super().__init__(head_dim, bias=False)

    def forward(self, x):                                    # ... d -> ... d
        return super().forward(x).to(x.dtype)                # autocast would widen it; values stay narrow


def attend(q, k, v, bias=None):
    """softmax(q k^T / sqrt(d) + bias) v for (..., n, d) tensors.

    Written out on CPU, where it trains faster than the fused kernel at these few tokens
    (`python -m benchmarks.attention`), fused elsewhere.
    """
    if q.device.type == "cpu":
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        return (scores if bias is None else scores + bias).softmax(dim=-1) @ v
    lead = q.shape[:-3]
    q, k, v = (x.flatten(0, -4) if x.ndim > 4 else x for x in (q, k, v))             # kernels want b m n d
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return y.unflatten(0, lead) if len(lead) > 1 else y


class PseudoAttention3d(nn.Module):
    """Self-attention over the positions of a frame, then over the frames at a position (eq. 3).

        ATTN_P3D(h) = unflatten(ATTN_1D(ATTN_2D(flatten(h)) o T) o T)

    Spatial attention also reads `context` tokens (b, n, channels) when they are given. Temporal attention
    adds a learned bias for each head and relative distance; distances beyond `max_distance` share the
    last one, so any frame count can run. Its output projection starts at zero, hence as the identity.

    joint=True adds what the paper does not have: attention over all positions of all frames. At one position
    a moving digit is seen once and gone; here each frame finds the same stroke wherever it went. It too
    starts as the identity.
    """

    def __init__(self, channels, head_dim=32, temporal=False, joint=False, max_distance=15):
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"channels ({channels}) must be a multiple of head_dim ({head_dim})")
        self.heads, self.max_distance = channels // head_dim, max_distance
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.q_norm, self.k_norm = HeadNorm(head_dim), HeadNorm(head_dim)
        self.out = nn.Linear(channels, channels)
        self.temporal_qkv = None
        if temporal:
            self.temporal_norm = nn.LayerNorm(channels)
            self.temporal_qkv = nn.Linear(channels, 3 * channels, bias=False)
            self.temporal_q_norm, self.temporal_k_norm = HeadNorm(head_dim), HeadNorm(head_dim)
            self.temporal_bias = nn.Parameter(torch.zeros(self.heads, 2 * max_distance + 1))
            self.temporal_out = zero_linear(channels, channels)
        self.joint_qkv = None
        if joint:
            self.joint_norm = nn.LayerNorm(channels)
            self.joint_qkv = nn.Linear(channels, 3 * channels, bias=False)
            self.joint_q_norm, self.joint_k_norm = HeadNorm(head_dim), HeadNorm(head_dim)
            self.joint_out = zero_linear(channels, channels)

    def forward(self, x, context=None):                      # b c h w  or  b c f h w
        x, f = fold(x)
        h = x.shape[2]
        x = rearrange(x, "b c h w -> b (h w) c")
        x = x + self.over_positions(x, context, f or 1)
        if self.temporal_qkv is not None and f is not None:
            x = x + self.over_frames(x, f)
        if self.joint_qkv is not None and f is not None:
            x = x + self.over_clip(x, f)
        return unfold(rearrange(x, "b (h w) c -> b c h w", h=h), f)

    def over_positions(self, x, context, f):                 # (b f) n c
        q, k, v = rearrange(self.qkv(self.norm(x)), "b n (three m d) -> three b m n d", three=3, m=self.heads)
        if context is not None:
            pair = self.qkv(context)[..., x.shape[-1]:]      # keys and values: nothing asks from the context
            pair = repeat(pair, "b n (two m d) -> two (b f) m n d", two=2, m=self.heads, f=f)
            k, v = torch.cat([k, pair[0]], dim=2), torch.cat([v, pair[1]], dim=2)
        return self.out(rearrange(attend(self.q_norm(q), self.k_norm(k), v), "b m n d -> b n (m d)"))

    def over_frames(self, x, f):                             # (b f) n c
        qkv = self.temporal_qkv(self.temporal_norm(x))
        q, k, v = rearrange(qkv, "(b f) n (three m d) -> three b n m f d", three=3, m=self.heads, f=f)
        q, k = self.temporal_q_norm(q), self.temporal_k_norm(k)
        y = attend(q, k, v, self.relative_bias(f).to(v.dtype))                       # b n m f d
        return self.temporal_out(rearrange(y, "b n m f d -> (b f) n (m d)"))

    def over_clip(self, x, f):                               # (b f) n c
        qkv = self.joint_qkv(self.joint_norm(x))
        q, k, v = rearrange(qkv, "(b f) n (three m d) -> three b m (f n) d", three=3, m=self.heads, f=f)
        # Fused on CPU too: f n is a thousand tokens, whose scores do not fit in its caches.
        y = F.scaled_dot_product_attention(self.joint_q_norm(q), self.joint_k_norm(k), v)
        return self.joint_out(rearrange(y, "b m (f n) d -> (b f) n (m d)", f=f))

    def relative_bias(self, f):
        """(heads, f, f): entry i, j is the bias of distance j - i."""
        frames = torch.arange(f, device=self.temporal_bias.device)
        distance = (frames - frames[:, None]).clamp(-self.max_distance, self.max_distance)
        return self.temporal_bias[:, distance + self.max_distance]


class ResBlock(nn.Module):
    """Two pseudo-3D convolutions; the embedding scales and shifts in between (b, emb_dim)."""

    def __init__(self, channels, emb_dim, temporal=False):
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1 = PseudoConv3d(channels, channels, temporal=temporal)
        self.conv2 = PseudoConv3d(channels, channels, temporal=temporal)
        self.scale_shift = nn.Linear(emb_dim, 2 * channels)
        nn.init.zeros_(self.conv2.spatial.weight)            # a block starts as the identity
        nn.init.zeros_(self.conv2.spatial.bias)

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        film = self.scale_shift(emb)
        scale, shift = film.reshape(*film.shape, *(1,) * (x.ndim - 2)).chunk(2, dim=1)   # b c 1 1 (1)
        return x + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class Upsample(nn.Module):
    """Nearest-neighbour doubling of each frame, then a convolution."""

    def __init__(self, in_channels, out_channels, temporal=False):
        super().__init__()
        self.conv = PseudoConv3d(in_channels, out_channels, temporal=temporal)

    def forward(self, x):
        x, f = fold(x)
        return self.conv(unfold(F.interpolate(x, scale_factor=2.0, mode="nearest"), f))


def sinusoidal(value, dim, max_frequency=1000.0):
    """(b,) numbers of order one -> (b, dim) sines and cosines, log-spaced frequencies 1 ... max_frequency."""
    exponents = torch.linspace(0, math.log(max_frequency), dim // 2, device=value.device, dtype=value.dtype)
    angles = value[:, None] * exponents.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ScalarEmbedding(nn.Module):
    """Embeds one number a sample (diffusion time, log fps, ...): sinusoids, then a small MLP."""

    def __init__(self, dim, features=64, max_frequency=1000.0, zero=False):
        super().__init__()
        self.features, self.max_frequency = features, max_frequency
        last = zero_linear if zero else nn.Linear            # a new condition starts without a say
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), last(dim, dim))

    def forward(self, value):                                # (b,) -> (b, dim)
        features = sinusoidal(value, self.features, self.max_frequency)
        return self.mlp(features.to(self.mlp[0].weight.dtype))
