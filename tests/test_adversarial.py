"""A critic that finds faults frame by frame, and a student that learns from it through its whole walk."""

import math

import pytest
import torch
from torch import nn

from mavlite.adversarial import shifted
from mavlite.checkpoint import load_checkpoint
from mavlite.config import CriticConfig
from mavlite.critic import Critic, critic_loss, first_lesson, generator_loss, noised, places_loss, spots
from mavlite.diffusion import Diffusion
from mavlite.digits import load_digits
from mavlite.distillation import own_walk
from mavlite.errors import MavliteError
from mavlite.faults import FaultyClips
from mavlite.training import Trainer

WALK = ["sample.steps=2", "sample.sampler=ddim", "sample.guidance_scale=1.0", "train.precision=fp32"]


def critic(width=8):
    torch.manual_seed(0)
    return Critic(CriticConfig(width))


@pytest.fixture
def student(smoke_config, smoke_weights, tmp_path):
    def make(*overrides, stage="decoder_t", run="run", resume=False):
        config = smoke_config(stage, [*WALK, f"adversarial.critic={smoke_weights}", *overrides])
        return Trainer(config, tmp_path / run, weights=smoke_weights, init_from=smoke_weights / stage,
                       resume=resume, device="cpu")
    return make


@pytest.mark.parametrize("channels, shape", [(1, (16, 32, 32)), (3, (8, 16, 16)), (1, (4, 16, 24))])
def test_a_critic_takes_clips_of_any_size_and_rate(channels, shape):
    it = critic()
    clips, log_fps = torch.randn(2, channels, *shape), torch.randn(2)
    faults, places = it(clips, log_fps)
    assert faults.shape == (2, shape[0]) and places.shape == (2, 3, shape[0], shape[1] // 4, shape[2] // 4)
    assert not torch.allclose(it(clips, log_fps + 1)[0], faults)
    flipped = it(clips.flip(2), log_fps)[0]
    assert not torch.allclose(flipped.flip(1), faults)       # which frame comes first says something


def test_a_shifted_clip_is_itself_elsewhere_and_black_comes_in():
    clips = 2 * torch.rand(3, 1, 4, 8, 10) - 1
    moved = shifted(clips, torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.25, 0.0]]))
    assert torch.allclose(moved[0], clips[0], atol=1e-6)
    assert torch.allclose(moved[1, ..., 1:, :-1], clips[1, ..., :-1, 1:], atol=1e-6)
    assert torch.allclose(torch.cat([moved[1, ..., 0, :], moved[1, ..., -1]], -1), torch.tensor(-1.0))
    between = 0.75 * clips[2, ..., 1:, :] + 0.25 * clips[2, ..., :-1, :]
    assert torch.allclose(moved[2, ..., 1:, :], between, atol=1e-6)


def test_over_all_shifts_every_second_pixel_says_nothing():
    clips = torch.zeros(200, 1, 1, 12, 12, requires_grad=True)
    way = torch.stack([torch.linspace(-1, 1, 201)[:-1], torch.zeros(200)], dim=-1)
    readout = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    (shifted(clips, way) * readout).sum().backward()         # some network's first weights
    stripes = (-1.0) ** torch.arange(12)[:, None].expand(12, 12)
    learned = clips.grad.mean(dim=0)[0, 0][2:-2]             # away from the edges
    assert (learned * stripes[2:-2]).sum().abs() < 0.02 * (readout * stripes)[2:-2].abs().sum()


def test_a_critic_says_of_a_frame_what_is_near_it_in_time():
    it = critic().double()
    clips = torch.randn(1, 1, 40, 16, 16, dtype=torch.float64)
    changed = clips.clone()
    changed[:, :, 20] += 1
    reach = 2 * 4 + 2                                        # of four residuals, and the word itself
    for block in it.modules():                               # norms see the whole clip, if only its scale
        if isinstance(block, nn.GroupNorm):
            block.forward = lambda x: x
    log_fps = torch.zeros(1, dtype=torch.float64)
    differ = (it(clips, log_fps)[0] != it(changed, log_fps)[0])[0].nonzero()[:, 0].tolist()
    assert differ[0] >= 20 - reach and differ[-1] <= 20 + reach
    assert {18, 19, 20, 21, 22} <= set(differ)


def test_noise_has_the_deviation_of_its_level():
    clips, level = torch.zeros(3, 1, 16, 32, 32), torch.tensor([0.1, 0.4, 0.7])
    deviation = noised(clips, torch.randn_like(clips), level).flatten(1).std(dim=1)
    assert torch.allclose(deviation, level, rtol=0.03)


def test_losses_in_closed_form():
    real, made, rendered = torch.randn(3, 2, 5, dtype=torch.float64)
    at_fault, asked = torch.tensor([[1., 0, 0, 1, 1], [0, 0, 0, 0, 0]]).double(), torch.tensor([[1.], [0]])
    p = rendered.sigmoid()
    told = -(at_fault * p.log() + (1 - at_fault) * (1 - p).log()).mean()
    apart = -((1 - real.sigmoid()).log() + made.sigmoid().log() / 2)[0].sum() / 10   # the second is not asked
    loss = critic_loss(real, made, rendered, at_fault, asked)
    assert torch.allclose(loss, apart + told, rtol=1e-6)
    assert torch.allclose(generator_loss(made, asked), -(1 - made.sigmoid()).log()[0].sum() / 10, rtol=1e-6)
    nothing = torch.zeros(2, 5)
    assert generator_loss(nothing, torch.ones(2, 5)).item() == pytest.approx(math.log(2))


def test_spots_stand_where_digits_are():
    centres = torch.tensor([[[[20.0, 44.0], [50.0, 14.0]]]])                         # 1 1 2 2
    near = spots(centres, 16, 16)[0, 0]
    assert near.shape == (2, 16, 16) and near.max() <= 1
    for spot, (y, x) in zip(near, centres[0, 0]):
        row, column = divmod(spot.argmax().item(), 16)
        assert abs((row + 0.5) * 4 - y) <= 2 and abs((column + 0.5) * 4 - x) <= 2


def test_the_right_places_and_ways_have_the_smallest_loss():
    centres = torch.tensor([20.0, 30.0]) + torch.zeros(1, 4, 2, 2)
    centres = centres + torch.arange(4.0)[:, None, None] * torch.tensor([[4.0, 0.0], [4.0, 0.0]])
    places = torch.zeros(1, 3, 4, 8, 8)
    places[:, 0] = torch.logit(spots(centres, 8, 8).amax(dim=2).clamp(1e-6, 1 - 1e-6))
    places[:, 1] = 4 / 8                                     # four px a frame, in eighths of 64 px
    best = places_loss(places, centres)
    for change in ((0, 1.0), (1, 0.5), (2, -0.5)):
        worse = places.clone()
        worse[:, change[0]] += change[1]
        assert places_loss(worse, centres) > best + 0.005
    still = places.clone()
    still[:, 1:, -1] += 9                                    # nobody knows where they go after the last frame
    assert torch.equal(places_loss(still, centres), best)


def test_a_first_lesson_is_learnt():
    it, clips = critic(16), FaultyClips(load_digits("train", "glyphs").images, seed=3)
    optimizer = torch.optim.AdamW(it.parameters(), 3e-3)
    pair = clips.pairs(range(16), 6.0, 8, 32)                # the same few, to know them by heart
    level = torch.full((16,), 0.1)
    losses = []
    for _ in range(60):
        loss = first_lesson(it, pair, torch.randn_like(pair.frames), level)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        faulty, right = (it(x * 2 - 1, pair.fps.log())[0].mean(dim=1) for x in (pair.frames, pair.right))
    assert (faulty > right)[pair.kind > 0].float().mean() > 0.9


def test_gradients_go_through_the_whole_walk():
    diffusion, gain = Diffusion(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(4, 3, dtype=torch.float64)
    x_0, t = own_walk(diffusion, lambda x_t, t: gain * x_t, noise, 4, 4)
    assert t.abs().max() == 0
    slope, = torch.autograd.grad(x_0.sum(), gain)
    with torch.no_grad():
        more, less = (own_walk(diffusion, lambda x_t, t: (gain + d) * x_t, noise, 4, 4)[0].sum()
                      for d in (1e-6, -1e-6))
    assert slope.item() == pytest.approx(((more - less) / 2e-6).item(), rel=1e-6)


# --- through the trainer

def test_student_and_critic_each_learn_from_their_own_loss(student):
    it = student("train.steps=3")
    learning = [p for name, p in it.contest.critic.named_parameters() if not name.startswith("places.")]
    before = [p.clone() for p in learning]
    asked = []
    it.network.register_forward_pre_hook(lambda _, args: asked.append((args[1][0].item(),
                                                                       torch.is_grad_enabled())))
    for _ in it.steps():
        assert all(p.grad is not None for p in it.network.parameters() if p.requires_grad)
        assert all(p.grad is None and p.requires_grad for p in it.contest.critic.parameters())   # taken
    assert asked == 3 * [(1.0, True), (0.5, True)]
    assert all(not torch.equal(p, old) for p, old in zip(learning, before))
    assert all(p.grad is None for p in it.objective.clip.parameters())
    assert not it.network.null_embed.requires_grad


def test_a_student_comes_closer_to_what_was_asked_for(student):
    it = student("train.steps=30", "train.warmup_steps=5", "data.num_clips=8", "adversarial.reward=1000.0")
    losses = [report["loss"] for report in it.steps()]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_handwriting_counts_as_much_as_it_says(student, monkeypatch):
    monkeypatch.setattr("mavlite.adversarial.handwriting",
                        lambda clips, fps: 0.25 * fps * clips.isfinite().all())
    losses, rates = [], []
    for weight in (0.0, 2.0):
        it = student("train.steps=1", f"adversarial.handwriting={weight}", run=f"run-{weight:g}")
        it.network.register_forward_pre_hook(lambda _, args, kwargs: rates.append(kwargs["fps"].exp()),
                                             with_kwargs=True)
        losses += [report["loss"] for report in it.steps()]
    assert losses[1] - losses[0] == pytest.approx(2 * 0.25 * rates[0].mean().item(), rel=1e-4)


def test_sameness_counts_as_much_as_it_says(student, monkeypatch):
    seen = []

    def much(clips, real):
        seen.append((clips, real))
        return torch.full((len(clips),), 0.25)
    monkeypatch.setattr("mavlite.adversarial.sameness", much)
    losses = []
    for weight in (0.0, 2.0):
        it = student("train.steps=1", f"adversarial.sameness={weight}", run=f"run-{weight:g}")
        losses += [report["loss"] for report in it.steps()]
    assert losses[1] - losses[0] == pytest.approx(2 * 0.25, rel=1e-4)
    (made, real), = seen                                     # not asked where it does not count
    assert made.shape == real.shape and not made.equal(real)


def test_ink_is_held_to_the_real_clip_s(student, monkeypatch):
    def grey(diffusion, denoise, noise, steps, count):       # all over, whatever the network says
        return 0 * denoise(noise, noise.new_ones(len(noise))) - 0.5, None
    monkeypatch.setattr("mavlite.adversarial.own_walk", grey)
    losses, real = [], []
    for weight in (0.0, 3.0):
        it = student("train.steps=1", f"adversarial.ink={weight}", run=f"run-{weight:g}")
        as_it_is = it.contest.loss
        monkeypatch.setattr(it.contest, "loss", lambda network, x_0, *rest: (
            real.append(x_0), as_it_is(network, x_0, *rest))[1])
        losses += [report["loss"] for report in it.steps()]
    shares = 0.5 / (real[0] + 1).flatten(1).mean(dim=1)
    assert losses[1] - losses[0] == pytest.approx(3 * (shares - 1).square().mean().item(), rel=1e-4)


def test_a_resumed_contest_ends_like_an_uninterrupted_one(student):
    whole = student("train.steps=4", run="whole")
    list(whole.steps())
    halved = student("train.steps=4", "train.save_every=2", run="halved")
    for report in halved.steps():
        if report["step"] == 2:
            break
    again = student("train.steps=4", "train.save_every=2", run="halved", resume=True)
    assert again.step == 2
    list(again.steps())
    (one, _), (two, _) = (load_checkpoint(it.run) for it in (whole, again))
    assert any(key.startswith("critic.") for key in one) and one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_upF_meets_the_critic_in_every_other_step_and_keeps_what_it_is_given(student, monkeypatch):
    it = student("extrapolate.steps=2", "extrapolate.sampler=ddim", "extrapolate.guidance_scale=1.0",
                 "train.steps=4", stage="interpolation")
    met, walked, asked = [], [], []

    def judge(critic, args):
        met.append(args[0].detach())
    it.contest.critic.register_forward_pre_hook(judge)
    monkeypatch.setattr("mavlite.adversarial.noised", lambda clips, noise, level: clips)
    as_it_is = it.contest.loss

    def loss(network, x_0, draws, conditions, hidden):
        walked.append((it.step, x_0, hidden.bool()))
        return as_it_is(network, x_0, draws, conditions, hidden)
    monkeypatch.setattr(it.contest, "loss", loss)
    it.network.register_forward_pre_hook(lambda _, args: asked.append(args))
    list(it.steps())
    assert [step for step, _, _ in walked] == [1, 3]
    assert len(asked) == 2 * 1 + 2 * 2                       # in other steps it is asked once
    for args in (asked[0], asked[3]):                        # of every other sample at a time of its own walk
        assert set(args[1][::2].tolist()) <= {0.5, 1.0} and not set(args[1][1::2].tolist()) & {0.5, 1.0}
    for (_, x_0, hidden), seen in zip(walked, met[1::2]):    # the critic's lesson, then the student's
        made = seen[:len(x_0)]
        assert torch.equal(torch.where(hidden, 0, made), torch.where(hidden, 0, x_0))
        assert not torch.equal(made, x_0) and hidden.any(dim=2).all() and not hidden.all(dim=2).any()
        given = ~hidden[:, 0, :, 0, 0]
        first, last, count = given[:, 0], given[:, -1], given.sum(dim=1)
        assert (first | last | (count == 1)).all() and not (first & last).any()      # on one side, or one


def test_D_meets_the_critic_in_every_other_step_and_is_asked_without_its_embedding_in_others(student):
    it = student("train.steps=4", "diffusion.drop_condition=0.5", stage="decoder")
    met, asked = [], []
    it.contest.critic.register_forward_pre_hook(lambda _, args: met.append(args))
    it.network.register_forward_pre_hook(lambda _, args, kwargs: asked.append((args, kwargs)),
                                         with_kwargs=True)
    list(it.steps())
    frames, size = it.config.train.batch_size, it.config.data.sizes[0]
    assert [tuple(clips.shape) for clips, _ in met] == 2 * [(3 * frames, 1, 1, size, size),
                                                            (frames, 1, 1, size, size)]
    assert all(torch.allclose(log_fps[:frames].exp(), torch.tensor(it.config.data.fps)) for _, log_fps in met)
    dropped = [kwargs["drop"] for _, kwargs in asked]
    assert [drop is not None for drop in dropped] == 2 * [True, False, False]        # a walk takes two steps
    assert [args[1][0].item() for (args, _), drop in zip(asked, dropped) if drop is None] == 2 * [1.0, 0.5]
    assert dropped[0].any() or dropped[3].any()


def test_a_critic_has_no_use_for_one_who_cannot_walk(smoke_config, smoke_weights, tmp_path):
    config = smoke_config("decoder_t", [*WALK, f"adversarial.critic={smoke_weights}"])
    with pytest.raises(MavliteError, match="--init-from"):
        Trainer(config, tmp_path / "run", weights=smoke_weights, device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage, overrides, said", [
    ("prior", [], "is for key frames"), ("sr_l_t", [], "is for key frames"),
    ("interpolation", ["extrapolate.guidance_scale=2.0"], "extrapolate.guidance_scale"),
    ("decoder_t", ["distill.teacher=anywhere"], "set distill.teacher to null"),
    ("decoder_t", ["sample.guidance_scale=3.0"], "adversarial.critic.*guidance_scale"),
    ("decoder_t", ["adversarial.critic_lr=0.0"], "adversarial.critic_lr"),
    ("decoder", ["adversarial.handwriting=1.0"], "adversarial.handwriting: of one frame")])
def test_what_no_critic_can_teach_is_refused(smoke_config, stage, overrides, said):
    with pytest.raises(MavliteError, match=said):
        smoke_config(stage, [*WALK, "adversarial.critic=anywhere", *overrides])
