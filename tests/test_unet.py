"""The U-Net and `inflate`: at first an inflated network is exactly its image network on every frame."""

import dataclasses
import math

import pytest
import torch
from einops import rearrange

from mavlite.clip import Clip
from mavlite.config import UNetConfig
from mavlite.layers import PseudoAttention3d, PseudoConv3d, ResBlock, fold
from mavlite.stages import build_network, load_clip, load_network
from mavlite.starting import initial_network
from mavlite.unet import UNet, inflate

CONFIG = UNetConfig(channels=[16, 32], blocks=1, attention=[1], head_dim=16, patch_size=2, context_tokens=2,
                    emb_dim=16)
EMBED, SIZE = 16, 8


def network(config=CONFIG, **kwargs):
    return UNet(config, embed_dim=EMBED, **kwargs)


def clip(frames, dtype=torch.float64, b=2):
    """A noisy clip (b 1 f h w) and its conditions."""
    conditions = {"t": torch.rand(b, dtype=dtype), "image_embeds": torch.randn(b, EMBED, dtype=dtype),
                  "drop": torch.arange(b) % 2 == 1}
    return torch.randn(b, 1, frames, SIZE, SIZE, dtype=dtype), conditions


def numbers(dtype=torch.float64, b=2):
    return 3 * torch.randn(b, dtype=dtype)


@torch.no_grad()
def frame_by_frame(image, x, **conditions):
    """What an image network computes for a clip's frames, folded into the batch."""
    f = x.shape[2]
    repeated = {name: value.repeat_interleave(f, dim=0) for name, value in conditions.items()}
    y = image(rearrange(x, "b c f h w -> (b f) c h w"), **repeated)
    return rearrange(y, "(b f) c h w -> b c f h w", f=f)


def error(actual, expected):
    """The largest difference, in units of the largest output."""
    assert actual.shape == expected.shape and expected.abs().max() > 1e-3
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def image(randomise):
    return randomise(network())


@pytest.fixture
def video(image):
    return inflate(image, network(temporal=True, scalars=("fps",))).double()


# --- inflation

@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("frames", [1, 8, 16, 76])
@torch.no_grad()
def test_an_inflated_network_is_its_image_network_on_every_frame(image, frames, dtype, tolerance):
    video = inflate(image, network(temporal=True, scalars=("fps",))).to(dtype)
    x, conditions = clip(frames, dtype)
    expected = frame_by_frame(image.to(dtype), x, **conditions)
    assert error(video(x, fps=numbers(dtype), **conditions), expected) <= tolerance


@torch.no_grad()
def test_an_inflated_network_still_takes_images(image, video):
    x, conditions = clip(3)
    expected = image.double()(x[:, :, 0], **conditions)
    assert error(video(x[:, :, 0], fps=numbers(), **conditions), expected) <= 1e-10


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@torch.no_grad()
def test_new_input_channels_and_scalars_start_without_a_say(image, randomise, dtype, tolerance):
    video = randomise(inflate(image, network(temporal=True, scalars=("fps",))))
    wider = inflate(video, network(temporal=True, scalars=("fps", "frame_skip"), concat_channels=2)).to(dtype)
    x, conditions = clip(8, dtype)
    conditions["fps"] = numbers(dtype)
    actual = wider(x, concat=5 * torch.randn(2, 2, 8, SIZE, SIZE, dtype=dtype), frame_skip=numbers(dtype),
                   **conditions)
    assert error(actual, video.to(dtype)(x, **conditions)) <= tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("source", ["image", "video"])
@pytest.mark.parametrize("more", [{"extra_blocks": [1, 2]}, {"joint_attention": [1]}])
@torch.no_grad()
def test_extra_blocks_and_attention_start_without_effect(image, randomise, more, source, dtype, tolerance):
    deeper = network(dataclasses.replace(CONFIG, **more), temporal=True, scalars=("fps",))
    (x, conditions), fps = clip(8, dtype), numbers(dtype)
    if source == "image":
        expected = frame_by_frame(image.to(dtype), x, **conditions)
        inflate(image.float(), deeper)
    else:
        shallow = randomise(inflate(image, network(temporal=True, scalars=("fps",))))
        inflate(shallow, deeper)
        expected = shallow.to(dtype)(x, fps=fps, **conditions)
    assert error(deeper.to(dtype)(x, fps=fps, **conditions), expected) <= tolerance


def test_extra_blocks_learn(image):
    deeper = inflate(image, network(dataclasses.replace(CONFIG, extra_blocks=[1, 2]), temporal=True)).double()
    before = {name: p.detach().clone() for name, p in deeper.named_parameters()}
    x, conditions = clip(4)
    take_a_step(deeper, x, **conditions)
    moved = {name for name, p in deeper.named_parameters() if not torch.equal(p, before[name])}
    assert {"down.0.1.conv2.spatial.weight", "middle.2.conv2.spatial.weight",
            "middle_attention.2.out.weight"} <= moved


def test_joint_attention_takes_what_it_sees_of_a_frame_anywhere_in_another(image, randomise):
    config = dataclasses.replace(CONFIG, joint_attention=[1], temporal_layers=["attention"], attention=[1])
    net = randomise(network(config, temporal=True)).double()
    for module in net.modules():
        if isinstance(module, PseudoAttention3d):            # attention at one place alone is not what mixes
            torch.nn.init.zeros_(module.temporal_out.weight)
    x, conditions = clip(6)
    before = net(x, **conditions)
    x[:, :, 0, 0, 0] += 1
    change = (net(x, **conditions) - before).abs()
    assert change[:, :, 5].amin() > 0
    for module in net.modules():
        if isinstance(module, PseudoAttention3d) and module.joint_qkv is not None:
            torch.nn.init.zeros_(module.joint_out.weight)
    before = net(x, **conditions)
    x[:, :, 0, 0, 0] += 1
    change = (net(x, **conditions) - before).abs()
    assert change[:, :, 0].amax() > 0 and change[:, :, 1:].amax() == 0


def test_joint_attention_is_the_last_of_its_level_each_way():
    config = dataclasses.replace(CONFIG, channels=[16, 16, 32], blocks=2, attention=[1, 2],
                                 extra_blocks=[0, 1, 0], joint_attention=[1, 2])
    net = network(config, temporal=True)
    attention = (*net.down_attention, net.middle_attention, net.middle_out_attention, *net.up_attention)
    assert [[layer.joint_qkv is not None for layer in layers] for layers in attention] == [
        [], [False, True], [False, True], [False, True], [False, True], []]
    assert all(m.joint_qkv is None for m in network(config).modules() if isinstance(m, PseudoAttention3d))


@torch.no_grad()
def test_an_image_network_inflates_straight_into_the_interpolation_network(image):
    wider = inflate(image, network(temporal=True, scalars=("fps", "frame_skip"), concat_channels=2)).double()
    x, conditions = clip(8)
    actual = wider(x, concat=5 * torch.randn(2, 2, 8, SIZE, SIZE, dtype=torch.float64), fps=numbers(),
                   frame_skip=numbers(), **conditions)
    assert error(actual, frame_by_frame(image.double(), x, **conditions)) <= 1e-10


@torch.no_grad()
def test_a_network_with_learned_variance_inflates(randomise):
    image = randomise(network(learned_variance=True))
    video = inflate(image, network(temporal=True, learned_variance=True)).double()
    x, conditions = clip(4)
    actual = video(x, **conditions)
    assert actual.shape[1] == 2
    assert error(actual, frame_by_frame(image.double(), x, **conditions)) <= 1e-10


def test_inflation_leaves_the_source_as_it_was(image):
    before = {name: value.clone() for name, value in image.state_dict().items()}
    video = inflate(image, network(temporal=True))
    with torch.no_grad():
        for p in video.parameters():
            p.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in image.state_dict().items())


@pytest.mark.parametrize("target", [
    {"config": dataclasses.replace(CONFIG, channels=[16, 48])},
    {"config": dataclasses.replace(CONFIG, blocks=2, attention=[])},
    {"learned_variance": True},
    {"in_channels": 3},
], ids=["wider", "no attention", "learned variance", "colour"])
def test_inflation_refuses_what_does_not_fit(image, target):
    with pytest.raises(ValueError, match="cannot inflate"):
        inflate(image, network(**{"temporal": True, **target}))


@pytest.mark.parametrize("stage", ["decoder_t", "sr_l_t"])
@torch.no_grad()
def test_a_trained_image_stage_inflates_exactly(smoke_weights, smoke_config, stage):
    config = smoke_config(stage)
    c = load_clip(smoke_weights, config)
    video, origin = initial_network(config, c, smoke_weights, None)
    source = {"decoder_t": "decoder", "sr_l_t": "sr_l"}[stage]
    image = load_network(smoke_weights, source, c)[0]
    assert source in origin and "inflated" in origin
    x, own = torch.randn(2, 1, 8, 24, 24), {}
    conditions = {"t": torch.rand(2)}
    if stage == "decoder_t":
        conditions["image_embeds"], own["fps"] = torch.randn(2, c.embed_dim), torch.randn(2)
    else:
        conditions["concat"], conditions["noise_level"] = torch.randn_like(x), torch.rand(2)
    folded = {name: fold(value)[0] if value.ndim == 5 else value.repeat_interleave(8, dim=0)
              for name, value in conditions.items()}
    expected = rearrange(image(fold(x)[0], **folded), "(b f) c h w -> b c f h w", f=8)
    assert error(video(x, **conditions, **own), expected) <= 1e-5


@torch.no_grad()
def test_the_trained_video_decoder_becomes_the_interpolation_network(smoke_weights, smoke_config):
    config = smoke_config("interpolation")
    c = load_clip(smoke_weights, config)
    wider, _ = initial_network(config, c, smoke_weights, None)
    video = load_network(smoke_weights, "decoder_t", c)[0]
    x, fps = torch.randn(2, 1, 8, 16, 16), torch.randn(2)
    conditions = {"t": torch.rand(2), "image_embeds": torch.randn(2, c.embed_dim), "fps": fps}
    actual = wider(x, concat=torch.randn(2, 2, 8, 16, 16), frame_skip=torch.randn(2), **conditions)
    assert error(actual, video(x, **conditions)) <= 1e-5


@pytest.mark.parametrize("channels, inputs", [(1, 1 + 2), (3, 3 + 4)])
def test_interpolation_reads_the_clip_the_masked_frames_and_the_mask(smoke_config, channels, inputs):
    config = smoke_config("interpolation", [f"data.channels={channels}"])
    built = build_network(config, Clip(config.clip))
    assert built.conv_in.spatial.in_channels == inputs * config.model.patch_size**2


# --- time

@torch.no_grad()
def influence(network, x, sample, frame, **conditions):
    """How far each output frame moves when one input frame changes: (b, f)."""
    changed = x.clone()
    changed[sample, :, frame] += 1
    return (network(changed, **conditions) - network(x, **conditions)).abs().amax(dim=(1, 3, 4))


def take_a_step(network, x, **conditions):
    """One optimiser step on a loss that reads all frames but the first."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0)
    network(x, **conditions)[:, :, 1:].square().mean().backward()
    optimizer.step()


def test_before_training_no_frame_touches_another(video):
    x, conditions = clip(6)
    moved = influence(video, x, 0, 2, fps=numbers(), **conditions) > 1e-12
    assert moved.tolist() == [[frame == 2 for frame in range(6)], [False] * 6]


def test_one_step_makes_time_mix_but_not_samples(video):
    x, conditions = clip(6)
    conditions["fps"] = numbers()
    take_a_step(video, x, **conditions)
    moved = influence(video, x, 0, 0, **conditions)
    assert (moved[0] > 1e-6).all() and (moved[1] == 0).all()


def test_time_mixes_through_the_convolutions_alone(randomise):
    config = dataclasses.replace(CONFIG, attention=[])
    video = inflate(randomise(network(config)), network(config, temporal=True)).double()
    x, conditions = clip(20)
    take_a_step(video, x, **conditions)
    moved = influence(video, x, 0, 0, **conditions)[0]
    reach = sum(isinstance(module, PseudoConv3d) for module in video.modules())      # one frame each
    assert (moved[1:4] > 1e-8).all() and reach < 19 and (moved[reach + 1:] == 0).all()


def test_time_mixes_through_attention_alone(video):
    for module in video.modules():
        if isinstance(module, PseudoConv3d):
            module.temporal = None
    x, conditions = clip(20)
    conditions["fps"] = numbers()
    take_a_step(video, x, **conditions)
    moved = influence(video, x, 0, 0, **conditions)
    assert (moved[0] > 1e-8).all() and (moved[1] == 0).all()


def test_attention_follows_every_block_where_frames_are_smallest_and_the_last_elsewhere():
    seen = []

    def note(module, given, output):
        seen.append(("attention" if isinstance(module, PseudoAttention3d) else "block", output.shape[-1]))
    config = dataclasses.replace(CONFIG, channels=[16, 16, 32], blocks=2, attention=[1, 2])
    net = network(config)
    for module in net.modules():
        if isinstance(module, (ResBlock, PseudoAttention3d)):
            module.register_forward_hook(note)
    with torch.no_grad():
        net(torch.zeros(1, 1, 16, 16), torch.ones(1), image_embeds=torch.zeros(1, EMBED))
    finest, middle = 2 * [("block", 8)], [*2 * [("block", 4)], ("attention", 4)]
    assert seen == [*finest, *middle, *4 * [("block", 2), ("attention", 2)], *middle, *finest]


def test_extra_blocks_come_last_in_their_level_with_attention_where_it_has_some():
    config = dataclasses.replace(CONFIG, channels=[16, 16, 32], blocks=2, attention=[1, 2],
                                 extra_blocks=[1, 2, 0])
    net = network(config)
    assert [len(blocks) for blocks in (*net.down, net.middle, net.middle_out, *net.up)] == [3, 4, 2, 2, 4, 3]
    attention = (*net.down_attention, net.middle_attention, net.middle_out_attention, *net.up_attention)
    assert [len(layers) for layers in attention] == [0, 3, 2, 2, 3, 0]


def test_all_weights_of_an_inflated_network_train_on(video):
    assert all(p.requires_grad for p in video.parameters())
    before = {name: p.detach().clone() for name, p in video.named_parameters()}
    x, conditions = clip(4)
    take_a_step(video, x, fps=numbers(), **conditions)
    still = {name for name, p in video.named_parameters() if torch.equal(p, before[name])}
    # Behind a projection that was zero: these follow at the second step.
    behind_a_zero = ("temporal_qkv", "temporal_norm", "temporal_q_norm", "temporal_k_norm", "temporal_bias",
                     "fps.mlp.0")
    assert [name for name in still if not any(part in name for part in behind_a_zero)] == []


# --- conditions

@torch.no_grad()
def test_drop_hides_the_embedding_of_its_sample_and_nothing_else(video, randomise):
    randomise(video)
    x, conditions = clip(3)
    conditions["fps"] = numbers()
    hidden = torch.tensor([True, False])
    y = video(x, **conditions | {"drop": hidden})
    other = video(x, **conditions | {"drop": hidden, "image_embeds": conditions["image_embeds"].flip(0) + 1})
    plain = video(x, **conditions | {"drop": None})
    assert error(other[:1], y[:1]) <= 1e-12 and error(other[1:], y[1:]) > 1e-3
    assert error(plain[1:], y[1:]) <= 1e-12 and error(plain[:1], y[:1]) > 1e-3
    faster = video(x, **conditions | {"drop": hidden, "fps": conditions["fps"] + 1})
    assert error(faster[:1], y[:1]) > 1e-4


@pytest.mark.parametrize("name", ["t", "image_embeds", "fps", "concat"])
@torch.no_grad()
def test_every_condition_is_read(randomise, name):
    net = randomise(network(temporal=True, scalars=("fps",), concat_channels=1)).double()
    x, conditions = clip(3)
    conditions |= {"fps": numbers(), "concat": torch.randn_like(x), "drop": None}
    changed = conditions | {name: conditions[name].flip(0)}
    assert error(net(x, **changed), net(x, **conditions)) > 1e-4


@torch.no_grad()
def test_the_embedding_is_read_through_attention_and_through_scale_and_shift(image):
    x, conditions = clip(1, torch.float32)
    conditions |= {"drop": None}
    other = conditions | {"image_embeds": conditions["image_embeds"].flip(0)}
    for silent in (image.embed[-1].weight, image.to_context["32"].weight):
        kept = silent.clone()
        silent.zero_()
        assert error(image(x[:, :, 0], **other), image(x[:, :, 0], **conditions)) > 1e-4
        silent.copy_(kept)


@pytest.mark.parametrize("shape", [(8, 10), (6, 8)])
def test_a_frame_size_that_does_not_fit_is_refused(image, shape):
    with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]} is not a multiple of 4"):
        image(torch.zeros(1, 1, *shape), torch.zeros(1), image_embeds=torch.zeros(1, EMBED))


@pytest.mark.parametrize("scalars", [{}, {"fps": torch.zeros(2), "frame_skip": torch.zeros(2)},
                                     {"frame_rate": torch.zeros(2)}], ids=["none", "too many", "another"])
def test_wrong_scalars_are_refused(video, scalars):
    x, conditions = clip(2)
    with pytest.raises(ValueError, match="expected"):
        video(x, **conditions, **scalars)


@torch.no_grad()
def test_frames_need_not_be_square(image):
    y = image(torch.randn(2, 1, 8, 12), torch.rand(2), image_embeds=torch.randn(2, EMBED))
    assert y.shape == (2, 1, 8, 12)


@torch.no_grad()
def test_patches_go_back_where_they_came_from(image):
    x = torch.randn(2, 3, 4, 8, 12)
    assert torch.equal(image._from_patches(image._to_patches(x)), x)
    assert torch.equal(image._from_patches(image._to_patches(x[:, :, 0])), x[:, :, 0])


@torch.no_grad()
def test_activations_stay_channels_last_and_fold_without_a_copy(image):
    video = inflate(image, network(temporal=True)).to(memory_format=torch.channels_last)
    seen = []

    def look(module, inputs, output):
        folded = fold(output)[0]
        seen.append(folded.data_ptr() == output.data_ptr()
                    and folded.is_contiguous(memory_format=torch.channels_last))

    for module in video.modules():
        if isinstance(module, (PseudoConv3d, PseudoAttention3d, ResBlock)):
            module.register_forward_hook(look)
    x, conditions = clip(4, torch.float32)
    video(x, **conditions)
    assert len(seen) > 15 and all(seen)


# --- ablations ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layers", [["convolution"], ["attention"], []])
def test_time_can_be_seen_by_some_layers_only(randomise, layers):
    config = dataclasses.replace(CONFIG, temporal_layers=layers)
    partial = randomise(network(config, temporal=True))
    convolutions = [m.temporal is not None for m in partial.modules() if isinstance(m, PseudoConv3d)]
    attentions = [m.temporal_qkv is not None for m in partial.modules() if isinstance(m, PseudoAttention3d)]
    assert set(convolutions) == {"convolution" in layers} and set(attentions) == {"attention" in layers}
    x, conditions = clip(6)
    moved = influence(partial.double(), x, 0, 0, **conditions)[0]
    assert (moved[1:] > 1e-9).any().item() == bool(layers)


def test_random_temporal_layers_do_not_start_as_the_identity(image):
    config = dataclasses.replace(CONFIG, temporal_init="random")
    random = inflate(image, network(config, temporal=True)).double()
    x, conditions = clip(4)
    with torch.no_grad():
        assert error(random(x, **conditions), frame_by_frame(image.double(), x, **conditions)) > 0.05


# --- the direct way from input to output

@pytest.mark.parametrize("frames", [(), (3,)])
def test_the_direct_way_alone_knows_v_where_the_frame_is_black(frames):
    """v = (alpha x_t - x_0) / sigma: with x_0 = -1 a gain and an offset say it all (conv_out is zero yet)."""
    unet, t = network().double(), torch.full((2,), 0.4, dtype=torch.float64)
    alpha, sigma = math.cos(0.2 * math.pi), math.sin(0.2 * math.pi)
    unet.input_gain.bias.data = torch.tensor([alpha / sigma, 1 / sigma], dtype=torch.float64)
    noise = torch.randn(2, 1, *frames, SIZE, SIZE, dtype=torch.float64)
    v = unet(-alpha + sigma * noise, t, image_embeds=torch.randn(2, EMBED, dtype=torch.float64))
    torch.testing.assert_close(v, alpha * noise + sigma)


def test_the_direct_way_mixes_the_concatenated_channels():
    """With x_0 = the first of two further channels, v = (alpha x_t - x_0) / sigma again."""
    unet, t = UNet(CONFIG, concat_channels=2).double(), torch.full((2,), 0.4, dtype=torch.float64)
    alpha, sigma = math.cos(0.2 * math.pi), math.sin(0.2 * math.pi)
    unet.input_gain.bias.data = torch.tensor([alpha / sigma, 0], dtype=torch.float64)
    unet.concat_gain.bias.data = torch.tensor([-1 / sigma, 0], dtype=torch.float64)
    x_0, other, noise = torch.randn(3, 2, 1, SIZE, SIZE, dtype=torch.float64)
    v = unet(alpha * x_0 + sigma * noise, t, concat=torch.cat([x_0, other], dim=1))
    torch.testing.assert_close(v, alpha * noise - sigma * x_0)


def test_the_image_embedding_is_heard_as_loudly_as_it_came():
    """Embeddings have components of order one; what is added to the time embedding has, too."""
    spread = network(UNetConfig(emb_dim=256)).embed(torch.randn(500, EMBED)).var(dim=0).mean().item()
    assert 0.5 < spread < 1.5


@pytest.mark.parametrize("num_frames", [8, 16, 24])
def test_temporal_attention_knows_every_distance_of_its_training_clips(smoke_config, num_frames):
    config = smoke_config("decoder_t", [f"data.num_frames={num_frames}"])
    network = build_network(config, Clip(config.clip))
    biases = [p for name, p in network.named_parameters() if name.endswith("temporal_bias")]
    assert biases and {p.shape[1] for p in biases} == {2 * (num_frames - 1) + 1}
