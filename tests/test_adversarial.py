"""A critic that compares, and a student that learns from it through its whole walk."""

import math

import pytest
import torch
from torch import nn

from mavlite.checkpoint import load_checkpoint
from mavlite.critic import Critic, compare, critic_loss, noised
from mavlite.diffusion import Diffusion
from mavlite.distillation import own_walk
from mavlite.errors import MavliteError
from mavlite.training import Trainer

AGAINST = ["sample.steps=2", "sample.sampler=ddim", "sample.guidance_scale=1.0", "adversarial.weight=1.0",
           "adversarial.critic_width=4", "train.precision=fp32"]


@pytest.fixture
def student(smoke_config, smoke_weights, tmp_path):
    def make(*overrides, stage="decoder_t", run="run", resume=False):
        config = smoke_config(stage, [*AGAINST, *overrides])
        return Trainer(config, tmp_path / run, weights=smoke_weights, init_from=smoke_weights / stage,
                       resume=resume, device="cpu")
    return make


def test_the_loss_of_a_linear_critic_in_closed_form():
    real, made, w = torch.randn(3, 5, 1, 4, 4, 4, dtype=torch.float64)
    loss = critic_loss(lambda clips: (clips * w).flatten(1).sum(dim=1), real, made, gamma=0.3)
    gap = ((real - made) * w).flatten(1).sum(dim=1)
    # D(x) = <w, x> has the slope w everywhere, for real clips and made ones.
    expected = torch.log1p(torch.exp(-gap)).mean() + 0.3 * w.square().flatten(1).sum(dim=1).mean()
    assert torch.allclose(loss, expected, rtol=1e-12)
    same = torch.randn(7)
    assert compare(same, same).item() == pytest.approx(math.log(2))


def test_noise_has_the_deviation_of_its_level():
    clips, level = torch.zeros(3, 1, 16, 32, 32), torch.tensor([0.1, 0.4, 0.7])
    deviation = noised(clips, torch.randn_like(clips), level).flatten(1).std(dim=1)
    assert torch.allclose(deviation, level, rtol=0.03)


@pytest.mark.parametrize("channels, shape", [(1, (16, 32, 32)), (3, (8, 16, 16)), (1, (4, 8, 8))])
def test_a_critic_takes_clips_of_any_size_and_both_conditions(channels, shape):
    critic = Critic(channels, 6, 1, width=4)
    clips, embeds, fps = torch.randn(2, channels, *shape), torch.randn(2, 6), torch.randn(2, 1)
    scores = critic(clips, embeds, fps)
    assert scores.shape == (2,)
    assert not torch.allclose(critic(clips, -embeds, fps), scores)
    assert not torch.allclose(critic(clips, embeds, -fps), scores)
    assert not torch.allclose(critic(clips.flip(2), embeds, fps), scores)            # the order of frames


def test_a_critic_learns_to_tell_moving_from_still():
    torch.manual_seed(0)
    critic, embeds = Critic(1, 2, 1, width=8), torch.zeros(8, 2)
    optimizer = torch.optim.AdamW(critic.parameters(), 1e-3, betas=(0.0, 0.99))

    def clips(moves):
        start = torch.randint(0, 8, (8,))
        at = start[:, None] + torch.arange(8) * moves
        return nn.functional.one_hot(at, 16).float()[:, None, :, None].expand(-1, -1, -1, 16, -1)

    def judge(x):
        return critic(x, embeds, embeds[:, :1])
    for _ in range(60):
        loss = critic_loss(judge, clips(1), clips(0), gamma=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (judge(clips(1)) > judge(clips(0))).all()


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
    before = [p.clone() for p in it.contest.critic.parameters()]
    asked = []
    it.network.register_forward_pre_hook(lambda _, args: asked.append((args[1][0].item(),
                                                                       torch.is_grad_enabled())))
    for _ in it.steps():
        assert all(p.grad is not None for p in it.network.parameters() if p.requires_grad)
        assert all(p.grad is None and p.requires_grad for p in it.contest.critic.parameters())   # taken
    assert asked == 3 * [(1.0, True), (0.5, True)]
    assert all(not torch.equal(p, old) for p, old in zip(it.contest.critic.parameters(), before))
    assert all(p.grad is None for p in it.objective.clip.parameters())
    assert not it.network.null_embed.requires_grad


def test_a_student_comes_closer_to_what_was_asked_for(student):
    it = student("train.steps=30", "train.warmup_steps=5", "data.num_clips=8", "adversarial.weight=1e-6")
    losses = [report["loss"] for report in it.steps()]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


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
    for (_, x_0, hidden), made in zip(walked, met[1::4]):    # real, made, real, made
        assert torch.equal(torch.where(hidden, 0, made), torch.where(hidden, 0, x_0))
        assert not torch.equal(made, x_0) and hidden.any(dim=2).all() and not hidden.all(dim=2).any()
        given = ~hidden[:, 0, :, 0, 0]
        first, last, count = given[:, 0], given[:, -1], given.sum(dim=1)
        assert (first | last | (count == 1)).all() and not (first & last).any()      # on one side, or one


def test_a_critic_has_no_use_for_one_who_cannot_walk(smoke_config, smoke_weights, tmp_path):
    with pytest.raises(MavliteError, match="--init-from"):
        Trainer(smoke_config("decoder_t", AGAINST), tmp_path / "run", weights=smoke_weights, device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage, overrides, said", [
    ("decoder", [], "is for key frames"), ("sr_l_t", [], "is for key frames"),
    ("interpolation", ["extrapolate.guidance_scale=2.0"], "extrapolate.guidance_scale"),
    ("decoder_t", ["distill.teacher=anywhere"], "set distill.teacher to null"),
    ("decoder_t", ["sample.guidance_scale=3.0"], "adversarial.weight.*guidance_scale"),
    ("decoder_t", ["adversarial.critic_lr=0.0"], "adversarial.critic_lr")])
def test_what_no_critic_can_teach_is_refused(smoke_config, stage, overrides, said):
    with pytest.raises(MavliteError, match=said):
        smoke_config(stage, [*AGAINST, *overrides])
