"""Progressive distillation: a perfect student of N steps ends exactly where its teacher of 2 N does."""

import shutil

import pytest
import torch
from conftest import ROOT, SMOKE

from mavlite.checkpoint import read_record
from mavlite.config import load_config
from mavlite.diffusion import Diffusion
from mavlite.distillation import distillation_loss, own_walk, student_times, two_steps_as_one
from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo
from mavlite.reproduce import reproduce_all
from mavlite.sampling import ddim
from mavlite.stages import load_network
from mavlite.training import Trainer


def gaussian(diffusion, mean=0.3, deviation=0.5):
    """The exact denoiser of data N(mean, deviation^2): E[x_0 | x_t]."""
    def denoise(x_t, t):
        alpha, sigma = (value.view(-1, *[1] * (x_t.ndim - 1)) for value in diffusion.alpha_sigma(t))
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)
    return denoise


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_perfect_student_ends_where_its_teacher_does(steps):
    diffusion = Diffusion()
    teacher = gaussian(diffusion)

    def student(x_t, t):
        return two_steps_as_one(diffusion, teacher, x_t, t, steps)
    x = torch.randn(50, 2, 3, dtype=torch.float64)
    expected = ddim(teacher, x, diffusion, 2 * steps)
    assert torch.allclose(ddim(student, x, diffusion, steps), expected, atol=1e-10)
    assert (ddim(teacher, x, diffusion, steps) - expected).abs().max() > 1e-3        # else nothing to learn


def test_students_are_asked_at_the_times_of_their_walk():
    times = student_times(torch.arange(1000) / 1000, 4)
    assert times.unique().tolist() == [0.25, 0.5, 0.75, 1.0] and times.eq(0.5).sum() == 250


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "epsilon"])
def test_the_loss_weighs_errors_of_x_0_by_the_truncated_snr(prediction_type):
    diffusion = Diffusion(prediction_type, log_snr_min=-20.0)
    teacher, steps = gaussian(diffusion), 4
    x_0, noise = torch.randn(2, 6, 5, dtype=torch.float64)
    t = student_times(torch.rand(6, dtype=torch.float64), steps).clamp(max=0.75)
    x_t = diffusion.add_noise(x_0, noise, t)

    def student(off):
        def predict(x_t, t):
            wanted = two_steps_as_one(diffusion, teacher, x_t, t, steps) + off
            return diffusion.target(wanted, diffusion.epsilon(wanted, x_t, t), t)
        return predict

    def loss(off):
        return distillation_loss(diffusion, student(off), teacher, x_t, t, steps).item()
    assert loss(0.0) == pytest.approx(0, abs=1e-20)
    assert loss(0.1) == pytest.approx(0.01 * diffusion.snr(t).clamp(min=1).mean().item(), rel=1e-9)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_a_student_s_own_walk_is_where_the_sampler_comes_by(clip):
    diffusion, steps, seen = Diffusion(), 4, []
    exact = gaussian(diffusion)

    def denoise(x_t, t):
        x_0 = exact(x_t, t)
        return x_0 if clip is None else x_0.clamp(-clip, clip)
    noise = torch.randn(5, 2, 3, dtype=torch.float64)
    ddim(denoise, noise, diffusion, steps, callback=lambda i, x_t, x_0: seen.append(x_t))
    for turn in range(steps):
        x_t, t = own_walk(diffusion, denoise, noise, turn, steps)
        assert torch.allclose(x_t, seen[turn], atol=1e-12)
        assert t.tolist() == [1 - turn / steps] * 5


def test_what_is_penalised_is_the_student_s_own_clean_part():
    diffusion, steps = Diffusion("v_prediction"), 4
    x_0, noise = torch.randn(2, 6, 5, dtype=torch.float64)
    t = torch.full((6,), 0.5, dtype=torch.float64)
    x_t = diffusion.add_noise(x_0, noise, t)

    def perfect(x_t, t):                                     # as good as its teacher: nothing else counts
        return diffusion.target(x_0, diffusion.epsilon(x_0, x_t, t), t)
    seen = []
    loss = distillation_loss(diffusion, perfect, lambda x_t, t: x_0, x_t, t, steps,
                             penalty=lambda made: seen.append(made) or made.sum())
    assert torch.allclose(seen[0], x_0, atol=1e-10) and loss.item() == pytest.approx(x_0.sum().item())


# --- through the trainer

STUDENT = ["sample.steps=2", "sample.sampler=ddim", "sample.guidance_scale=1.0", "distill.guidance_scale=2.0"]


@pytest.fixture
def student(smoke_config, smoke_weights, tmp_path):
    def make(stage, *overrides):
        config = smoke_config(stage, [*STUDENT, f"distill.teacher={smoke_weights}", "train.precision=fp32",
                                      *overrides])
        return Trainer(config, tmp_path / "run", weights=smoke_weights, device="cpu")
    return make


@pytest.mark.parametrize("stage", ["prior", "decoder", "decoder_t", "interpolation", "sr_l_t", "sr_h"])
def test_every_diffusion_stage_can_be_distilled(student, smoke_weights, stage):
    it = student(stage)
    teacher, _, _ = load_network(smoke_weights, stage, it.objective.clip)
    assert all(torch.equal(p, teacher.state_dict()[name]) for name, p in it.network.state_dict().items())
    assert it.earlier == [read_record(smoke_weights / stage, stage)["provenance"]]
    reports = list(it.steps())
    assert all(report["loss"] > 0 for report in reports) and reports[-1]["step"] == it.train.steps
    assert all(torch.equal(p, teacher.state_dict()[name])
               for name, p in it.objective.lessons.teacher.state_dict().items())
    away_from = it.objective.lessons.guided["away_from"]
    assert (away_from is not None) == (stage == "decoder_t")                         # as in the pipeline


def test_a_student_comes_closer_to_its_teacher(student):
    it = student("decoder", "train.steps=60", "train.batch_size=32", "data.num_clips=8",
                 "train.warmup_steps=5")
    losses = [report["loss"] for report in it.steps()]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:5]) * 2


@pytest.mark.parametrize("stage", ["prior", "decoder", "decoder_t", "sr_l_t"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_learns_on_its_own_walk(student, stage, precision):
    it = student(stage, "distill.own_walk=true", "train.steps=4", f"train.precision={precision}")
    asked = []
    it.network.register_forward_pre_hook(lambda _, args: asked.append((args[1][0].item(),
                                                                       torch.is_grad_enabled())))
    for _ in it.steps():
        missing = [name for name, p in it.network.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing                                   # what the walk left behind hides no gradient
    # Two steps: at 1, then at 1 without and at 1/2 with a gradient, and so on in turn.
    assert asked == 2 * [(1.0, True), (1.0, False), (0.5, True)]


@pytest.mark.parametrize("stage", ["decoder", "decoder_t"])
def test_rewarded_students_come_closer_to_what_was_asked_for(student, stage):
    it = student(stage, "distill.own_walk=true", "distill.reward=1.0", "train.steps=40",
                 "train.warmup_steps=5", "data.num_clips=8")
    losses = [report["loss"] for report in it.steps()]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert all(p.grad is None and not p.requires_grad for p in it.objective.clip.parameters())


@pytest.mark.parametrize("stage, overrides, said", [
    ("interpolation", ["distill.own_walk=true"], "own_walk"), ("sr_l_t", ["distill.reward=0.1"], "reward"),
    ("decoder", ["distill.reward=-1.0"], "distill.reward"),
    ("judge", [], "distill.teacher"), ("decoder", ["sample.sampler=dpmpp_2m"], "sample.sampler"),
    ("decoder", ["sample.guidance_scale=3.0"], "guidance_scale"),
    ("decoder", ["diffusion.loss=hybrid"], "learned variance")])
def test_what_cannot_be_distilled_is_refused(smoke_config, stage, overrides, said):
    with pytest.raises(MavliteError, match=said):
        smoke_config(stage, [*STUDENT, "distill.teacher=anywhere", *overrides])


def test_only_students_are_rewarded(smoke_config):
    with pytest.raises(MavliteError, match="set distill.teacher"):
        smoke_config("decoder", ["distill.reward=0.1"])


def test_a_student_of_a_student_generates_in_two_unguided_evaluations(smoke_weights, tmp_path):
    """configs/distill.yaml's chain in small: teacher -> 4 -> 2, each time a folder with a whole cascade."""
    teacher = smoke_weights
    for steps, scale in ((4, 2.0), (2, 1.0)):
        folder = tmp_path / f"distill-{steps}"
        shutil.copytree(teacher, folder / "weights")
        stages = ["interpolation", "decoder_t"]              # upF first: it names the D^t it came from
        reproduce_all(SMOKE, folder, only=stages, device="cpu", overrides=[
            f"distill.teacher={teacher}", f"distill.guidance_scale={scale}", f"sample.steps={steps}",
            "sample.sampler=ddim", "sample.guidance_scale=1.0", "train.steps=2"])
        for stage in stages:
            before, after = (read_record(weights / stage, stage) for weights in (teacher, folder / "weights"))
            assert after["provenance"]["started_from"] == f"{stage} ({before['sha256'][:12]})"
            assert after["sha256"] != before["sha256"] and after["config"]["sample"]["steps"] == steps
        teacher = folder / "weights"

    pipe, seen = MakeAVideo.from_pretrained(teacher, device="cpu"), {stage: [] for stage in stages}
    for stage in stages:
        pipe.networks[stage].register_forward_pre_hook(lambda _, args, s=stage: seen[s].append(len(args[0])))
    video = pipe(["two and 4", "seven and 9"], candidates=1)
    assert seen["decoder_t"] == [2, 2]                       # two evaluations, of two videos and no null half
    assert len(seen["interpolation"]) == 2
    assert video.frames.isfinite().all() and video.frames.std() > 0


def test_the_recipe_makes_students_of_the_cpu_recipe_s_teacher():
    student, teacher = (load_config(ROOT / "configs" / name, "decoder_t")
                        for name in ("distill.yaml", "cpu.yaml"))
    assert student.model == teacher.model and student.clip == teacher.clip
    assert student.diffusion.prediction_type == teacher.diffusion.prediction_type
    for name in ("channels", "sizes", "num_frames", "fps", "fps_range", "frame_skip", "condition"):
        assert getattr(student.data, name) == getattr(teacher.data, name)
    assert student.distill.teacher and student.distill.guidance_scale == teacher.sample.guidance_scale
