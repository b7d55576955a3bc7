"""What every notebook's setup cell calls: a lesson on one preset, which loads or trains the networks.

    lesson = notebook.start(preset="cpu", pretrained=True)
    network, config = lesson.network("decoder"), lesson.config("decoder")

and the pictures of a lesson: `show`, `strip`.
"""

import dataclasses
import functools
import json
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display

from mavlite.checkpoint import SHIPPED
from mavlite.config import load_config
from mavlite.device import peak_memory, pick_device
from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo
from mavlite.reproduce import reproduce_all
from mavlite.stages import CASCADE, STAGES, available, build_network, load_clip, load_network, read_config
from mavlite.teaching.pictures import show, strip

__all__ = ["Lesson", "peak_gib", "repository", "show", "start", "strip"]

PRESETS = ("smoke", "cpu", "t4")
MACHINES = {"cpu": "2 CPU cores", "t4": "a T4-class GPU"}   # for which a notebook's header has a row
ROOT = Path(__file__).parents[2]


def repository():
    """The checkout that this package belongs to, with `configs/`, `docs/` and `notebooks/`.

    Raises MavliteError where the package was installed without one: then there is nothing to train by.
    """
    if not (ROOT / "configs").is_dir():
        raise MavliteError("there is no folder configs/: this mavlite was installed without its repository; "
                           "clone that and install it with `pip install --editable .`")
    return ROOT


def start(preset="cpu", pretrained=True):
    """The lesson of a notebook; a second call with the same arguments gives the same one.

    preset: "smoke" (seconds, glyph digits, networks too small to be looked at), "cpu" or "t4": which file of
    `configs/` says how networks are trained. pretrained: load the shipped networks instead of training.
    MAVLITE_PRESET and MAVLITE_PRETRAINED (0 or 1) in the environment override the two. Also seeds torch, has
    GPUs compute in full precision, and sets matplotlib up for small grey frames. Raises MavliteError for any
    other value.
    """
    preset = os.environ.get("MAVLITE_PRESET", preset)
    if preset not in PRESETS:
        raise MavliteError(f"preset: {preset!r} is none of {', '.join(PRESETS)}")
    pretrained = os.environ.get("MAVLITE_PRETRAINED", pretrained)
    if pretrained not in (True, False, "0", "1"):
        raise MavliteError(f"pretrained: {pretrained!r} is neither True nor False "
                           "(MAVLITE_PRETRAINED: neither 1 nor 0)")
    if preset == "smoke":
        torch.set_num_threads(1)                             # tensors this small are faster so
    torch.backends.cudnn.allow_tf32 = False                  # so that "the same result" can be asserted
    torch.manual_seed(0)
    plt.rcParams.update({"figure.figsize": (6, 3), "figure.dpi": 90, "image.cmap": "gray", "axes.grid": False,
                         "image.interpolation": "nearest", "axes.spines.top": False,
                         "axes.spines.right": False})
    return _lesson(preset, pretrained in (True, "1"))


@functools.cache
def _lesson(preset, pretrained):
    return Lesson(preset, pretrained)


class Lesson:
    """The stages of a preset: their configurations, networks and pipeline.

    preset: "smoke", "cpu" or "t4". pretrained: whether the shipped weights are used; never with "smoke",
    whose networks have other sizes. device: torch.device. runs: folder of what is trained here.
    """

    def __init__(self, preset, pretrained):
        self.preset, self.pretrained = preset, pretrained and preset != "smoke"
        self.device = pick_device("cpu" if preset == "smoke" else None)
        here = Path.cwd()
        self.runs = (ROOT if here.is_relative_to(ROOT) else here) / "runs" / "notebooks" / preset
        self._networks = {}

    def __repr__(self):
        how = "shipped weights" if self.pretrained else "networks trained here"
        return f"Lesson({self.preset}, {how}, {self.device.type})"

    def pick(self, *, smoke, cpu, t4):
        """The one of three values that is meant for this preset: steps, batch sizes, counts."""
        return {"smoke": smoke, "cpu": cpu, "t4": t4}[self.preset]

    def config(self, stage):
        """The Config of a stage: what its shipped weights were trained with, or the preset's own."""
        if self.pretrained:
            return read_config(SHIPPED, stage)
        return load_config(self._preset_file(), stage)

    def recipe(self, stage):
        """The Config by which the preset trains a stage from the beginning, for networks of `config`'s sizes.

        Shipped weights may have gone on from earlier ones, or be a student's: `config` says how they ended.
        """
        ours = self.config(stage)
        return dataclasses.replace(load_config(self._preset_file(), stage), model=ours.model, clip=ours.clip)

    def weights(self, *stages):
        """A folder of weights folders that holds these stages; what is missing in it is trained first."""
        if self.pretrained:
            return SHIPPED
        runs = Path(os.path.relpath(self.runs))              # what is printed names no folder of this machine
        wanted = with_sources(stages)
        if not set(wanted) <= available(runs / "weights").keys():
            reproduce_all(self._preset_file(), runs, only=wanted, device=self.device.type)
        return runs / "weights"

    def network(self, stage):
        """The network of a stage, in eval mode, without gradients, on the lesson's device.

        Shipped weights, or trained here with `mavlite.training`, after the stages that it needs: into
        `runs`, from where the next call takes it, and where an interrupted training goes on.
        """
        if stage not in self._networks:
            weights, config = self.weights(stage), self.config(stage)
            if stage == "clip":
                network = load_clip(weights, config, self.device)
            else:
                clip = self.network("clip") if STAGES[stage].uses_clip else None
                network, _, _ = load_network(weights, stage, clip, self.device)
            self._networks[stage] = network
        return self._networks[stage]

    def pipeline(self):
        """`MakeAVideo` with the networks of all stages of eq. 1."""
        return MakeAVideo.from_pretrained(self.weights(*CASCADE), device=self.device.type)

    def _preset_file(self):
        return repository() / "configs" / f"{self.preset}.yaml"

    # ------------------------------------------------------------ the header

    def header(self, name, *stages):
        """Show a notebook's stages with their parameters, and what it took where it was measured.

        name: of the notebook, such as "03_diffusion". Parameters are counted in networks built here and now;
        minutes and memory come from `notebooks/measured.json`, which `python -m mavlite.teaching.run` writes.
        A preset that nobody has measured yet is said to be so.
        """
        lines = [f"*{self!r}*", ""]
        if stages:
            lines += ["| stage | eq. 1 | maps | trained on | parameters |", "|---|---|---|---|---:|"]
        for stage in stages:
            entry = STAGES[stage]
            lines.append(f"| `{stage}` | {entry.symbol} | {entry.maps} | {entry.trained_on} | "
                         f"{self.parameters(stage):,} |")
        measured = read_measured(ROOT / "notebooks").get(name, [])
        lines += ["", "| this notebook from top to bottom | minutes | peak memory |", "|---|---:|---:|"]
        for row in measured:
            how = "shipped weights" if row["pretrained"] else "everything trained"
            lines.append(f"| {row['preset']}, {how}, {row['device']} | {row['minutes']:.1f} | "
                         f"{memory(row['peak_gib'])} |")
        for preset, machine in MACHINES.items():
            if preset not in [row["preset"] for row in measured]:
                lines.append(f"| {preset}, {machine} | not measured yet | not measured yet |")
        display(Markdown("\n".join(lines)))

    def parameters(self, stage):
        """How many numbers training adjusts in a stage's network."""
        clip = build_network(self.config("clip")) if STAGES[stage].uses_clip else None
        return sum(p.numel() for p in build_network(self.config(stage), clip).parameters())


def with_sources(stages):
    """The stages and all that these are inflated from or condition on, in eq. 1's order."""
    wanted = set()

    def visit(stage):
        if stage not in STAGES:
            raise MavliteError(f"unknown stage {stage!r}; there are {', '.join(STAGES)}")
        wanted.add(stage)
        if STAGES[stage].uses_clip:
            wanted.add("clip")
        if STAGES[stage].starts_from:
            visit(STAGES[stage].starts_from)

    for stage in stages:
        visit(stage)
    return [stage for stage in STAGES if stage in wanted]


# ---------------------------------------------------------------- what a notebook took

def peak_gib():
    """The most memory of this process so far, GiB: of the GPU if it used one, else of main memory.

    None where the system does not tell (Windows).
    """
    used = torch.cuda.is_available() and torch.cuda.max_memory_allocated()       # smoke leaves a GPU alone
    peak = peak_memory(torch.device("cuda" if used else "cpu"))
    return None if math.isnan(peak) else peak / 2**30


def memory(gib):
    return "unknown" if gib is None else f"{gib:.1f} GiB"


def read_measured(folder):
    """Notebook name -> list of {preset, pretrained, device, minutes, peak_gib}; empty without the file."""
    path = Path(folder) / "measured.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
