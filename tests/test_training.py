"""The trainer: it learns, it goes on exactly where it stopped, and it says why when it stops."""

import csv
import dataclasses
import json
import math
import shutil
import signal
import threading

import numpy as np
import pytest
import torch

from mavlite import training
from mavlite.batch import Batch, Draws
from mavlite.checkpoint import checkpoints, load_checkpoint, read_record, read_weights, save_weights
from mavlite.config import STAGE_NAMES, Config
from mavlite.digits import load_digits
from mavlite.errors import MavliteError
from mavlite.previews import PREVIEWS, save_preview
from mavlite.reproduce import train_stage
from mavlite.stages import STAGES
from mavlite.training import Trainer, uninterrupted


@pytest.fixture
def trainer(smoke_config, smoke_weights, tmp_path):
    """trainer(stage, *overrides, run="run", ...): a Trainer of the smoke configuration, fp32 on the CPU."""
    def make(stage, *overrides, run="run", **options):
        config = smoke_config(stage, ["train.precision=fp32", *overrides])
        return Trainer(config, tmp_path / run, **{"weights": smoke_weights, "device": "cpu", **options})
    return make


def train(trainer, until=math.inf):
    """Train on to the step `until`, or to the end; returns the reports."""
    reports = []
    for report in trainer.steps():
        reports.append(report)
        if report["step"] == until:
            break
    return reports


def parameters(trainer):
    return {name: p.detach().clone() for name, p in trainer.network.named_parameters()}


def refusal(function, *args, **options):
    with pytest.raises(MavliteError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def distance(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


# --- torch.compile, with backends that need no C++ compiler -------------------------------------------------

@pytest.fixture
def backend(monkeypatch):
    """Lets torch.compile use a given backend."""
    def use(which):
        compile = torch.compile
        monkeypatch.setattr(torch, "compile", lambda network: compile(network, backend=which))
        torch.compiler.reset()
    return use


def test_a_compiled_network_trains_the_same_weights(trainer, backend):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward
    backend(counting)
    plain, compiled = trainer("decoder_t"), trainer("decoder_t", "train.compile=true", run="compiled")
    train(plain), train(compiled)
    assert graphs and compiled.step == plain.step > 1
    assert distance(parameters(plain), parameters(compiled)) < 1e-5
    assert compiled.averaged().keys() == plain.averaged().keys()         # no "_orig_mod." in any name


def test_a_machine_that_cannot_compile_is_told_so(trainer, backend):
    def fails(graph, inputs):
        raise FileNotFoundError("no g++\nanywhere")
    backend(fails)
    message = refusal(train, trainer("decoder", "train.compile=true"))
    assert "train.compile" in message and "no g++ anywhere" in message and "train.compile=false" in message


def test_nan_is_found_behind_a_compiled_network(trainer, backend):
    backend("eager")
    it = trainer("decoder", "train.compile=true")
    with torch.no_grad():
        it.network.middle[0].conv1.spatial.weight[0] = math.nan
    assert "the weight middle.0.conv1.spatial.weight" in refusal(train, it)


# --- learning ----------------------------------------------------------------------------------------------

def always_the_first_batch(trainer):
    """Data, noise and times of step 0, again and again."""
    loss, first = trainer.objective.loss, Batch(0, trainer.train.batch_size)

    def fixed(network, batch, draws, progress):
        return loss(network, first, Draws(trainer.train.seed, first, trainer.device), 0.0)
    trainer.objective.loss = fixed
    return trainer


@pytest.mark.parametrize("stage, steps, factor, optimizer", [
    ("decoder", 32, 3, "adamw"), ("judge", 15, 10, "muon")])
def test_one_batch_is_overfitted(trainer, stage, steps, factor, optimizer):
    it = trainer(stage, f"train.steps={steps}", "train.save_every=1000", "train.lr=0.01",
                 f"train.optimizer={optimizer}")
    reports = train(always_the_first_batch(it))
    assert reports[-1]["loss"] < reports[0]["loss"] / factor


def test_steps_see_different_data(trainer):
    losses = [report["loss"] for report in train(trainer("judge", "train.lr=1e-12", "train.muon_lr=1e-12"))]
    assert len(set(losses)) == len(losses)


def test_the_average_lags_behind(trainer):
    it = trainer("decoder")
    start = parameters(it)
    train(it)
    now = parameters(it)
    assert 0 < distance(it.ema, start) < distance(now, start)


@pytest.mark.parametrize("stage", ["prior", "decoder", "interpolation"])
def test_accumulated_gradients_are_those_of_the_whole_batch(trainer, randomise, stage):
    def step(accumulate):
        it = trainer(stage, "train.precision=fp64", f"train.accumulate={accumulate}", run=str(accumulate))
        torch.manual_seed(1)
        randomise(it.network)                                # or a zero layer would stop most gradients
        report = train(it, until=1)[0]
        return report, {name: p.grad for name, p in it.network.named_parameters()}

    whole, gradients = step(1)
    assert max(g.abs().max() for g in gradients.values()) > 1e-3
    for accumulate in (2, 4):
        report, pieces = step(accumulate)
        assert report["loss"] == pytest.approx(whole["loss"], abs=1e-9)
        assert report["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-9)
        assert distance(pieces, gradients) < 1e-9


def test_accumulation_trains_the_same_weights(trainer):
    whole, pieces = (trainer("decoder", "train.steps=3", "train.precision=fp64", f"train.accumulate={n}",
                             run=str(n)) for n in (1, 4))
    start = parameters(whole)
    train(whole), train(pieces)
    assert distance(parameters(whole), start) > 1e-3
    assert distance(parameters(pieces), parameters(whole)) < 1e-9


# --- resuming ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage, precision", [
    *((stage, "fp32") for stage in STAGE_NAMES), ("decoder_t", "bf16")])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(trainer, stage, precision):
    overrides = [f"train.precision={precision}", "train.steps=3"]
    straight = trainer(stage, *overrides, run="straight")
    train(straight)
    train(trainer(stage, *overrides, run="resumed"), until=2)
    resumed = trainer(stage, *overrides, run="resumed", resume=True)
    assert resumed.step == 2 and resumed.origin == straight.origin
    train(resumed)
    a, b = load_checkpoint(straight.run)[0], load_checkpoint(resumed.run)[0]         # network, EMA, optimizer
    assert a.keys() == b.keys() and any(name.startswith("optimizer.1.") for name in a)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_resume_starts_an_empty_run(trainer):
    assert trainer("sr_l", resume=True).step == 0


def test_resume_takes_the_older_checkpoint_when_the_newest_is_damaged(trainer, capsys):
    run = trainer("sr_l").run
    train(trainer("sr_l"))
    (run / "step-00000004" / "state.safetensors").write_bytes(b"")
    resumed = trainer("sr_l", resume=True)
    assert resumed.step == 2 and "passing over a damaged checkpoint" in capsys.readouterr().out
    train(resumed)
    assert load_checkpoint(run)[1]["step"] == 4


def test_a_run_can_be_prolonged(trainer):
    train(trainer("sr_l", "train.steps=2"))
    assert [r["step"] for r in train(trainer("sr_l", "train.steps=5", resume=True))] == [3, 4, 5]


def test_another_run_is_not_written_over(trainer):
    train(trainer("sr_l"))
    message = refusal(trainer, "sr_l")
    assert "--resume" in message and "run" in message


def test_other_weights_of_c_are_not_resumed_with(trainer, smoke_weights, tmp_path):
    it = trainer("prior")
    train(it, until=2)
    other = shutil.copytree(smoke_weights, tmp_path / "weights")
    state, record = read_weights(other / "clip")
    state["model.logit_scale"] += 1
    save_weights(other / "clip", state, Config.from_dict(record["config"]), record["provenance"], half=True)
    message = refusal(trainer, "prior", resume=True, weights=other)
    assert str(it.run) in message and "clip" in message and record["sha256"][:12] in message
    assert trainer("prior", resume=True).step == 2


@pytest.mark.parametrize("override", ["model.channels=[8, 24]", "data.seed=3", "diffusion.loss=min_snr",
                                      "train.optimizer=adamw", "train.batch_size=2", "train.seed=3"])
def test_another_configuration_is_not_resumed(trainer, override):
    it = trainer("sr_l")
    train(it, until=2)
    before = (it.run / "config.json").read_bytes()
    message = refusal(trainer, "sr_l", override, resume=True)
    assert str(it.run) in message and override.split(".")[0] in message
    assert (it.run / "config.json").read_bytes() == before   # a refused run is left as it was


def test_a_run_can_go_on_in_fp16(trainer):
    """Such as on a T4 after an A100: loss scaling then starts afresh."""
    train(trainer("sr_l"), until=2)
    resumed = trainer("sr_l", "train.precision=fp16", resume=True)
    assert resumed.step == 2 and resumed.scaler.is_enabled()


def test_the_log_has_one_header_and_no_step_twice(trainer):
    train(trainer("sr_l"), until=3)                          # killed one step after its checkpoint
    it = trainer("sr_l", resume=True)
    train(it)
    text = (it.run / "log.csv").read_text()
    assert text.count("loss") == 1
    rows = list(csv.DictReader(text.splitlines()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


def test_a_log_whose_last_line_was_cut_short_is_continued(trainer):
    run = trainer("sr_l").run
    train(trainer("sr_l", resume=True), until=3)
    with open(run / "log.csv", "a") as file:
        file.write("2,0.5")
    train(trainer("sr_l", resume=True))
    with open(run / "log.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_the_log_averages_between_its_lines(trainer):
    it = trainer("judge", "train.log_every=2")
    losses = [report["loss"] for report in train(it)]
    with open(it.run / "log.csv") as file:
        logged = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert logged == [(2, pytest.approx(sum(losses[:2]) / 2, rel=1e-5)),
                      (4, pytest.approx(sum(losses[2:]) / 2, rel=1e-5))]


# --- where weights come from -------------------------------------------------------------------------------

INFLATED = [("decoder_t", "decoder"), ("interpolation", "decoder_t"), ("sr_l_t", "sr_l")]


def test_init_from_takes_weights_and_a_fresh_optimizer(trainer, smoke_weights):
    it = trainer("decoder", init_from=smoke_weights / "decoder")
    given, record = read_weights(smoke_weights / "decoder")
    assert distance(parameters(it), {name: given[name] for name in parameters(it)}) == 0
    assert distance(it.ema, parameters(it)) == 0
    assert it.step == 0 and it.origin == f"decoder ({record['sha256'][:12]})"
    assert not any(optimizer.state for optimizer in it.optimizers)


def test_weights_name_every_training_they_have_behind_them(trainer, smoke_weights, tmp_path):
    before = read_record(smoke_weights / "decoder", "decoder")["provenance"]
    once = trainer("decoder", "train.seed=1", init_from=smoke_weights / "decoder").export(tmp_path / "once")
    twice = trainer("decoder", "train.seed=2", init_from=once).export(tmp_path / "twice")
    last = read_record(twice, "decoder")["provenance"]
    assert last["earlier"][0] == before and "earlier" not in before
    assert [one["seed"] for one in last["earlier"]] == [before["seed"], 1] and last["seed"] == 2


def test_a_training_that_goes_on_sees_other_clips(trainer, smoke_weights):
    first, second = trainer("sr_l"), trainer("sr_l", run="b", init_from=smoke_weights / "sr_l")
    past = read_record(smoke_weights / "sr_l", "sr_l")["provenance"]
    seen = []
    for each in (first, second):
        each.objective.loss = lambda network, batch, draws, progress: seen.append((batch, draws)) or (
            next(iter(network.parameters())).sum())
        each._loss(0)
    (a, noise), (b, other) = seen
    assert a.indices[0] == 0 and b.indices[0] == past["steps"] * past["batch_size"] > 0
    assert torch.equal(noise.normal(3), other.normal(3)) and len(b.indices) == len(a.indices)


def test_other_digits_are_not_resumed_with(trainer, monkeypatch):
    train(trainer("sr_l"))
    monkeypatch.setattr("mavlite.objectives.load_digits",
                        lambda *which: dataclasses.replace(load_digits(*which), source="mnist"))
    assert "glyphs digits" in refusal(trainer, "sr_l", resume=True)


def test_init_from_refuses_another_stage(trainer, smoke_weights):
    assert str(smoke_weights / "sr_l") in refusal(trainer, "sr_h", init_from=smoke_weights / "sr_l")


def test_init_from_refuses_what_another_prediction_was_trained_for(trainer, smoke_weights):
    said = refusal(trainer, "decoder", "diffusion.prediction_type=sample",
                   init_from=smoke_weights / "decoder")
    assert "v_prediction" in said and "sample" in said


@pytest.mark.parametrize("init_from", [True, False])
def test_a_deeper_network_starts_from_a_shallower_ones_weights(trainer, smoke_weights, init_from):
    source = "decoder_t" if init_from else "decoder"
    it = trainer("decoder_t", "model.extra_blocks=[1, 2]",
                 init_from=smoke_weights / source if init_from else None)
    given, _ = read_weights(smoke_weights / source)
    now = parameters(it)
    assert distance({name: now[name] for name in given}, given) == 0
    new = now["down.0.1.conv2.spatial.weight"], now["middle_attention.1.out.weight"]
    assert all(weight.eq(0).all() for weight in new)


def test_init_from_refuses_a_file_that_lacks_weights(trainer, smoke_weights, tmp_path):
    it = trainer("decoder")
    state = it.network.state_dict()
    del state["conv_out.spatial.bias"]
    save_weights(tmp_path / "decoder", state, it.config, {})
    assert "do not fit" in refusal(trainer, "decoder", init_from=tmp_path / "decoder")


def test_a_shallower_network_does_not_start_from_a_deeper_ones_weights(trainer, tmp_path):
    deep = trainer("decoder", "model.extra_blocks=[1, 0]").export(tmp_path / "weights")
    assert "do not fit" in refusal(trainer, "decoder", init_from=deep)


@pytest.mark.parametrize("stage, source", INFLATED)
def test_an_inflated_stage_starts_as_its_source_and_says_so(trainer, smoke_weights, stage, source):
    it = trainer(stage)
    given, record = read_weights(smoke_weights / source)
    assert it.origin == f"{source} ({record['sha256'][:12]}), inflated"
    now = it.network.state_dict()
    same = [name for name in given if name != "conv_in.spatial.weight"]  # upF has more input channels
    assert all(torch.equal(now[name], given[name]) for name in same)
    inputs = given["conv_in.spatial.weight"].shape[1]
    assert torch.equal(now["conv_in.spatial.weight"][:, :inputs], given["conv_in.spatial.weight"])
    assert now["conv_in.spatial.weight"][:, inputs:].eq(0).all()


def test_a_video_stage_can_start_from_nothing(trainer):
    assert trainer("decoder_t", "train.inflate=false").origin == "scratch"


def test_ablated_temporal_layers_still_start_from_the_image_stage(trainer):
    it = trainer("decoder_t", "model.temporal_layers=[attention]", "model.temporal_init=random")
    assert it.origin.startswith("decoder (") and train(it)[-1]["step"] == it.train.steps


def test_all_weights_of_an_inflated_network_go_on_training(trainer):
    it = trainer("decoder_t")
    start = parameters(it)
    train(it)
    assert [name for name, p in parameters(it).items() if torch.equal(p, start[name])] == []


def test_a_source_of_another_size_is_refused(trainer):
    assert "decoder" in refusal(trainer, "decoder_t", "model.channels=[8, 24]")


@pytest.mark.parametrize("stage, needed", [("decoder", "clip"), ("sr_l_t", "sr_l")])
def test_a_missing_stage_is_named(trainer, tmp_path, stage, needed):
    (tmp_path / "weights").mkdir()
    assert str(tmp_path / "weights" / needed) in refusal(trainer, stage, weights=tmp_path / "weights")


def test_a_run_folder_that_cannot_be_written_is_named(trainer, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refusal(trainer, "sr_l", run="file/run")


# --- what comes out ----------------------------------------------------------------------------------------

def test_exported_weights_are_the_average_with_their_provenance(trainer):
    it = trainer("decoder_t")
    train(it)
    tensors, record = read_weights(it.export(), "decoder_t")
    rounded = {name: average.half().float() for name, average in it.ema.items()}     # stored in 16 bits
    assert distance({name: tensors[name] for name in rounded}, rounded) == 0
    assert distance(it.ema, parameters(it)) > 0
    assert record["config"] == it.config.to_dict()
    assert record["parameters"] == sum(t.numel() for t in tensors.values())
    provenance = record["provenance"]
    assert provenance["started_from"].startswith("decoder (")
    assert [provenance[key] for key in ("steps", "batch_size", "precision", "seed", "digits", "torch")] == [
        4, 4, "fp32", 0, "glyphs", torch.__version__]
    assert provenance["hardware"] and provenance["commit"] and provenance["seconds"] >= 0


def test_the_run_folder_says_how_it_was_configured(trainer):
    it = trainer("sr_l", "train.lr=0.5")
    assert json.loads((it.run / "config.json").read_text()) == it.config.to_dict()


def test_reproduced_weights_say_what_they_were_made_from(smoke_weights):
    records = {stage: read_record(smoke_weights / stage, stage) for stage in STAGE_NAMES}
    origins = {stage: record["provenance"]["started_from"] for stage, record in records.items()}
    inflated = {stage: f"{source} ({records[source]['sha256'][:12]}), inflated" for stage, source in INFLATED}
    assert origins == {stage: "scratch" for stage in STAGE_NAMES} | inflated
    for stage, record in records.items():
        clip = records["clip"]["sha256"][:12] if STAGES[stage].uses_clip else None
        assert record["provenance"].get("clip") == clip


def test_a_preview_leaves_training_as_it_was(trainer, tmp_path):
    it = trainer("sr_l_t")
    train(it, until=2)
    before = parameters(it)
    save_preview(it, tmp_path / "preview.png")
    assert (tmp_path / "preview.png").stat().st_size > 0
    assert distance(parameters(it), before) == 0 and it.network.training


# --- stopping ----------------------------------------------------------------------------------------------

def spoil(trainer, step, harm):
    """From `step` on, the loss is harm(loss)."""
    loss = trainer.objective.loss
    trainer.objective.loss = lambda network, batch, *args: (
        harm(loss(network, batch, *args)) if batch.step >= step else loss(network, batch, *args))


def nan_gradient(trainer):
    """A finite loss with a gradient that is not: 0 * d sqrt(x) at 0."""
    p = trainer.network.conv_out.spatial.bias
    return lambda loss: loss + 0 * (0 * p).sum().sqrt()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_nan_stops_before_the_update(trainer, kind):
    it = trainer("decoder")
    spoil(it, 2, (lambda loss: loss * math.nan) if kind == "loss" else nan_gradient(it))
    message = refusal(train, it)
    assert "stage decoder" in message and "step 2" in message and "--resume" in message
    if kind == "gradient":
        assert "conv_out.spatial.bias" in message
    tensors, state = load_checkpoint(it.run)
    assert [p.name for p in checkpoints(it.run)] == ["step-00000002"] and state["step"] == 2
    assert distance(parameters(it), {name: tensors[f"network.{name}"] for name in parameters(it)}) == 0
    assert trainer("decoder", resume=True).step == 2


@pytest.mark.parametrize("stage, named", [("decoder_t", "input 0 of the network"), ("clip", "input 0 of")])
def test_nan_in_the_data_is_found_there(trainer, stage, named):
    it = trainer(stage)
    source = it.objective.pairs if stage == "clip" else it.objective.clips
    name = "pairs" if stage == "clip" else "clips"
    draw = getattr(source, name)
    setattr(source, name, lambda *args: (draw(*args)[0] * math.nan, draw(*args)[1]))
    message = refusal(train, it)
    assert f"stage {stage}, step 0: {named}" in message


def test_nan_in_a_layer_is_found_there(trainer):
    it = trainer("decoder")
    it.network.middle[0].register_forward_hook(lambda module, args, out: out * math.nan)
    assert "step 0: the output of middle.0 is" in refusal(train, it)


def test_an_overflow_in_one_optimizer_skips_all_and_many_in_a_row_stop(trainer, monkeypatch):
    monkeypatch.setattr(training, "MAX_SKIPS", 3)
    it = trainer("sr_l", "train.precision=fp16", "train.save_every=1")
    hook = it.parameters[-1].register_hook(lambda grad: grad * math.nan)  # of AdamW's; Muon's are fine
    before = parameters(it)
    assert [report["skipped"] for report in train(it, until=2)] == [1, 2]
    assert distance(parameters(it), before) == 0
    hook.remove()                                            # a step not skipped starts the count anew
    assert train(it, until=3)[-1]["skipped"] == 2 and distance(parameters(it), before) > 0
    resumed = trainer("sr_l", "train.precision=fp16", "train.steps=9", resume=True)
    resumed.parameters[-1].register_hook(lambda grad: grad * math.nan)
    message = refusal(train, resumed)
    assert "3 steps in a row (5 in all)" in message and resumed.step == 5


@pytest.fixture
def ctrl_c(monkeypatch):
    """ctrl_c(name, step): Ctrl-C is pressed the next time that Trainer's method `name` runs at this step."""
    def press(name, step):
        method, left = getattr(Trainer, name), [step]

        def pressed(self, *args):
            if self.step in left:
                left.remove(self.step)
                signal.raise_signal(signal.SIGINT)
            return method(self, *args)
        monkeypatch.setattr(Trainer, name, pressed)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield press
    signal.signal(signal.SIGINT, before)


# Between the update of the weights and that of their average, and in the middle of a step's computation.
@pytest.mark.parametrize("name, saved", [("_average", 2), ("_require_finite", 1)])
def test_ctrl_c_saves_a_whole_step(smoke_config, tmp_path, ctrl_c, name, saved):
    config = smoke_config("sr_l", ["train.precision=fp32", "train.steps=3", "train.save_every=100"])
    options = {"weights": tmp_path, "device": "cpu"}
    train_stage(config, tmp_path / "straight", **options)
    ctrl_c(name, 1)
    with pytest.raises(KeyboardInterrupt):
        train_stage(config, tmp_path / "run", **options)
    assert load_checkpoint(tmp_path / "run")[1]["step"] == saved
    train_stage(config, tmp_path / "run", resume=True, **options)
    a, b = (load_checkpoint(tmp_path / run)[0] for run in ("straight", "run"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_ctrl_c_during_a_preview_saves_the_network_and_not_its_average(
        smoke_config, tmp_path, ctrl_c, monkeypatch):
    def press_while_the_network_comes_back(trainer):
        load = trainer.network.load_state_dict
        trainer.network.load_state_dict = lambda state: (signal.raise_signal(signal.SIGINT), load(state))
        return np.zeros((8, 8), np.uint8)
    monkeypatch.setitem(PREVIEWS, "sr_l", press_while_the_network_comes_back)
    config = smoke_config("sr_l", ["train.precision=fp32", "train.sample_every=2", "train.save_every=100"])
    it = Trainer(config, tmp_path / "straight", weights=tmp_path, device="cpu")
    train(it, until=2)
    it.save()
    with pytest.raises(KeyboardInterrupt):
        train_stage(config, tmp_path / "run", weights=tmp_path, device="cpu")
    a, b = (load_checkpoint(tmp_path / run)[0] for run in ("straight", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_ctrl_c_waits_for_what_belongs_together_but_not_in_another_thread(ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("first")
    assert done == ["first"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ArithmeticError), uninterrupted():    # an error goes before: the block is not whole
        signal.raise_signal(signal.SIGINT)
        raise ArithmeticError

    stopped = []                                             # SIGTERM is no different
    before = signal.signal(signal.SIGTERM, lambda *args: stopped.append("terminated"))
    with uninterrupted():
        signal.raise_signal(signal.SIGTERM)
        assert stopped == []
    assert stopped == ["terminated"]
    signal.signal(signal.SIGTERM, before)

    def elsewhere():                                         # only the main thread may handle signals
        with uninterrupted():
            done.append("elsewhere")
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == ["first", "elsewhere"]


def test_a_batch_that_does_not_split_is_refused(trainer, monkeypatch):
    monkeypatch.setattr(training, "join_ranks", lambda device: (0, 3, device))
    assert "train.batch_size" in refusal(trainer, "sr_l")


# --- what each step does

def test_the_log_holds_the_last_steps_however_few(trainer):
    train(trainer("sr_l", "train.steps=5", "train.log_every=3"))
    with open(trainer("sr_l", "train.steps=5", "train.log_every=3", resume=True).run / "log.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [3, 5]


def test_a_log_of_something_else_is_not_continued(trainer):
    it = trainer("sr_l", "train.steps=4", "train.save_every=1")
    train(it, until=2)
    (it.run / "log.csv").write_text("what,ever\n1,2\n")
    message = refusal(train, trainer("sr_l", "train.steps=4", resume=True))
    assert "log.csv: is not the log of this run" in message


def test_gradients_are_cut_to_their_length(trainer):
    it, used = trainer("sr_l", "train.optimizer=adamw", "train.grad_clip=0.001"), []
    it.optimizers[0].register_step_pre_hook(lambda *args: used.append(
        torch.nn.utils.get_total_norm([p.grad for p in it.parameters if p.grad is not None]).item()))
    report = train(it, until=1)[0]
    assert report["grad_norm"] > 0.01 and used == [pytest.approx(0.001, rel=1e-3)]


def test_the_rate_warms_up_and_falls_in_every_optimizer(trainer):
    it = trainer("sr_l", "train.steps=8", "train.warmup_steps=2", "train.decay_share=0.5")
    rates = []
    for report in it.steps():
        rates.append(report["rate"])
        for optimizer in it.optimizers:
            for group in optimizer.param_groups:
                assert group["lr"] == pytest.approx(group["peak_lr"] * report["rate"])
    assert max(rates) == 1 and rates[0] < 1 and rates[-1] < rates[4] and rates[:3] == sorted(rates[:3])


def test_the_average_moves_by_its_decay(trainer):
    it = trainer("sr_l", "train.steps=3", "train.ema_decay=0.2")
    train(it, until=1)                                       # (1 + 1) / (10 + 1) is less than 0.2
    before = {name: p.clone() for name, p in it.ema.items()}
    train(it, until=2)
    decay = min(0.2, (1 + 1) / (10 + 1))
    wanted = {name: decay * before[name] + (1 - decay) * p for name, p in parameters(it).items()}
    assert distance(it.ema, wanted) < 1e-6


@pytest.mark.parametrize("stage, layout", [("decoder", torch.channels_last),
                                           ("critic", torch.channels_last_3d)])
def test_networks_are_laid_out_for_their_convolutions(trainer, stage, layout):
    kernels = [p for p in trainer(stage).network.parameters()
               if p.ndim == (5 if layout == torch.channels_last_3d else 4) and min(p.shape) > 1]
    assert kernels and all(p.is_contiguous(memory_format=layout) for p in kernels)


def test_nan_before_the_first_checkpoint_promises_none(trainer):
    it = trainer("decoder")
    it.network.middle[0].register_forward_hook(lambda module, args, out: out * math.nan)
    message = refusal(train, it)
    assert "start anew" in message and "is intact" not in message


@pytest.mark.parametrize("overrides, said", [
    (["diffusion.loss=hybrid"], "diffusion.loss simple, the configuration says hybrid"),
    (["diffusion.prediction_type=sample"], "diffusion.prediction_type v_prediction, the configuration says")])
def test_a_stage_is_inflated_from_its_own_kind_only(trainer, overrides, said, tmp_path):
    assert said in refusal(trainer, "decoder_t", *overrides)
    assert not (tmp_path / "run").exists()                   # what is refused leaves nothing behind


def test_the_callers_random_numbers_stay_as_they_were(trainer):
    before = torch.get_rng_state()
    train(trainer("decoder_t", "train.steps=1"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("damage", [{"step": -5}, {"step": 10**12}, {"step": 1.5}, {"step": "2"},
                                    {"seconds": "long"}, {"origin": None}, {"scaler": []}, {"earlier": [3]},
                                    {"config": 3}])
def test_a_state_that_says_nonsense_is_not_resumed(trainer, damage):
    it = trainer("sr_l", "train.steps=2")
    train(it)
    path = it.run / "step-00000002" / "state.json"
    state = {k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"}
    path.write_text(json.dumps(state | damage))
    assert next(iter(damage)) in refusal(trainer, "sr_l", "train.steps=4", resume=True)


@pytest.mark.parametrize("damage", [{"provenance": None}, {"provenance": {"steps": 3}}, {"config": 3},
                                    {"config": {"stage": "sr_l", "diffusion": {"loss": "nonsense"}}}])
def test_a_record_that_says_nonsense_is_not_begun_from(trainer, smoke_weights, tmp_path, damage):
    folder = tmp_path / "sr_l"
    shutil.copytree(smoke_weights / "sr_l", folder)
    record = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "checksum"}
    (folder / "config.json").write_text(json.dumps(record | damage))
    assert "config.json" in refusal(trainer, "sr_l", init_from=folder)
