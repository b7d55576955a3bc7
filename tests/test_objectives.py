"""What each stage is trained on: data, conditions and noise; and who never sees a label."""

import math

import pytest
import torch

from mavlite import objectives
from mavlite.batch import Batch, Draws
from mavlite.clip import Clip
from mavlite.config import DataConfig
from mavlite.digits import Digits, load_digits
from mavlite.moving_mnist import box_resize
from mavlite.objectives import (
    OBJECTIVES,
    degrade,
    draw_fps,
    frames_per_sample,
    known_frames,
    upsample,
    with_default,
)
from mavlite.stages import CASCADE, STAGES, build_network

WITHOUT_TEXT = [stage for stage in CASCADE if stage not in ("clip", "prior")]
BATCH = Batch(step=3, size=6)
COUNT = 300


def draws(batch=BATCH, seed=0, dtype=torch.float32):
    return Draws(seed, batch, torch.device("cpu"), dtype)


class Recorder:
    """Stands for a network: keeps what it was given and predicts zeros."""

    def __call__(self, x, t, **conditions):
        self.x, self.t, self.conditions = x, t, conditions
        return torch.zeros_like(x)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A few digits are drawn from here, which is faster than all."""
    glyphs = load_digits("train", "glyphs")
    digits = Digits(glyphs.images[:COUNT], glyphs.labels[:COUNT], "glyphs", "train")
    monkeypatch.setattr(objectives, "load_digits", lambda split, source: digits)
    return digits


@pytest.fixture(scope="module")
def clip(smoke_config):
    """An untrained C."""
    return Clip(smoke_config("clip").clip).eval().requires_grad_(False)


@pytest.fixture
def build(smoke_config, clip):
    """build(stage, overrides) -> (network, objective)."""
    def build(stage, overrides=()):
        config = smoke_config(stage, overrides)
        return build_network(config, clip), OBJECTIVES[stage](config, clip, torch.device("cpu"))
    return build


@pytest.fixture
def record(build):
    """record(stage, overrides) -> (what the network was given, objective, loss)."""
    def record(stage, overrides=(), batch=BATCH):
        recorder, (_, objective) = Recorder(), build(stage, overrides)
        return recorder, objective, objective.loss(recorder, batch, draws(batch), progress=0.0)
    return record


# --- batches and noise

@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_and_micro_batches_share_out_the_step(world, accumulate):
    parts = [Batch(5, 12, accumulate, micro, rank, world).indices
             for micro in range(accumulate) for rank in range(world)]
    assert [index for part in parts for index in part] == list(range(60, 72))
    assert len({len(part) for part in parts}) == 1


@pytest.mark.parametrize("accumulate, world", [(1, 2), (4, 1), (2, 2)])
def test_ranks_and_micro_batches_draw_what_one_whole_step_draws(accumulate, world):
    whole = draws(Batch(5, 8))
    parts = [draws(Batch(5, 8, accumulate, micro, rank, world))
             for micro in range(accumulate) for rank in range(world)]
    for draw in (lambda d: d.times(), lambda d: d.normal(3, 2), lambda d: d.uniform(), lambda d: d.normal(1)):
        assert torch.equal(torch.cat([draw(d) for d in parts]), draw(whole))


def test_noise_is_named_by_seed_and_step():
    batches = [(0, Batch(5, 4)), (1, Batch(5, 4)), (0, Batch(6, 4))]
    assert len({draws(batch, seed).normal(1).sum().item() for seed, batch in batches}) == 3
    assert torch.equal(draws(Batch(5, 4)).normal(2), draws(Batch(5, 4)).normal(2))


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    d = draws()
    d.normal(3), d.uniform(), d.times()
    assert torch.equal(torch.get_rng_state(), before)


def test_times_are_spread_evenly():
    times = draws(Batch(0, 50), dtype=torch.float64).times()
    assert times.min() >= 0 and times.max() < 1
    assert torch.allclose(times.sort().values.diff(), torch.full((49,), 0.02, dtype=torch.float64))


def test_times_can_be_drawn_where_content_forms(build):
    """Shares of times against the distribution function: u = sigmoid((logit t - shift) / scale)."""
    def times(*overrides):
        _, objective = build("sr_l", overrides)
        seen = Recorder()
        objective.diffuse(seen, torch.zeros(400, 1, 2, 2), draws(Batch(0, 400)))
        return seen.t
    plain, shifted = times(), times("diffusion.time_shift=0.5", "diffusion.time_scale=0.7")
    for edge in (0.1, 0.35, 0.6, 0.9):
        logit = torch.logit(torch.tensor(edge)).item()
        assert (plain < edge).float().mean().item() == pytest.approx(edge, abs=0.005)
        share = 1 / (1 + math.exp(-(logit - 0.5) / 0.7))
        assert (shifted < edge).float().mean().item() == pytest.approx(share, abs=0.005)


# --- the image decoder

def test_every_other_target_of_the_decoder_is_the_frame_of_its_embedding(build, monkeypatch):
    _, objective = build("decoder")
    seen, batch = {}, Batch(step=3, size=8)
    monkeypatch.setattr(objective, "diffuse", lambda _, x_0, draws, **given: seen.update(given, x_0=x_0))
    objective.loss(None, batch, draws(batch), progress=0.0)
    clearest = objective.clips.condition_frames([index // 4 for index in batch.indices], objective.size)
    same = (seen["x_0"] == clearest * 2 - 1).flatten(1).all(dim=1)
    assert same[::2].all() and not same[1::2].all()
    torch.testing.assert_close(seen["image_embeds"], objective.clip.image_embeds(clearest))


# --- frame rates

U = (torch.arange(10000) + 0.5) / 10000


def rates(progress, uniform=False):
    return draw_fps(U, torch.full_like(U, uniform, dtype=torch.bool), progress, DataConfig())


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_rates_stay_within_the_range_and_uniform_draws_stay_uniform(progress):
    fps = rates(progress)
    assert fps.min() >= 1 and fps.max() <= 30 and (fps.diff() > 0).all()
    assert torch.allclose(rates(progress, uniform=True), 30 ** U)


def test_rates_move_from_high_to_low():
    octaves = [rates(progress).log().mean().item() / math.log(30) for progress in (0.0, 0.5, 1.0)]
    assert octaves == pytest.approx([4 / 5, 2.5 / 3.5, 1 / 2], abs=1e-3)     # Beta(a, 1): a / (a + 1)


def test_a_share_of_clips_has_the_default_rate():
    data = DataConfig(fps_default=0.4)
    fps = with_default(rates(1.0), U.flip(0), data)
    assert (fps == data.fps).float().mean() == pytest.approx(0.4, abs=1e-3)
    assert torch.equal(with_default(rates(1.0), U, DataConfig()), rates(1.0))


@pytest.mark.parametrize("stage", ["decoder_t", "interpolation"])
def test_the_default_rate_reaches_the_network(record, stage):
    seen, objective, _ = record(stage, ["data.fps_default=1.0"])
    assert torch.allclose(seen.conditions["fps"].exp(), torch.tensor(objective.data.fps))


def test_the_video_decoder_sees_the_rate_of_its_frames(record):
    seen, objective, loss = record("decoder_t")
    fps = seen.conditions["fps"].exp()
    assert seen.x.shape == (6, 1, 8, 16, 16) and 1 <= fps.min() and fps.max() <= 30
    x_0 = objective.clips.clips(BATCH.indices, fps, 8, 16)[0] * 2 - 1
    alpha, sigma = objective.diffusion.alpha_sigma(seen.t.view(-1, 1, 1, 1, 1))
    noise = (seen.x - alpha * x_0) / sigma
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1        # what is left is standard normal
    assert loss.item() == pytest.approx((alpha * noise - sigma * x_0).square().mean().item(), rel=1e-2)


# --- masks of the interpolation network

def masks(count=20000, skip=5, **fixed):
    u = {name: torch.rand(count) for name in ("kind", "count", "first", "second")}
    u |= {name: torch.full((count,), value) for name, value in fixed.items()}
    return known_frames(u, torch.full((count,), skip), 16)


@pytest.mark.parametrize("skip", [2, 5, 6])
def test_half_the_windows_know_every_skipth_frame(skip):
    regular = torch.arange(16) % skip == 0
    assert (masks(100, skip, kind=0.3) == regular).all()
    assert (masks(skip=skip) == regular).all(dim=1).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_other_windows_know_a_start_an_end_one_frame_or_two():
    start, end, one, two = (masks(2000, kind=kind) for kind in (0.55, 0.65, 0.75, 0.9))
    for runs in (start, end.flip(1)):
        lengths = runs.sum(dim=1)
        assert torch.equal(runs, torch.arange(16) < lengths[:, None])
        assert lengths.unique().tolist() == list(range(1, 9))
    assert (one.sum(dim=1) == 1).all() and one.any(dim=0).all()
    assert (two.sum(dim=1) == 2).all() and two.any(dim=0).all()


def test_every_window_knows_a_frame_and_hides_one():
    known = masks().sum(dim=1)
    assert known.min() >= 1 and known.max() < 16


def test_the_interpolation_network_sees_known_frames_and_the_mask(record):
    batch = Batch(0, 40)
    seen, objective, _ = record("interpolation", batch=batch)
    masked, mask = seen.conditions["concat"].split(1, dim=1)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask.amax(dim=(3, 4)) == mask.amin(dim=(3, 4))).all()
    skip = seen.conditions["frame_skip"].exp().round()
    fps = seen.conditions["fps"].exp()
    assert set(skip.tolist()) <= {1, 2, 3, 4} and 1 <= fps.min() and fps.max() <= 30
    true = objective.clips.clips(batch.indices, fps * skip, 8, 16)[0] * 2 - 1
    assert torch.allclose(masked, true * mask, atol=1e-3)


def test_the_interpolation_loss_is_on_hidden_frames_alone(build):
    class Guess(Recorder):
        def __call__(self, x, t, concat, **conditions):
            known = concat[:, 1:]
            return self.on_known * known + self.on_hidden * (1 - known)

    _, objective = build("interpolation")

    def loss(on_known, on_hidden):
        guess = Guess()
        guess.on_known, guess.on_hidden = on_known, on_hidden
        return objective.loss(guess, BATCH, draws(), 0.0).item()

    assert loss(0, 0) == loss(100, 0) != loss(0, 100)


# --- super-resolution

def test_degrading_without_noise_and_blur_changes_nothing():
    for shape in [(2, 1, 8, 8), (2, 1, 3, 8, 8)]:
        low, nothing = torch.randn(shape), torch.zeros(2)
        assert torch.allclose(degrade(low, nothing, nothing, torch.randn(shape)), low, atol=1e-6)


def test_degrading_blurs_each_sample_by_its_own_width_and_keeps_flat_areas():
    low = torch.zeros(3, 1, 15, 15)
    low[:, :, 7, 7] = 1
    blurred = degrade(low, torch.tensor([0.0, 0.8, 1.6]), torch.zeros(3), torch.zeros_like(low))
    peaks = blurred[:, 0, 7, 7]
    assert peaks[0] == 1 and peaks[0] > peaks[1] > peaks[2]
    assert torch.allclose(blurred.sum(dim=(1, 2, 3)), torch.ones(3), atol=0.01)
    i = torch.arange(15) - 7.0
    ratio = torch.exp(-(i**2) / (2 * 0.8**2))
    assert torch.allclose(blurred[1, 0, 7] / peaks[1], ratio, atol=1e-4)
    flat = torch.full((1, 1, 8, 8), 0.5)
    assert torch.allclose(degrade(flat, torch.tensor([2.0]), torch.zeros(1), torch.zeros_like(flat)), flat)


def test_degrading_adds_noise_at_each_samples_level():
    noise = torch.randn(2, 1, 3, 8, 8)
    y = degrade(torch.zeros_like(noise), torch.zeros(2), torch.tensor([0.0, 0.25]), noise)
    assert torch.allclose(y, noise * torch.tensor([0.0, 0.25]).view(2, 1, 1, 1, 1))


def test_enlarging_a_clip_enlarges_its_frames():
    clip = torch.randn(2, 1, 3, 8, 8)
    frames = torch.stack([upsample(frame, 12) for frame in clip.unbind(2)], dim=2)
    assert torch.equal(upsample(clip, 12), frames)


@pytest.mark.parametrize("stage, small, large, frames", [("sr_l", 16, 24, None), ("sr_l_t", 16, 24, 8),
                                                         ("sr_h", 24, 32, None)])
def test_super_resolution_reads_the_small_frame_of_the_large_one(record, stage, small, large, frames):
    overrides = ["diffusion.max_noise_level=0", "diffusion.max_blur=0"]
    seen, objective, _ = record(stage, overrides)
    shape = (6, 1, large, large) if frames is None else (6, 1, frames, large, large)
    assert seen.x.shape == seen.conditions["concat"].shape == shape
    assert set(seen.conditions) == {"concat", "noise_level"}
    if frames is None:
        low = box_resize(objective.clips.frames(BATCH.indices, 64), small) * 2 - 1
        assert torch.allclose(seen.conditions["concat"], upsample(low, large), atol=1e-5)


def test_super_resolution_is_told_its_noise_level(record):
    seen, _, _ = record("sr_l", ["diffusion.max_noise_level=0.3"], Batch(0, 200))
    level = seen.conditions["noise_level"]
    assert level.shape == (200,) and 0 <= level.min() < 0.03 and 0.27 < level.max() < 0.3


# --- conditions

@pytest.mark.parametrize("condition", ["clearest", "first", "mean"])
def test_the_decoder_is_conditioned_as_configured(build, condition):
    _, objective = build("decoder", [f"data.condition={condition}"])
    embeds = objective.condition(BATCH.indices)
    clips = objective.clips.condition_clips(BATCH.indices, 16)
    each = torch.stack([objective.clip.image_embeds(frame) for frame in clips.unbind(2)], dim=1)
    if condition == "clearest":
        frames = objective.clips.condition_frames(BATCH.indices, 16)
        assert torch.allclose(embeds, objective.clip.image_embeds(frames))
        assert ((each - embeds[:, None]).abs().amax(dim=2) < 1e-4).any(dim=1).all()
    else:
        mean = torch.nn.functional.normalize(each.mean(dim=1), dim=-1) * 4
        assert torch.allclose(embeds, each[:, 0] if condition == "first" else mean, atol=1e-4)
    assert torch.allclose(embeds.norm(dim=1), torch.full((6,), 4.0))


@pytest.mark.parametrize("condition", ["clearest", "first", "mean"])
def test_the_prior_learns_embeddings_such_as_the_decoder_is_given(build, condition):
    _, objective = build("prior", [f"data.condition={condition}"])
    objective.diffuse = lambda network, x_0, draws, **conditions: x_0
    learned = objective.loss(None, BATCH, draws(BATCH), progress=0.0)
    clips = objective.pairs.condition_clips(BATCH.indices, 16)
    made = {"clearest": lambda: objective.clip.image_embeds(objective.pairs.pairs(BATCH.indices, 16)[0]),
            "first": lambda: objective.clip.image_embeds(clips[:, :, 0]),
            "mean": lambda: objective.mean_embeds(clips)}
    for name, embeds in made.items():
        assert torch.allclose(learned, embeds(), atol=1e-4) == (name == condition)


def test_a_fifth_of_the_video_decoders_clips_are_conditioned_on_the_mean(record):
    batch = Batch(0, 20)
    seen, objective, _ = record("decoder_t", ["data.mean_condition=0.2"], batch)
    given, clearest = seen.conditions["image_embeds"], objective.condition(batch.indices)
    mean = objective.mean_embeds(objective.clips.condition_clips(batch.indices, 16))
    on_mean = ((given - mean).abs().amax(dim=1) < 1e-4) & ((given - clearest).abs().amax(dim=1) > 1e-4)
    assert on_mean.sum() == 4 and torch.allclose(given[~on_mean], clearest[~on_mean], atol=1e-4)


def test_a_tenth_of_the_conditions_is_dropped(record):
    seen, _, _ = record("decoder", ["diffusion.drop_condition=0.1"], Batch(0, 1000))
    assert seen.conditions["drop"].dtype == torch.bool and 70 < seen.conditions["drop"].sum() < 130


def test_the_prior_predicts_the_embedding_of_the_prompted_frame(record):
    seen, objective, loss = record("prior")
    tokens, text = objective.clip.text(objective.pairs.pairs(BATCH.indices, 16)[1])
    assert torch.allclose(seen.conditions["tokens"], tokens)
    assert torch.allclose(seen.conditions["text_embeds"], text)
    # prediction_type "sample": zeros miss x_0 by its mean square, which is 1 at length sqrt(d)
    assert loss.item() == pytest.approx(1.0, abs=1e-4)


# --- every stage

@pytest.mark.parametrize("overrides", [[], ["data.channels=3"], ["diffusion.loss=hybrid"]],
                         ids=["default", "colour", "hybrid"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_is_finite_and_reaches_every_parameter(build, stage, overrides):
    if "diffusion.loss=hybrid" in overrides and stage in ("clip", "prior", "judge"):
        pytest.skip("has no second output")
    network, objective = build(stage, overrides)
    loss = objective.loss(network.train(), BATCH, draws(), 0.5)
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite()
    assert [name for name, p in network.named_parameters()
            if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_is_a_function_of_step_and_seed(build, stage):
    network, objective = build(stage)
    with torch.no_grad():
        first, again, later = (objective.loss(network, batch, draws(batch), 0.5).item()
                               for batch in (BATCH, BATCH, Batch(4, 6)))
    assert first == again != later


@pytest.mark.parametrize("stage", ["prior", "decoder", "decoder_t", "interpolation", "sr_l_t", "sr_h"])
@pytest.mark.parametrize("accumulate, world", [(1, 2), (2, 1)])
def test_the_mean_of_two_parts_is_the_loss_of_the_whole(build, randomise, stage, accumulate, world):
    network, objective = build(stage)
    randomise(network)
    parts = [Batch(1, 8, accumulate, micro, rank, world)
             for micro in range(accumulate) for rank in range(world)]
    with torch.no_grad():
        whole = objective.loss(network, Batch(1, 8), draws(Batch(1, 8)), 0.5).item()
        halves = [objective.loss(network, batch, draws(batch), 0.5).item() for batch in parts]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-4)


def test_no_two_stages_share_clips(build):
    seeds = []
    for stage in STAGES:
        _, objective = build(stage)
        seeds.append((objective.pairs if hasattr(objective, "pairs") else objective.clips).seed)
    assert len(set(seeds)) == len(STAGES)


def test_a_video_sample_counts_all_its_frames(smoke_config):
    counts = [frames_per_sample(smoke_config(stage)) for stage in ("decoder", "decoder_t", "sr_l_t", "sr_h")]
    assert counts == [1, 8, 8, 1]


# --- labels

class Blind:
    """Digits whose labels nobody may look at."""

    def __init__(self, images):
        self.images, self.source = images, "glyphs"

    def to(self, device):
        return self

    @property
    def labels(self):
        raise AssertionError("labels were looked at")


@pytest.fixture
def blind(monkeypatch, few):
    monkeypatch.setattr(objectives, "load_digits", lambda split, source: Blind(few.images))


@pytest.mark.parametrize("stage", WITHOUT_TEXT)
def test_stages_without_text_never_look_at_labels(blind, build, stage):
    network, objective = build(stage)
    with torch.no_grad():
        assert objective.loss(network, BATCH, draws(), 0.5).isfinite()


@pytest.mark.parametrize("stage", ["clip", "prior", "judge"])
def test_the_stages_with_text_do(blind, build, stage):
    with pytest.raises(AssertionError, match="labels were looked at"):
        build(stage)


def tensors_within(thing, seen):
    """All tensors that can be reached from an object through its attributes and containers."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_within(value, seen)
    elif isinstance(thing, (list, tuple, set)):
        for value in thing:
            yield from tensors_within(value, seen)
    elif hasattr(thing, "__dict__"):
        yield from tensors_within(vars(thing), seen)


@pytest.mark.parametrize("stage", WITHOUT_TEXT)
def test_stages_without_text_hold_no_labels(build, stage):
    _, objective = build(stage)
    assert not hasattr(objective, "pairs")
    held = [tuple(x.shape) for x in tensors_within(objective, {}) if x.ndim and len(x) == COUNT]
    assert set(held) == {(COUNT, 28, 28), (COUNT, 7, 7)}     # images and their previews


def test_the_search_for_labels_finds_them(build):
    _, objective = build("judge")
    assert (COUNT,) in {tuple(x.shape) for x in tensors_within(objective, {})}
