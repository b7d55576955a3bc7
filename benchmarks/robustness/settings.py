"""Configurations of every kind, made by hypothesis: accepted and possible, or refused by name."""

import typing

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.robustness.common import SMOKE, Row, command, one_error, refusal
from mavlite.clip import Clip
from mavlite.config import STAGE_NAMES, Config, load_config, section_types
from mavlite.diffusion import Diffusion
from mavlite.stages import STAGES, build_network

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-3, 80) | st.floats() | st.text(max_size=20)
    | st.sampled_from(["../x", "a\nb", "1e999", "0x", 10**6, -1, 0, 10**30, "mnist", "fp16"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8)


def fields(stage):
    """(section, key, type) of every value of a stage's configuration."""
    return [(section, key, kind) for section, dataclass in section_types(stage).items() if dataclass
            for key, kind in typing.get_type_hints(dataclass).items()]


FIELDS = {stage: fields(stage) for stage in STAGE_NAMES}
SMOKES = {stage: load_config(SMOKE, stage).to_dict() for stage in STAGE_NAMES}
a_field = st.sampled_from(STAGE_NAMES).flatmap(lambda stage: st.tuples(
    st.just(stage), st.sampled_from(FIELDS[stage])))

# What can never be meant, by type.
WRONG = {int: st.floats() | st.text(max_size=9) | st.lists(st.integers()) | st.booleans(),
         float: st.sampled_from(["fast", "nan", float("nan"), float("inf"), True, 1e300, []]),
         bool: st.integers() | st.text(max_size=9), str: st.integers() | st.lists(st.text()) | st.booleans(),
         list[int]: st.integers() | st.text(max_size=9) | st.lists(st.text(), min_size=1),
         list[float]: st.floats() | st.lists(st.text(alphabet="xyz"), min_size=1),
         list[str]: st.text(max_size=9) | st.lists(st.integers(), min_size=1)}

# Beyond every bound, but for those that may be large or negative.
BEYOND = [-10**9, -1, 10**9, 10**10, 10**400, -1e30, 1e30]
LARGE = {"steps", "log_every", "save_every", "sample_every", "warmup_steps", "num_clips", "seed",
         "weight_decay", "lr", "muon_lr", "grad_clip"}
NEGATIVE = {"time_shift"}

IMPOSSIBLE = ["data.fps=0", "data.fps=-6", "data.num_frames=1000000", "data.num_frames=0", "train.steps=-1",
              "train.steps=0", "sample.steps=-4", "data.sizes=[32,32,32]", "data.sizes=[16,24,1000000]",
              "data.sizes=[]", "model.channels=[]", "model.channels=[0]", "model.head_dim=0",
              "model.patch_size=0", "model.emb_dim=0", "model.channels=[1000000]", "model.attention=[-1]",
              "clip.vision_layers=[1]", "clip.embed_dim=0", "clip.text_width=7", "train.batch_size=0",
              "train.batch_size=1000000000", "train.accumulate=0", "train.keep=0", "data.fps_range=[0,30]",
              "data.fps_range=[1]", "data.frame_skip=0", "diffusion.time_scale=0", "diffusion.max_blur=-1",
              "sample.guidance_scale=-1", "train.ema_decay=2", "data.seed=-1",
              f"train.steps=0x{5000 * 'f'}", f"train.lr=0x{5000 * 'f'}", f"data.sizes={[8] * 1000}",
              f"clip.model={5000 * 'x'}"]


def build(config):
    """What a training would build before its first step, in shapes only: no memory, no arithmetic."""
    with torch.device("meta"):
        clip = Clip(config.clip) if STAGES[config.stage].uses_clip and config.clip.model == "tiny" else None
        if STAGES[config.stage].uses_clip and clip is None:
            return
        build_network(config, clip)
    Diffusion(config.diffusion.prediction_type, config.diffusion.log_snr_min)


def properties(bench):
    """Run every property; returns how many configurations each made."""
    made = {}

    def check(name, examples, *strategies):
        def decorate(function):
            count = 0

            def counted(values):
                nonlocal count
                count += 1
                function(*values)
            options = settings(max_examples=examples * (10 if bench.long else 1), derandomize=True,
                               deadline=None, database=None, suppress_health_check=list(HealthCheck))
            options(given(st.tuples(*strategies))(counted))()
            made[name] = count
        return decorate

    @check("any value of any key", 300, a_field, anything)
    def any_value(field, value):
        stage, (section, key, _) = field
        smoke = SMOKES[stage] | {section: SMOKES[stage][section] | {key: value}}
        accepted = []
        message = refusal(lambda: accepted.append(Config.from_dict(smoke)))
        assert message or accepted
        assert not message or section in message, message    # perhaps by the key that it contradicts
        if accepted:
            refusal(build, accepted[0])                      # possible, or refused in one line

    @check("unknown key", 50, a_field, st.text(min_size=1, max_size=12))
    def unknown_key(field, key):
        stage, (section, _, _) = field
        known = {name for where, name, _ in FIELDS[stage] if where == section}
        message = refusal(Config.from_dict, {"stage": stage, section: {key: 1}})
        assert key in known or f"{section}." in message, message
        message = refusal(Config.from_dict, {"stage": stage, key: {}})
        assert key in (*section_types(stage), "stage") or "unknown section" in message, message

    @check("wrong type", 200, a_field.flatmap(lambda field: st.tuples(
        st.just(field), WRONG.get(field[1][2], st.lists(st.none(), min_size=1)))))
    def wrong_type(case):
        (stage, (section, key, _)), value = case
        message = refusal(Config.from_dict, {"stage": stage, section: {key: value}})
        assert f"{section}.{key}" in message, (section, key, value, message)

    @check("out of bounds", 200, a_field.filter(lambda field: field[1][2] in (int, float)),
           st.sampled_from(BEYOND))
    def out_of_bounds(field, value):
        stage, (section, key, _) = field
        if (key in LARGE and 0 < value < 1e12) or (key in NEGATIVE and value == -1):
            return
        message = refusal(Config.from_dict, {"stage": stage, section: {key: value}})
        assert f"{section}." in message, (section, key, value, message)

    path = bench.folder / "any.yaml"

    text = st.text(max_size=80) | st.text("{}[]:,&*!-<>|#%@`\"' \nabc01", max_size=40)

    @check("any text as a file", 150, text, st.sampled_from(STAGE_NAMES))
    def any_text(text, stage):
        path.write_text(text, encoding="utf-8", errors="replace")
        accepted = []
        message = refusal(lambda: accepted.append(load_config(path, stage)))
        assert accepted or str(path) in message, message

    return made


def configurations(bench):
    made = properties(bench)
    yield Row("configurations", "generated: " + ", ".join(made), f"{sum(made.values()):,} configurations, "
              "refused by name or possible, no traceback", True)
    named = sum(override.partition("=")[0] in refusal(bench.config, "decoder", override)
                for override in IMPOSSIBLE)
    yield Row("configurations", "impossible shapes, negative steps, fps 0, a million frames",
              f"{named} of {len(IMPOSSIBLE)} refused by name", named == len(IMPOSSIBLE))
    good, wishes = 0, (["--fps", 0], ["--num-frames", 10**6], ["--steps", 0], ["--steps", 10**9],
                       ["--fps", "nan"], ["--frame-skip", -1], ["--guidance-scale", -1])
    for wish in wishes:
        code, text = command(["generate", "two and 4", "--weights", bench.weights, "--device", "cpu",
                              "--out", bench.folder / "wish.mp4", *wish]).ended()
        good += code == 2 and wish[0].strip("-").replace("-", "_") in one_error(text)
    yield Row("configurations", "`generate` with impossible wishes",
              f"{good} of {len(wishes)} refused by name", good == len(wishes))
