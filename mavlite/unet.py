"""The U-Net of the decoder, the interpolation network and the super-resolution networks, and `inflate`.

The same class takes images (b c h w) and clips (b c f h w). `temporal=False` is the image network;
`inflate` turns a trained one into a video network that starts as exactly the same function of each frame.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mavlite.config import UNetConfig
from mavlite.layers import (
    ChannelNorm,
    PseudoAttention3d,
    PseudoConv3d,
    ResBlock,
    ScalarEmbedding,
    Upsample,
    fold,
    unfold,
    zero_linear,
)


class UNet(nn.Module):
    """Predicts noise, clean data or velocity for a noisy image or clip.

    config: widths and depths (`UNetConfig`). in_channels: of the noisy input and the output.
    concat_channels: further input channels at the same resolution (masked frames and mask, or the
    upsampled low resolution). embed_dim: length of the image embedding, 0 for none. scalars: names among
    fps, frame_skip, noise_level that are embedded and added to the time embedding. learned_variance
    doubles the output channels. max_distance: frames apart that training sees, beyond which temporal
    attention knows no farther. Frame sides must be multiples of `patch_size * 2**(levels - 1)`.
    """

    def __init__(self, config: UNetConfig, *, in_channels=1, concat_channels=0, embed_dim=0, scalars=(),
                 temporal=False, learned_variance=False, max_distance=15):
        super().__init__()
        c, p, emb = list(config.channels), config.patch_size, config.emb_dim
        self.patch_size, self.multiple = p, p * 2 ** (len(c) - 1)
        self.in_channels, self.concat_channels, self.embed_dim = in_channels, concat_channels, embed_dim
        out_channels = in_channels * (2 if learned_variance else 1)

        over_frames = temporal and "convolution" in config.temporal_layers
        attend_frames = temporal and "attention" in config.temporal_layers

        def conv(*args, **kwargs):
            return PseudoConv3d(*args, temporal=over_frames, **kwargs)

        extra = config.extra_blocks or [0] * len(c)

        def blocks(level):
            return nn.ModuleList(ResBlock(c[level], emb, over_frames)
                                 for _ in range(config.blocks + extra[level]))

        def attention(level, count=1):
            if level not in config.attention:
                return nn.ModuleList()
            last = count + extra[level] - 1
            joint = {last} if attend_frames and level in config.joint_attention else {}
            layers = nn.ModuleList(
                PseudoAttention3d(c[level], config.head_dim, attend_frames, i in joint, max_distance)
                for i in range(last + 1))
            for layer in layers[count:]:                     # what a shallower network does not have
                nn.init.zeros_(layer.out.weight)
                nn.init.zeros_(layer.out.bias)
            return layers

        self.time_embedding = ScalarEmbedding(emb)
        self.scalar_embeddings = nn.ModuleDict(
            {name: ScalarEmbedding(emb, max_frequency=30.0, zero=True) for name in scalars})
        self.embed = self.to_context = None
        if embed_dim:
            self.null_embed = nn.Parameter(torch.zeros(embed_dim))
            # Initialised so that components of order one come out as components of order one. Torch's own
            # initialisation makes them a fifth of that, and the time embedding drowns them for long.
            self.embed = nn.Sequential(nn.Linear(embed_dim, emb), nn.SiLU(), nn.Linear(emb, emb))
            nn.init.normal_(self.embed[0].weight, std=embed_dim ** -0.5)
            nn.init.normal_(self.embed[2].weight, std=(0.36 * emb) ** -0.5)      # 0.36 = E[silu(z)^2]
            # unCLIP-derived (arXiv 2204.06125, 2.1): the embedding also becomes a few tokens to attend to.
            self.context_tokens = config.context_tokens
            self.to_context = nn.ModuleDict({str(width): nn.Linear(embed_dim, config.context_tokens * width)
                                             for width in sorted({c[level] for level in config.attention})})

        self.conv_in = conv((in_channels + concat_channels) * p * p, c[0])
        self.down, self.down_attention, self.downsample = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(len(c) - 1):
            self.down.append(blocks(level))
            self.down_attention.append(attention(level))
            self.downsample.append(conv(c[level], c[level + 1], stride=2))
        # After each block where the frame is smallest: there attention costs least, and what is where in
        # which frame has to be agreed on in several rounds.
        self.middle = blocks(len(c) - 1)
        self.middle_attention = attention(len(c) - 1, count=config.blocks)
        self.middle_out = blocks(len(c) - 1)
        self.middle_out_attention = attention(len(c) - 1, count=config.blocks)
        self.upsample, self.merge = nn.ModuleList(), nn.ModuleList()
        self.up, self.up_attention = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(c) - 1)):
            self.upsample.append(Upsample(c[level + 1], c[level], over_frames))
            self.merge.append(conv(2 * c[level], c[level], kernel_size=1))
            self.up.append(blocks(level))
            self.up_attention.append(attention(level))
        self.norm_out = ChannelNorm(c[0])
        self.conv_out = conv(c[0], out_channels * p * p)
        nn.init.zeros_(self.conv_out.spatial.weight)
        nn.init.zeros_(self.conv_out.spatial.bias)
        # A direct way from input to output, for each pixel by itself, with gains that depend on the time:
        # of v = (alpha x_t - x_0) / sigma the first part needs no network, and for super-resolution the
        # enlarged input is most of x_0.
        self.input_gain = zero_linear(emb, 2 * in_channels)
        self.concat_gain = zero_linear(emb, in_channels * concat_channels) if concat_channels else None
        if config.temporal_init == "random":                 # an ablation: torch's own initialisation
            for module in self.modules():
                if isinstance(module, PseudoConv3d) and module.temporal is not None:
                    module.temporal.reset_parameters()
                if isinstance(module, PseudoAttention3d) and module.temporal_qkv is not None:
                    module.temporal_out.reset_parameters()

    def forward(self, x, t, *, image_embeds=None, drop=None, concat=None, **scalars):
        """x (b c h w) or (b c f h w) in [-1, 1] plus noise; t (b,) in [0, 1] -> prediction of x's shape.

        image_embeds (b, embed_dim); drop: bool (b,), True replaces the embedding by the learned null one
        (and nothing else: scalars and concatenated input stay). concat: x's shape but for its channels.
        scalars: one (b,) tensor for each name the network was built with.
        """
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise ValueError(f"frame size {x.shape[-2]}x{x.shape[-1]} is not a multiple of {self.multiple}")
        if scalars.keys() != set(self.scalar_embeddings):
            raise ValueError(f"conditions {sorted(scalars)} given, {sorted(self.scalar_embeddings)} expected")
        emb = self.time_embedding(t)                                                 # b emb
        for name, embedding in self.scalar_embeddings.items():
            emb = emb + embedding(scalars[name])
        context = {}
        if self.embed is not None:
            if drop is not None:
                null_embed = self.null_embed.to(image_embeds.dtype)
                image_embeds = torch.where(drop[:, None], null_embed, image_embeds)
            emb = emb + self.embed(image_embeds)
            context = {int(width): project(image_embeds).unflatten(1, (self.context_tokens, -1))
                       for width, project in self.to_context.items()}                # b n c
        emb = F.silu(emb)

        direct = self._direct(x, emb, concat)
        if concat is not None:
            x = torch.cat([x, concat.to(x.dtype)], dim=1)
        x = self.conv_in(self._to_patches(x))
        skips = []
        for blocks, attention, downsample in zip(self.down, self.down_attention, self.downsample):
            x = self._level(x, emb, context, blocks, attention)
            skips.append(x)
            x = downsample(x)
        x = self._level(x, emb, context, self.middle, self.middle_attention)
        x = self._level(x, emb, context, self.middle_out, self.middle_out_attention)
        for upsample, merge, blocks, attention in zip(self.upsample, self.merge, self.up, self.up_attention):
            x = merge(torch.cat([upsample(x), skips.pop()], dim=1))
            x = self._level(x, emb, context, blocks, attention)
        x = self._from_patches(self.conv_out(F.silu(self.norm_out(x))))
        mean, *variance = x.split(self.in_channels, dim=1)
        return torch.cat([mean + direct, *variance], dim=1)

    def _direct(self, x, emb, concat):
        """gain x + offset, and a mixture of the concatenated channels: x's shape."""
        ones = (1,) * (x.ndim - 2)
        gain, offset = self.input_gain(emb).to(x.dtype).chunk(2, dim=1)
        direct = gain.reshape(*gain.shape, *ones) * x + offset.reshape(*gain.shape, *ones)
        if concat is None:
            return direct
        gains = self.concat_gain(emb).to(x.dtype).unflatten(1, (self.in_channels, -1))
        return direct + torch.einsum("b o i, b i ... -> b o ...", gains, concat.to(x.dtype))

    def _level(self, x, emb, context, blocks, attention):
        first = len(blocks) - len(attention)                 # none, the last few or all attend
        for i, block in enumerate(blocks):
            x = block(x, emb)
            if i >= first:
                x = attention[i - first](x, context.get(x.shape[1]))
        return x

    def _to_patches(self, x):
        """Space to depth, channels last: b c f (h p) (w p) -> b (c p p) f h w."""
        x, f = fold(x)
        x = rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=self.patch_size, q=self.patch_size)
        return unfold(x.contiguous(memory_format=torch.channels_last), f)

    def _from_patches(self, x):
        x, f = fold(x)
        p = self.patch_size
        return unfold(rearrange(x, "b (c p q) h w -> b c (h p) (w q)", p=p, q=p), f)


@torch.no_grad()
def inflate(source, target):
    """Copy a trained network's weights into one with more abilities, as the same function (section 3.2).

    What only `target` has (temporal layers, extra blocks, new scalars, further input channels) starts without
    effect: identity, or zero. Works for image -> video (D -> D^t, SR_l -> SR_l^t) and for new conditions
    (D^t -> interpolation). Raises ValueError when source has weights that target cannot hold.
    """
    new = target.state_dict()
    for name, weight in source.state_dict().items():
        if name not in new:
            raise ValueError(f"cannot inflate: the target network has no {name}")
        if name == "conv_in.spatial.weight" and new[name].shape[1] > weight.shape[1]:
            new[name].zero_()                                # weights of new input channels start at zero
            new[name][:, :weight.shape[1]] = weight
        elif new[name].shape != weight.shape:
            raise ValueError(f"cannot inflate: {name} is {tuple(weight.shape)}, not {tuple(new[name].shape)}")
        else:
            new[name].copy_(weight)
    target.load_state_dict(new)
    return target
