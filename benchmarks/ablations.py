"""What each choice is worth, at a small equal budget: the ablations that the paper does not show.

    python -m benchmarks.ablations --config configs/cpu.yaml --steps 300 --out ablations.md

Every row is the recipe with a few overrides, which `mavlite train --set ...` takes as well. Its score is the
simple loss of the averaged weights on clips of the test split, the same clips, times and noise for all rows
of a stage: lower is better. Training time is given too, since some choices are cheaper.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.command import command_line
from mavlite.batch import Batch, Draws
from mavlite.checkpoint import SHIPPED
from mavlite.config import load_config
from mavlite.device import autocast, keep_freed_memory
from mavlite.objectives import OBJECTIVES
from mavlite.training import Trainer

# (what is compared, stage, overrides); the first row of each stage is the recipe itself.
ROWS = [
    ("recipe: inflated D, identity initialisation", "decoder_t", []),
    ("random temporal layers", "decoder_t", ["model.temporal_init=random"]),
    ("video from scratch, no image pretraining", "decoder_t", ["train.inflate=false"]),
    ("pseudo-3D convolution, no temporal attention", "decoder_t", ["model.temporal_layers=[convolution]"]),
    ("temporal attention, no pseudo-3D convolution", "decoder_t", ["model.temporal_layers=[attention]"]),
    ("fps uniform, no curriculum", "decoder_t", ["data.fps_uniform=1.0"]),
    ("conditioned on the first frame, not the clearest", "decoder_t", ["data.condition=first"]),
    ("recipe: simple loss", "decoder", []),
    ("training times uniform", "decoder", ["diffusion.time_shift=0.0", "diffusion.time_scale=1.0"]),
    ("min-SNR loss", "decoder", ["diffusion.loss=min_snr"]),
    ("hybrid loss, learned variance", "decoder", ["diffusion.loss=hybrid"]),
    ("recipe: noise augmentation", "sr_h", []),
    ("no noise augmentation", "sr_h", ["diffusion.max_noise_level=0.0"]),
]
BATCHES, BATCH_SIZE = 4, 32                  # of the test split
TEST_SEED = 30_000


@torch.no_grad()
def test_loss(trainer, recipe):
    """The simple loss on the test split, under the conditions of the recipe's configuration (a Config)."""
    network, precision = trainer.network, trainer.precision
    network.load_state_dict(trainer.averaged())
    network.eval()
    hybrid = trainer.config.diffusion.loss == "hybrid"
    data = dataclasses.replace(recipe.data, seed=TEST_SEED, condition=trainer.config.data.condition)
    simple = dataclasses.replace(recipe.diffusion, loss="simple")
    config = dataclasses.replace(recipe, data=data, diffusion=simple)
    objective = OBJECTIVES[config.stage](config, trainer.objective.clip, trainer.device, split="test")

    def mean(*args, **kwargs):                               # a hybrid network's second half is its variance
        output = network(*args, **kwargs)
        return output.chunk(2, dim=1)[0] if hybrid else output

    losses = []
    for step in range(BATCHES):
        batch = Batch(step, BATCH_SIZE)
        with autocast(trainer.device, precision):
            losses.append(objective.loss(mean, batch, Draws(TEST_SEED, batch, trainer.device), 1.0))
    return torch.stack(losses).mean().item()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--config", required=True)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--weights", default=SHIPPED, help="where C and D come from")
    p.add_argument("--out", required=True, metavar="MARKDOWN")
    args = p.parse_args()
    keep_freed_memory()
    lines = [f"{args.steps} steps each, `{command_line()}`. A row is scored by the loss of the recipe that "
             "it changes: what trains another loss, or never saw its noise, is at a disadvantage.", "",
             "| stage | choice | overrides | test loss | training, s |", "|---|---|---|---|---|"]
    for name, stage, overrides in tqdm(ROWS):
        shorter = [f"train.steps={args.steps}", f"train.warmup_steps={min(50, args.steps // 4)}",
                   "train.ema_decay=0.98"]
        recipe = load_config(args.config, stage, shorter)
        with tempfile.TemporaryDirectory() as run:
            config = load_config(args.config, stage, [*shorter, *overrides])
            trainer = Trainer(config, run, weights=args.weights)
            for _ in trainer.steps():
                pass
            loss = test_loss(trainer, recipe)
        changed = " ".join(f"`{o}`" for o in overrides)
        lines.append(f"| `{stage}` | {name} | {changed} | {loss:.4f} | {trainer.seconds:.0f} |")
        Path(args.out).write_text("\n".join(lines) + "\n")   # after each row: what is measured stays
        tqdm.write(lines[-1])


if __name__ == "__main__":
    main()
