"""The benchmarks' pure parts, and the commands on smoke weights: what they write, never how fast."""

import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMOKE

from benchmarks import candidates, cost, critic, curve, guidance, peers, steps, timing, training
from benchmarks.command import table
from mavlite.config import SampleConfig
from mavlite.device import peak_memory
from mavlite.errors import MavliteError
from mavlite.faults import FAULTS
from mavlite.info import flops_per_frame
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import PAIRS, make_prompt


def row(**changes):
    return {"stage": "decoder", "measure": "judge accuracy", "unit": "share", "sampler": "ddim",
            "guidance_scale": 1.0, "steps": 4, "evaluations": 4, "score": 0.5, "n": 10, "seconds": 0.1,
            "shipped": 0, "weights": "aa", "digits": "mnist"} | changes


# ---------------------------------------------------------------- the knee and the CSV

def test_the_knee_is_the_fewest_evaluations_within_the_tolerance():
    rows = [row(steps=count, evaluations=count, score=value) for count, value in
            [(1, 0.2), (2, 0.795), (4, 0.791), (8, 0.8), (16, 0.78)]]
    best, bend = curve.knee(rows)
    assert (best["steps"], bend["steps"]) == (8, 2)
    for second, wanted in ((20.1, 1), (20.2, 2)):
        rows = [row(unit="dB", steps=count, evaluations=count, score=score)
                for count, score in ((1, 20.0), (2, second))]
        assert curve.knee(rows)[1]["steps"] == wanted


def test_of_equal_scores_the_one_of_fewer_evaluations_is_the_knee():
    alone, guided = row(steps=4, score=0.7), row(steps=3, evaluations=6, score=0.7, guidance_scale=3.0)
    assert curve.knee([alone, guided])[1] is alone
    assert curve.knee([alone, guided | {"steps": 1, "evaluations": 2}])[1]["guidance_scale"] == 3.0
    better = guided | {"steps": 2, "evaluations": 4, "score": 0.705}
    assert curve.knee([alone, better])[1] is better


def test_a_guided_step_counts_as_two_evaluations():
    assert cost.evaluations(SampleConfig(steps=5)) == 5
    assert cost.evaluations(SampleConfig(steps=5, guidance_scale=2.0)) == 10
    # At times 1, 0.75, 0.5 and 0.25, of which the last is below.
    until = SampleConfig(steps=4, guidance_scale=2.0, guidance_until=0.5)
    assert cost.evaluations(until) == 7 and cost.evaluations(until, 2) == 4
    assert candidates.evaluations(until, 8, 2) == 8 * 4 + 3 and candidates.evaluations(until, 1, 4) == 7


def test_rows_survive_the_file_and_new_ones_replace_old(tmp_path):
    path = tmp_path / "steps.csv"
    assert curve.read_rows(path) == []
    old = [row(steps=1), row(steps=2), row(stage="sr_h", measure="PSNR", unit="dB", score=20.25)]
    curve.write_rows(old, path)
    assert curve.read_rows(path) == old
    merged = curve.merge(old, [row(steps=2, score=0.6), row(stage="prior", steps=1)])
    assert [(r["stage"], r["steps"], r["score"]) for r in merged] == [
        ("prior", 1, 0.5), ("decoder", 1, 0.5), ("decoder", 2, 0.6), ("sr_h", 4, 20.25)]


@pytest.mark.parametrize("change", [{"weights": "bb"}, {"n": 20}, {"digits": "glyphs"}])
def test_a_curve_never_mixes_weights_or_clips(change):
    old = [row(steps=1), row(steps=2), row(stage="sr_h", measure="PSNR")]
    merged = curve.merge(old, [row(steps=2, **change)])
    assert [(r["stage"], r["steps"]) for r in merged] == [("decoder", 2), ("sr_h", 4)]


def test_another_file_is_not_taken_for_the_curve(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(MavliteError, match="no table of this command"):
        curve.read_rows(path)
    assert path.read_text() == "a,b\n1,2\n"


def test_guidance_is_compared_where_there_is_something_to_be_guided_by(smoke_config):
    def scales(stage, *overrides):
        ways = steps.settings(stage, smoke_config(stage, overrides))
        assert smoke_config(stage, overrides).sample in ways
        return {way.guidance_scale for way in ways}
    assert scales("decoder_t") == {1.0, 2.0}                 # its own
    assert scales("prior") == {1.0, steps.GUIDANCE} and scales("sr_h") == {1.0}
    student = ("distill.teacher=x", "sample.sampler=ddim", "sample.guidance_scale=1.0", "sample.steps=3")
    assert scales("decoder_t", *student) == {1.0}


def test_what_takes_few_evaluations_is_measured_first(smoke_config):
    counts = [cost.evaluations(way) for way in steps.settings("decoder_t", smoke_config("decoder_t"))]
    assert counts == sorted(counts) and (counts[0], counts[-1]) == (1, 128)


# ---------------------------------------------------------------- the cost sheet

@pytest.mark.parametrize("stage", ["prior", "decoder_t", "interpolation", "sr_l_t", "sr_h"])
def test_a_stage_alone_does_what_it_does_for_a_video(smoke_weights, stage):
    pipe, seen = MakeAVideo.from_pretrained(smoke_weights, device="cpu"), []
    for name in ("decoder_t", "decoder") if stage == "decoder_t" else (stage,):      # D guides D^t
        pipe.networks[name].register_forward_hook(
            lambda network, given, output: seen.append((len(output), output.shape[2:])))
    cost.run_stage(pipe, stage)
    alone = seen.copy()
    pipe(timing.PROMPT)
    assert seen == 2 * alone
    sample = pipe.configs[stage].sample
    doubled = sample.guidance_scale != 1 and stage != "decoder_t"
    assert len(alone) == cost.evaluations(sample) / (2 if doubled else 1)


def test_the_sheet_s_arithmetic_is_that_of_all_evaluations(smoke_weights):
    pipe = MakeAVideo.from_pretrained(smoke_weights, device="cpu")
    frames, steps = cost.video_length(pipe.data), pipe.configs["sr_h"].sample.steps
    each = flops_per_frame("sr_h", pipe.networks["sr_h"], pipe.configs["sr_h"]) * frames / 1e9
    assert cost.arithmetic(pipe, "sr_h") == pytest.approx(each * steps, rel=0.01)    # and an enlargement


def test_the_sheet_s_rates_follow_from_its_arithmetic():
    cells = cost.row("`sr_h`", 0.5, 2.0, 3 * 2**20, 100.0, 20.0, 8)
    assert cells == ["`sr_h`", "2.5", 8, "20.0", "0.500", "25.0%", "40", "40%", "3"]
    assert cost.row("`clip`", 0.1, 2.0, 0, 100.0) == ["`clip`", "", "", "", "0.100", "5.0%", "", "", "0"]


def claim(mebibytes):
    """(this process, by how many MiB its peak of memory grew from touching so many)."""
    device = torch.device("cpu")
    before = peak_memory(device)
    torch.ones(mebibytes * 2**18)
    return os.getpid(), (peak_memory(device) - before) / 2**20


def die():
    os.kill(os.getpid(), 9)


def test_the_peak_of_memory_is_that_of_a_fresh_process():
    held = torch.ones(400 * 2**18)                           # a child's peak does not begin with its parent's
    pid, grown = timing.in_own_process(claim, 100)
    assert pid != os.getpid() and 95 < grown < 150
    del held
    with pytest.raises(MavliteError, match="killed"):
        timing.in_own_process(die)


# ---------------------------------------------------------------- choices and ratios

def test_a_choice_among_fewer_is_the_mean_over_all_ways_to_pick_them():
    close, right = torch.tensor([[0.9, 0.1, 0.5, 0.3]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    # Of 6 pairs three hold the first; alone each is as likely.
    assert [candidates.chosen(close, right, count) for count in (1, 2, 4)] == [0.25, 0.5, 1.0]
    both = torch.stack([close[0], -close[0]]), right.repeat(2, 1)
    assert candidates.chosen(*both, 4) == 0.5                # the second video's first is its worst
    unknown = torch.tensor([[math.nan, 0.0, 1.0, 1.0]])
    assert math.isnan(candidates.chosen(close, unknown, 4))  # of all, the one that could not tell
    assert candidates.chosen(close, unknown, 1) == pytest.approx(2 / 3)


def test_what_a_critic_finds_is_counted(smoke_weights, monkeypatch, tmp_path):
    wrong = torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])
    right = torch.tensor([[-1.0, -1.0, -2.0], [1.0, -3.0, -3.0]])
    at_fault = torch.tensor([[True, True, False], [False, False, True]])
    assert critic.cells(wrong, right, at_fault) == ["100%", "33%", "17%"]
    assert critic.cells(wrong, wrong, at_fault)[0] == "0%"
    out = tmp_path / "critic.md"
    monkeypatch.setattr(sys, "argv", ["critic", "--weights", str(smoke_weights), "--clips", "24",
                                      "--out", str(out)])
    critic.main()
    rows = [line for line in out.read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(FAULTS) and rows[-1].startswith("| D^t's clips, beside real ones | 24 |")
    assert 130 <= sum(int(row.split(" | ")[1]) for row in rows[:-1]) <= 230


def test_candidates_are_those_of_the_pipeline(smoke_weights, monkeypatch, tmp_path):
    pipe = MakeAVideo.from_pretrained(smoke_weights)
    monkeypatch.setattr(candidates, "look", lambda judge, tracker, keys, pair, fps: [
        keys.mean().item(), keys.max().item(), math.nan, math.nan, 0.0, math.nan, fps])
    close, against, seen = candidates.draw(pipe, None, None, 2, 3)
    assert close.shape == (2, 3, pipe.configs["decoder_t"].sample.steps)
    assert all(cost.shape == (2, 3) for cost in against.values()) and against["fault"].std() > 0
    assert seen.shape == (2, 3, 7) and (seen[..., 6] == pipe.data.fps).all()
    mean = seen[..., 0]
    prompts = [make_prompt(*pair, True, False) for pair in PAIRS[:2]]
    keys = pipe(prompts, seed=candidates.SEED, candidates=3).stages["decoder_t"]
    chosen = (close[:, :, -1] - sum(against.values())).argmax(dim=1)
    torch.testing.assert_close(mean[torch.arange(2), chosen], keys.mean(dim=(1, 2, 3, 4)), atol=1e-5, rtol=0)
    out = tmp_path / "candidates.md"
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["candidates", "--weights", str(smoke_weights), "--videos", "2",
                                      "--candidates", "3", "--out", str(out)])
    candidates.main()
    rows = [line.split(" | ")[:2] for line in out.read_text().splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows[-2:]] == ["| switches", "| in sight"]
    rows = rows[:-4]
    assert [row[0] for row in rows] == ["| 1", *["| 2"] * (len(rows) // 2), *["| 3"] * (len(rows) // 2)]
    assert [row[1] for row in rows[len(rows) // 2:]][-5:] == [
        "C", "... less exchange", "... less change", "... less third", "... less fault"]


def test_telling_apart_in_closed_form():
    scores = torch.tensor([[1.0, 2.0, 3.0], [2.0, 9.0, 0.0]])
    wrong = torch.tensor([[0.0, 1.0, 1.0], [0.0, math.nan, 0.0]])
    assert candidates.told_apart(scores, wrong) == pytest.approx((3 + 2.5) / 6)
    assert math.isnan(candidates.told_apart(scores, wrong * 0))


def test_guidance_is_compared_from_the_same_noise(smoke_weights, monkeypatch, tmp_path):
    out = tmp_path / "guidance.md"
    monkeypatch.setattr(sys, "argv", ["guidance", "--weights", str(smoke_weights), "--videos", "3",
                                      "--scales", "2", "--until", "0", "0.6", "--out", str(out)])
    guidance.main()
    lines = [line.split(" | ")[:3] for line in out.read_text().splitlines() if line.startswith("| ")][2:]
    assert lines == [["| nothing", "1", "0"], *([f"| {away}", "2", until]
                                                for away in (guidance.OWN, guidance.SINGLE)
                                                for until in ("0", "0.6")), ["| (real clips)", "", ""]]
    assert list(guidance.ways((2, 3), (0,), student=True)) == [("nothing", 1.0, 0.0)]
    scores = guidance.Scores(smoke_weights, 3)
    once, again, never = (scores.sample(guidance.SINGLE, 2.0, until)[0] for until in (0.0, 0.0, 0.999))
    assert torch.equal(once, again) and not torch.equal(once, never)


def test_peers_are_given_as_multiples_of_ours():
    def one(name, scale):
        kinds = ("evaluation", "training")
        return {"name": name, "parameters": 1e6 * scale, "layout": "as built", "guided, s": 0.5 * scale,
                "unguided, s": 0.3 * scale} | {
            f"{kind}, {what}": value * scale for kind in kinds
            for what, value in (("s", 1.0), ("flops", 2e9), ("bytes", 2**30))}
    results = [one("ours", 1), one("theirs", 12)]
    line = peers.step_table(results).splitlines()[-1]
    assert line == "| theirs | 12.00 | as built |" + " 12.000 | 12 × | 24 | 12 × | 12.00 |" * 2
    ours = {"keys": 3.0, "whole": 6.0, "steps": {"prior": 2, "decoder_t": 12, "sr_h": 4},
            "frames": (16, 32, 76, 64)}
    lines = [[cell.strip() for cell in line.split("|")[2:-1]]
             for line in peers.clip_table(results, ours).splitlines()[2:]]
    assert lines == [["14", "3.000", "1 ×", "0.5 ×"], ["18", "6.000", "2 ×", "1 ×"],
                     ["50", "180.000", "60 ×", "30 ×"], ["50", "300.000", "100 ×", "50 ×"]]


def test_a_layout_changes_how_weights_lie_and_not_what_they_say():
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv3d(8, 8, 3), torch.nn.Linear(8, 8))
    before = [p.detach().clone() for p in network.parameters()]
    peers.set_layout(network, "channels last")
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()
    peers.set_layout(network, "as built")
    assert all(p.is_contiguous() for p in network.parameters())
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_a_recipe_s_arithmetic_is_its_step_s_times_its_steps(smoke_config):
    config = smoke_config("decoder_t", ["train.steps=1000", "train.batch_size=8"])
    cells = training.row(config, {"seconds": 0.5, "flops": 3e12, "simulator": 0.04}, convolution=12_000.0)
    assert cells == ["`decoder_t`", 8, "16", "128", "3000", "6000", "50%", "4.0%", 1000, "3.00", "8"]


def test_a_table_is_markdown():
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"


# ---------------------------------------------------------------- the commands

@pytest.fixture(scope="module")
def scores(smoke_weights):
    return steps.Scores(smoke_weights, videos=3)


@pytest.mark.parametrize("stage", steps.DIFFUSION)
def test_every_diffusion_stage_is_scored_once(scores, smoke_weights, stage):
    weights, rows = steps.sum_of(smoke_weights, stage), []
    for new in steps.measure_stage(scores, stage, rows, weights, (1, 2)):
        rows = curve.merge(rows, new)
    ways = {(r["sampler"], r["guidance_scale"], r["steps"]) for r in rows}
    assert ways == {(w.sampler, w.guidance_scale, w.steps)
                    for w in steps.settings(stage, scores.pipe.configs[stage], (1, 2))}
    assert sum(r["shipped"] for r in rows) == len(curve.curves(rows))
    assert list(steps.measure_stage(scores, stage, rows, weights, (1, 2))) == []     # known by now
    by_way = {(r["sampler"], r["steps"]): r["score"] for r in rows if r["guidance_scale"] == 1}
    assert by_way["ddim", 1] == pytest.approx(by_way["dpmpp_2m", 1], abs=1e-6)       # one step is DDIM's


def test_our_own_side_of_the_peers_is_measured(smoke_weights):
    ours = peers.measure(peers.OURS, smoke_weights, repeats=1, micro_batch=4)
    assert ours["training, flops"] > 2 * ours["evaluation, flops"] > 0 and ours["layout"] in peers.LAYOUTS
    # The benchmark measures in a process of its own; this one holds freed memory, and needs hardly any more.
    assert min(ours["training, bytes"], ours["evaluation, bytes"]) > -2**20     # a few pages more or less
    clip = peers.text_to_clip(smoke_weights, repeats=1)
    assert 0 < clip["keys"] < clip["whole"] and clip["steps"]["decoder_t"] == 2
    assert "1 ×" in peers.step_table([ours]) and "22 frames of 32 px" in peers.clip_table([ours], clip)


def command(name, *arguments):
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name, arguments, written", [
    ("steps", ["--stages", "prior", "sr_h", "--steps", "1", "2", "--videos", "3"], "| `sr_h` | PSNR, dB |"),
    ("cost", ["--repeats", "1"], "| in all |"),
    ("training", ["--config", SMOKE, "--steps", "1"], "| in all |"),
    pytest.param("compile", ["--config", SMOKE, "--stages", "decoder", "--steps", "1"], "| `decoder` |",
                 marks=pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler"))])
def test_the_commands_write_their_tables(smoke_weights, tmp_path, name, arguments, written):
    out = tmp_path / "docs" / "table.md"
    done = command(name, *arguments, "--weights", smoke_weights, "--out", out)
    assert done.returncode == 0, done.stderr
    assert written in out.read_text() and out.read_text() in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name, arguments, said", [
    ("steps", ["--videos", "0"], "--videos"),
    ("cost", ["--repeats", "0"], "--repeats"), ("growth", ["--batch", "1"], "two batch sizes"),
    ("training", ["--config", "none.yaml"], "none.yaml"), ("peers", ["--repeats", "0"], "--repeats"),
    ("compile", ["--steps", "0"], "--steps")])
def test_mistakes_are_said_in_a_line(name, arguments, said):
    done = command(name, *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
