"""Runs that are interrupted, killed, stopped, or cannot write, and two in one folder."""

import importlib
import os
import resource
import signal
import time
from pathlib import Path
from unittest import mock

import torch

from benchmarks.robustness.common import PATIENCE, STOPS, Child, Row, command, one_error
from mavlite import checkpoint
from mavlite.stages import CASCADE
from mavlite.training import Trainer

# ---------------------------------------------------------------- 1. exact resume

def resume(bench):
    """Interrupted once and twice, at random steps: the same losses and rates, the same last checkpoint."""
    compared, wrong, runs = 0, [], 0
    for stage, precision in [*((stage, "fp32") for stage in CASCADE), ("sr_l", "fp16")]:  # fp32 has no scaler
        config = bench.config(stage, f"train.precision={precision}")
        straight = bench.folder / "resumed" / f"{stage}-{precision}"
        seen = _train(bench, config, straight)
        expected = checkpoint.load_checkpoint(straight)
        for times in (1, 2):
            for attempt in range(3 if bench.long else 1):
                run = bench.folder / "resumed" / f"{stage}-{precision}-{times}-{attempt}"
                stops = sorted(bench.random.sample(range(1, config.train.steps), times))
                again = {}
                for stop in (*stops, None):
                    again |= _train(bench, config, run, stop)
                tensors, state = checkpoint.load_checkpoint(run)
                different = [name for name in tensors if not torch.equal(tensors[name], expected[0][name])]
                different += [key for key in ("step", "scaler", "origin", "clip", "skipped", "config")
                              if state[key] != expected[1][key]]
                if different or tensors.keys() != expected[0].keys() or again != seen:
                    wrong.append(f"{stage} {precision} {stops}: {different[:1] or 'losses'}")
                compared, runs = compared + len(tensors), runs + 1
    yield Row("exact resume", f"{len(CASCADE)} stages, and one in fp16, interrupted once and twice at random "
              "steps", f"{runs} runs, {compared:,} tensors, the loss scaler and every loss equal bit for bit"
              if not wrong else f"differ: {'; '.join(wrong)}", not wrong)


def _train(bench, config, run, stop=None):
    """Go on with a run to its end, or to the step `stop`: step -> what was reported of it."""
    trainer, seen = Trainer(config, run, weights=bench.weights, resume=True, device="cpu"), {}
    for report in trainer.steps():
        seen[report["step"]] = report["loss"], report["rate"], report["skipped"]
        if report["step"] == stop:
            break
    return seen


# ---------------------------------------------------------------- 2. killed and stopped

def kills(bench):
    """SIGKILL at random moments, one run after the other: what is on the disk is always good."""
    count, every = 200 if bench.long else 20, 1
    config = bench.config("sr_l", "train.steps=1000000", f"train.save_every={every}", "train.keep=1")
    run, k, reached, saving, unreadable, most = bench.folder / "killed", 0, 0, 0, 0, 0
    while k < count or reached <= count / 2 and k < 3 * count:           # a slow machine gets more tries
        def train():
            trainer = Trainer(config, run, resume=True, device="cpu")
            save = trainer.save
            trainer.save = lambda: (print(trainer.step), save())         # in every step
            list(trainer.steps())
        child = Child(train)
        time.sleep(bench.random.uniform(0.03, 0.35))
        patience = time.monotonic() + 0.5
        while k % 2 and not any(run.glob(".step-*")) and time.monotonic() < patience:
            pass                                             # every other one as soon as a save begins
        child.kill(signal.SIGKILL)
        code, text = child.ended()
        assert code == -signal.SIGKILL, text
        reached = max([reached, *(int(line) for line in text.splitlines() if line.isdigit())])
        saving += any(run.glob(".step-*"))
        with mock.patch("builtins.print") as said:
            try:
                tensors, state = checkpoint.load_checkpoint(run)
                saved = state["step"] if tensors else 0
            except checkpoint.MavliteError:
                saved = 0
        unreadable += said.called or "mavlite" in text or (saved == 0 and reached > every)
        most = max(most, reached - saved)
        k += 1
    yield Row("SIGKILL", "a training killed at random moments and resumed, saving every step, "
              "one checkpoint kept", f"{k} kills ({saving} within a save), {k - unreadable} "
              f"readable, step {reached} reached, at most {most} steps lost",
              unreadable == 0 and most <= every and reached > count / 2)


def stops(bench):
    """SIGTERM and Ctrl-C: a clean exit, and in training a checkpoint of the step where it stopped."""
    late, count = [], 0
    for repeat in range(10 if bench.long else 1):
        for number, expected in STOPS.items():
            run = bench.folder / f"stopped-{number}-{repeat}"
            child = command(bench.training("sr_l", run, "train.steps=1000000", "train.save_every=1000000"))
            _wait(lambda: _logged(run) > 0)
            time.sleep(bench.random.uniform(0, 0.2))
            before = _logged(run)
            child.kill(number)
            code, text = child.ended()
            saved = checkpoint.load_checkpoint(run)[1]
            if code != expected or "Traceback" in text or saved is None or saved["step"] < before:
                raise AssertionError(f"exit {code}: {text[-500:]}")
            late.append(saved["step"] - before)
            count += 1
    yield Row("SIGTERM, Ctrl-C", "training, at random moments", f"{count} stops, exit 143 or 130, checkpoint "
              f"of the last whole step, at most {max(late)} steps after the signal", max(late) <= 2)

    codes, left = [], []
    for number, expected in STOPS.items():                   # the signal comes between two files of a save
        run = bench.folder / f"stopped-saving-{number}"
        write, calls = checkpoint._write, []

        def write_and_stop(path, content):
            write(path, content)
            calls.append(path)
            if path.name == "state.safetensors":
                signal.raise_signal(number)
        child = command(bench.training("sr_l", run, "train.steps=9"),
                        before=lambda: setattr(checkpoint, "_write", write_and_stop))
        code, text = child.ended()
        codes.append(code == expected and "Traceback" not in text)
        left.append(checkpoint.load_checkpoint(run)[1]["step"] == 2)
    yield Row("SIGTERM, Ctrl-C", "in the middle of a save", f"{sum(codes)} of {len(codes)} clean exits, "
              f"{sum(left)} checkpoints whole", all(codes) and all(left))

    for name in ("report", "plots"):                         # once, before the forks
        importlib.import_module(f"mavlite.evaluation.{name}")
    for what, arguments in {
            "sampling": ["generate", "two and 4", "--num-videos", 500, "--batch-size", 1],
            "evaluating": ["evaluate", "--videos", 400]}.items():
        count = 0
        for repeat in range(5 if bench.long else 1):
            for number, expected in STOPS.items():
                folder = bench.folder / f"stopped-{what}-{number}-{repeat}"
                folder.mkdir()
                name = "made.mp4" if what == "sampling" else "made.json"
                child = command([*arguments, "--out", folder / name, "--weights", bench.weights,
                                 "--device", "cpu"])
                child.spoke()                                # its bar: the work has begun
                time.sleep(bench.random.uniform(0, 0.5))
                child.kill(number)
                code, text = child.ended()
                files = [path for path in folder.rglob("*") if path.is_file()]
                assert code == expected and "Traceback" not in text and not files, f"{code} {files} {text}"
                count += 1
        yield Row("SIGTERM, Ctrl-C", what, f"{count} clean exits, nothing half written", True)


def _wait(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the process did not begin its work"
        time.sleep(0.01)


def _logged(run):
    """The last step in a run's log."""
    try:
        return len((Path(run) / "log.csv").read_text().splitlines()) - 1
    except OSError:
        return 0


# ---------------------------------------------------------------- 3. faults in writing

def write_faults(bench):
    run = bench.folder / "faults"
    straight = bench.training("sr_l", run, "train.steps=2")
    code, text = command(straight).ended()
    assert code == 0, text
    size = (run / "step-00000002" / "state.safetensors").stat().st_size
    limits = [0, 100, size // 2, size - 1] + [bench.random.randrange(size) for _ in range(20 * bench.long)]
    good = 0
    for limit in limits:
        code, text = command([*bench.training("sr_l", run, "train.steps=4"), "--resume"],
                             before=lambda limit=limit: resource.setrlimit(
                                 resource.RLIMIT_FSIZE, (limit, limit))).ended()
        good += code == 2 and bool(one_error(text)) and checkpoint.load_checkpoint(run)[1]["step"] == 2
    yield Row("write faults", "disk full (a limit on file sizes) while training", f"{good} of {len(limits)}: "
              "exit 2, one line, the earlier checkpoint stays", good == len(limits))

    good, count = 0, 0
    sample = ["generate", "two and 4", "--num-frames", 8, "--weights", bench.weights, "--device", "cpu"]
    for suffix in ("mp4", "gif", "npy", "png"):
        out = bench.folder / "full" / f"clip.{suffix}"
        out.parent.mkdir(exist_ok=True)
        out.write_bytes(b"earlier")
        code, text = command([*sample, "--out", out], before=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (1000, 1000))).ended()
        good += code == 2 and bool(one_error(text)) and out.read_bytes() == b"earlier"
        good += len(list(out.parent.iterdir())) == 1
        count += 2
        out.unlink()
    yield Row("write faults", "disk full while a video is saved", f"{good} of {count}: exit 2, one line, "
              "the earlier file stays, no part of the new one", good == count)

    bench.folder.chmod(0o755)

    def as_nobody():                                         # permissions do not bind root
        if os.geteuid() == 0:
            os.setgid(65534), os.setuid(65534)
    closed, good = bench.folder / "closed", 0
    closed.mkdir(mode=0o555)
    commands = [bench.training("sr_l", closed / "run"), [*sample, "--out", closed / "clip.mp4"],
                ["evaluate", "--out", closed / "report.json", "--weights", bench.weights, "--quick"]]
    for arguments in commands:
        code, text = command(arguments, before=as_nobody).ended()
        good += code == 2 and str(closed) in one_error(text)
    yield Row("write faults", "read-only folder: train, generate, evaluate",
              f"{good} of {len(commands)}: exit 2, the folder named in one line", good == len(commands))

    write, good, errors = checkpoint._write, 0, (RuntimeError, MemoryError, KeyboardInterrupt, SystemExit)
    for k in (1, 2):
        for error in errors:
            count = []

            def failing(path, content):
                if "step-" not in str(path):                 # the log, begun before there is anything to save
                    return write(path, content)
                count.append(path)
                if len(count) == k:
                    write(path, content[:len(content) // 2])
                    raise error("in the middle of a save")
                write(path, content)
            trainer = Trainer(bench.config("sr_l", "train.steps=4"), run, resume=True, device="cpu")
            with mock.patch.object(checkpoint, "_write", failing):
                try:
                    list(trainer.steps())                    # which saves at its end
                except error:
                    good += trainer.step == 4 and checkpoint.load_checkpoint(run)[1]["step"] == 2
    yield Row("write faults", "an exception in the middle of a save", f"{good} of {2 * len(errors)}: "
              "the earlier checkpoint stays", good == 2 * len(errors))


# ---------------------------------------------------------------- 8. two trainers, one run folder

def two_trainers(bench):
    run, refused, rounds, taken = bench.folder / "shared", 0, 10 if bench.long else 2, 0
    endless = bench.training("sr_l", run, "train.steps=1000000", "train.save_every=2")
    for _ in range(rounds):
        first = command([*endless, "--resume"])
        _wait(lambda: _holds(run, first.pid) and any(run.glob("step-*")))
        code, text = command([*endless, "--resume"]).ended()
        refused += code == 2 and f"process {first.pid} on" in one_error(text)
        first.kill(signal.SIGKILL)
        first.ended()
        assert (run / ".lock").exists()
        step = checkpoint.load_checkpoint(run)[1]["step"]
        code, text = command([*bench.training("sr_l", run, f"train.steps={step + 2}"), "--resume"]).ended()
        taken += code == 0 and checkpoint.load_checkpoint(run)[1]["step"] == step + 2
    yield Row("two trainers", "a second in the same run folder", f"{refused} of {rounds} refused by the "
              "first's process number", refused == rounds)
    yield Row("two trainers", "after the first was killed", f"{taken} of {rounds} stale locks taken over",
              taken == rounds)


def _holds(run, pid):
    """Whether the lock of a run folder names this process."""
    lock = run / ".lock"
    return lock.exists() and lock.read_text().startswith(f"{pid} ")
