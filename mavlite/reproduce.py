"""Train one stage with a progress bar, or all of them in order."""

import json
import os
import time
from pathlib import Path

from tqdm import tqdm

from mavlite.checkpoint import checkpoints, read_record, write_folder
from mavlite.clip import Clip
from mavlite.config import UNetConfig, load_config, model_type
from mavlite.curves import plot_loss, read_curve
from mavlite.device import keep_freed_memory
from mavlite.errors import MavliteError
from mavlite.previews import save_preview
from mavlite.stages import STAGES, available, build_network, read_config
from mavlite.starting import require_inflatable
from mavlite.training import Trainer, uninterrupted, wait_for_ranks


def train_stage(config, run, *, weights, init_from=None, resume=False, reference=None, device=None):
    """Train a stage to its last step and export its weights to run/weights; returns that folder.

    reference: a loss curve (CSV) that run/loss.png shows beside this run's.
    """
    if reference is not None:
        read_curve(reference)                                # refused now rather than after the training
    keep_freed_memory()
    trainer = Trainer(config, run, weights=weights, init_from=init_from, resume=resume, device=device)
    parameters = sum(p.numel() for p in trainer.parameters)
    if trainer.rank == 0:
        print(f"{config.stage}: {parameters:,} parameters, {config.train.steps} steps of "
              f"{config.train.batch_size} on {trainer.device.type} in {trainer.precision}, "
              f"{trainer.objective.digits_source} digits, from {trainer.origin}")
    bar = tqdm(total=config.train.steps, initial=trainer.step, desc=config.stage, disable=trainer.rank != 0)
    average = None
    try:
        for report in trainer.steps():
            average = report["loss"] if average is None else 0.98 * average + 0.02 * report["loss"]
            bar.update()
            bar.set_postfix_str(f"loss {average:.4f}, {report['frames_per_s']:.0f} frames/s", refresh=False)
            every = config.train.sample_every
            if trainer.rank == 0 and every and report["step"] % every == 0:
                save_preview(trainer, Path(run) / "samples" / f"step-{report['step']:08d}.png")
                plot_loss(run, reference)
    except KeyboardInterrupt:
        with uninterrupted():                                # pressed twice, it still saves
            trainer.save()
        raise
    finally:
        bar.close()
    if trainer.rank == 0:
        exported = trainer.export()
        peak = read_record(exported, config.stage)["provenance"].get("peak_gib")
        memory = f", {peak} GiB at most" if peak else ""
        print(f"{config.stage}: {trainer.seconds:.0f} s of training{memory}; weights in {exported}")
        save_preview(trainer, Path(run) / "samples" / "last.png")
        plot_loss(run, reference)
    wait_for_ranks()
    return Path(run) / "weights"


def reproduce_all(config_path, folder, *, overrides=(), only=None, device=None):
    """Train every stage in eq. 1's order into folder/<stage>, with weights gathered in folder/weights.

    Finished stages are passed over and an interrupted one goes on, so the same command continues. A stage
    whose sources were trained anew since is refused: which folders to delete is for the user to say.
    """
    folder, started = Path(folder), time.perf_counter()
    names = list(only or STAGES)
    first = os.environ.get("RANK", "0") == "0"               # of torchrun's processes: the one that writes
    configs = {}                                             # all are checked before the first is trained
    for stage in names:
        shared = model_type(stage) is UNetConfig             # --set model.* means the U-Nets', as in the file
        mine = [o for o in overrides if shared or not o.startswith("model.")]
        configs[stage] = load_config(config_path, stage, mine)
    require_buildable(configs)
    require_current(folder, names)
    for stage, config in configs.items():
        if stage == "clip" and config.clip.model != "tiny":
            if first:
                print(f"clip: {config.clip.model} comes trained ({config.clip.pretrained})")
            continue
        target = folder / "weights" / stage
        if target.is_dir() and read_config(target.parent, stage) == config:
            if first:
                print(f"{stage}: done already ({target})")
            continue
        trained = train_stage(config, folder / stage, weights=folder / "weights", resume=True, device=device)
        if first:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_folder(target, {file.name: file.read_bytes() for file in trained.iterdir()})
        wait_for_ranks()
        require_current(folder, names)                       # now, not after the hours of the stage between
    if first:
        print(f"all of {', '.join(names)}: {time.perf_counter() - started:.0f} s; "
              f"weights in {folder / 'weights'}")
    return folder / "weights"


def require_buildable(configs):
    """stage -> Config: raise MavliteError for networks that cannot be built, or inflated from each other."""
    clip = None
    for stage, config in configs.items():
        if clip is None and STAGES[stage].uses_clip:
            clip = Clip(config.clip)
        if stage != "clip" or config.clip.model == "tiny":   # a public one comes trained
            build_network(config, clip)
        source = configs.get(STAGES[stage].starts_from)
        if source is not None and config.train.inflate:
            require_inflatable(config, source)


def require_current(folder, names):
    """Raise MavliteError if a stage was made from weights, of C or of its source, that have changed since."""
    records = available(folder / "weights")
    now = {stage: record["sha256"][:12] for stage, record in records.items()}
    outdated = {}                                            # stage -> what it was made from
    for stage in (name for name in STAGES if name in names):
        source, said = STAGES[stage].starts_from, made_from(folder, stage, records)
        if any(clip not in (None, now.get("clip", clip)) for _, clip in said):
            outdated.setdefault(stage, "clip")
        # (--init-from says otherwise; and a missing source is yet to be trained, and may come out the same.)
        inflated = [origin for origin, _ in said if origin.startswith(f"{source} (") and source in now]
        changed = any(origin != f"{source} ({now[source]}), inflated" for origin in inflated)
        if changed or (said and source in outdated):
            outdated.setdefault(stage, source)
    if outdated:
        folders = [path for stage in outdated for path in (folder / stage, folder / "weights" / stage)]
        stages = ", ".join(f"{stage} (from {source})" for stage, source in outdated.items())
        raise MavliteError(f"{stages}: made from weights that have been trained anew since; to make these "
                           f"anew too, delete {' '.join(str(path) for path in folders if path.exists())}")


def made_from(folder, stage, records):
    """What a stage's weights and its run's newest checkpoint started from, and with which C: pairs."""
    said = []
    if stage in records:
        provenance = records[stage].get("provenance", {})
        said.append((provenance.get("started_from", ""), provenance.get("clip")))
    for newest in checkpoints(folder / stage)[-1:]:
        try:
            state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
            said.append((state["origin"], state.get("clip")))
        except (OSError, ValueError, KeyError):              # damaged; resuming passes over it with a word
            pass
    return said
