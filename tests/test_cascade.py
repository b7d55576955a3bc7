"""Each stage as a function: noise, windows, shared noise, with stub networks where they tell more."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mavlite.candidates import EXCHANGE, FAULT, best_candidates, closeness, closest_candidates, merit
from mavlite.cascade import (
    Noise,
    even_times,
    extend_keys,
    fill_frames,
    run_decoder,
    run_decoder_t,
    run_interpolation,
    run_prior,
    run_super_resolution,
    window_starts,
)
from mavlite.config import SampleConfig, load_config
from mavlite.diffusion import Diffusion
from mavlite.guidance import single_frames
from mavlite.likeness import margins
from mavlite.sampling import SAMPLERS
from mavlite.stages import build_network
from mavlite.unet import inflate

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"
CPU = torch.device("cpu")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(indices=range(2), seed=0, stage="any"):
    return Noise(seed, indices, stage, CPU)


# --- noise -------------------------------------------------------------------------------------------------

def test_noise_of_a_video_does_not_depend_on_its_batch():
    alone, together = noise([5]), noise([3, 5, 9])
    for shape in ((2, 3), (1, 4, 8, 8), (7,)):               # draw after draw
        assert torch.equal(alone(*shape)[0], together(*shape)[1])


def test_noise_differs_by_seed_index_and_stage():
    draws = [noise([0], 0, "sr_h"), noise([1], 0, "sr_h"), noise([0], 1, "sr_h"), noise([0], 0, "sr_l")]
    draws = torch.cat([draw(4096) for draw in draws])
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.1
    assert draws.mean(dim=1).abs().max() < 0.1 and (draws.std(dim=1) - 1).abs().max() < 0.1


def test_candidates_of_a_video_have_its_noise_side_by_side():
    alone, together = Noise(0, [5], "any", CPU, 3), Noise(0, [3, 5], "any", CPU, 3)
    one, both = alone(4, 8), together(4, 8)
    assert one.shape == (3, 4, 8) and torch.equal(one, both[3:])
    assert len({tuple(draw.flatten().tolist()) for draw in both}) == 6


def test_noise_can_be_had_again():
    assert torch.equal(noise()(3, 4), noise()(3, 4))


# --- interpolation -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("skip", range(2, 7))
@pytest.mark.parametrize("k", range(2, 17))
def test_windows_cover_all_keys_and_share_ends(k, skip):
    per_window = min(15 // skip + 1, k)
    starts = window_starts(k, per_window)
    assert starts[0] == 0 and starts[-1] == k - per_window
    assert all(0 < b - a <= per_window - 1 for a, b in pairwise(starts))           # they share a key
    assert {start + i for start in starts for i in range(per_window)} == set(range(k))


def test_windows_of_the_default_are_five():
    assert window_starts(16, 4) == [0, 3, 6, 9, 12]


def interpolation_config(num_frames):
    return load_config(SMOKE, "interpolation", [f"data.num_frames={num_frames}", "data.max_frame_skip=6",
                                                "diffusion.prediction_type=sample"])


WINDOWS = [(16, 5, 16), (8, 3, 8), (7, 2, 8), (2, 4, 16), (5, 6, 12)]            # keys, skip, trained length


@pytest.mark.parametrize("k, skip, num_frames", [*WINDOWS, (5, 1, 8)])
def test_key_frames_are_copied_through(k, skip, num_frames):
    def zeros(x, t, **conditions):
        return torch.zeros_like(x)
    keys = random(2, 3, k, 4, 4)
    video = run_interpolation(zeros, interpolation_config(num_frames), noise(), keys, random(2, 5), 6.0, skip)
    assert video.shape == (2, 3, (k - 1) * skip + 1, 4, 4)
    assert torch.equal(video[:, :, ::skip], keys)


@pytest.mark.parametrize("k, skip, num_frames", WINDOWS)
def test_windows_come_back_to_their_place(k, skip, num_frames):
    """A video of constant speed: a window's first frame and the embedding tell all the others."""
    def ramp(x, t, *, drop, concat, image_embeds, fps, frame_skip):
        torch.testing.assert_close(fps.exp(), torch.full_like(fps, 6.0))
        torch.testing.assert_close(frame_skip.exp(), torch.full_like(fps, float(skip)))
        masked, known = concat[:, :1], concat[:, 1:]
        assert torch.equal(known[0, 0, :, 0, 0] == 1, torch.arange(x.shape[2]) % skip == 0)
        assert masked[known == 0].eq(0).all()
        speed = image_embeds[:, 0].view(-1, 1, 1, 1, 1)
        return masked[:, :, :1] + speed * torch.arange(x.shape[2]).view(1, 1, -1, 1, 1)

    speed = torch.tensor([0.004, -0.009])
    truth = (speed[:, None] * torch.arange((k - 1) * skip + 1)).view(2, 1, -1, 1, 1).expand(-1, -1, -1, 4, 4)
    video = run_interpolation(ramp, interpolation_config(num_frames), noise(), truth[:, :, ::skip],
                              speed[:, None], 6.0, skip)
    torch.testing.assert_close(video, truth, atol=1e-6, rtol=0)


def test_whole_windows_are_the_beginning_of_a_longer_video():
    """The last window of 17 keys is moved onto the one before it, whose frames stay as they were."""
    def made_up(x, t, *, drop, concat, **conditions):
        return torch.tanh(x + concat[:, :1].sum(dim=2, keepdim=True))
    keys, y_e, config = random(2, 1, 17, 4, 4), random(2, 5), interpolation_config(16)
    short, longer = (run_interpolation(made_up, config, noise(), keys[:, :, :k], y_e, 6.0, 5)
                     for k in (16, 17))
    torch.testing.assert_close(longer[:, :, :short.shape[2]], short)


# --- key frames and the prior ------------------------------------------------------------------------------

def test_key_frames_are_made_at_the_asked_rate():
    rates = []

    def stub(x, t, *, drop, image_embeds, fps):
        rates.append(fps.exp())
        return torch.zeros_like(x)
    keys = run_decoder_t(stub, load_config(SMOKE, "decoder_t"), noise(), random(2, 5), 12.0,
                         settings=SampleConfig(steps=2))
    assert keys.shape == (2, 1, 8, 16, 16)
    torch.testing.assert_close(torch.stack(rates), torch.full((2, 2), 12.0))


@pytest.mark.parametrize("hybrid", [False, True])
def test_at_inflation_leading_away_from_single_frames_is_ordinary_guidance(hybrid):
    # D^t then is D frame by frame, so its own unconditional prediction is that of D.
    options = ("diffusion.loss=hybrid",) if hybrid else ()
    configs = {stage: load_config(SMOKE, stage, options) for stage in ("decoder", "decoder_t")}
    clip = build_network(load_config(SMOKE, "clip"))
    torch.manual_seed(0)
    D, D_t = (build_network(config, clip).eval() for config in configs.values())
    for p in D.parameters():                                 # any weights: at the start all outputs are zero
        torch.nn.init.normal_(p, std=0.1)
    inflate(D, D_t)
    y_e, settings = random(2, clip.embed_dim), SampleConfig(steps=3, guidance_scale=2.5)
    with torch.no_grad():
        own, away = (run_decoder_t(D_t, configs["decoder_t"], noise(), y_e, 6.0, settings=settings,
                                   away_from=away_from)
                     for away_from in (None, single_frames(D, configs["decoder"])))
        unguided = run_decoder_t(D_t, configs["decoder_t"], noise(), y_e, 6.0,
                                 settings=SampleConfig(steps=3))
    torch.testing.assert_close(away, own, atol=1e-4, rtol=1e-4)
    assert (own - unguided).abs().max() > 0.01


class Candidates:
    """Stands for P: the n-th of each video's candidates is a fixed vector."""
    embed_dim = 4

    def __init__(self, candidates):
        self.candidates = candidates                         # (n b) d

    def __call__(self, x, t, *, drop, tokens, text_embeds):
        assert torch.equal(tokens[:2], tokens[2:]) and torch.equal(text_embeds[:2], text_embeds[2:])
        return self.candidates


def test_prior_keeps_the_candidate_closer_to_the_text():
    text = random(2, 4)
    near, far = text + 0.1 * random(2, 4, seed=1), -text
    candidates = torch.stack([near[0], far[1], far[0], near[1]])     # video 0's first, video 1's second
    embeds = run_prior(Candidates(candidates), load_config(SMOKE, "prior"), noise(), random(2, 3, 6), text)
    torch.testing.assert_close(torch.nn.functional.normalize(embeds), torch.nn.functional.normalize(near))
    torch.testing.assert_close(embeds.norm(dim=1), torch.full((2,), 2.0))            # a real one's: sqrt(4)


class Brightness:
    """Stands for C: the embedding of a frame is a point on a circle, at an angle of its mean brightness."""

    def image_embeds(self, frames):
        assert frames.ndim == 4 and frames.min() >= 0 and frames.max() <= 1
        angle = frames.mean(dim=(1, 2, 3))
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def grey(*values):
    """Clips (n, 1, 4, 2, 2) in [-1, 1], grey all over; values in [0, 1]: each clip's frames."""
    return (torch.tensor(values)[:, None, :, None, None] * 2 - 1).expand(-1, -1, -1, 2, 2)


def test_the_clip_whose_frames_are_closest_on_average_is_chosen():
    candidates = grey([0.5, 0.5, 0.5, 0.9], [0.4, 0.6, 0.5, 0.5], [0.1] * 4,         # video 0's
                      [0.5] * 4, [0.8] * 4, [1.0] * 4)                               # video 1's
    wanted = torch.tensor([0.5, 0.95])
    wanted = 7 * torch.stack([wanted.cos(), wanted.sin()], dim=1)                    # length says nothing
    assert closest_candidates(Brightness(), candidates, wanted).tolist() == [1, 5]
    assert closest_candidates(Brightness(), candidates[:, :, 0], wanted).tolist() == [0, 5]  # one frame


def test_the_worst_exchange_of_digits_counts_against_a_clip(monkeypatch):
    clips = torch.zeros(3, 1, 4, 32, 32)
    clips[..., 4:12, 4:12], clips[..., 20:28, 20:28] = 1.0, 0.5
    clips[1, :, 2:, 4:12, 4:12], clips[1, :, 2:, 20:28, 20:28] = 0.5, 1.0            # once, for good
    clips[2, :, 1:3] = clips[1, :, 2:]                                               # there and back
    clips, wanted = clips * 2 - 1, torch.tensor([[1.0, 0.0]])
    found = margins(Brightness(), clips, torch.full((3,), 6.0))
    worst = -found.amin(dim=(1, 2))
    assert worst[0] < 0 and worst[1] == pytest.approx(worst[2].item()) and worst[1] > 0
    monkeypatch.setattr("mavlite.candidates.CHANGE", 0)      # C sees whole frames change hardly at all
    close = closeness(Brightness(), clips, wanted)
    assert torch.allclose(close, close[:, :1].expand(1, 3), atol=1e-6)               # C alone sees nothing
    worth = merit(Brightness(), None, clips, wanted, 6.0)
    assert torch.allclose(worth, close - EXCHANGE * torch.tensor([[0, worst[1], worst[1]]]), atol=1e-6)
    assert torch.equal(merit(Brightness(), None, clips, wanted, 3.0), close)         # too slow to tell
    assert merit(Brightness(), None, clips[:, :, :1], wanted, 6.0).shape == (1, 3)


def test_the_worst_frame_counts_against_a_clip_where_a_critic_knows_its_rate():
    candidates = grey([0.5, 0.5, 0.5, 0.9], [0.4, 0.6, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2])
    wanted = torch.tensor([[0.5, 0.5]]).cos()
    rates = []

    def critic(clips, log_fps):                              # finds frames the worse the brighter they are
        rates.append(log_fps.exp())
        return 6 * clips[:, 0, :, 0, 0], None
    alone = merit(Brightness(), None, candidates, wanted, 6.0)
    both = merit(Brightness(), critic, candidates, wanted, 6.0)
    assert torch.allclose(both, alone - FAULT * 6 * torch.tensor([[0.8, 0.2, -0.6]]), atol=1e-6)
    assert torch.allclose(rates[0], torch.tensor([6.0] * 3))
    assert best_candidates(Brightness(), critic, candidates, wanted, 6.0).item() == both.argmax()
    for fps in (1.0, 30.0):                                  # it was never shown such clips
        assert torch.equal(merit(Brightness(), critic, candidates, wanted, fps), alone)
    assert len(rates) == 2


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("loss", ["simple", "hybrid"])
def test_the_chosen_comes_out_as_if_it_had_walked_alone(sampler, loss):
    """Of 2 x 3 candidates rows 1 and 5 are chosen, after 3 of 5 steps; the network then works on 2 rows."""
    config = load_config(SMOKE, "decoder", overrides=[f"diffusion.loss={loss}"])
    sizes, asked, embeds = [], [], random(6, 5)

    def network(x, t, *, drop, image_embeds):
        sizes.append(len(x))
        made = 0.5 * x + image_embeds.mean(dim=1)[:, None, None, None] - t[:, None, None, None]
        return made if loss == "simple" else torch.cat([made, 0.1 * x], dim=1)

    def choose(x_0):
        asked.append(x_0)
        return torch.tensor([1, 5])

    def drawn(choose=None):
        return run_decoder(network, config, Noise(0, range(2), "any", CPU, 3), embeds, choose=choose,
                           settings=SampleConfig(sampler=sampler, steps=5))
    complete = drawn()
    sizes.clear()
    assert torch.allclose(drawn(choose), complete[[1, 5]], atol=1e-6)
    assert sizes == [6, 6, 6, 2, 2] and len(asked) == 1
    assert asked[0].shape == complete.shape and asked[0].abs().max() <= 1


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_known_frames_are_noised_truth_at_every_step(sampler):
    """What a network in training was shown: alpha x_0 + sigma epsilon, the noise being that of the start."""
    config, seen = interpolation_config(8), []

    def stub(x, t, *, drop, concat, image_embeds, fps, frame_skip):
        seen.append((x, t[0]))
        return 0.3 * x + 1                                   # wrong everywhere
    frames, known = random(2, 1, 1, 8, 4, 4).clamp(-1, 1), torch.arange(8) % 3 == 0
    made = fill_frames(stub, config, Noise(0, range(2), "any", CPU), frames, known, random(2, 5), 6.0, 1,
                       settings=SampleConfig(sampler=sampler, steps=4))
    assert torch.equal(made[:, :, :, known], frames[:, :, :, known]) and len(seen) == 4
    diffusion, epsilon = Diffusion(config.diffusion.prediction_type), seen[0][0]     # at t = 1: noise alone
    for x, t in seen:
        expected = diffusion.add_noise(frames[:, 0], epsilon, t.expand(2))
        assert torch.allclose(x[:, :, known], expected[:, :, known], atol=1e-5)
        assert t == 1 or not torch.allclose(x[:, :, ~known], expected[:, :, ~known], atol=0.1)


def test_every_window_of_a_longer_video_is_chosen():
    config, asked = interpolation_config(8), []

    def stub(x, t, *, drop, concat, image_embeds, fps, frame_skip):
        return 0.3 * x

    def choose(x_0):
        asked.append(x_0)
        return torch.tensor([1, 5])
    keys = random(2, 1, 8, 4, 4).clamp(-1, 1)
    one, many = (extend_keys(stub, config, Noise(0, range(2), "any", CPU, each), keys, 19, random(2, 5), 6.0,
                             settings=SampleConfig(steps=2), choose=choose if each == 3 else None)
                 for each in (1, 3))
    assert len(asked) == 2 and all(x_0.shape == (6, 1, 8, 4, 4) for x_0 in asked)
    assert torch.equal(asked[0][:, :, :2], keys[:, :, 6:].repeat_interleave(3, dim=0))       # not the guess
    assert torch.equal(asked[1][:, :, :2], many[:, :, 12:14].repeat_interleave(3, dim=0))
    assert many.shape == one.shape and torch.equal(many[:, :, :8], keys)
    assert not torch.equal(many[0, :, 8:], one[0, :, 8:])


# --- super-resolution --------------------------------------------------------------------------------------

def lively(stage):
    """(network, config) of a stage, untrained but with weights that all matter."""
    config = load_config(SMOKE, stage)
    network = build_network(config).eval().requires_grad_(False)
    for i, p in enumerate(network.parameters()):
        p.add_(0.1 * random(*p.shape, seed=i))
    return network, config


@pytest.fixture(scope="module", params=["sr_h", "sr_l_t"])
def super_resolution(request):
    return lively(request.param)


@pytest.fixture(scope="module")
def image_super_resolution():
    return lively("sr_h")


def low(model, f=5):
    """Clips (2, 1, f, h, w) of the size that the network enlarges."""
    config = model[1]
    size = config.data.sizes[1 if config.stage == "sr_h" else 0]
    return random(2, 1, f, size, size).clamp(-1, 1)


def enlarge(model, clip, *, indices=range(2), sampler="dpmpp_2m", **options):
    settings = SampleConfig(sampler=sampler, steps=3)
    return run_super_resolution(*model, noise(indices), clip, settings=settings, **options)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddpm"])
def test_shared_noise_makes_identical_frames_stay_identical(image_super_resolution, sampler):
    still = low(image_super_resolution, f=1).expand(-1, -1, 4, -1, -1)
    shared = enlarge(image_super_resolution, still, sampler=sampler, shared_noise=True)
    torch.testing.assert_close(shared, shared[:, :, :1].expand_as(shared), atol=1e-5, rtol=0)
    own = enlarge(image_super_resolution, still, sampler=sampler)
    assert all((own[:, :, i] - own[:, :, 0]).abs().max() > 0.1 for i in (1, 2, 3))


def test_shared_noise_still_differs_between_videos(image_super_resolution):
    same = low(image_super_resolution)[:1].expand(2, -1, -1, -1, -1)
    large = enlarge(image_super_resolution, same, shared_noise=True)
    assert (large[0] - large[1]).abs().max() > 0.1


@pytest.mark.parametrize("shared_noise", [True, False])
def test_clips_come_out_at_the_size_of_the_stage(super_resolution, shared_noise):
    large = enlarge(super_resolution, low(super_resolution), shared_noise=shared_noise)
    config = super_resolution[1]
    size = config.data.sizes[2 if config.stage == "sr_h" else 1]
    assert large.shape == (2, 1, 5, size, size) and large.abs().max() <= 1


def test_only_a_video_network_looks_at_other_frames(super_resolution):
    clip = low(super_resolution)
    other = clip.clone()
    other[:, :, 2] = -other[:, :, 2]
    a, b = (enlarge(super_resolution, x, shared_noise=True) for x in (clip, other))
    changed = ((a - b).abs().amax(dim=(0, 1, 3, 4)) > 1e-4).tolist()
    assert changed == [super_resolution[1].stage == "sr_l_t" or frame == 2 for frame in range(5)]


def test_an_image_is_a_clip_of_one_frame(image_super_resolution):
    clip = low(image_super_resolution, f=1)
    image, large = enlarge(image_super_resolution, clip[:, :, 0]), enlarge(image_super_resolution, clip)
    torch.testing.assert_close(large[:, :, 0], image, atol=1e-5, rtol=0)


def test_a_video_does_not_depend_on_its_neighbours(super_resolution):
    clip = low(super_resolution)
    together = enlarge(super_resolution, clip, indices=[3, 7])
    alone = enlarge(super_resolution, clip[1:], indices=[7])
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=0)


def test_the_input_is_not_written_to(super_resolution):
    clip = low(super_resolution)
    before = clip.clone()
    enlarge(super_resolution, clip)
    assert torch.equal(clip, before)


def test_frames_are_taken_at_even_times():
    """Where a skip makes that possible; where none does, at most half a frame of the finest from it."""
    for num_frames, skip in ((3, 1), (16, 1), (31, 2), (46, 3), (26, 5), (76, 5), (91, 6)):
        found, chosen = even_times(num_frames, 16, 6)
        assert found == skip
        assert chosen.tolist() == list(range(0, chosen[-1] + 1, chosen[1]))
    for num_frames in (17, 18, 20, 40, 60, 90):
        skip, chosen = even_times(num_frames, 16, 6)
        even = torch.linspace(0, 15 * skip, num_frames)
        assert (chosen[0], chosen[-1], len(chosen)) == (0, 15 * skip, num_frames)
        assert (chosen - even).abs().max() <= 0.5 and skip == 6
