"""Pseudo-3D layers against explicit references, frame by frame and position by position."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from mavlite.layers import (
    ChannelNorm,
    PseudoAttention3d,
    PseudoConv3d,
    ResBlock,
    ScalarEmbedding,
    Upsample,
    attend,
    fold,
    sinusoidal,
    unfold,
)


def close(a, b, tolerance=1e-12):
    return a.shape == b.shape and (a - b).abs().max().item() <= tolerance * max(1.0, b.abs().max().item())


def clips(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture
def conv(randomise):
    return randomise(PseudoConv3d(3, 5, temporal=True).double())


@pytest.fixture
def attention(randomise):
    return randomise(PseudoAttention3d(8, head_dim=4, temporal=True, max_distance=3).double())


# --- convolution

@pytest.mark.parametrize("kernel_size, stride", [(3, 1), (3, 2), (1, 1)])
def test_convolution_is_2d_for_each_frame_then_1d_for_each_position(randomise, kernel_size, stride):
    layer = randomise(PseudoConv3d(3, 5, kernel_size, stride, temporal=True).double())
    x = clips(2, 3, 7, 6, 8)
    frames = torch.stack([layer.spatial(frame) for frame in x.unbind(2)], dim=2)
    h = frames.shape[3]
    lines = layer.temporal(rearrange(frames, "b c f h w -> (b h w) c f"))
    assert close(layer(x), rearrange(lines, "(b h w) c f -> b c f h w", b=2, h=h))


def test_convolution_starts_as_the_image_layer():
    layer = PseudoConv3d(3, 5, temporal=True).double()
    x = clips(2, 3, 7, 6, 8)
    assert close(layer(x), torch.stack([layer.spatial(frame) for frame in x.unbind(2)], dim=2), 0)


def test_convolution_reaches_one_frame_each_way(conv):
    x = clips(1, 3, 9, 4, 4)
    changed = x.clone()
    changed[:, :, 4] += 1
    moved = (conv(changed) - conv(x)).abs().amax(dim=(0, 1, 3, 4)) > 0
    assert moved.tolist() == [abs(frame - 4) <= 1 for frame in range(9)]


def test_temporal_convolution_stays_at_its_position(randomise):
    layer = randomise(PseudoConv3d(3, 5, kernel_size=1, temporal=True).double())
    x = clips(1, 3, 5, 4, 6)
    changed = x.clone()
    changed[:, :, :, 1, 2] += 1
    moved = (layer(changed) - layer(x)).abs().amax(dim=(0, 1, 2)) > 0
    assert moved.nonzero().tolist() == [[1, 2]]


def test_convolution_commutes_with_a_shift_in_time(conv):
    x = clips(1, 3, 10, 4, 4)
    assert close(conv(x.roll(1, dims=2))[:, :, 2:-1], conv(x).roll(1, dims=2)[:, :, 2:-1])


def test_convolution_without_temporal_part_or_frames_is_2d(conv):
    x = clips(4, 3, 6, 6)
    assert close(conv(x), conv.spatial(x), 0)
    conv.temporal = None
    x = clips(2, 3, 4, 6, 6)
    assert close(fold(conv(x))[0], conv.spatial(fold(x)[0]), 0)


# --- attention

@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_on_cpu_is_scaled_dot_product_attention(with_bias):
    q, k, v = clips(3, 2, 5, 4), clips(3, 2, 7, 4), clips(3, 2, 7, 4)
    bias = clips(1, 2, 5, 7) if with_bias else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert close(attend(q, k, v, bias), expected)


def head_by_head(q, k, v, q_gain, k_gain, bias=None):
    """(n, c) each -> (n, c): softmax(q k^T / sqrt(d) + bias) v for each head's share of the channels.

    q and k are normalised before, each head's d components by themselves.
    """
    d = len(q_gain)
    parts = []
    for m in range(q.shape[-1] // d):
        part = slice(m * d, (m + 1) * d)
        a, b = (x[:, part] - x[:, part].mean(dim=1, keepdim=True) for x in (q, k))
        a, b = (x / (x.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt() for x in (a, b))
        scores = (a * q_gain) @ (b * k_gain).T / math.sqrt(d)
        parts.append((scores if bias is None else scores + bias[m]).softmax(dim=-1) @ v[:, part])
    return torch.cat(parts, dim=-1)


def attention_reference(layer, x, context=None):
    b, c, f, h, w = x.shape
    y = rearrange(x, "b c f h w -> b f (h w) c").clone()
    for i in range(b):
        for j in range(f):
            q, k, v = layer.qkv(layer.norm(y[i, j])).split(c, dim=-1)
            if context is not None:
                _, context_k, context_v = layer.qkv(context[i]).split(c, dim=-1)
                k, v = torch.cat([k, context_k]), torch.cat([v, context_v])
            gains = layer.q_norm.weight, layer.k_norm.weight
            y[i, j] = y[i, j] + layer.out(head_by_head(q, k, v, *gains))
    bias = torch.zeros(layer.heads, f, f, dtype=x.dtype)
    for i in range(f):
        for j in range(f):
            distance = max(-layer.max_distance, min(layer.max_distance, j - i))
            bias[:, i, j] = layer.temporal_bias[:, layer.max_distance + distance]
    for i in range(b):
        for n in range(h * w):
            q, k, v = layer.temporal_qkv(layer.temporal_norm(y[i, :, n])).split(c, dim=-1)
            gains = layer.temporal_q_norm.weight, layer.temporal_k_norm.weight
            y[i, :, n] = y[i, :, n] + layer.temporal_out(head_by_head(q, k, v, *gains, bias))
    return rearrange(y, "b f (h w) c -> b c f h w", h=h)


def joint_reference(layer, x):
    """What joint attention adds to the result of the other two: (b c f h w) -> its shape."""
    y = rearrange(x, "b c f h w -> b (f h w) c")
    gains = layer.joint_q_norm.weight, layer.joint_k_norm.weight
    added = []
    for tokens in y:
        qkv = layer.joint_qkv(layer.joint_norm(tokens)).split(x.shape[1], dim=-1)
        added.append(layer.joint_out(head_by_head(*qkv, *gains)))
    return rearrange(torch.stack(added), "b (f h w) c -> b c f h w", f=x.shape[2], h=x.shape[3])


@torch.no_grad()
def test_joint_attention_is_over_all_positions_of_all_frames(randomise):
    layer = randomise(PseudoAttention3d(8, head_dim=4, temporal=True, joint=True).double())
    x = clips(2, 8, 5, 2, 3)
    y = attention_reference(layer, x)
    assert close(layer(x), y + joint_reference(layer, y))


@torch.no_grad()
def test_joint_attention_starts_as_the_identity_and_images_pass_it_by():
    layer = PseudoAttention3d(8, head_dim=4, temporal=True, joint=True).double()
    plain = PseudoAttention3d(8, head_dim=4, temporal=True).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = clips(2, 8, 5, 2, 3)
    assert close(layer(x), plain(x), 0)
    torch.nn.init.normal_(layer.joint_out.weight)
    assert not close(layer(x), plain(x), 1e-3)
    assert close(layer(x[:, :, 0]), plain(x[:, :, 0]), 0)


@pytest.mark.parametrize("tokens", [0, 3])
@torch.no_grad()
def test_attention_is_over_positions_then_over_frames(attention, tokens):
    x, context = clips(2, 8, 6, 2, 3), clips(2, tokens, 8) if tokens else None
    assert close(attention(x, context), attention_reference(attention, x, context))


@torch.no_grad()
def test_the_scores_do_not_grow_with_the_weights(attention):
    x = clips(2, 8, 5, 2, 3)
    y = attention(x)
    for qkv in (attention.qkv, attention.temporal_qkv):      # of queries and keys: values may have any size
        qkv.weight[:16] *= 1000
    assert close(attention(x), y, 1e-3)                      # not exactly: the norm's epsilon


def test_temporal_attention_starts_as_the_identity():
    video = PseudoAttention3d(8, head_dim=4, temporal=True).double()
    image = PseudoAttention3d(8, head_dim=4).double()
    image.load_state_dict(video.state_dict(), strict=False)
    x = clips(2, 8, 5, 2, 3)
    assert close(video(x), image(x), 0)


def test_distances_beyond_the_trained_ones_share_the_last_bias(attention):
    bias = attention.relative_bias(8)
    assert bias.shape == (attention.heads, 8, 8)
    assert torch.equal(bias[:, 0, 3:], attention.temporal_bias[:, -1:].expand(-1, 5))
    assert torch.equal(bias[:, 7, :5], attention.temporal_bias[:, :1].expand(-1, 5))
    assert torch.equal(bias[:, 2, 3], attention.temporal_bias[:, 3 + 1])


@torch.no_grad()
def test_attention_commutes_with_permuting_samples_and_positions(attention):
    x = clips(3, 8, 5, 2, 4)
    samples, positions = torch.randperm(3), torch.randperm(8)
    assert close(attention(x[samples]), attention(x)[samples])

    def moved(x):
        return x.flatten(3)[..., positions].unflatten(3, (2, 4))

    assert close(attention(moved(x)), moved(attention(x)))


@torch.no_grad()
def test_the_order_of_frames_matters_through_the_relative_bias_alone(attention):
    x, order = clips(2, 8, 5, 2, 2), torch.tensor([2, 0, 4, 1, 3])
    assert not close(attention(x[:, :, order]), attention(x)[:, :, order], 1e-3)
    attention.temporal_bias.zero_()
    assert close(attention(x[:, :, order]), attention(x)[:, :, order])


def test_channels_must_split_into_heads():
    with pytest.raises(ValueError, match="multiple of head_dim"):
        PseudoAttention3d(10, head_dim=4)


# --- memory layout

def test_fold_and_unfold_are_views_of_channels_last_clips():
    x = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    folded, f = fold(x)
    assert folded.shape == (8, 3, 5, 6) and f == 4
    assert folded.data_ptr() == x.data_ptr() and folded.is_contiguous(memory_format=torch.channels_last)
    back = unfold(folded, f)
    assert back.data_ptr() == x.data_ptr() and torch.equal(back, x)


def test_fold_and_unfold_leave_images_alone():
    x = torch.randn(2, 3, 5, 6)
    folded, f = fold(x)
    assert folded is x and f is None and unfold(folded, f) is x


def test_fold_keeps_each_clips_frames_together():
    x = torch.arange(6.0).view(2, 1, 3, 1, 1)
    assert fold(x)[0].flatten().tolist() == [0, 1, 2, 3, 4, 5]


LAYERS = {"convolution": lambda: PseudoConv3d(8, 8, temporal=True),
          "strided": lambda: PseudoConv3d(8, 8, stride=2, temporal=True),
          "attention": lambda: PseudoAttention3d(8, head_dim=4, temporal=True),
          "norm": lambda: ChannelNorm(8),
          "upsample": lambda: Upsample(8, 8, temporal=True)}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_keep_channels_last(name):
    layer = LAYERS[name]().to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 4, 6, 6).contiguous(memory_format=torch.channels_last_3d)
    y = layer(x)
    assert fold(y)[0].is_contiguous(memory_format=torch.channels_last)
    assert fold(y)[0].data_ptr() == y.data_ptr()


# --- the rest

@torch.no_grad()
def test_channel_norm_mixes_neither_positions_nor_frames(randomise):
    norm = randomise(ChannelNorm(4).double())
    x = clips(2, 4, 3, 2, 5)
    assert close(norm(x), torch.stack([norm.norm(x[:, :, i, j, k]) for i in range(3) for j in range(2)
                                       for k in range(5)], dim=2).unflatten(2, (3, 2, 5)))


def test_residual_block_starts_as_the_identity():
    x = clips(2, 8, 3, 4, 4)
    assert close(ResBlock(8, 6, temporal=True).double()(x, clips(2, 6)), x, 0)


@torch.no_grad()
def test_residual_block_scales_and_shifts_all_frames_of_a_sample_alike(randomise):
    block = randomise(ResBlock(8, 6).double())
    x, emb = clips(2, 8, 3, 4, 4), clips(2, 6)
    frames = torch.stack([block(frame, emb) for frame in x.unbind(2)], dim=2)
    assert close(block(x, emb), frames)
    assert not close(block(x, emb.flip(0)), frames, 1e-3)


@torch.no_grad()
def test_upsample_doubles_each_frame(randomise):
    layer = randomise(Upsample(4, 6).double())
    x = clips(2, 4, 3, 4, 5)
    doubled = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    assert close(layer(x), layer.conv(doubled))
    assert close(layer(x[:, :, 1]), layer(x)[:, :, 1])


def test_sinusoids_run_from_frequency_one_to_the_highest():
    value = torch.tensor([0.3, 0.7], dtype=torch.float64)
    features = sinusoidal(value, 8, max_frequency=100.0)
    assert features.shape == (2, 8)
    assert close(features[:, 0], value.sin()) and close(features[:, 3], (100 * value).sin(), 1e-10)
    assert close(features[:, 4], value.cos()) and close(features[:, 7], (100 * value).cos(), 1e-10)


def test_a_new_scalar_starts_without_effect_but_learns():
    embedding = ScalarEmbedding(6, zero=True)
    y = embedding(torch.tensor([0.1, 3.0]))
    assert y.shape == (2, 6) and (y == 0).all()
    y.sum().backward()
    assert embedding.mlp[-1].weight.grad.abs().max() > 0
