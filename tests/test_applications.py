"""Animate, interpolate, vary, extend, morph, with smoke weights: 8 key frames, skip 3, 32 px finished."""

import imageio.v3
import pytest
import torch

from mavlite import MakeAVideo, MavliteError, Video, cascade, flat_memory
from mavlite.prior import spherical
from mavlite.stages import load_network


@pytest.fixture(scope="module")
def pipe(smoke_weights):
    return MakeAVideo.from_pretrained(smoke_weights, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def video(pipe):
    return pipe(["two and 4", "7 and seven"], seed=3)


def pictures(count=2):
    return torch.rand(count, 1, 32, 32)


def refusal(function, *args, **options):
    with pytest.raises(MavliteError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- animate

@pytest.mark.parametrize("position, frame", [("first", 0), ("middle", 12), ("last", 21)])
def test_the_picture_comes_back_where_it_was_put(pipe, position, frame):
    given = pictures()
    made = pipe.animate(given, position=position)
    assert made.frames.shape == (2, 1, 22, 32, 32) and made.fps == 18
    torch.testing.assert_close(made.frames[:, :, frame], given, atol=1e-6, rtol=0)
    others = made.frames[:, :, [i for i in range(22) if i != frame]]
    assert (others - given[:, :, None]).abs().amax(dim=(1, 3, 4)).min() > 0.05


def test_a_prompt_takes_the_place_of_the_pictures_embedding(pipe):
    given = pictures()
    own, told = pipe.animate(given), pipe.animate(given, prompt="two and 4")
    assert (own.stages["image_embeds"] - told.stages["image_embeds"]).abs().max() > 0.1
    torch.testing.assert_close(told.stages["image_embeds"], pipe(["two and 4"] * 2).stages["image_embeds"])


def test_what_comes_out_depends_on_the_picture(pipe):
    given = pictures()
    first, second = pipe.animate(given, seed=1), pipe.animate(given.flip(3), seed=1)
    # Little is trained: that they differ is all that can be asked.
    assert not torch.equal(first.stages["key_frames"][:, :, 1:], second.stages["key_frames"][:, :, 1:])


@pytest.mark.parametrize("call", [lambda pipe, video, **o: pipe.animate(video.frames[:, :, 0], **o),
                                  lambda pipe, video, **o: pipe.extend(video, num_frames=40, **o)],
                         ids=["animate", "extend"])
def test_extrapolated_key_frames_are_sampled_with_settings_of_their_own(pipe, video, call):
    made, other, same = [call(pipe, video, **options).stages["key_frames"] for options in (
        {}, {"guidance_scale": {"extrapolate": 2.5}}, {"guidance_scale": {"interpolation": 2.5}})]
    assert (other - made).abs().max() > 1e-3
    assert torch.equal(same, made)


@pytest.mark.parametrize("call, windows", [
    (lambda pipe, video, **o: pipe.animate(video.frames[:, :, 0], **o), 1),
    (lambda pipe, video, **o: pipe.extend(video, num_frames=40, **o), 1),
    (lambda pipe, video, **o: pipe.extend(video, num_frames=41, **o), 2)],
    ids=["animate", "extend", "further"])
def test_of_finished_windows_the_critic_has_a_say(pipe, video, call, windows, monkeypatch):
    asked = []

    def against_all_but_the_third(clips, log_fps):
        asked.append(len(clips))
        faults = torch.full((len(clips), clips.shape[2]), 1000.0)
        faults[2::4] = -1000.0
        return faults, None
    assert pipe.configs["interpolation"].extrapolate.steps <= 4
    monkeypatch.setattr(pipe, "critic", against_all_but_the_third)
    made = call(pipe, video, candidates=4)
    assert asked == [8] * windows                            # two videos, four candidates each
    call(pipe, video, candidates=4, steps={"extrapolate": 5})                        # x_0 half way: C alone
    assert len(asked) == windows
    monkeypatch.setattr(pipe, "critic", None)
    assert not torch.equal(made.stages["key_frames"], call(pipe, video, candidates=4).stages["key_frames"])


# --- interpolate

@pytest.mark.parametrize("num_frames", [3, 6, 8, 16, 29])
def test_both_ends_come_back(pipe, num_frames):
    a, b = pictures(), pictures()
    made = pipe.interpolate(a, b, num_frames=num_frames)
    assert made.frames.shape == (2, 1, num_frames, 32, 32)
    torch.testing.assert_close(made.frames[:, :, 0], a, atol=1e-6, rtol=0)
    torch.testing.assert_close(made.frames[:, :, -1], b, atol=1e-6, rtol=0)
    seconds = (min(num_frames, 8) - 1) / 6                   # key frames last as long whatever is filled in
    assert (num_frames - 1) / made.fps == pytest.approx(seconds)


def test_upf_is_given_two_frames_of_a_whole_window_as_it_was_taught(pipe, monkeypatch):
    seen, fill = [], cascade.fill_frames

    def spy(network, config, noise, frames, known, *rest, **options):
        seen.append(known.nonzero()[:, 0].tolist() + [frames.shape[3]])
        return fill(network, config, noise, frames, known, *rest, **options)
    monkeypatch.setattr(cascade, "fill_frames", spy)
    for num_frames, wanted in ((3, [2, 4, 8]), (7, [0, 6, 8]), (8, [0, 7, 8]), (15, [0, 7, 8])):
        pipe.interpolate(pictures(), pictures(), num_frames=num_frames)
        assert seen[0] == wanted
        seen.clear()


def test_the_clearest_of_the_given_frames_is_embedded(pipe):
    """Frames hold more black than light, so in [-1, 1] the brightest has the largest of negative sums."""
    dark, bright = torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    dark[..., 8:12, 8:12], bright[..., 6:16, 6:20] = 1, 1
    made = pipe.interpolate(dark, bright, num_frames=3).stages["image_embeds"]
    for given, same in ((bright, True), (dark, False)):
        small = (pipe._small(given[:, :, None])[:, :, 0] + 1) / 2
        assert torch.allclose(pipe.networks["clip"].image_embeds(small), made, atol=1e-4) == same


# --- vary

def test_a_variation_keeps_the_mean_embedding_and_nothing_else(pipe, video):
    made = pipe.vary(video, seed=5)
    keys = video.stages["decoder_t"]
    assert made.frames.shape == video.frames.shape
    torch.testing.assert_close(made.stages["image_embeds"].norm(dim=1), torch.full((2,), 4.0))
    assert (made.stages["decoder_t"] - keys).abs().mean() > 0.05


def test_the_weaker_the_nearer(pipe, video):
    still = Video(video.frames[:, :, :1].expand(-1, -1, 22, -1, -1), video.fps)
    given = pipe._small(still.frames[:, :, ::3])
    made = [pipe.vary(still, strength=strength, steps=40) for strength in (0.025, 0.3, 1.0)]
    distance = [(video.stages["decoder_t"] * 2 - 1 - given).abs().mean().item() for video in made]
    assert distance[0] < 0.1 and distance[0] < distance[1] < distance[2]


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_video_shorter_than_the_models_can_be_varied(pipe, video, strength):
    assert pipe.vary(Video(video.frames[:, :, :4], video.fps), strength=strength).frames.shape[2] == 22


# --- extend

def test_the_given_video_comes_back_at_its_beginning(pipe, video):
    made = pipe.extend(video, num_frames=60)
    assert made.frames.shape == (2, 1, 60, 32, 32)
    torch.testing.assert_close(made.frames[:, :, :22], video.frames, atol=1e-6, rtol=0)


def test_a_video_whose_rate_a_gif_rounded_comes_back_too(pipe, video, tmp_path):
    from mavlite.inputs import read_video
    frames, fps = read_video(video[0].save(tmp_path / "a.gif", scale=1), 32)
    assert 0 < abs(fps / video.fps - 1) < 0.01
    made = pipe.extend(Video(frames[None], fps), num_frames=60)
    torch.testing.assert_close(made.frames[:, :, :22], frames[None], atol=1e-6, rtol=0)


@pytest.mark.parametrize("call", [
    lambda pipe, video, prompt: pipe.extend(video, num_frames=40, prompt=prompt),
    lambda pipe, video, prompt: pipe.interpolate(*video.frames[:, :, [0, 9]].unbind(2), prompt=prompt)],
    ids=["extend", "interpolate"])
def test_prompts_take_the_place_of_the_videos_embeddings(pipe, video, call):
    prompts = ["two and 4", "7 and 7"]
    own, told, same = (call(pipe, video, prompt).stages for prompt in (None, prompts, prompts[0]))
    wanted = pipe(prompts).stages["image_embeds"]
    torch.testing.assert_close(told["image_embeds"], wanted)
    torch.testing.assert_close(same["image_embeds"][0], wanted[0])
    assert (own["image_embeds"] - wanted).abs().max() > 0.1
    assert not torch.equal(own["sr_h"], told["sr_h"])
    with pytest.raises(MavliteError, match="1 for 2"):
        call(pipe, video, prompts[:1])


@pytest.mark.parametrize("call", [lambda pipe, slow: pipe.extend(slow, num_frames=40),
                                  lambda pipe, slow: pipe.vary(slow)], ids=["extend", "vary"])
def test_of_a_slow_video_no_frame_is_a_key_frame_twice(pipe, video, call):
    slow = Video(video.frames[:, :, ::6], video.fps / 6)                 # 3 frames a second
    made = call(pipe, slow)
    if made.frames.shape[2] == 22:
        assert made.fps == 3 * 3
    else:                                                    # its keys are the given frames, each once
        assert made.fps == 3
        given = pipe._small(slow.frames)[:, :, :4] / 2 + 0.5
        torch.testing.assert_close(made.stages["key_frames"][:, :, :4], given, atol=1e-5, rtol=0)


def test_a_stage_is_kept_as_the_stage_left_it(pipe):
    given = pictures()
    made = pipe.animate(given)
    assert (made.stages["sr_h"][:, :, 0] - given).abs().max() > 0.05
    assert torch.equal(made.stages["sr_h"][:, :, 1:], made.frames[:, :, 1:])


def test_at_a_given_key_frame_rate_a_video_of_another_rate_is_read_at_its_key_times(pipe, video):
    every_other = Video(video.frames[:, :, ::3], video.fps / 3)          # its key frames alone
    made, same = pipe.extend(every_other, num_frames=40, fps=6), pipe.extend(video, num_frames=40)
    torch.testing.assert_close(made.stages["key_frames"], same.stages["key_frames"], atol=1e-4, rtol=0)
    assert made.fps == same.fps == 18


@pytest.mark.parametrize("length", [2, 3, 5, 20, 21, 22])
def test_the_last_given_frame_is_a_key_frame(pipe, video, length):
    """Or the frames after the last key frame would be made up, and then written over: a seam."""
    given = Video(video.frames[:, :, -length:], video.fps)
    made = pipe.extend(given, num_frames=length + 7)
    assert made.fps == 18 and made.frames.shape[2] == length + 7
    torch.testing.assert_close(made.frames[:, :, :length], given.frames, atol=1e-6, rtol=0)
    skip = round(made.fps / made.key_fps)
    keys = pipe._small(given.frames)[:, :, (length - 1) % skip::skip] / 2 + 0.5
    assert keys.shape[2] >= 2
    torch.testing.assert_close(made.stages["key_frames"][:, :, :keys.shape[2]], keys, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fps, key_fps", [(18, 6), (6, 6), (10, 5), (25, 25 / 4), (30.04, 30.04 / 4), (3, 3)])
def test_a_video_goes_on_at_its_own_rate(pipe, video, fps, key_fps):
    made = pipe.extend(Video(video.frames, fps), num_frames=30)
    assert made.fps == pytest.approx(fps) and made.key_fps == pytest.approx(key_fps)
    torch.testing.assert_close(made.frames[:, :, :22], video.frames, atol=1e-6, rtol=0)


def test_extension_reads_the_last_frames_it_knows():
    seen = []

    def network(x, t, *, drop, concat, image_embeds, fps, frame_skip):
        seen.append(concat)
        return torch.zeros_like(x)                                       # v = 0: x_0 is a share of x_t

    class Config:
        from mavlite.config import DiffusionConfig, SampleConfig
        data = type("Data", (), {"num_frames": 8})
        sample, diffusion = SampleConfig(steps=1), DiffusionConfig()
    keys = torch.rand(2, 1, 6, 4, 4)
    noise = cascade.Noise(0, range(2), "x", torch.device("cpu"))
    longer = cascade.extend_keys(network, Config, noise, keys, 15, torch.zeros(2, 5), 6.0)
    assert longer.shape == (2, 1, 15, 4, 4) and torch.equal(longer[:, :, :6], keys)
    for window, start in zip(seen, (4, 10)):
        assert torch.equal(window[:, :1, :2], longer[:, :, start:start + 2])
        assert (window[:, 1, :2] == 1).all() and (window[:, :, 2:] == 0).all()


# --- long videos

@pytest.mark.parametrize("stage", ["sr_l_t", "sr_h"])
@torch.no_grad()
def test_nothing_shows_where_parts_meet(smoke_weights, randomise, monkeypatch, stage):
    network, config, _ = load_network(smoke_weights, stage)
    network = randomise(network.double())
    if stage == "sr_l_t":                                    # attention over all frames would know
        from mavlite.unet import UNet
        config.model.attention = []
        network = UNet(config.model, concat_channels=1, temporal=True, scalars=("noise_level",))
        network = randomise(network.double())
    size = config.data.sizes[-1]
    x, low = torch.randn(2, 2, 1, 75, size, size, dtype=torch.float64)
    t, level = torch.rand(2, 2, dtype=torch.float64)
    whole = network(x, t, concat=low, noise_level=level)
    monkeypatch.setattr(flat_memory, "FRAMES", 20)
    parts = flat_memory.over_frames(network)(x, t, concat=low, noise_level=level)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


@torch.no_grad()
def test_windows_may_be_evaluated_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(flat_memory, "WINDOWS", 3)
    sizes = []

    def network(x, t, *, drop, y):
        sizes.append(len(x))
        return x * t[:, None] + y
    x, t, y = torch.rand(8, 2), torch.rand(8), torch.rand(8, 2)
    made = flat_memory.in_batches(network)(x, t, drop=None, y=y)
    assert torch.equal(made, x * t[:, None] + y) and sizes == [3, 3, 2]


# --- morph

def test_the_arc_keeps_the_length_and_meets_its_ends():
    a, b = torch.nn.functional.normalize(torch.randn(2, 9, dtype=torch.float64), dim=1) * 3
    arc = spherical(a, b, torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(arc[[0, -1]], torch.stack([a, b]))
    torch.testing.assert_close(arc.norm(dim=1), torch.full((5,), 3.0, dtype=torch.float64))
    steps = torch.cosine_similarity(arc[1:], arc[:-1]).acos()
    torch.testing.assert_close(steps, steps[:1].expand(4))               # equal angles
    assert torch.equal(spherical(a, a, torch.tensor([0.0, 0.3])), torch.stack([a, a]))


def test_a_morph_goes_from_one_prompt_to_the_other(pipe):
    made = pipe.morph("two and 4", "seven and 9", num_videos=4, seed=2)
    assert made.frames.shape == (4, 1, 22, 32, 32)
    start, end = (pipe(prompt, seed=2, candidates=1).stages["decoder_t"]
                  for prompt in ("two and 4", "seven and 9"))
    keys = made.stages["decoder_t"]
    torch.testing.assert_close(keys[:1], start, atol=1e-3, rtol=0)
    assert (keys[-1:] - end).abs().mean() < (keys[-1:] - start).abs().mean()
    embeds = made.stages["image_embeds"]                     # of the arc, not of the prompts
    assert len(embeds.unique(dim=0)) == 4


# --- what may be given

def test_a_picture_may_be_a_tensor_an_array_or_a_file(pipe, tmp_path):
    levels = torch.zeros(32, 32, dtype=torch.uint8)
    levels[8:24, 8:12], levels[10:20, 20:25] = 255, torch.arange(100, 250, 15).to(torch.uint8)[:, None]
    path = tmp_path / "a.png"
    imageio.v3.imwrite(path, levels.numpy())
    wanted = pipe.animate(levels[None, None] / 255)
    assert torch.equal((wanted.frames[0, 0, 0] * 255).round(), levels.float())
    for same in (levels, levels.numpy(), levels[None] / 255, path, str(path)):
        assert torch.equal(pipe.animate(same).frames, wanted.frames)


def test_a_video_may_be_a_file(pipe, tmp_path):
    frames = torch.zeros(1, 1, 22, 32, 32)                   # light on black: read as it is
    for f in range(22):
        frames[:, :, f, 4 + f // 2:10 + f // 2, 8:12] = 1
    path = Video(frames, 18.0).save(tmp_path / "a.npy")
    made, same = pipe.extend(path, num_frames=30), pipe.extend(Video(frames, 18.0), num_frames=30)
    assert made.fps == 18 and torch.equal(made.frames, same.frames)
    assert torch.equal(pipe.vary(str(path)).frames, pipe.vary(Video(frames, 18.0)).frames)


def test_what_is_given_is_left_as_it_was(pipe, video):
    image, before = pictures(), video.frames.clone()
    copy = image.clone()
    pipe.animate(image)
    pipe.extend(video, num_frames=40)
    assert torch.equal(image, copy) and torch.equal(video.frames, before)


def test_the_videos_of_a_morph_say_which_they_are(pipe):
    made = pipe.morph("two and 4", "7 and 9", num_videos=3)
    assert made.prompts == [f"two and 4 to 7 and 9, {share}%" for share in (0, 50, 100)]


# --- refusals

@pytest.mark.parametrize("call, word", [
    (lambda pipe, video: pipe.animate(torch.rand(1, 1, 64, 64)), "32 x 32"),
    (lambda pipe, video: pipe.animate(torch.rand(1, 3, 32, 32)), "1 x 32"),
    (lambda pipe, video: pipe.animate(pictures(), position="left"), "position"),
    (lambda pipe, video: pipe.animate(pictures(), prompt="two and cat"), "cat"),
    (lambda pipe, video: pipe.animate(pictures(), fps=99), "fps"),
    (lambda pipe, video: pipe.interpolate(pictures(), pictures(), num_frames=2), "num_frames"),
    (lambda pipe, video: pipe.interpolate(pictures(), pictures(), num_frames=40), "3 ... 29"),
    (lambda pipe, video: pipe.vary(video, strength=0.0), "strength"),
    (lambda pipe, video: pipe.vary(video, strength=1.5), "strength"),
    (lambda pipe, video: pipe.vary(Video(video.frames, 3.0), fps=6), "3 frames a second"),
    (lambda pipe, video: pipe.extend(video, num_frames=22), "23 ... 10000"),
    (lambda pipe, video: pipe.extend(video, num_frames=10**6), "num_frames"),
    (lambda pipe, video: pipe.extend(Video(video.frames[:, :, :21], 18.0), num_frames=21), "22 ... 10000"),
    (lambda pipe, video: pipe.vary(Video(video.frames, 0.5)), "0.5 frames a second"),
    (lambda pipe, video: pipe.interpolate(pictures(1), pictures(2)), "1 and 2"),
    (lambda pipe, video: pipe.animate(pictures() * 2 - 1), "0 ... 1"),
    (lambda pipe, video: pipe.animate(pictures() * float("nan")), "0 ... 1"),
    (lambda pipe, video: pipe.animate(pictures(0)), "image"),
    (lambda pipe, video: pipe.animate(pictures().long()), "int64"),
    (lambda pipe, video: pipe.animate([[0.0]]), "path"),
    (lambda pipe, video: pipe.animate("missing.png"), "missing.png"),
    (lambda pipe, video: pipe.animate(pictures(), prompt=5), "prompt"),
    (lambda pipe, video: pipe.vary(video.frames), "Video"),
    (lambda pipe, video: pipe.extend(Video(video.frames * 3, 18.0), num_frames=40), "0 ... 1"),
    (lambda pipe, video: pipe.morph(["two and 4"], "7 and 9"), "prompt"),
    (lambda pipe, video: pipe.morph("two and 4", "7 and 9", num_videos=10**9), "2 ... 64"),
    (lambda pipe, video: pipe.morph("two and 4", "7 and 9", num_videos=1), "num_videos")])
def test_what_cannot_work_is_refused(pipe, video, call, word):
    assert word in refusal(call, pipe, video)
