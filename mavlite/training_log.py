"""What a training writes down beside its checkpoints: the log, and what ran it."""

import csv
import io
import platform
import subprocess
from pathlib import Path

import torch

from mavlite.checkpoint import write_file
from mavlite.errors import MavliteError


class Log:
    """A CSV line every few steps and at the end, with means since the last; TensorBoard as well when it is
    installed."""

    FIELDS = ("step", "loss", "grad_norm", "rate", "samples_per_s", "frames_per_s", "seconds")

    def __init__(self, run, every, step):
        self.every, self.rows, self.file, self.board = every, [], None, None
        if run is None:
            return
        path, kept = Path(run) / "log.csv", []
        text = io.StringIO(newline="")
        before = csv.DictWriter(text, self.FIELDS)
        before.writeheader()
        try:
            if path.exists() and step:                       # resumed: forget what came after the checkpoint
                with open(path, newline="") as file:
                    kept = [row for row in csv.DictReader(file)
                            if None not in row.values() and int(row["step"]) <= step]    # None: cut short
            before.writerows(kept)
        except (ValueError, KeyError, csv.Error) as error:
            raise MavliteError(f"{path}: is not the log of this run ({' '.join(str(error).split())[:80]}); "
                               "delete it, and --resume begins another") from None
        write_file(path, text.getvalue().encode())           # whole, before anything is added to it
        self.file = open(path, "a", newline="")
        self.writer = csv.DictWriter(self.file, self.FIELDS)
        try:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(Path(run) / "tensorboard"), purge_step=step + 1 if step else None)
        except ImportError:
            pass

    def __call__(self, report):
        if self.file is None:
            return
        self.rows.append(report)
        if report["step"] % self.every == 0:
            self._write()

    def _write(self):
        last, mean = self.rows[-1], {k: sum(r[k] for r in self.rows) / len(self.rows) for k in self.FIELDS}
        mean |= {"step": last["step"], "seconds": last["seconds"]}
        self.rows = []
        self.writer.writerow({k: v if k == "step" else f"{v:.6g}" for k, v in mean.items()})
        self.file.flush()
        if self.board:
            for key in ("loss", "grad_norm", "rate", "samples_per_s"):
                self.board.add_scalar(key, mean[key], last["step"])

    def close(self):
        if self.rows:                                        # fewer than `every`, at the end or when stopped
            self._write()
        for stream in (self.file, self.board):
            if stream:
                stream.close()


def hardware(device):
    """What trained: the GPU's name, or the CPU's core count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{torch.get_num_threads()} {platform.machine()} CPU cores"
    return device.type


def commit():
    """The commit of the code, "unknown" outside a checkout; "+" marks uncommitted changes."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True,
                              text=True, timeout=10, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
