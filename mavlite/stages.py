"""The stages of eq. 1 as a table: what each maps, is trained on, starts from and reads.

    y_t = SR_h o SR_l^t o upF o D^t o P o (x_hat, C_x(x))                                        (eq. 1)

The last four are no part of the cascade. Three measure it, and share nothing with it but the trainer; the
critic teaches D, D^t and upF, and measures nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from mavlite.checkpoint import SHIPPED, load_state, read_record, read_weights
from mavlite.clip import Clip
from mavlite.config import Config
from mavlite.critic import Critic
from mavlite.errors import MavliteError
from mavlite.evaluation.judge import Judge
from mavlite.evaluation.tracker import Tracker
from mavlite.evaluation.video_features import VideoFeatures
from mavlite.prior import Prior
from mavlite.unet import UNet


@dataclass(frozen=True)
class Stage:
    symbol: str                              # in the paper's eq. 1
    maps: str
    trained_on: str                          # text-frame pairs, single frames, some kind of clips
    starts_from: str | None = None           # the stage whose network is inflated
    uses_clip: bool = False                  # conditions on C's embeddings
    temporal: bool = False                   # sees whole clips; a U-Net then has pseudo-3D layers
    scalars: tuple = ()                      # numbers it is conditioned on
    size: tuple = (0,)                       # index into data.sizes: output, and for SR also input


STAGES = {
    "clip": Stage("C", "prompt -> text embedding; frame -> image embedding", "text-frame pairs"),
    "prior": Stage("P", "prompt -> image embedding", "text-frame pairs", uses_clip=True),
    "decoder": Stage("D", "image embedding -> one frame", "single frames", uses_clip=True),
    "decoder_t": Stage("D^t", "image embedding, fps -> key frames", "unlabelled clips", "decoder",
                       uses_clip=True, temporal=True, scalars=("fps",)),
    "interpolation": Stage("upF", "known frames, embedding, fps, skip -> all frames", "unlabelled clips",
                           "decoder_t", uses_clip=True, temporal=True, scalars=("fps", "frame_skip")),
    "sr_l": Stage("SR_l", "small frame -> middle frame", "single frames",
                  scalars=("noise_level",), size=(1, 0)),
    "sr_l_t": Stage("SR_l^t", "small frames -> middle frames, together", "unlabelled clips", "sr_l",
                    temporal=True, scalars=("noise_level",), size=(1, 0)),
    "sr_h": Stage("SR_h", "middle frame -> large frame", "single frames",
                  scalars=("noise_level",), size=(2, 1)),
    "judge": Stage("-", "frame -> which of 55 pairs of digits", "text-frame pairs"),
    "tracker": Stage("-", "clip -> centres of both digits", "labelled clips", temporal=True),
    "video_features": Stage("-", "clip -> features of its digits, rate and directions", "labelled clips",
                            temporal=True),
    "critic": Stage("-", "clip, fps -> which frames are at fault", "rendered faults", temporal=True,
                    scalars=("fps",)),
}
MEASURING = ("judge", "tracker", "video_features")
CASCADE = tuple(name for name in STAGES if name not in (*MEASURING, "critic"))


def build_network(config: Config, clip: Clip | None = None):
    """The network of a stage, freshly initialised. clip: needed where the stage reads its embeddings."""
    stage, data = STAGES[config.stage], config.data
    if config.stage == "clip":
        return Clip(config.clip)
    if config.stage not in CASCADE:
        networks = {"judge": Judge, "tracker": Tracker, "video_features": VideoFeatures, "critic": Critic}
        return networks[config.stage](config.model)
    if config.stage == "prior":
        return Prior(config.model, embed_dim=clip.embed_dim, token_dim=clip.token_dim,
                     context_length=clip.context_length)
    if config.stage == "interpolation":
        concat = data.channels + 1                           # masked known frames and the mask
    else:
        concat = data.channels if len(stage.size) == 2 else 0    # upsampled low resolution
    network = UNet(config.model, in_channels=data.channels, concat_channels=concat,
                   embed_dim=clip.embed_dim if stage.uses_clip else 0, scalars=stage.scalars,
                   temporal=stage.temporal, learned_variance=config.diffusion.loss == "hybrid",
                   max_distance=data.num_frames - 1)
    size = data.sizes[stage.size[0]]
    if size % network.multiple:
        raise MavliteError(f"stage {config.stage}: frames of {size} px do not fit, "
                           f"a multiple of {network.multiple} is needed; "
                           "change data.sizes, model.patch_size or model.channels")
    return network


def read_config(weights, stage):
    """The Config that a stage's weights were trained with."""
    folder = Path(weights) / stage
    if not folder.is_dir():
        raise MavliteError(f"{folder}: there are no weights of stage {stage!r}; train it, "
                           "or name a folder that has them with --weights")
    return recorded_config(folder, read_record(folder, stage))


def recorded_config(folder, record):
    """The Config in a weights folder's record. Raises MavliteError naming the file for one that is none."""
    try:
        return Config.from_dict(record["config"])
    except MavliteError as error:
        raise MavliteError(f"{Path(folder) / 'config.json'}: {error}") from None


def load_network(weights, stage, clip=None, device="cpu"):
    """(network in eval mode, Config, record) of a stage from a folder of weights folders."""
    folder = Path(weights) / stage
    config = read_config(weights, stage)
    state, record = read_weights(folder, stage)
    with torch.random.fork_rng(devices=[]):                  # first numbers that are overwritten at once
        network = build_network(config, clip)
    load_state(network, state, folder)
    return network.to(device).eval().requires_grad_(False), config, record


def load_clip(weights, config: Config, device="cpu"):
    """C, frozen: from trained weights for the tiny model, from its own checkpoint for a public one."""
    if config.clip.model != "tiny":
        return Clip(config.clip).to(device).eval().requires_grad_(False)
    clip, trained, _ = load_network(weights, "clip", device=device)
    if trained.clip != config.clip:
        raise MavliteError(f"{Path(weights) / 'clip'}: was trained as {trained.clip}, the configuration "
                           f"asks for {config.clip}; use the same clip section for all stages")
    return clip


def available(weights=SHIPPED):
    """The records of the stages that a folder holds, in eq. 1's order."""
    folder = Path(weights)
    return {name: read_record(folder / name, name) for name in STAGES if (folder / name).is_dir()}
