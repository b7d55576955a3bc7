"""Train one stage with a progress bar, or all of them in order."""

import time
from pathlib import Path

from tqdm import tqdm

from mavlite.checkpoint import read_record, write_folder
from mavlite.config import UNetConfig, load_config, model_type
from mavlite.device import keep_freed_memory
from mavlite.previews import save_preview
from mavlite.stages import STAGES
from mavlite.training import Trainer


def train_stage(config, run, *, weights, init_from=None, resume=False, device=None):
    """Train a stage to its last step and export its weights to run/weights; returns that folder."""
    keep_freed_memory()
    trainer = Trainer(config, run, weights=weights, init_from=init_from, resume=resume, device=device)
    parameters = sum(p.numel() for p in trainer.parameters)
    if trainer.rank == 0:
        print(f"{config.stage}: {parameters:,} parameters, {config.train.steps} steps of {config.train.batch_size} on "
              f"{trainer.device.type} in {trainer.precision}, {trainer.objective.digits_source} digits, from {trainer.origin}")
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
    except KeyboardInterrupt:
        trainer.save()
        raise
    finally:
        bar.close()
    if trainer.rank == 0:
        save_preview(trainer, Path(run) / "samples" / "last.png")
        print(f"{config.stage}: {trainer.seconds:.0f} s of training; weights in {trainer.export()}")
    return Path(run) / "weights"


def reproduce_all(config_path, folder, *, overrides=(), only=None, device=None):
    """Train every stage in eq. 1's order into folder/<stage>, with weights gathered in folder/weights.

    Finished stages are passed over and an interrupted one goes on, so the same command continues.
    """
    folder, started = Path(folder), time.perf_counter()
    names = list(only or STAGES)
    configs = {}                                             # all are checked before the first is trained
    for stage in names:
        shared = model_type(stage) is UNetConfig             # --set model.* means the U-Nets', as in the file
        configs[stage] = load_config(config_path, stage, [o for o in overrides if shared or not o.startswith("model.")])
    for stage, config in configs.items():
        if stage == "clip" and config.clip.model != "tiny":
            print(f"clip: {config.clip.model} comes trained ({config.clip.pretrained})")
            continue
        target = folder / "weights" / stage
        if target.is_dir() and read_record(target, stage)["config"] == config.to_dict():
            print(f"{stage}: done already ({target})")
            continue
        train_stage(config, folder / stage, weights=folder / "weights", resume=True, device=device)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_folder(target, {file.name: file.read_bytes() for file in (folder / stage / "weights").iterdir()})
    print(f"all of {', '.join(names)}: {time.perf_counter() - started:.0f} s; weights in {folder / 'weights'}")
    return folder / "weights"

