"""Weights and checkpoints: what is written comes back, and what is damaged is refused by name."""

import errno
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from mavlite import checkpoint
from mavlite.checkpoint import (
    load_checkpoint,
    load_state,
    read_record,
    read_weights,
    restore,
    save_weights,
    write_folder,
)
from mavlite.config import load_config
from mavlite.errors import MavliteError

CONFIG = load_config(Path(__file__).parent.parent / "configs" / "smoke.yaml", "decoder")


def state():
    generator = torch.Generator().manual_seed(0)
    return {"layer.weight": torch.randn(3, 4, generator=generator),
            "layer.bias": torch.randn(3, generator=generator), "count": torch.tensor([7, 8])}


@pytest.fixture
def folder(tmp_path):
    """A good weights folder of the stage decoder."""
    save_weights(tmp_path / "decoder", state(), CONFIG, {"steps": 3}, {"loss": 0.5})
    return tmp_path / "decoder"


def refusal(function, *args):
    """The message of the MavliteError that function(*args) raises, checked to be one line."""
    with pytest.raises(MavliteError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plant(folder, content):
    """Put `content` where the weights are, with a checksum that fits: only the content itself is wrong."""
    (folder / "model.safetensors").write_bytes(content)
    record = json.loads((folder / "config.json").read_text())
    record["sha256"] = hashlib.sha256(content).hexdigest()
    record.pop("checksum", None)                             # the record's own, which is then not asked for
    (folder / "config.json").write_text(json.dumps(record))


# --- weights -----------------------------------------------------------------------------------------------

def test_weights_come_back(folder):
    tensors, record = read_weights(folder, "decoder")
    assert tensors.keys() == state().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state().items())
    assert record["config"] == CONFIG.to_dict() and record["parameters"] == 17
    assert record["provenance"] == {"steps": 3} and record["scores"] == {"loss": 0.5}


def test_half_weights_come_back_widened(tmp_path):
    save_weights(tmp_path / "full", state(), CONFIG, {})
    save_weights(tmp_path / "half", state(), CONFIG, {}, half=True)
    tensors, _ = read_weights(tmp_path / "half")
    for name, tensor in state().items():
        assert tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(tensors[name], tensor, atol=0, rtol=1e-3)
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("half", "full")]
    assert sizes[0] < sizes[1]


def test_half_refuses_what_16_bits_cannot_hold(tmp_path):
    refusal(lambda: save_weights(tmp_path / "w", {"a": torch.tensor([1e6])}, CONFIG, {}, half=True))
    assert not (tmp_path / "w").exists()


def flip(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


DAMAGES = {"a flipped bit": flip, "truncated": lambda content: content[:len(content) // 2],
           "empty": lambda content: b"", "a web page": lambda content: b"<!DOCTYPE html><html>404</html>"}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_weights_are_refused(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal(read_weights, folder)


@pytest.mark.parametrize("damage", [d for name, d in DAMAGES.items() if "bit" not in name])
def test_unreadable_weights_are_refused_even_with_a_fitting_checksum(folder, damage):
    plant(folder, damage((folder / "model.safetensors").read_bytes()))
    assert str(folder / "model.safetensors") in refusal(read_weights, folder)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_pickles_are_refused_unopened(folder, tmp_path):
    plant(folder, pickle.dumps(Trap(tmp_path / "sprung")))
    assert str(folder / "model.safetensors") in refusal(read_weights, folder)
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "zip")
    plant(folder, (tmp_path / "zip").read_bytes())
    assert str(folder / "model.safetensors") in refusal(read_weights, folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    bad = {**state(), "layer.bias": torch.tensor([1.0, value, 2.0])}
    assert "layer.bias" in refusal(lambda: save_weights(folder, bad, CONFIG, {}))
    plant(folder, safetensors.torch.save(bad))
    message = refusal(read_weights, folder)
    assert "layer.bias" in message and str(folder / "model.safetensors") in message


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int16])
def test_numbers_that_are_never_written_are_refused(folder, dtype):
    plant(folder, safetensors.torch.save({**state(), "layer.bias": torch.ones(3).to(dtype)}))
    message = refusal(read_weights, folder)
    assert "layer.bias" in message and str(folder / "model.safetensors") in message


def test_a_record_of_any_depth_is_refused(folder):
    for depth in range(sys.getrecursionlimit() - 300, sys.getrecursionlimit() + 1):
        (folder / "config.json").write_text(f'{{"config": {depth * "["}{depth * "]"}}}')
        assert str(folder / "config.json") in refusal(read_record, folder)


@pytest.mark.parametrize("text", ["{}", "[]", "", "<html>404</html>", '{"stage": "decoder"'])
def test_damaged_records_are_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(read_record, folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert str(folder / name) in refusal(read_weights, folder)


@pytest.mark.parametrize("key, value", [("provenance", {"steps": 4}), ("parameters", 18), ("stage", "sr_l")])
def test_a_record_that_was_changed_is_refused(folder, key, value):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {key: value}))
    assert "checksum" in refusal(read_record, folder)
    del record["checksum"]                                   # as written by earlier versions
    (folder / "config.json").write_text(json.dumps(record))
    assert read_record(folder) == record
    (folder / "config.json").write_text(json.dumps(record | {"chfcksum": "0"}))      # but not if it says more
    assert "'chfcksum'" in refusal(read_record, folder)


def test_new_scores_leave_a_record_whole(folder):
    before = read_record(folder)
    checkpoint.record_scores(folder, {"loss": 0.25})
    assert read_weights(folder)[1] == before | {"scores": {"loss": 0.25}}


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin", "weights.PT"])
def test_code_beside_weights_is_refused(folder, name):
    (folder / name).write_bytes(b"")
    message = refusal(read_weights, folder)
    assert name in message and str(folder) in message


def test_another_stage_is_refused(folder):
    message = refusal(read_weights, folder, "decoder_t")
    assert str(folder) in message and "'decoder'" in message and "'decoder_t'" in message


@pytest.mark.parametrize("wrong", [
    {}, {"weight": torch.zeros(2, 3)}, {"weight": torch.zeros(9, 9), "bias": torch.zeros(2)},
    {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)},
    {"weight": torch.zeros(2, 3, dtype=torch.int64), "bias": torch.zeros(2)}])
def test_weights_of_another_shape_are_refused(wrong, tmp_path):
    assert str(tmp_path) in refusal(load_state, nn.Linear(3, 2), wrong, tmp_path)


# --- all or nothing ----------------------------------------------------------------------------------------

def stop_at_second_file(monkeypatch, error):
    real, names = checkpoint._write, []

    def write(path, content):
        names.append(path.name)
        if len(names) == 2:
            path.write_bytes(content[:1])
            raise error
        real(path, content)
    monkeypatch.setattr(checkpoint, "_write", write)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_folder(tmp_path / "w", {"a": b"1", "b": b"2"})
    write_folder(tmp_path / "w", {"a": b"3", "c": b"4"})
    assert contents(tmp_path / "w") == {"a": b"3", "c": b"4"}
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_a_full_disk_leaves_the_earlier_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "w", {"a": b"1", "b": b"2"})
    stop_at_second_file(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    message = refusal(write_folder, tmp_path / "w", {"a": b"3", "b": b"4"})
    assert "No space left on device" in message and str(tmp_path / "w") in message
    assert contents(tmp_path / "w") == {"a": b"1", "b": b"2"}
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_a_full_disk_leaves_no_half_folder(tmp_path, monkeypatch):
    stop_at_second_file(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    refusal(write_folder, tmp_path / "w", {"a": b"3", "b": b"4"})
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_the_earlier_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "w", {"a": b"1", "b": b"2"})
    stop_at_second_file(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "w", {"a": b"3", "b": b"4"})
    assert contents(tmp_path / "w") == {"a": b"1", "b": b"2"}
    monkeypatch.undo()
    write_folder(tmp_path / "w", {"a": b"5"})                # what was left behind is in nobody's way
    assert contents(tmp_path / "w") == {"a": b"5"}


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    checkpoint.write_file(tmp_path / "a", b"1")

    def tear(path, content):
        path.write_bytes(b"")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(checkpoint, "_write", tear)
    message = refusal(checkpoint.write_file, tmp_path / "a", b"2")
    assert "No space left on device" in message and str(tmp_path / "a") in message
    assert contents(tmp_path) == {"a": b"1"}


def test_an_interrupt_between_the_renames_brings_the_earlier_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "w", {"a": b"1"})
    rename, names = checkpoint.os.replace, []

    def interrupted(a, b):
        names.append(b)
        if len(names) == 2:
            raise KeyboardInterrupt
        rename(a, b)
    monkeypatch.setattr(checkpoint.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "w", {"a": b"2"})
    assert contents(tmp_path / "w") == {"a": b"1"} and [p.name for p in tmp_path.iterdir()] == ["w"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file" / "w") in refusal(write_folder, tmp_path / "file" / "w", {"a": b""})


# --- checkpoints -------------------------------------------------------------------------------------------

def trained(seed):
    """(network, ema, optimizers) after a step."""
    torch.manual_seed(seed)
    network = nn.Linear(3, 2)
    optimizers = [torch.optim.AdamW([network.bias]), torch.optim.SGD([network.weight], momentum=0.9)]
    network(torch.randn(5, 3)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    return network, {name: 2 * p.detach() for name, p in network.named_parameters()}, optimizers


def save_steps(run, steps, **options):
    for step in steps:
        checkpoint.save_checkpoint(run, step, *trained(step), {"note": step}, **options)


def test_a_checkpoint_restores_everything(tmp_path):
    network, ema, optimizers = trained(1)
    checkpoint.save_checkpoint(tmp_path, 7, network, ema, optimizers, {"seconds": 2.5})
    other, other_ema, others = trained(2)
    tensors, saved = load_checkpoint(tmp_path)
    restore(tensors, tmp_path, other, other_ema, others)
    assert saved["step"] == 7 and saved["seconds"] == 2.5
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters()))
    assert all(torch.equal(ema[name], other_ema[name]) for name in ema)
    for a, b in zip(optimizers, others):
        (a, groups), (b, other_groups) = (optimizer.state_dict().values() for optimizer in (a, b))
        assert groups == other_groups and a.keys() == b.keys()
        assert all(torch.equal(a[k][name], b[k][name]) for k in a for name in a[k])


def test_the_newest_two_are_kept(tmp_path):
    save_steps(tmp_path, [2, 4, 6, 8], keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00000006", "step-00000008"]


def test_damaged_later_checkpoints_do_not_push_out_good_ones(tmp_path):
    save_steps(tmp_path, [2, 4, 6], keep=3)
    for step in (4, 6):
        (tmp_path / f"step-{step:08d}" / "state.safetensors").write_bytes(b"torn")
    save_steps(tmp_path, [3], keep=1)                        # resumed from step 2, and stopped
    assert load_checkpoint(tmp_path)[1]["note"] == 3
    save_steps(tmp_path, [6], keep=1)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00000006"]
    assert load_checkpoint(tmp_path)[1]["note"] == 6


@pytest.mark.parametrize("name, content", [
    ("state.safetensors", b"torn"), ("state.json", b"{}"), ("state.json", b"{tor")])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys, name, content):
    save_steps(tmp_path, [2, 4])
    (tmp_path / "step-00000004" / name).write_bytes(content)
    assert load_checkpoint(tmp_path)[1]["note"] == 2
    said = capsys.readouterr().out
    assert "passing over a damaged checkpoint" in said and "step-00000004" in said


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path):
    save_steps(tmp_path, [2, 4])
    for path in tmp_path.glob("*/state.safetensors"):
        path.unlink()
    assert str(tmp_path) in refusal(load_checkpoint, tmp_path)


@pytest.mark.parametrize("without", ["optimizer.", "optimizer.0.0.exp_avg_sq", "ema.bias"])
@pytest.mark.parametrize("padded", [False, True], ids=["fewer", "as many"])
def test_a_checkpoint_without_a_tensor_is_passed_over(tmp_path, capsys, without, padded):
    save_steps(tmp_path, [2, 4])
    newest = tmp_path / "step-00000004"
    tensors = safetensors.torch.load((newest / "state.safetensors").read_bytes())
    kept = {name: t for name, t in tensors.items() if not name.startswith(without)}
    assert len(kept) < len(tensors)
    if padded:
        kept |= {f"another.{i}": torch.zeros(1) for i in range(len(tensors) - len(kept))}
    content = safetensors.torch.save(kept)
    (newest / "state.safetensors").write_bytes(content)
    record = checkpoint._json(newest / "state.json") | {"sha256": hashlib.sha256(content).hexdigest()}
    (newest / "state.json").write_bytes(checkpoint._sealed(record))
    assert load_checkpoint(tmp_path)[1]["note"] == 2
    said = capsys.readouterr().out
    assert "passing over" in said and f"{min(set(tensors) - set(kept))} is missing" in said


def test_a_checkpoint_that_is_not_finite_is_not_written(tmp_path):
    save_steps(tmp_path, [2])
    network, ema, optimizers = trained(4)
    ema["bias"][0] = float("nan")
    assert "ema.bias" in refusal(checkpoint.save_checkpoint, tmp_path, 4, network, ema, optimizers, {})
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00000002"]


@pytest.mark.parametrize("name, wrong", [
    ("ema.bias", None), ("ema.bias", torch.zeros(3)), ("optimizer.0.0.exp_avg", torch.zeros(3)),
    ("optimizer.0.7.exp_avg", torch.zeros(2))])
def test_tensors_of_another_network_are_not_restored(tmp_path, name, wrong):
    save_steps(tmp_path, [2])
    tensors, _ = load_checkpoint(tmp_path)
    tensors[name] = wrong
    kept = {key: t for key, t in tensors.items() if t is not None}
    message = refusal(restore, kept, tmp_path, *trained(2))
    assert str(tmp_path) in message and name.removeprefix("ema.") in message


# --- one trainer a run folder ------------------------------------------------------------------------------

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("123 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_trains_is_refused_until_that_ends(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    with other:
        assert other.stdout.readline() == b"held\n"
        message = refusal(checkpoint.claim, tmp_path)
        assert str(tmp_path) in message and "process 123 on elsewhere" in message
        other.kill()
        other.wait()
    assert (tmp_path / ".lock").read_text() == "123 on elsewhere"        # left behind, and locks nothing
    assert checkpoint.claim(tmp_path)


def test_a_process_shares_its_own_lock(tmp_path):
    assert checkpoint.claim(tmp_path / "run") is checkpoint.claim(tmp_path / "run")


def test_what_a_killed_save_left_is_finished_or_removed(tmp_path):
    save_steps(tmp_path, [2, 4])
    (tmp_path / "step-00000004").rename(tmp_path / ".step-00000004.old")     # between write_folder's renames
    shutil.copytree(tmp_path / "step-00000002", tmp_path / ".step-00000002.old")
    (tmp_path / ".step-00000006.new").mkdir()
    (tmp_path / ".config.json.new").write_text("{")
    lock = checkpoint.claim(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "step-00000002", "step-00000004"]
    assert load_checkpoint(tmp_path)[1]["note"] == 4 and lock


def test_a_run_without_checkpoints_starts_anew(tmp_path):
    assert load_checkpoint(tmp_path) == (None, None)
    assert load_checkpoint(tmp_path / "missing") == (None, None)


def test_a_half_written_checkpoint_is_not_seen(tmp_path, monkeypatch):
    save_steps(tmp_path, [2])
    stop_at_second_file(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save_steps(tmp_path, [4])
    assert load_checkpoint(tmp_path)[1]["note"] == 2
