"""The command line: files of the right shape, and for every mistake one line and exit code 2."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
from yaml import safe_dump, safe_load

from mavlite import MakeAVideo
from mavlite.checkpoint import load_checkpoint, read_record
from mavlite.cli import main
from mavlite.config import STAGE_NAMES
from mavlite.training import Trainer

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"


def run(*arguments):
    return main([str(argument) for argument in arguments])


def error_of(capsys, *arguments):
    """What `mavlite ...` says when it refuses: checked to be one line, with exit code 2."""
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("mavlite: error: ") and said.count("\n") == 1 and said.endswith("\n")
    return said


@pytest.fixture(scope="module")
def pipe(smoke_weights):
    return MakeAVideo.from_pretrained(smoke_weights, device="cpu")


@pytest.fixture
def loaded(pipe, monkeypatch):
    """Spares the test from loading the weights again."""
    monkeypatch.setattr(MakeAVideo, "from_pretrained", lambda *args, **kwargs: pipe)


# --- generate ----------------------------------------------------------------------------------------------

def test_one_prompt_to_every_format(smoke_weights, tmp_path, capsys):
    paths = {suffix: tmp_path / "new" / f"clip.{suffix}" for suffix in ("mp4", "gif", "png", "npy")}
    assert run("generate", "two and 4", "--weights", smoke_weights, "--device", "cpu",
               "--out", *paths.values()) == 0
    said = capsys.readouterr().out
    assert all(f"wrote {path}" in said for path in paths.values()) and "22 frames at 18 fps" in said
    array = np.load(paths["npy"])
    assert array.shape == (22, 32, 32, 1) and array.dtype == np.uint8
    assert imageio.v3.imread(paths["mp4"]).shape == (22, 256, 256, 3)
    assert len(imageio.v3.imread(paths["gif"])) == 22
    assert imageio.v3.imread(paths["png"]).ndim == 3


def test_a_file_of_prompts(loaded, tmp_path):
    (tmp_path / "prompts.txt").write_text("two and 4\n\n  7 and seven\n1 and 1\n")
    run("generate", "--prompts", tmp_path / "prompts.txt", "--batch-size", 2, "--num-frames", 4,
        "--out", tmp_path / "all.npy", tmp_path / "folder")
    assert np.load(tmp_path / "all.npy").shape == (3, 4, 32, 32, 1)
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [
        "0000-two-and-4.mp4", "0001-7-and-seven.mp4", "0002-1-and-1.mp4"]


def test_a_folder_may_have_a_dot_in_its_name(loaded, tmp_path):
    (tmp_path / "results.v2").mkdir()
    run("generate", "two and 4", "--num-videos", 2, "--num-frames", 4, "--out", tmp_path / "results.v2")
    assert len(list((tmp_path / "results.v2").glob("*.mp4"))) == 2


@pytest.mark.parametrize("length", [22, 5])                  # key frames are all kept, and as fast as ever
def test_stages_play_as_fast_as_they_are(loaded, tmp_path, length):
    run("generate", "two and 4", "--num-frames", length, "--out", tmp_path / "x.npy", "--stages-out",
        tmp_path / "stages")
    for stage, frames, rate in (("decoder_t", 8, 6), ("sr_h", length, 18)):
        gif = tmp_path / "stages" / f"{stage}.gif"
        assert len(imageio.v3.imread(gif)) == frames
        assert imageio.v3.immeta(gif)["duration"] == pytest.approx(1000 / rate, abs=10)


def test_several_videos_of_one_prompt(loaded, tmp_path):
    run("generate", "two and 4", "--num-videos", 2, "--num-frames", 1, "--out", tmp_path / "x.npy")
    array = np.load(tmp_path / "x.npy")
    assert array.shape == (2, 1, 32, 32, 1) and (array[0] != array[1]).any()


def test_batches_do_not_change_the_videos(smoke_weights, monkeypatch, tmp_path):
    exact = MakeAVideo.from_pretrained(smoke_weights, device="cpu", precision="fp32")
    monkeypatch.setattr(MakeAVideo, "from_pretrained", lambda *args, **kwargs: exact)
    for size in (1, 3):
        run("generate", "two and 4", "--num-videos", 3, "--batch-size", size, "--num-frames", 2, "--seed", 5,
            "--out", tmp_path / f"{size}.npy")
    one, three = (np.load(tmp_path / f"{size}.npy").astype(int) for size in (1, 3))
    assert abs(one - three).max() <= 1                       # of 255: rounding


def test_options_reach_the_pipeline(pipe, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(MakeAVideo, "from_pretrained", lambda *args, **kwargs: recorder)

    class Recorder:
        networks = pipe.networks

        def __call__(self, prompts, **options):
            calls.append(options)
            return pipe(prompts, num_frames=1)
    recorder = Recorder()
    run("generate", "two and 4", "--out", tmp_path / "x.png", "--fps", 12, "--num-frames", 5, "--steps", 7,
        "--seed", 9, "--guidance-scale", 2.5, "--sampler", "ddim", "--independent-noise",
        "--candidates", 2)
    assert calls == [{"fps": 12.0, "num_frames": 5, "frame_skip": None, "steps": 7, "seed": 9,
                      "guidance_scale": 2.5, "sampler": "ddim", "candidates": 2,
                      "shared_noise": False, "index": 0, "progress": True}]


@pytest.mark.parametrize("arguments, word", [
    (["two and cat"], "cat"), (["two"], "two"), (["two and 4", "--fps", 0], "fps"),
    (["two and 4", "--fps", 31], "fps"), (["two and 4", "--fps", -1], "fps"),
    (["two and 4", "--fps", "nan"], "fps"), (["two and 4", "--num-frames", 0], "num_frames"),
    (["two and 4", "--num-frames", 10_001], "num_frames"), (["two and 4", "--steps", 0], "steps"),
    (["two and 4", "--num-videos", 0], "--num-videos"),
    (["two and 4", "--num-videos", 10**9], "1,000,000,000"),
    (["two and 4", "--batch-size", 0], "--batch-size"),
    ([], "--prompts"), (["two and 4", "--prompts", "file.txt"], "--prompts")])
def test_impossible_wishes(loaded, capsys, tmp_path, arguments, word):
    assert word in error_of(capsys, "generate", *arguments, "--out", tmp_path / "x.mp4")
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize("name", ["x.avi", "x", "file/x.mp4", "file.mp4/x.npy", "folder.gif"])
def test_impossible_outputs(capsys, tmp_path, monkeypatch, name):
    (tmp_path / "file").touch()
    (tmp_path / "file.mp4").touch()
    (tmp_path / "folder.gif").mkdir()
    monkeypatch.setattr(MakeAVideo, "from_pretrained", None)  # refused before any work
    said = error_of(capsys, "generate", "two and 4", "--out", tmp_path / name)
    assert str((tmp_path / name).parent) in said
    for command in (["generate", "two and 4"], ["animate", "digit.png"]):
        assert "file" in error_of(capsys, *command, "--out", tmp_path / "x.npy", "--stages-out",
                                  tmp_path / "file" / "stages")


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_impossible_prompt_files(capsys, tmp_path, content):
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    said = error_of(capsys, "generate", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "x.npy")
    assert str(tmp_path / "prompts.txt") in said


def test_missing_weights(capsys, tmp_path):
    said = error_of(capsys, "generate", "two and 4", "--out", tmp_path / "x.mp4",
                    "--weights", tmp_path / "none")
    assert str(tmp_path / "none") in said


def test_damaged_weights(capsys, tmp_path, smoke_weights):
    weights = shutil.copytree(smoke_weights, tmp_path / "weights")
    (weights / "prior" / "model.safetensors").write_bytes(b"<html>404</html>")
    said = error_of(capsys, "generate", "two and 4", "--out", tmp_path / "x.mp4", "--weights", weights)
    assert str(weights / "prior" / "model.safetensors") in said
    assert str(weights / "prior" / "model.safetensors") in error_of(capsys, "info", "--weights", weights)


def test_a_device_that_is_not_there(capsys, tmp_path, smoke_weights):
    said = error_of(capsys, "generate", "two and 4", "--out", tmp_path / "x.mp4", "--weights", smoke_weights,
                    "--device", "abacus")
    assert "abacus" in said


# --- applications ------------------------------------------------------------------------------------------

@pytest.fixture
def given(tmp_path):
    """A picture and a video such as a user may have."""
    picture = np.zeros((50, 40), np.uint8)
    picture[10:30, 15:25] = 255
    imageio.v3.imwrite(tmp_path / "digit.png", picture)
    imageio.v3.imwrite(tmp_path / "other.png", picture[::-1].copy())
    frames = np.stack([np.roll(np.pad(picture, [(0, 0), (5, 5)]), 2 * i, axis=1) for i in range(12)])
    np.save(tmp_path / "clip.npy", frames)
    imageio.v3.imwrite(tmp_path / "clip.gif", frames, duration=50, loop=0)
    return tmp_path


@pytest.mark.parametrize("command, frames", [
    (["animate", "digit.png", "--position", "last"], 22),
    (["animate", "digit.png", "--prompt", "two and 4"], 22),
    (["interpolate", "digit.png", "other.png", "--num-frames", "7"], 7),
    (["vary", "clip.gif", "--strength", "0.5"], 22),
    (["interpolate", "digit.png", "other.png", "--prompt", "two and 4"], 16),
    (["extend", "clip.npy", "--num-frames", "40"], 40),
    (["extend", "clip.npy", "--num-frames", "40", "--prompt", "two and 4"], 40)])
def test_applications_write_videos(given, loaded, monkeypatch, command, frames):
    monkeypatch.chdir(given)
    assert run(*command, "--out", "made.npy", "made.gif", "--stages-out", "stages") == 0
    assert np.load("made.npy").shape == (frames, 32, 32, 1)
    stages = {path.name for path in Path("stages").iterdir()}
    keys = "decoder_t" if command[0] == "vary" else "key_frames"         # the others ask no D^t
    assert {f"{keys}.png", f"{keys}.gif", "interpolation.gif", "sr_h.png"} <= stages
    assert len(stages & {"decoder_t.png", "key_frames.png"}) == 1


def test_a_morph_is_a_video_for_each_step(given, loaded, monkeypatch):
    monkeypatch.chdir(given)
    assert run("morph", "two and 4", "seven and 9", "--num-videos", "3", "--out", "made.npy", "steps") == 0
    assert np.load("made.npy").shape == (3, 22, 32, 32, 1) and len(list(Path("steps").glob("*.mp4"))) == 3


@pytest.mark.parametrize("command, said", [
    (["animate", "none.png"], "none.png"), (["interpolate", "digit.png", "none.png"], "none.png"),
    (["vary", "digit.txt"], "digit.txt"), (["vary", "clip.gif", "--strength", "2"], "strength"),
    (["extend", "clip.npy", "--num-frames", "3"], "num_frames"),
    (["extend", "clip.npy", "--num-frames", "40", "--prompt", "two and cat"], "cat"),
    (["morph", "two and 4", "two and cat"], "cat"), (["animate", "digit.png", "--fps", "99"], "fps")])
def test_applications_refuse_in_one_line(given, loaded, monkeypatch, capsys, command, said):
    monkeypatch.chdir(given)
    Path("digit.txt").write_text("no picture")
    assert said in error_of(capsys, *command, "--out", "made.npy")
    assert not Path("made.npy").exists()


# --- train and reproduce -----------------------------------------------------------------------------------

def test_train_and_resume(capsys, tmp_path):
    train = ["train", "sr_l", "--config", SMOKE, "--out", tmp_path / "run", "--device", "cpu"]
    assert run(*train, "--set", "train.steps=2") == 0
    assert (tmp_path / "run" / "samples" / "last.png").exists()
    assert "--resume" in error_of(capsys, *train)
    assert run(*train, "--resume", "--set", "train.steps=3") == 0
    assert read_record(tmp_path / "run" / "weights", "sr_l")["provenance"]["steps"] == 3


def test_train_from_weights(tmp_path, smoke_weights):
    assert run("train", "sr_l", "--config", SMOKE, "--out", tmp_path / "run", "--device", "cpu",
               "--set", "train.steps=1", "--init-from", smoke_weights / "sr_l") == 0
    assert read_record(tmp_path / "run" / "weights")["provenance"]["started_from"].startswith("sr_l (")


def test_a_stage_reads_the_others_from_weights(tmp_path, smoke_weights):
    assert run("train", "decoder_t", "--config", SMOKE, "--out", tmp_path / "run", "--weights", smoke_weights,
               "--set", "train.steps=1", "--set", "train.sample_every=1", "--device", "cpu") == 0
    assert (tmp_path / "run" / "samples" / "step-00000001.png").exists()


def test_reproduce_twice_trains_once(capsys, tmp_path):
    reproduce = ["reproduce", "--config", SMOKE, "--only", "sr_l", "sr_l_t", "--set", "train.steps=1",
                 "--out", tmp_path / "all", "--device", "cpu"]
    assert run(*reproduce) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 6                                   # a checkpoint and two copies of the weights each
    capsys.readouterr()
    assert run(*reproduce) == 0
    said = capsys.readouterr().out
    assert "sr_l: done already" in said and "sr_l_t: done already" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == files


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path / "config.yaml"
    return write


@pytest.mark.parametrize("text, word", [
    ("train: {stepz: 1}", "stepz"), ("trian: {steps: 1}", "trian"), ("train: {steps: many}", "train.steps"),
    ("train: {steps: 0}", "train.steps"), ("stages: {sr_x: {}}", "sr_x"), ("train: [", "config.yaml"),
    ("", "config.yaml"), ("data: {digits: letters}", "letters")])
def test_impossible_configurations(capsys, tmp_path, yaml, text, word):
    for command in (["train", "sr_l"], ["reproduce"]):
        assert word in error_of(capsys, *command, "--config", yaml(text), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", [
    "nonsense", "train.steps", "steps=3", "train.stepz=3", "train.steps=[", "train.steps=x"])
def test_impossible_overrides(capsys, tmp_path, override):
    said = error_of(capsys, "train", "sr_l", "--config", SMOKE, "--out", tmp_path / "run", "--set", override)
    assert override.split("=")[0] in said and not (tmp_path / "run").exists()


def test_a_missing_configuration(capsys, tmp_path):
    said = error_of(capsys, "train", "sr_l", "--config", tmp_path / "none.yaml", "--out", tmp_path / "run")
    assert str(tmp_path / "none.yaml") in said


def test_a_reference_curve_is_drawn_and_checked_before_training(tmp_path, capsys):
    train = ["train", "sr_l", "--config", SMOKE, "--out", tmp_path / "run", "--device", "cpu", "--reference"]
    assert "none.csv" in error_of(capsys, *train, tmp_path / "none.csv")
    assert not (tmp_path / "run").exists()
    (tmp_path / "sr_l.csv").write_text("step,loss\n1,0.5\n2,0.4\n")
    assert run(*train, tmp_path / "sr_l.csv") == 0
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_stage(capsys, tmp_path):
    said = error_of(capsys, "train", "encoder", "--config", SMOKE, "--out", tmp_path / "run")
    assert "encoder" in said and all(stage in said for stage in STAGE_NAMES)
    assert "encoder" in error_of(capsys, "reproduce", "--config", SMOKE, "--out", tmp_path / "run",
                                 "--only", "encoder")


def test_a_run_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file" / "run") in error_of(
        capsys, "train", "sr_l", "--config", SMOKE, "--out", tmp_path / "file" / "run", "--device", "cpu")


def test_training_without_the_weights_it_needs(capsys, tmp_path):
    said = error_of(capsys, "train", "decoder", "--config", SMOKE, "--out", tmp_path / "run",
                    "--weights", tmp_path)
    assert str(tmp_path / "clip") in said


def test_init_from_nothing(capsys, tmp_path):
    said = error_of(capsys, "train", "sr_l", "--config", SMOKE, "--out", tmp_path / "run",
                    "--init-from", tmp_path / "none")
    assert str(tmp_path / "none") in said


# --- the rest ----------------------------------------------------------------------------------------------

def test_info_tells_of_every_stage(smoke_weights, capsys):
    assert run("info", "--weights", smoke_weights) == 0
    said = capsys.readouterr().out
    for stage in STAGE_NAMES:
        record = read_record(smoke_weights / stage)
        line = next(line for line in said.splitlines() if line.startswith(stage + " "))
        assert record["sha256"][:12] in line and f"{record['parameters']:,}" in line
        assert "4 steps of 4" in line


def test_info_without_weights(capsys, tmp_path):
    assert str(tmp_path) in error_of(capsys, "info", "--weights", tmp_path)


@pytest.mark.parametrize("arguments", [[], ["paint"], ["generate", "two and 4"], ["train", "sr_l"],
                                       ["generate", "two and 4", "--out", "x.mp4", "--fps", "fast"],
                                       ["generate", "two and 4", "--out", "x.mp4", "--sampler", "euler"]])
def test_mistakes_that_argparse_finds_also_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and said.startswith("mavlite")


def test_an_interrupt_is_no_traceback(loaded, monkeypatch, capsys, tmp_path):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr("mavlite.generate.generate_files", interrupt)
    assert run("generate", "two and 4", "--out", tmp_path / "x.mp4") == 130
    assert capsys.readouterr().err == "mavlite: stopped\n"


def test_sigterm_saves_and_stops_like_ctrl_c(monkeypatch, capsys, tmp_path):
    before, step = signal.getsignal(signal.SIGTERM), Trainer._one_step

    def terminated(self):
        report = step(self)
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return report
    monkeypatch.setattr(Trainer, "_one_step", terminated)
    assert run("train", "sr_l", "--config", SMOKE, "--out", tmp_path / "run", "--device", "cpu") == 143
    assert capsys.readouterr().err.endswith("mavlite: stopped\n")
    assert load_checkpoint(tmp_path / "run")[1]["step"] == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_is_no_traceback(monkeypatch, capsys, tmp_path):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "log.csv")
    monkeypatch.setattr("mavlite.training_log.Log.__call__", full)
    assert run("train", "sr_l", "--config", SMOKE, "--out", tmp_path / "run", "--device", "cpu") == 2
    assert capsys.readouterr().err.endswith("mavlite: error: log.csv: No space left on device\n")


@pytest.mark.parametrize("name", ["~nobody-here/x.npy", f"{300 * 'n'}.npy"])
def test_outputs_that_no_disk_takes_are_refused_before_work(capsys, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "cannot write" in error_of(capsys, "generate", "two and 4", "--out", name)


def test_a_home_folder_is_found(loaded, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "results.v2").mkdir()
    run("generate", "two and 4", "--num-videos", 2, "--num-frames", 4, "--out", "~/results.v2")
    assert len(list((tmp_path / "results.v2").glob("*.mp4"))) == 2


def test_a_report_does_not_take_the_place_of_a_folder(capsys, tmp_path):
    (tmp_path / "report.json").mkdir()
    assert "written as a .json file" in error_of(capsys, "evaluate", "--out", tmp_path / "report.json")


@pytest.mark.parametrize("arguments", [["generate", "two and 4", "--out", ""], ["info", "--weights", ""],
                                       ["train", "sr_l", "--out", " "], ["generate", "--prompt", "two and 4"],
                                       ["generate", "two and 4", "--out", "x.npy", "--guid", "3"]])
def test_empty_paths_and_beginnings_of_options_are_refused(arguments, capsys):
    arguments += ["--config", SMOKE] if arguments[0] == "train" else []
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("damage", [{"provenance": None}, {"provenance": []}, {"provenance": {"steps": 3}},
                                    {"scores": [1]}])
def test_info_of_a_damaged_record_is_one_line(capsys, tmp_path, smoke_weights, damage):
    shutil.copytree(smoke_weights, tmp_path / "weights")
    path = tmp_path / "weights" / "judge" / "config.json"
    record = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
    path.write_text(json.dumps(record | damage))
    assert next(iter(damage)) in error_of(capsys, "info", "--weights", tmp_path / "weights")


def test_who_stops_reading_is_no_error(monkeypatch, capfd):
    def broken(weights):
        raise BrokenPipeError
    monkeypatch.setattr("mavlite.info.print_info", broken)
    kept = os.dup(1)
    try:
        assert run("info") == 141
    finally:
        os.dup2(kept, 1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("override", ["sr_h.model.patch_size=3", "decoder_t.model.emb_dim=24"])
def test_what_cannot_be_built_is_said_before_the_first_training(capsys, tmp_path, override):
    stage, section, setting = override.split(".")
    key, value = setting.split("=")
    config = safe_load(SMOKE.read_text())
    config.setdefault("stages", {}).setdefault(stage, {}).setdefault(section, {})[key] = int(value)
    (tmp_path / "all.yaml").write_text(safe_dump(config))
    said = error_of(capsys, "reproduce", "--config", tmp_path / "all.yaml", "--out", tmp_path / "runs")
    assert stage in said and not (tmp_path / "runs").exists()
