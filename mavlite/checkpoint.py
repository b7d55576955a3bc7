"""Weights and checkpoints: safetensors plus JSON, written atomically, verified when read, never unpickled.

A *weights* folder holds one stage's network for use: `model.safetensors` and `config.json` (stage,
configuration, checksum, provenance, scores). A *run* folder holds what training needs to go on:
`step-00001234/` with network, EMA and optimizer tensors, and `state.json`. Tensors are covered by a checksum
in the JSON beside them, and that by one of its own. One process at a time may train in a run folder.
"""

import hashlib
import json
import os
import shutil
import socket
import weakref
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mavlite.errors import MavliteError

SHIPPED = Path(__file__).parent / "weights"
MODEL, RECORD = "model.safetensors", "config.json"
KEYS = {"stage", "parameters", "sha256", "config", "provenance", "scores"}   # of a record
# What mavlite writes. Others, such as floats of 8 bits, cannot even be looked at for NaN.
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)
# Never opened here, whatever it is called; a weights folder that comes with it is not to be trusted.
CODE = {".py", ".pyc", ".so", ".sh", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt"}


# ---------------------------------------------------------------- atomic files

def _write(path, content):
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())                              # on the disk before the name says so


def write_folder(folder, files):
    """Write {name: bytes} as one folder: all of it appears under its name, or none of it.

    Raises MavliteError when the disk is full or the place cannot be written; an earlier folder stays.
    """
    folder = Path(folder)
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name, content in files.items():
            _write(fresh / name, content)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:                                                 # whatever went wrong, Ctrl-C too
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)


def write_file(path, content):
    """Write one file's bytes: all of it appears under its name, or what was there before stays."""
    path = Path(path)
    fresh = path.with_name(f".{path.name}.new")
    try:
        _write(fresh, content)
        os.replace(fresh, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if fresh.exists():
            fresh.unlink()


def _unwritable(path, error):
    return MavliteError(f"{path}: cannot be written ({error.strerror or error}); free space or choose "
                        "another folder")


def _tensors(path, content):
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise MavliteError(f"{path}: not a readable safetensors file ({reason}); "
                           "fetch or train it again") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMBERS:
            raise MavliteError(f"{path}: {name} holds {tensor.dtype}; mavlite writes no such numbers")
    return tensors


def _json(path):
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        said = record.pop("checksum", None) if isinstance(record, dict) else None
        whole = said in (None, _checksum(record))            # None: written before there was one
    except FileNotFoundError:
        raise MavliteError(f"{path}: missing; a weights folder holds {MODEL} and {RECORD}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise MavliteError(f"{path}: not readable JSON ({' '.join(str(error).split())})") from None
    if not isinstance(record, dict):
        raise MavliteError(f"{path}: must hold a JSON object")
    if not whole:
        raise MavliteError(f"{path}: does not match its own checksum; it is damaged, "
                           "fetch or train it again")
    return record


def _sealed(record):
    """A record as JSON, with a checksum of all the rest of it, which `_json` verifies."""
    return json.dumps(record | {"checksum": _checksum(record)}, indent=2).encode()


def _checksum(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read(path):
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MavliteError(f"{path}: missing; a weights folder holds {MODEL} and {RECORD}") from None
    except OSError as error:
        raise MavliteError(f"{path}: cannot be read ({error.strerror})") from None


def require_finite(path, tensors):
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise MavliteError(f"{path}: {name} holds NaN or infinity; these weights are damaged")


# ---------------------------------------------------------------- weights for use

def save_weights(folder, state, config, provenance, scores=None, half=False):
    """Write a network's `state` (name -> tensor) with its `Config` and where it comes from.

    half stores floating-point tensors in 16 bits; they are widened again when loaded.
    """
    tensors = {name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous().cpu()
               for name, tensor in state.items()}
    require_finite(folder, tensors)
    content = save(tensors)
    record = {"stage": config.stage, "parameters": sum(t.numel() for t in tensors.values()),
              "sha256": hashlib.sha256(content).hexdigest(), "config": config.to_dict(),
              "provenance": provenance, "scores": scores or {}}
    write_folder(folder, {MODEL: content, RECORD: _sealed(record)})
    return record


def record_scores(folder, scores):
    """Write scores (name -> number) into a weights folder's config.json; the weights stay as they are."""
    write_file(Path(folder) / RECORD, _sealed(read_record(folder) | {"scores": scores}))


def refuse_code(place, files):
    """Raises MavliteError if any of a folder's or a repository's `files` could run code."""
    code = sorted(str(file) for file in map(Path, files) if file.suffix.lower() in CODE)
    if code:
        raise MavliteError(f"{place}: holds {Path(code[0]).name}, which could run code; mavlite reads only "
                           f"{MODEL} and {RECORD}; keep weights in a folder without other files")


def read_record(folder, stage=None):
    """A weights folder's config.json; raises MavliteError when it is missing, damaged or of another stage,
    and for a folder that holds code or pickles as well."""
    record = _json(Path(folder) / RECORD)
    refuse_code(folder, Path(folder).iterdir())
    for key in ("stage", "sha256", "config"):
        if key not in record:
            raise MavliteError(f"{Path(folder) / RECORD}: has no {key!r}; "
                               "this is not a mavlite weights folder")
    if record.keys() - KEYS:                                 # such as a "checksum" whose name is damaged
        raise MavliteError(f"{Path(folder) / RECORD}: has an unknown key {min(record.keys() - KEYS)!r}; "
                           "it is damaged, or of another version")
    if stage is not None and record["stage"] != stage:
        raise MavliteError(f"{folder}: holds weights of stage {record['stage']!r}, {stage!r} was asked for")
    return record


def read_weights(folder, stage=None):
    """(state dict in float32, record), verified: stage, checksum, finite values."""
    record, path = read_record(folder, stage), Path(folder) / MODEL
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise MavliteError(f"{path}: does not match the checksum in {RECORD}; it is damaged or of another "
                           "training, fetch or train it again")
    tensors = _tensors(path, content)
    require_finite(path, tensors)
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, record


def load_state(network, state, folder):
    """Strict load with one clear line instead of PyTorch's list."""
    def kind(tensor):
        return tensor.shape, tensor.is_floating_point()
    expected = network.state_dict()
    wrong = [name for name in expected if name not in state or kind(state[name]) != kind(expected[name])]
    wrong += [name for name in state if name not in expected]
    if wrong:
        raise MavliteError(f"{folder}: the weights do not fit this configuration, for example {wrong[0]}; "
                           "use the configuration in its config.json")
    network.load_state_dict(state)


# ---------------------------------------------------------------- checkpoints of a run

class RunLock:
    """Keeps other processes out of a run folder for as long as this object lives.

    The kernel holds the lock, not the file: however the process ends, it goes with it, and a file `.lock`
    that is left behind locks nothing. Raises MavliteError if another process holds it.
    """

    def __init__(self, run):
        self.file = open(Path(run) / ".lock", "a+")
        try:
            import fcntl
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            holder = self.file.read().strip() or "unknown"
            raise MavliteError(f"{run}: another training is at work here (process {holder}); wait for it, "
                               "stop it, or choose another --out") from None
        except (ImportError, OSError):                       # Windows, and network drives without locks
            pass
        self.file.truncate(0)
        self.file.write(f"{os.getpid()} on {socket.gethostname()}")
        self.file.flush()


_held = weakref.WeakValueDictionary()        # run folder -> this process's lock, which its trainers share


def claim(run):
    """Make a run folder this process's own, whole and writable; returns the lock, which is to be kept.

    What an earlier process left half written when it was killed is finished or removed. Raises MavliteError
    if another process trains there, or if the folder cannot be written.
    """
    run = Path(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = _held.get(run.resolve())
        if lock is None:
            lock = _held[run.resolve()] = RunLock(run)
            for old in run.glob(".*.old"):                   # killed between the two renames of write_folder
                name = old.with_name(old.name[1:].removesuffix(".old"))
                if not name.exists():
                    os.replace(old, name)
            for left in [*run.glob(".*.old"), *run.glob(".*.new")]:
                left.unlink() if left.is_file() else shutil.rmtree(left)
    except OSError as error:
        raise MavliteError(f"{run}: cannot be written ({error.strerror}); choose another --out") from None
    return lock


def _flatten_optimizer(index, optimizer):
    """An optimizer's state as named tensors: optimizer.<index>.<parameter>.<name>."""
    return {f"optimizer.{index}.{k}.{name}": torch.as_tensor(value)
            for k, entry in optimizer.state_dict()["state"].items() for name, value in entry.items()}


def save_checkpoint(run, step, network, ema, optimizers, extra, critic=None, keep=2):
    """Write run/step-XXXXXXXX atomically, then remove all but `keep` of those up to it.

    Raises MavliteError when it cannot be written, or if a tensor is not finite; earlier ones stay.
    """
    tensors = {f"network.{name}": t for name, t in network.state_dict().items()}
    tensors |= {f"ema.{name}": t for name, t in ema.items()}
    if critic is not None:
        tensors |= {f"critic.{name}": t for name, t in critic.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        tensors |= _flatten_optimizer(index, optimizer)
    tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    require_finite(f"{run}, step {step}", tensors)
    content = save(tensors)
    state = {"step": step, "sha256": hashlib.sha256(content).hexdigest(), "tensors": sorted(tensors), **extra}
    write_folder(Path(run) / f"step-{step:08d}", {"state.safetensors": content, "state.json": _sealed(state)})
    # Later ones are damaged, or this run would have gone on from them; they do not count.
    for old in [path for path in checkpoints(run) if path.name <= f"step-{step:08d}"][:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def checkpoints(run):
    """A run's checkpoint folders, oldest first."""
    return sorted(p for p in Path(run).glob("step-*") if p.is_dir())


def load_checkpoint(run):
    """(tensors, state) of the newest readable checkpoint, or (None, None) for a run without any.

    A damaged one is passed over with a word on the terminal; if all are damaged, MavliteError.
    """
    found = checkpoints(run)
    for folder in reversed(found):
        try:
            state, path = _json(folder / "state.json"), folder / "state.safetensors"
            content = _read(path)
            if hashlib.sha256(content).hexdigest() != state.get("sha256"):
                raise MavliteError(f"{path}: does not match its checksum")
            tensors = _tensors(path, content)
            names = state.get("tensors")
            if names != sorted(tensors):
                missing = [name for name in names if name not in tensors] if isinstance(names, list) else []
                what = missing[0] if missing else "a true list of its tensors"
                raise MavliteError(f"{path}: {what} is missing")
            require_finite(path, tensors)
            return tensors, state
        except MavliteError as error:
            print(f"mavlite: passing over a damaged checkpoint: {error}", flush=True)
    if found:
        raise MavliteError(f"{run}: no checkpoint of this run is readable; start anew in another folder")
    return None, None


def restore(tensors, path, network, ema, optimizers, critic=None):
    """Put a checkpoint's tensors back into network, EMA, optimizers and critic, in place.

    Raises MavliteError for tensors of another network.
    """
    load_state(network, {n[8:]: t for n, t in tensors.items() if n.startswith("network.")}, path)
    if critic is not None:
        load_state(critic, {n[7:]: t for n, t in tensors.items() if n.startswith("critic.")}, path)
    for name, average in ema.items():
        saved = tensors.get(f"ema.{name}")
        if saved is None or saved.shape != average.shape:
            raise MavliteError(f"{path}: holds no average that fits {name}; start anew in another folder")
        average.copy_(saved)
    for index, optimizer in enumerate(optimizers):
        packed, prefix = optimizer.state_dict(), f"optimizer.{index}."
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = {}
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                k, _, key = name[len(prefix):].partition(".")
                if int(k) >= len(parameters) or tensor.ndim and tensor.shape != parameters[int(k)].shape:
                    raise MavliteError(f"{path}: {name} fits no parameter; resume with the same "
                                       "configuration, or start anew in another folder")
                state.setdefault(int(k), {})[key] = tensor
        optimizer.load_state_dict({**packed, "state": state})
