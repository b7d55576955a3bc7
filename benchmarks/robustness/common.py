"""What all checks share: the smallest real configuration, processes of their own, and rows of the table."""

import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from mavlite.cli import main
from mavlite.config import load_config
from mavlite.errors import MavliteError

ROOT = Path(__file__).parent.parent.parent
SMOKE = ROOT / "configs" / "smoke.yaml"
PATIENCE = 300                               # seconds after which a process that should have ended has failed
STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130}            # exit codes, as shells count them


class Row(NamedTuple):
    """point: of the ten. what: was tried. found: figures. holds: whether all went as promised."""
    point: str
    what: str
    found: str
    holds: bool


class Bench:
    """What all checks are given.

    folder: for everything written. long: many more cases. weights: of every stage of the smoke preset.
    random: where the moments and offsets of a point come from.
    """

    def __init__(self, folder, long=False):
        self.folder, self.long = Path(folder), long
        self.weights, self.random = self.folder / "weights", None

    def config(self, stage, *overrides):
        return load_config(SMOKE, stage, ["train.precision=fp32", *overrides])

    def training(self, stage, run, *overrides):
        """The command line that trains a stage."""
        sets = [part for override in ("train.precision=fp32", *overrides) for part in ("--set", override)]
        return ["train", stage, "--config", str(SMOKE), "--out", str(run), "--weights", str(self.weights),
                "--device", "cpu", *sets]


def refusal(call, *args, **options):
    """The message with which call(...) is refused, "" if it is not. It must be one line."""
    try:
        call(*args, **options)
    except MavliteError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 2000, message
        return message
    return ""


# ---------------------------------------------------------------- processes

class Child:
    """call() in a process of its own, forked so that nothing is imported again; its result is the exit code.

    What it prints, tracebacks included, can be read when it has ended: `ended()` gives (code, text). A
    process that a signal ended has the code minus the signal's number.
    """

    def __init__(self, call):
        self.out, to = os.pipe()                             # no file: files may be made to fail
        sys.stdout.flush(), sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, set(STOPS))    # none strikes it half made
        self.pid = os.fork()
        if self.pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(to)
            return
        code = 70
        try:
            os.close(self.out)
            os.dup2(to, 1), os.dup2(to, 2)
            sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = call() or 0
        except BaseException:
            traceback.print_exc()
        finally:                                             # whatever comes, it never goes on as its parent
            try:
                sys.stdout.flush()
            finally:
                os._exit(code)

    def spoke(self):
        """Wait until it has printed something, or has ended."""
        select.select([self.out], [], [], PATIENCE)

    def kill(self, number):
        os.kill(self.pid, number)

    def ended(self):
        """Wait for the end: (exit code, what was printed)."""
        text, deadline = b"", time.monotonic() + PATIENCE
        os.set_blocking(self.out, False)
        while True:
            try:
                part = os.read(self.out, 65536)
                text += part
                if not part:
                    break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.kill(signal.SIGKILL)
                time.sleep(0.002)
        os.close(self.out)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, text.decode(errors="replace")


def command(arguments, before=None):
    """`mavlite ...` in a process of its own, after before() if there is one."""
    def call():
        if before:
            before()
        return main([str(argument) for argument in arguments])
    return Child(call)


def one_error(text):
    """The one line of an error in what a command printed, or "" if there is none, several, or a traceback."""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.startswith("mavlite: error: ")]
    return lines[0] if len(lines) == 1 and "Traceback" not in text else ""
