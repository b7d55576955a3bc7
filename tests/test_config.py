"""Configuration: every shipped file loads for every stage, and every mistake is named."""

import json

import pytest
from conftest import ROOT

from mavlite.config import STAGE_NAMES, Config, UNetConfig, load_config, merge, parse_overrides
from mavlite.errors import MavliteError

FILES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path
    return write


@pytest.mark.parametrize("stage", STAGE_NAMES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_survive_json(path, stage):
    config = load_config(path, stage)
    assert config.stage == stage
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_stage_block_overrides_shared_values_and_set_overrides_both(write):
    path = write("train: {steps: 1, batch_size: 2, lr: 0.5}\n"
                 "stages: {decoder: {train: {steps: 3, lr: 0.25}}}")
    train = load_config(path, "decoder", ["train.lr=0.125"]).train
    assert (train.steps, train.batch_size, train.lr) == (3, 2, 0.125)
    assert load_config(path, "sr_l").train.steps == 1


def test_the_shared_model_section_is_the_unets(write):
    path = write("model: {blocks: 3}")
    assert load_config(path, "sr_h").model.blocks == 3
    assert load_config(path, "clip").model is None
    assert not hasattr(load_config(path, "prior").model, "blocks")


def test_deeper_is_the_same_but_for_extra_blocks_and_joint_attention():
    def model(**changes):
        return UNetConfig(channels=[16, 32], attention=[1], head_dim=16, **changes)
    plain, deep = model(), model(extra_blocks=[0, 2])
    assert plain.deepens(plain) and deep.deepens(plain) and not plain.deepens(deep)
    assert not deep.deepens(model(extra_blocks=[1, 0]))
    assert not model(extra_blocks=[0, 2], emb_dim=64).deepens(plain)
    joint = model(joint_attention=[1])
    assert joint.deepens(plain) and not plain.deepens(joint)
    assert model(joint_attention=[1], extra_blocks=[1, 0]).deepens(joint)
    assert not model(joint_attention=[1], extra_blocks=[0, 1]).deepens(joint)    # they would come before it


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001"])
def test_numbers_without_a_point_are_numbers(write, number):
    assert load_config(write(f"train: {{lr: {number}}}"), "decoder").train.lr == 0.001
    assert load_config(write("train: {}"), "decoder", [f"train.lr={number}"]).train.lr == 0.001


def test_a_list_and_a_null_can_be_set(write):
    config = load_config(write("diffusion: {log_snr_min: -20}"), "decoder",
                         ["data.sizes=[16, 24, 32]", "diffusion.log_snr_min=null"])
    assert config.data.sizes == [16, 24, 32] and config.diffusion.log_snr_min is None


MISTAKES = [
    ("nonsense: {}", "unknown section 'nonsense'"),
    ("model: {channels: [32, 64], attention: [], extra_blocks: [1]}", "model.extra_blocks: [1] must be []"),
    ("model: {attention: [1], joint_attention: [0]}", "level 0 is not among model.attention"),
    ("train: {stepz: 1}", "unknown key train.stepz"),
    ("train: 3", "train: must be a section"),
    ("stages: {decodr: {}}", "unknown stage 'decodr'"),
    ("stages: [decoder]", "stages must hold"),
    ("stages: {decoder: 3}", "stages.decoder"),
    ("stages: {decoder: {train: {lr: fast}}}", "train.lr: must be a number, not 'fast'"),
    ("train: {lr: .nan}", "train.lr"),
    ("train: {lr: .inf}", "train.lr"),
    ("train: {lr: 0}", "train.lr"),
    ("train: {steps: 1.5}", "train.steps: must be a whole number"),
    ("train: {steps: true}", "train.steps"),
    ("train: {steps: 99999999999}", "train.steps"),
    ("train: {batch_size: 6, accumulate: 4}", "train.batch_size"),
    ("train: {optimizer: sgd}", "train.optimizer"),
    ("train: {precision: fp8}", "train.precision"),
    ("train: {ema_decay: 1.5}", "train.ema_decay"),
    ("data: {sizes: 32}", "data.sizes: must be a list"),
    ("data: {sizes: [32, big, 64]}", "data.sizes[1]"),
    ("data: {sizes: [64, 48, 32]}", "data.sizes"),
    ("data: {sizes: [32, 64, 128]}", "data.sizes"),
    ("data: {channels: 2}", "data.channels"),
    ("data: {digits: 7}", "data.digits"),
    ("data: {digits: svhn}", "data.digits"),
    ("data: {fps: 31}", "data.fps"),
    ("data: {fps_range: [5, 1]}", "data.fps_range"),
    ("data: {frame_skip: 7}", "data.frame_skip"),
    ("data: {condition: last}", "data.condition"),
    ("model: {attention: [7]}", "model.attention"),
    ("model: {head_dim: 48}", "model.head_dim"),
    ("diffusion: {prediction_type: noise}", "diffusion.prediction_type"),
    ("diffusion: {prediction_type: epsilon}", "diffusion.log_snr_min: -20"),
    ("diffusion: {loss: l1}", "diffusion.loss"),
    ("sample: {sampler: euler}", "sample.sampler"),
    ("sample: {steps: 0}", "sample.steps"),
    ("extrapolate: {steps: 3}", "stage decoder has no extrapolate section"),
    ("model: {head_dim: 0}", "model.head_dim"),
    ("model: {channels: [1000000]}", "model.channels"),
    ("model: {channels: []}", "model.channels"),
    ("data: {num_frames: 1000000}", "data.num_frames"),
    ("data: {seed: -1}", "data.seed"),
    ("train: {batch_size: 1000000000}", "train.batch_size"),
    ("clip: {vision_layers: [1, 1]}", "clip.vision_layers"),
    ("clip: {text_width: 6}", "clip.text_width"),
    ("clip: {pretrained: ../weights.safetensors}", "clip.pretrained"),
    ("distill: {teacher: runs/../../weights}", "distill.teacher"),
    ("diffusion: {log_snr_min: 3}", "diffusion.log_snr_min"),
    ("diffusion: {max_blur: -1}", "diffusion.max_blur"),
    ("sample: {steps: 1000000}", "sample.steps"),
    ("? \"a\\nb\"\n: {}", "unknown section"),
    ("train: {steps: 1, steps: 2}", "'steps' stands there twice"),
    ("train: &a {steps: 1}\nmodel: *a", "aliases are not taken"),
    ("train: {steps: 2001-99-99}", "not plain YAML"),
    ("[" * 3000, "not plain YAML"),
    ("- train", "must hold sections"),
    ("train: {steps: [", "not plain YAML"),
    ("train: {steps: !!python/object/apply:os.getpid []}", "not plain YAML"),
    ("train: {steps: !!int ''}", "tags are not taken"),      # what yaml itself breaks over
    ("data: {digits: !!bool maybe}", "tags are not taken"),
    ("data: {digits: !!timestamp now}", "tags are not taken"),
    (f"train: {{lr: 1{200 * ':59'}.0}}", "not plain YAML"),
    (f"train: {{steps: 0x{5000 * 'f'}}}", "train.steps"),
    (f"train: {{? 0x{5000 * 'f'} : 1}}", "unknown key train."),
    (f"stages: {{? 0x{5000 * 'f'} : 1}}", "unknown stage"),
    (f"data: {{sizes: {[8] * 1000}}}", "data.sizes: 1000 values"),
    (f"data: {{digits: {5000 * 'x'}}}", "data.digits"),
    (f"? {5000 * 'x'}\n: 1", "unknown section"),
    ("# a remark\n" * 10_000, "more than 100,000 characters"),
    ("stage: sr_h", "unknown section 'stage'"),
    ("stages: 0", "stages must hold"),
    ("stages: {decoder: []}", "stages.decoder"),
]


@pytest.mark.parametrize("value, said", [
    ("{sampler: euler}", "extrapolate.sampler"), ("{steps: 0}", "extrapolate.steps"),
    ("{guidance_until: 1}", "extrapolate.guidance_until"),
    ("{section: x}", "unknown key extrapolate.section")])
def test_a_mistake_in_how_key_frames_are_extrapolated_is_named_so(write, value, said):
    with pytest.raises(MavliteError, match=said):
        load_config(write(f"extrapolate: {value}"), "interpolation")


@pytest.mark.parametrize("text, named", MISTAKES, ids=[text[:40] for text, _ in MISTAKES])
def test_a_mistake_is_named(write, text, named):
    with pytest.raises(MavliteError) as error:
        load_config(write(text), "decoder")
    message = str(error.value)
    assert named in message and "config.yaml" in message and "\n" not in message and len(message) < 1000


def test_epsilon_with_a_truncated_schedule_is_accepted(write):
    path = write("diffusion: {prediction_type: epsilon, log_snr_min: -20}")
    assert load_config(path, "decoder").diffusion.log_snr_min == -20


def test_clip_has_no_model_section(write):
    for model in ("{blocks: 1}", "0"):
        with pytest.raises(MavliteError, match="section clip"):
            load_config(write(f"stages: {{clip: {{model: {model}}}}}"), "clip")


def test_an_unknown_stage_and_a_missing_file_are_named(write, tmp_path):
    with pytest.raises(MavliteError, match="'decoderr'.*decoder_t"):
        load_config(write(""), "decoderr")
    with pytest.raises(MavliteError, match="nowhere.yaml: no such"):
        load_config(tmp_path / "nowhere.yaml", "decoder")


@pytest.mark.parametrize("pair", ["train", "train.steps", "steps=3", "=3", ".steps=3", "train.=3",
                                  "train.steps=["])
def test_a_malformed_override_is_shown(pair):
    with pytest.raises(MavliteError) as error:
        parse_overrides([pair])
    assert f"--set {pair}" in str(error.value)


def test_an_unknown_override_is_named(write):
    with pytest.raises(MavliteError, match="train.stepz"):
        load_config(write("train: {}"), "decoder", ["train.stepz=3"])


def test_overrides_of_one_section_add_up():
    assert parse_overrides(["train.steps=3", "train.lr=1.0"]) == {"train": {"steps": 3, "lr": 1.0}}


def test_merging_changes_neither_mapping():
    base, override = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(base, override) == {"a": {"b": 3, "c": 2}}
    assert (base, override) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


@pytest.mark.parametrize("content, said", [
    ("stages: {decoder: {train: {stepz: 3}}}", "unknown key stages.decoder.train.stepz"),
    ("stages: {decoder: {trian: {}}}", "unknown section 'stages.decoder.trian'"),
    ("model: {chanels: [8]}", "unknown key model.chanels"),
    ("stages: {clip: {model: {width: 3}}}", "clip")])
@pytest.mark.parametrize("stage", ["clip", "sr_l"])
def test_all_of_a_file_is_read_whichever_stage_is_asked_for(tmp_path, content, said, stage):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    if stage == "sr_l" and "clip" in content:
        load_config(path, stage)                             # said when the stage itself is asked for
        return
    with pytest.raises(MavliteError, match=said):
        load_config(path, stage)


def test_clip_takes_no_micro_batches():
    path = ROOT / "configs" / "smoke.yaml"
    with pytest.raises(MavliteError, match="clip contrasts each pair with its whole batch"):
        load_config(path, "clip", ["train.accumulate=2"])
    assert load_config(path, "prior", ["train.accumulate=2"]).train.accumulate == 2


def test_sample_pictures_are_made_every_so_often():
    assert 0 < load_config(ROOT / "configs" / "t4.yaml", "decoder").train.sample_every <= 1000
