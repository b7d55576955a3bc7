"""The networks that measure, and the report: it holds every score, finite, with ceiling and floor."""

import json
import math
import shutil

import pytest
import torch

from mavlite.checkpoint import read_record
from mavlite.cli import main
from mavlite.digits import Digits, load_digits
from mavlite.evaluation import report as reporting
from mavlite.evaluation.accuracy import accuracy_by_pair, digit_confusion, interval
from mavlite.evaluation.judge import pair_logits, pooled
from mavlite.evaluation.report import Evaluation, Sizes, print_table
from mavlite.evaluation.samples import (
    RealClips,
    clearest_embeds,
    generate,
    image_embeds,
    matched_clips,
    pairs_in_turn,
)
from mavlite.evaluation.tracker import match, track
from mavlite.moving_mnist import LabelledClips, clearest
from mavlite.objectives import either_order
from mavlite.prompts import PAIRS, pair_index, parse_prompt
from mavlite.stages import STAGES, build_network

# --- what is known about clips -----------------------------------------------------------------------------

def white_squares(count=20):
    images = torch.full((count, 28, 28), 255, dtype=torch.uint8)
    return Digits(images, torch.arange(count) % 10, "squares", "test")


def test_centres_are_where_the_digits_are_drawn():
    clips = LabelledClips(white_squares(), seed=3)
    fps = torch.tensor([4.0, 11.0, 30.0])
    frames, _ = clips.clips(range(3), fps, 6, 64)
    centres = clips.centres(range(3), fps, 6)                                        # b f k yx
    assert 14 <= centres.min() and centres.max() <= 50
    pixel = torch.arange(64) + 0.5
    inside = (pixel - centres[..., None]).abs() < 13.4                               # b f k yx 64
    covered = (inside[..., 0, :, None] & inside[..., 1, None, :]).any(dim=2)
    outside = ~(((pixel - centres[..., None]).abs() < 14.6)[..., 0, :, None]
                & ((pixel - centres[..., None]).abs() < 14.6)[..., 1, None, :]).any(dim=2)
    assert (frames[:, 0][covered] == 1).all() and (frames[:, 0][outside] == 0).all()


def test_directions_point_where_the_digits_go():
    clips = LabelledClips(white_squares(), seed=3)
    centres, directions = clips.centres(range(40), torch.full((40,), 30.0), 2), clips.directions(range(40))
    step = (centres[:, 1] - centres[:, 0]) * 30 / 36                                 # b k yx
    free = ((centres[:, 0] - 32).abs() < 16).all(dim=-1)                             # no wall within a step
    assert free.sum() > 20 and torch.allclose(step[free], directions[free], atol=1e-4)


# --- the networks ------------------------------------------------------------------------------------------

def test_pair_logits_follow_the_order_of_the_pairs():
    single, double = torch.randn(2, 10), torch.randn(2, 10)
    logits = pair_logits(single, double)
    for column, (a, b) in enumerate(PAIRS):
        assert torch.equal(logits[:, column], double[:, a] if a == b else single[:, a] + single[:, b])


def test_evidence_is_pooled_over_frames():
    log_p = torch.log_softmax(torch.tensor([[[2.0, 0.0, 1.5], [0.0, 0.0, 1.5]]]), dim=-1)
    assert log_p[0, 0].argmax() == 0 and pooled(log_p).item() == 2


@pytest.mark.parametrize("size, frames", [(32, 16), (64, 5), (48, 76)])
def test_the_tracker_takes_any_size_and_length(smoke_config, size, frames):
    tracker = build_network(smoke_config("tracker"))
    centres = track(tracker, torch.rand(3, 1, frames, size, size), batch=2)
    assert centres.shape == (3, frames, 2, 2) and centres.isfinite().all()


def test_matching_exchanges_whole_clips_only():
    true = torch.rand(4, 5, 2, 2) * 36 + 14
    found = true + 0.1
    found[1] = found[1].flip(1)
    found[2, 3] = found[2, 3].flip(0)                        # a slip in one frame is an error, not put right
    matched = match(found, true)
    assert torch.allclose(matched[:2], true[:2] + 0.1) and torch.equal(matched[2], found[2])


def test_the_order_of_digits_is_free_but_the_same_in_a_whole_clip():
    true = torch.rand(6, 7, 2, 2)

    def loss(found):
        return either_order(lambda true: (found - true).abs().mean(dim=(1, 3)), true, dim=2).item()
    assert loss(true) == 0 and loss(true.flip(2)) == 0
    found = true.clone()
    found[::2] = found[::2].flip(2)
    assert loss(found) == 0
    found[:, :3] = found[:, :3].flip(2)
    assert loss(found) > 0.05


# --- scores ------------------------------------------------------------------------------------------------

def test_wilson_interval():
    low, high = interval(0.5, 100)
    assert low == pytest.approx(0.4038, abs=1e-4) and high == pytest.approx(0.5962, abs=1e-4)
    assert all(interval(share, n)[0] <= share <= interval(share, n)[1]
               for share in (0.0, 1.0) for n in range(1, 60))
    assert interval(1.0, 20)[1] == pytest.approx(1.0) and interval(1.0, 20)[0] < 0.9


def test_confusion_of_digits():
    def index(*pairs):
        return torch.tensor([PAIRS.index(pair) for pair in pairs])
    matrix = digit_confusion(index((2, 4), (2, 4), (3, 3)), index((2, 4), (2, 9), (5, 7)))
    assert matrix[2, 2] == 2 and matrix[4, 4] == 1 and matrix[4, 9] == 1
    assert matrix[3, 5] == matrix[3, 7] == 1 and matrix.sum() == 6


def test_accuracy_by_pair():
    wanted = torch.tensor([PAIRS.index((2, 4)), PAIRS.index((2, 4)), PAIRS.index((3, 3))])
    table = accuracy_by_pair(wanted, torch.tensor([wanted[0], 0, wanted[2]]))
    assert table[2, 4] == table[4, 2] == 0.5 and table[3, 3] == 1 and math.isnan(table[0, 1])


def test_real_clips_are_of_the_test_split_and_know_their_digits(smoke_config):
    data = smoke_config("decoder_t").data
    real, later = RealClips(data, 4), RealClips(data, 2, start=2)
    digits = load_digits("test", "glyphs")
    shown = digits.labels[real.clips.trajectories(real.indices).images]
    assert torch.equal(real.pairs, pair_index(shown[:, 0], shown[:, 1]))
    assert torch.equal(real.clips.simulator.images, digits.images)
    assert torch.equal(real.frames(16)[2:], later.frames(16))


def test_matched_clips_hold_the_pairs_that_are_asked_for(smoke_config):
    data, wanted = smoke_config("decoder_t").data, pairs_in_turn(120)
    assert set(wanted[:55].tolist()) == set(range(55)) and torch.equal(wanted[55:110], wanted[:55])
    here, there = matched_clips(data, wanted), matched_clips(data, wanted, block=1)
    assert torch.equal(here.pairs, wanted) and torch.equal(there.pairs, wanted)
    assert len(set(here.indices)) == 120 and not set(here.indices) & set(there.indices)
    shown = here.clips.labels(here.indices)
    assert torch.equal(pair_index(shown[:, 0], shown[:, 1]), wanted)


# --- the report --------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def evaluation(smoke_weights):
    sizes = Sizes(videos=3, reference=16, motion=3, frames=2, timed=1, applied=2, extended=2, length=75)
    return Evaluation(smoke_weights, sizes, device="cpu")


def test_the_clearest_frame_is_what_is_embedded(evaluation):
    frames = evaluation.real.frames(evaluation.data.sizes[0])
    best = clearest(frames)
    assert (best > 0).any()
    expected = image_embeds(evaluation.pipe, frames[range(3), :, best])
    torch.testing.assert_close(clearest_embeds(evaluation.pipe, frames), expected)


def test_generated_clips_are_those_of_their_prompts(evaluation):
    made = generate(evaluation.pipe, 3, batch=2)
    assert [tuple(sorted(parse_prompt(prompt))) for prompt in made.prompts] == [
        PAIRS[pair] for pair in made.pairs.tolist()]
    whole = evaluation.pipe(made.prompts, seed=0).stages
    for stage, frames in made.frames.items():
        start, step = {"decoder_t": (0, 1), "interpolation": (1, 3)}.get(stage, (0, 3))
        expected = whole[stage][:, :, start::step]
        assert torch.allclose(frames, expected, atol=2e-2)   # batches of 2 + 1 against 3: rounding in bf16


def test_the_report_holds_every_part(evaluation, capsys):
    report = json.loads(json.dumps(evaluation.run()))        # plain numbers only
    assert report["weights"]["judge"] == read_record(evaluation.weights / "judge")["sha256"][:12]
    # "frame rate" is there if the tracker sees straight stretches, which one of four steps need not.
    assert {row["section"] for row in report["scores"]} | {"frame rate"} == {
        "prompt accuracy", "CLIPSIM", "prior", "MM-FID", "MM-KID", "MM-FVD", "MM-KVD", "critic", "motion",
        "frames between", "super-resolution", "flicker", "animation", "interpolation", "variation",
        "frame rate", "morph", "extension", "cost"}
    for row in report["scores"]:
        assert math.isfinite(row["value"]) and row["n"] >= 1 and row["unit"], row
        if row["interval"]:
            assert row["interval"][0] - 1e-6 <= row["value"] <= row["interval"][1] + 1e-6, row
    assert [entry["fps"] for entry in report["motion"]] == [3, 6, 12, 24]
    found = {(row["section"], row["score"]): row for row in report["scores"]}
    assert found["animation", "the given frame comes back"]["value"] == pytest.approx(100)
    assert found["animation", "the given frame, largest error"]["value"] < 1e-5
    assert sum("jump" in score for _, score in found) == 4
    assert len(report["extension"]["extended"]) == 5         # 75 frames at 18 a second
    print_table(report)
    said = capsys.readouterr().out
    assert all(row["score"] in said for row in report["scores"])


def test_evaluate_writes_a_report_with_plots(smoke_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("mavlite.evaluation.report.QUICK", Sizes(3, 16, 2, 2, 1, 1, 1, 60))
    out, weights = tmp_path / "new" / "report.json", shutil.copytree(smoke_weights, tmp_path / "weights")
    assert main(["evaluate", "--quick", "--weights", str(weights), "--out", str(out), "--device", "cpu",
                 "--record"]) == 0
    assert all(read_record(weights / stage, stage)["scores"] for stage in STAGES)
    assert main(["info", "--weights", str(weights)]) == 0
    assert json.loads(out.read_text())["digits"] == "glyphs"
    assert len(list((tmp_path / "new" / "report").glob("*.png"))) == 5
    assert "| ... SR_h: the whole cascade |" in out.with_suffix(".md").read_text()


@pytest.mark.parametrize("arguments, said", [
    (["--out", "report.txt"], "report.txt"), (["--out", "report.json", "--videos", "2"], "3 videos"),
    (["--out", "report.json", "--applied", "0"], "applications"),
    (["--out", "report.json", "--weights", "nowhere"], "nowhere")])
def test_evaluate_refuses(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments, sizes", [
    ({}, (2048, 256, 256, 64)), ({"quick": True}, (6, 2, 2, 1)),
    ({"quick": True, "videos": 3}, (3, 2, 2, 1)), ({"videos": 110}, (110, 27, 27, 13)),
    ({"videos": 4}, (4, 1, 1, 1)), ({"videos": 110, "applied": 12}, (110, 27, 12, 6))])
def test_how_many_clips_are_looked_at(arguments, sizes, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def ask(weights, sizes, *others, **options):
        raise Asked((sizes.videos, sizes.motion, sizes.applied, sizes.extended))
    monkeypatch.setattr(reporting, "Evaluation", ask)
    with pytest.raises(Asked) as asked:
        reporting.evaluate(tmp_path / "report.json", **arguments)
    assert asked.value.args[0] == sizes
