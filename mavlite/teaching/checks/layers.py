"""Checks of assignment 2, convolution and inflation: causal, over frames only, and the identity at first."""

import torch
from torch import nn

from mavlite.teaching.checks.common import call, close, expect, normal, tensor_like

AXES = "x is b c f h w; a 1-D convolution wants (b h w) c f, so move frames to the end first."


def check_temporal_conv(make_temporal_conv, channels=4, kernel_size=5):
    """conv = make_temporal_conv(channels, kernel_size): a Conv1d over frames, the identity at first."""
    name = "make_temporal_conv"
    conv = call(make_temporal_conv, channels, kernel_size)
    expect(isinstance(conv, nn.Conv1d), f"{name} returned {type(conv).__name__}, not an nn.Conv1d.")
    k = conv.kernel_size[0]
    expect(k == kernel_size, f"{name}: the kernel has size {k}, not {kernel_size}. A kernel of 1 sees one "
                             "frame: nothing could ever learn to move.")
    expect(conv.groups == 1 and (conv.in_channels, conv.out_channels) == (channels, channels),
           f"{name}: the convolution should take and return all {channels} channels, in one group.")
    expect(conv.padding in ((0,), "valid"),
           f"{name}: the layer pads by itself, and on both ends. Leave padding at 0; causal_conv pads in "
           "front.")
    weight, eye = conv.weight.detach(), torch.eye(channels, dtype=conv.weight.dtype)
    taps = [i for i in range(k) if close(weight[..., i], eye)]
    expect(taps != [k // 2] or k <= 2,
           f"{name}: the identity sits in the middle tap, as nn.init.dirac_ puts it. With all padding in "
           f"front that is a delay of {k // 2} frames: identity broken at init. The newest frame meets the "
           "last tap.")
    expect(taps != [0] or k == 1,
           f"{name}: the identity sits in the first tap, which meets the oldest frame: a delay of {k - 1} "
           "frames.")
    others = weight.clone()
    others[..., -1] -= eye
    expect(close(others, torch.zeros_like(others)),
           f"{name}: identity broken at init: the last tap should be the unit matrix and all others zero.")
    expect(conv.bias is None or not conv.bias.detach().any(),
           f"{name}: identity broken at init: the bias is not zero.")
    expect(all(p.requires_grad for p in conv.parameters()),
           f"{name}: the layer is frozen, it could never learn.")


def check_causal_conv(causal_conv, shape=(2, 6, 6, 3, 2), kernel_size=5):
    """y = causal_conv(x, conv): conv over the frames of x (b c f h w), no frame seeing later ones."""
    name = "causal_conv"
    b, c, f, h, w = shape
    x = normal(*shape, seed=1)
    conv = nn.Conv1d(c, c, kernel_size).double()
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        mix = normal(c, c, seed=2)
        conv.weight[..., -1] = mix                           # no time yet: channels mix, frame by frame
    y = tensor_like(call(causal_conv, x, conv, hint=AXES), shape, name)
    expect(not (c == f and close(y, torch.einsum("fg,bcghw->bcfhw", mix, x))),
           f"{name}: frames are permuted with channels: the layer mixes frames as if they were channels. "
           f"{AXES}")
    per_frame = torch.einsum("dc,bcfhw->bdfhw", mix, x)
    early = [k for k in range(1, kernel_size) if k < f and close(y[:, :, :-k], per_frame[:, :, k:])]
    expect(not early,
           f"{name}: it sees the future: frame i of the output is made of frame i + "
           f"{early[0] if early else 0}. Pad kernel_size - 1 frames in front and none behind.")
    if not close(y, per_frame):
        changed = x.clone()
        changed[..., 0, 0] += 1
        moved = (tensor_like(call(causal_conv, changed, conv), shape, name) - y).abs().amax(dim=(0, 1, 2))
        moved[0, 0] = 0
        expect(moved.max() < 1e-9,
               f"{name}: it mixes positions (or videos): a change at one pixel shows at others. reshape does "
               f"not move axes. {AXES}")
    expect(close(y, per_frame),
           f"{name}: a kernel whose last tap alone is set should act on each frame by itself; yours does "
           f"not. {AXES}")

    with torch.no_grad():
        conv.weight.copy_(normal(c, c, kernel_size, seed=3))
        conv.bias.copy_(normal(c, seed=4))
    y = tensor_like(call(causal_conv, x, conv), shape, name)
    for j in range(1, f):
        changed = x.clone()
        changed[:, :, j] += 1
        before = tensor_like(call(causal_conv, changed, conv), shape, name)[:, :, :j]
        expect(close(before, y[:, :, :j]),
               f"{name}: it sees the future: a change of frame {j} shows in an earlier frame. Pad in front "
               "only.")
    impulse = torch.zeros(shape, dtype=torch.float64)
    impulse[:, :, 0] = x[:, :, 0]
    y = tensor_like(call(causal_conv, impulse, conv), shape, name) - conv.bias.detach().view(1, c, 1, 1, 1)
    for d in range(f):
        reached = d < kernel_size
        tap = conv.weight.detach()[..., kernel_size - 1 - d] if reached else torch.zeros_like(mix)
        expect(close(y[:, :, d], torch.einsum("dc,bchw->bdhw", tap, x[:, :, 0])),
               f"{name}: frame 0 should reach frame {d} through tap {kernel_size - 1 - d}, and does not. Is "
               "all of conv.weight used, in its own order, with zeros in front of frame 0?")


def moved(weight):
    """Whether any gradient reached it."""
    return weight.grad is not None and bool(weight.grad.any())


def check_inflate(inflate, ImageBlock, channels=8, heads=2, shape=(2, 4, 5, 3)):
    """video_block = inflate(image_block): the same function of each frame at first, then free to learn.

    shape: (b, f, h, w) of the clip it is tried on. ImageBlock(channels, heads) builds an image block.
    """
    name = "inflate"
    b, f, h, w = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        image_block = ImageBlock(channels, heads).double()
    before = {key: value.clone() for key, value in image_block.state_dict().items()}
    video_block = call(inflate, image_block)
    expect(isinstance(video_block, nn.Module), f"{name} returned {type(video_block).__name__}, not a module.")
    video_block = video_block.double()
    clip = normal(b, channels, f, h, w, seed=5)
    made = tensor_like(call(video_block, clip), clip.shape, f"{name}: the video block")
    per_frame = torch.stack([image_block(clip[:, :, i]).detach() for i in range(f)], dim=2)
    difference = (made - per_frame).abs().max().item()
    expect(difference < 1e-10,
           f"{name}: identity broken at init: the video block differs from the image block, frame by frame, "
           f"by up to {difference:.2g}. Are the image weights loaded, and are weight *and* bias of `out` "
           "zero?")
    expect(all(torch.equal(image_block.state_dict()[key], value) for key, value in before.items()),
           f"{name}: it changes the image block.")
    own = {p.data_ptr() for p in image_block.parameters()}
    expect(not any(p.data_ptr() in own for p in video_block.parameters()),
           f"{name}: both blocks share memory: training one changes the other. Copy the weights "
           "(load_state_dict does).")
    expect(all(p.requires_grad for p in video_block.parameters()),
           f"{name}: some weights are frozen. Here, as in the paper, all weights of an inflated network "
           "train on.")
    (video_block(clip) * normal(*clip.shape, seed=6)).sum().backward()
    expect(all(moved(layer.weight) for layer in (video_block.temporal, video_block.out)),
           f"{name}: the temporal layers get no gradient, so they could never learn. Only the *last* layer "
           "of a path may be zero; with zeros in `qkv` too, nothing flows.")
    # Later, when `out` has left zero. The step lets queries that began at zero move the keys.
    with torch.no_grad():
        video_block.out.weight.copy_(normal(channels, channels, seed=7))
    for _ in range(2):
        loss = (video_block(clip) * normal(*clip.shape, seed=6)).sum()
        (gradient,) = torch.autograd.grad(loss, video_block.qkv.weight)
        with torch.no_grad():
            video_block.qkv.weight -= 0.01 * gradient
    stuck = [part for part, rows in zip("qkv", gradient.chunk(3)) if not rows.any()]
    expect(not stuck or f == 1,                              # one frame alone has no scores to learn
           f"{name}: no gradient ever reaches the rows of {' and '.join(stuck)} in `qkv`: where both are "
           "zero each waits for the other, and the attention scores can never learn.")
