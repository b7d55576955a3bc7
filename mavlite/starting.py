"""Where a stage starts: from nothing, from its own earlier weights, or inflated from another stage."""

import dataclasses
from pathlib import Path

import torch

from mavlite import checkpoint
from mavlite.config import UNetConfig
from mavlite.errors import MavliteError
from mavlite.records import check_provenance
from mavlite.stages import STAGES, build_network, load_network, recorded_config
from mavlite.unet import inflate


def initial_network(config, clip, weights, init_from):
    """A stage's network before its first step, and where it comes from.

    init_from: a weights folder of the same stage. Otherwise the stage that the table names is inflated,
    from `weights`; stages that start from nothing are initialised from the seed.
    """
    with torch.random.fork_rng(devices=[]):                  # the caller's own numbers stay as they were
        torch.random.default_generator.manual_seed(config.train.seed)
        network = build_network(config, clip)
    if init_from is not None:
        state, record = checkpoint.read_weights(init_from, config.stage)
        had = recorded_config(init_from, record)
        require_same_prediction(config, had, init_from)
        if isinstance(config.model, UNetConfig):
            if config.model.deepens(had.model) and not had.model.deepens(config.model):
                state = network.state_dict() | state         # what is added starts as the identity
        checkpoint.load_state(network, state, init_from)
        return network, f"{config.stage} ({record['sha256'][:12]})"
    source = STAGES[config.stage].starts_from
    if source is None or not config.train.inflate:
        return network, "scratch"
    image_network, source_config, record = load_network(weights, source, clip)
    require_inflatable(config, source_config)
    return inflate(image_network, network), f"{source} ({record['sha256'][:12]}), inflated"


def require_same_prediction(config, had, where):
    """Refuse weights that would fit, and mean something else."""
    if had.diffusion.prediction_type != config.diffusion.prediction_type:
        raise MavliteError(f"{where}: was trained with diffusion.prediction_type "
                           f"{had.diffusion.prediction_type}, the configuration says "
                           f"{config.diffusion.prediction_type}; go on with the same")


def require_inflatable(config, had):
    """Refuse to make a stage of `config` from a stage of another kind than its own, `had`."""
    require_same_prediction(config, had, f"stage {config.stage} inflates {had.stage}, which")
    if (had.diffusion.loss == "hybrid") != (config.diffusion.loss == "hybrid"):
        raise MavliteError(f"stage {config.stage} inflates {had.stage}, which was trained with "
                           f"diffusion.loss {had.diffusion.loss}, the configuration says "
                           f"{config.diffusion.loss}: a variance is learned from the image stage on")
    model = dataclasses.replace(had.model, temporal_layers=config.model.temporal_layers,
                                temporal_init=config.model.temporal_init)    # what D has no use for
    if not config.model.deepens(model):
        raise MavliteError(f"stage {config.stage} inflates {had.stage}, which was trained with model "
                           f"{had.model}; the configuration asks for {config.model}; train it like that, or "
                           "name a folder of weights that fit with --weights")


def earlier_trainings(init_from, stage):
    """The provenance of all trainings that a weights folder has behind it, oldest first."""
    record = checkpoint.read_record(init_from, stage)
    provenance = dict(check_provenance(Path(init_from) / checkpoint.RECORD, record))
    return [*provenance.pop("earlier", []), provenance]
