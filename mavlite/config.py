"""Configuration: plain dataclasses filled from YAML, checked by name and type before any work starts.

A file holds shared sections (`data`, `clip`, `model`, `diffusion`, `train`, `sample`) and, under `stages`,
a short block per stage with what differs. `load_config` merges the two into one `Config` for one stage.
"""

import dataclasses
from dataclasses import dataclass, field

from mavlite.checked import fill, require, shown, stays_inside, within
from mavlite.errors import MavliteError
from mavlite.plain_yaml import merge, parse_overrides, read_yaml
from mavlite.student_config import AdversarialConfig, DistillConfig, require_teachable

STAGE_NAMES = ("clip", "prior", "decoder", "decoder_t", "interpolation", "sr_l", "sr_l_t", "sr_h",
               "judge", "tracker", "video_features", "critic")


@dataclass
class DataConfig:
    """Moving MNIST. Sizes in px, rates in frames per second (of key frames)."""
    digits: str = "auto"                     # mnist, glyphs (embedded, no MNIST), auto: mnist if to be had
    seed: int = 0
    num_clips: int = 0                       # 0: without end; 1: one clip again and again, to see it overfit
    channels: int = 1
    sizes: list[int] = field(default_factory=lambda: [32, 48, 64])   # D's, after SR_l, after SR_h
    num_frames: int = 16                     # key frames, and the frames of an interpolation window
    fps: float = 6.0                         # default key-frame rate
    fps_range: list[float] = field(default_factory=lambda: [1.0, 30.0])
    frame_skip: int = 5                      # default: 16 key frames become (16 - 1) * 5 + 1 = 76
    max_frame_skip: int = 6
    # Beta curriculum of D^t's key-frame rate over training progress (see objectives.draw_fps)
    fps_concentration: float = 4.0
    fps_uniform: float = 0.2                 # share of clips that draw all octaves alike from the start
    fps_default: float = 0.0                 # share of clips at `fps`, which most videos will be asked for at
    condition: str = "clearest"              # frame that conditions: clearest, first, mean
    mean_condition: float = 0.2              # share of D^t's clips conditioned on the mean embedding instead

    def __post_init__(self):
        require(self.digits in ("auto", "mnist", "glyphs"),
                f"data.digits: {self.digits!r} is none of auto, mnist, glyphs")
        require(self.condition in ("clearest", "first", "mean"),
                f"data.condition: {self.condition!r} is none of clearest, first, mean")
        within("data", self, num_clips=(0, 2**31), seed=(0, 2**31), fps_concentration=(1, 100))
        require(self.channels in (1, 3), f"data.channels: {self.channels} is neither 1 nor 3")
        require(len(self.sizes) == 3 and sorted(set(self.sizes)) == self.sizes and self.sizes[0] >= 8,
                f"data.sizes: {self.sizes} must be three growing frame sizes, such as [32, 48, 64]")
        require(self.sizes[-1] <= 64, f"data.sizes: frames are drawn at 64 px, {self.sizes[-1]} is more")
        low, high = self.fps_range if len(self.fps_range) == 2 else (0, 0)
        require(0 < low < high <= 60,
                f"data.fps_range: {self.fps_range} must be [low, high] with 0 < low < high <= 60")
        require(low <= self.fps <= high,
                f"data.fps: {self.fps} lies outside data.fps_range {self.fps_range}")
        require(4 <= self.num_frames <= 64, f"data.num_frames: {self.num_frames} is not within 4 ... 64")
        require(1 <= self.frame_skip <= self.max_frame_skip < self.num_frames,
                f"data.frame_skip: {self.frame_skip} is not within 1 ... max_frame_skip "
                f"({self.max_frame_skip})")
        within("data", self, fps_uniform=(0, 1), fps_default=(0, 1), mean_condition=(0, 1))


@dataclass
class ClipConfig:
    """C. model "tiny" is ours, trained here; any other is an open_clip name such as ViT-B-32."""
    model: str = "tiny"
    pretrained: str | None = None            # tag or file of a public checkpoint
    embed_dim: int = 64
    image_size: int = 32                     # frames are resized to it
    vision_layers: list[int] = field(default_factory=lambda: [1, 1, 1, 1])
    vision_width: int = 16
    text_width: int = 64
    text_layers: int = 2
    context_length: int = 8

    def __post_init__(self):
        within("clip", self, embed_dim=(1, 4096), image_size=(16, 1024), vision_layers=(1, 64),
               vision_width=(2, 1024), text_width=(4, 4096), text_layers=(1, 64), context_length=(3, 1024))
        require(len(self.vision_layers) == 4,
                f"clip.vision_layers: {self.vision_layers} must be four depths, such as [1, 1, 1, 1]")
        require(self.image_size % 16 == 0, f"clip.image_size: {self.image_size} is no multiple of 16")
        require(self.vision_width % 2 == 0, f"clip.vision_width: {self.vision_width} is no multiple of 2")
        require(self.text_width % 4 == 0, f"clip.text_width: {self.text_width} is no multiple of 4")
        if self.pretrained is not None:
            stays_inside("clip.pretrained", self.pretrained)


@dataclass
class PriorConfig:
    width: int = 128
    layers: int = 4
    heads: int = 4

    def __post_init__(self):
        within("model", self, width=(1, 4096), layers=(1, 64), heads=(1, 64))
        require(self.width % self.heads == 0,
                f"model.width: {self.width} is no multiple of model.heads ({self.heads})")


@dataclass
class UNetConfig:
    channels: list[int] = field(default_factory=lambda: [32, 64, 128])
    blocks: int = 2                          # residual blocks a level, each way
    # More of them at each level, or []: each followed by attention, if the level has it. They start without
    # effect, so a network may inflate a shallower one.
    extra_blocks: list[int] = field(default_factory=list)
    patch_size: int = 2                      # space to depth
    attention: list[int] = field(default_factory=lambda: [1, 2])     # levels with attention
    # Levels whose last attention, each way, also looks at all positions of all frames, in video networks. It
    # starts without effect too.
    joint_attention: list[int] = field(default_factory=list)
    head_dim: int = 32
    context_tokens: int = 4
    emb_dim: int = 192
    # For ablations (`python -m benchmarks.ablations`): which layers see time, and how those start.
    temporal_layers: list[str] = field(default_factory=lambda: ["convolution", "attention"])
    temporal_init: str = "identity"          # identity, random

    def __post_init__(self):
        require(1 <= len(self.channels) <= 6, f"model.channels: {self.channels} must be 1 to 6 widths")
        within("model", self, channels=(1, 4096), blocks=(1, 64), extra_blocks=(0, 64), patch_size=(1, 16),
               head_dim=(1, 1024), context_tokens=(1, 64), emb_dim=(1, 8192))
        require(len(self.extra_blocks) in (0, len(self.channels)),
                f"model.extra_blocks: {self.extra_blocks} must be [] or a number for each of "
                f"{len(self.channels)} levels")
        require(set(self.temporal_layers) <= {"convolution", "attention"},
                f"model.temporal_layers: {self.temporal_layers} holds more than convolution and attention")
        require(self.temporal_init in ("identity", "random"),
                f"model.temporal_init: {self.temporal_init!r} is neither identity nor random")
        for level in self.attention:
            require(0 <= level < len(self.channels), f"model.attention: there is no level {level}")
            require(self.channels[level] % self.head_dim == 0,
                    f"model.channels: {self.channels[level]} is no multiple of model.head_dim "
                    f"({self.head_dim})")

        for level in self.joint_attention:
            require(level in self.attention,
                    f"model.joint_attention: level {level} is not among model.attention ({self.attention})")

    def deepens(self, other):
        """Whether a network of this configuration is one of `other`, perhaps with more of it."""
        def extra(config):
            return config.extra_blocks or [0] * len(config.channels)
        additions = ("extra_blocks", "joint_attention")
        alike = all(getattr(self, f.name) == getattr(other, f.name)
                    for f in dataclasses.fields(self) if f.name not in additions)
        joint = set(self.joint_attention) >= set(other.joint_attention)
        # Joint attention stands at the end of its level: blocks added there would come before it.
        deep = all(mine == theirs if level in other.joint_attention else mine >= theirs
                   for level, (mine, theirs) in enumerate(zip(extra(self), extra(other))))
        return alike and joint and deep


@dataclass
class JudgeConfig:
    width: int = 24

    def __post_init__(self):
        within("model", self, width=(1, 1024))


@dataclass
class TrackerConfig:
    width: int = 16
    hidden: int = 128

    def __post_init__(self):
        within("model", self, width=(1, 1024), hidden=(1, 4096))


@dataclass
class VideoFeaturesConfig:
    width: int = 16
    features: int = 128

    def __post_init__(self):
        within("model", self, width=(1, 1024), features=(1, 4096))


@dataclass
class CriticConfig:
    width: int = 32

    def __post_init__(self):
        within("model", self, width=(8, 1024))
        require(self.width % 8 == 0, f"model.width: {self.width} is no multiple of 8, a critic's groups")


@dataclass
class DiffusionConfig:
    prediction_type: str = "v_prediction"
    loss: str = "simple"                     # simple, min_snr, hybrid (learned variance)
    min_snr_gamma: float = 5.0
    log_snr_min: float | None = None         # epsilon needs a truncated log-SNR, such as -20
    time_shift: float = 0.0                  # training t = sigmoid(shift + scale * logit(u)), u uniform;
    time_scale: float = 1.0                  # 0, 1: uniform. Below 1: more in the middle, where content forms
    drop_condition: float = 0.1              # unCLIP-derived: how often the embedding is dropped for guidance
    max_noise_level: float = 0.3             # SR: noise augmentation of the low resolution, 0 ... this
    max_blur: float = 0.8                    # SR: Gaussian blur of the low resolution, px

    def __post_init__(self):
        require(self.prediction_type in ("epsilon", "sample", "v_prediction"),
                f"diffusion.prediction_type: {self.prediction_type!r} is none of "
                "epsilon, sample, v_prediction")
        require(self.loss in ("simple", "min_snr", "hybrid"),
                f"diffusion.loss: {self.loss!r} is none of simple, min_snr, hybrid")
        require(self.prediction_type != "epsilon" or self.log_snr_min is not None,
                "diffusion.prediction_type: epsilon says nothing about the data at t = 1, where there is "
                "only noise; truncate the schedule with diffusion.log_snr_min: -20")
        require(self.log_snr_min is None or -60 <= self.log_snr_min < 0,
                f"diffusion.log_snr_min: {self.log_snr_min} is not within -60 ... 0")
        within("diffusion", self, min_snr_gamma=(0.01, 1000), time_shift=(-20, 20), time_scale=(0.01, 20),
               max_blur=(0, 8))
        for name in ("drop_condition", "max_noise_level"):
            value = getattr(self, name)
            require(0 <= value < 1, f"diffusion.{name}: {value} is not within 0 ... 1")


@dataclass
class TrainConfig:
    steps: int = 1000
    batch_size: int = 64                     # of all ranks and accumulation steps together
    accumulate: int = 1                      # micro-batches a step
    inflate: bool = True                     # start from the stage that the table names; False: from nothing
    optimizer: str = "muon"                  # muon (for matrices and kernels; AdamW for the rest) or adamw
    lr: float = 1e-3                         # AdamW
    muon_lr: float = 0.02
    weight_decay: float = 0.0                # of matrices and kernels, for each unit of the learning rate
    warmup_steps: int = 100
    decay_share: float = 0.3                 # the last share of the steps over which the rate falls to zero
    grad_clip: float = 1.0
    ema_decay: float = 0.99                  # short: the falling rate averages too, and Muon moves on quickly
    precision: str = "auto"                  # auto, bf16, fp16, fp32, fp64
    compile: bool = False                    # torch.compile: minutes of waiting, then faster steps
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    sample_every: int = 1000                 # steps between sample pictures; 0: only at the end
    keep: int = 2                            # checkpoints of the run folder

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep"):
            require(getattr(self, name) > 0, f"train.{name}: {getattr(self, name)} is not 1 or more")
        for name in ("warmup_steps", "sample_every", "weight_decay", "seed"):
            require(getattr(self, name) >= 0, f"train.{name}: {getattr(self, name)} is negative")
        for name in ("lr", "muon_lr", "grad_clip"):
            require(getattr(self, name) > 0, f"train.{name}: {getattr(self, name)} is not above 0")
        for name in ("decay_share", "ema_decay"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"train.{name}: {value} is not within 0 ... 1")
        within("train", self, batch_size=(1, 2**16), keep=(1, 1000))
        require(self.batch_size % self.accumulate == 0,
                f"train.batch_size: {self.batch_size} is no multiple of train.accumulate "
                f"({self.accumulate})")
        require(self.optimizer in ("muon", "adamw"),
                f"train.optimizer: {self.optimizer!r} is neither muon nor adamw")
        require(self.precision in ("auto", "bf16", "fp16", "fp32", "fp64"),
                f"train.precision: {self.precision!r} is none of auto, bf16, fp16, fp32, fp64")


@dataclass
class SampleConfig:
    """How a stage samples by default."""
    section = "sample"                       # what messages call it: no annotation, no key
    sampler: str = "dpmpp_2m"
    steps: int = 12
    guidance_scale: float = 1.0
    guidance_until: float = 0.0              # the diffusion time below which there is no guidance
    noise_level: float = 0.0                 # SR: noise added to the low resolution it is given

    def __post_init__(self):
        require(self.sampler in ("ddpm", "ddim", "dpmpp_2m"),
                f"{self.section}.sampler: {self.sampler!r} is none of ddpm, ddim, dpmpp_2m")
        within(self.section, self, steps=(1, 10_000), guidance_scale=(0, 1000))
        require(0 <= self.guidance_until < 1,
                f"{self.section}.guidance_until: {self.guidance_until} is not within 0 ... 1")
        require(0 <= self.noise_level < 1,
                f"{self.section}.noise_level: {self.noise_level} is not within 0 ... 1")


class ExtrapolateConfig(SampleConfig):
    """How upF samples where key frames are given on one side only, as `animate` and `extend` give them.

    It then makes up what D^t would. Its `sample` is for the frames between two keys, which leave little open.
    """
    section = "extrapolate"


def model_type(stage):
    """The dataclass of a stage's `model` section (clip's network is the shared section `clip`)."""
    return {"clip": None, "prior": PriorConfig, "judge": JudgeConfig, "tracker": TrackerConfig,
            "video_features": VideoFeaturesConfig, "critic": CriticConfig}.get(stage, UNetConfig)


def section_types(stage):
    """Section -> its dataclass, or None where the stage has no such section."""
    sections = {f.name: f.type for f in dataclasses.fields(Config) if f.name != "stage"}
    return sections | {"model": model_type(stage),
                       "extrapolate": ExtrapolateConfig if stage == "interpolation" else None}


@dataclass
class Config:
    """Everything about one stage."""
    stage: str
    data: DataConfig
    clip: ClipConfig
    model: UNetConfig | PriorConfig | JudgeConfig | TrackerConfig | VideoFeaturesConfig | CriticConfig | None
    diffusion: DiffusionConfig
    train: TrainConfig
    sample: SampleConfig
    extrapolate: ExtrapolateConfig | None    # the interpolation network's
    distill: DistillConfig
    adversarial: AdversarialConfig

    @property
    def student(self):
        """Whether this is sampled in few steps, with all guidance within."""
        return self.distill.teacher is not None or self.adversarial.critic is not None

    @property
    def walk(self):
        """How a student samples: what a critic teaches upF is to make key frames."""
        return self.extrapolate if self.extrapolate and self.adversarial.critic else self.sample

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, mapping):
        """From `to_dict`'s output (config.json) or a merged YAML mapping. Raises MavliteError by key name."""
        require(isinstance(mapping, dict), "a configuration must be a mapping of sections")
        mapping = dict(mapping)
        stage = mapping.pop("stage", None)
        require(stage in STAGE_NAMES, f"stage: {shown(stage)} is none of {', '.join(STAGE_NAMES)}")
        sections = section_types(stage)
        for key in mapping:
            require(key in sections, f"unknown section {shown(key)}; there are {', '.join(sections)}")
        filled = {key: None if kind is None
                  else fill(kind, {} if mapping.get(key) is None else mapping[key], key)
                  for key, kind in sections.items()}
        for key, why in (("model", "its network is the section clip"), ("extrapolate", "interpolation has")):
            require(sections[key] is not None or mapping.get(key) in (None, {}),
                    f"stage {stage} has no {key} section: {why}")
        config = cls(stage=stage, **filled)
        require_teachable(config)
        require(stage != "clip" or config.train.accumulate == 1,
                "train.accumulate: clip contrasts each pair with its whole batch, not with a micro-batch; "
                "give it accumulate: 1 in its own block")
        require(stage != "prior" or config.diffusion.loss != "hybrid",
                "diffusion.loss: hybrid learns the variance of pixels; the prior takes simple or min_snr, in "
                "stages.prior.diffusion")
        return config


def load_config(path, stage, overrides=()):
    """The configuration of one stage: shared sections, then the stage's block, then --set overrides."""
    stages = ", ".join(STAGE_NAMES)
    require(stage in STAGE_NAMES, f"unknown stage {shown(stage)}; there are {stages}")
    content = read_yaml(path)
    blocks = {} if content.get("stages") is None else content["stages"]
    content.pop("stages", None)
    require(isinstance(blocks, dict), f"{path}: stages must hold a block per stage")
    for name in blocks:
        require(name in STAGE_NAMES, f"{path}: unknown stage {shown(name)}; there are {stages}")
    try:
        for name, block in blocks.items():                   # all of the file, whichever stage is asked for
            require(block is None or isinstance(block, dict), f"stages.{name}: must be a block of sections")
            check_sections(block or {}, section_types(name), f"stages.{name}.")
        check_sections(content, {**section_types("decoder"), "extrapolate": ExtrapolateConfig})
        if model_type(stage) is not UNetConfig:
            content.pop("model", None)                       # the shared model section is the U-Nets'
        merged = merge(merge(content, blocks.get(stage) or {}), parse_overrides(overrides))
        require("stage" not in merged, f"unknown section 'stage'; {stage} was asked for")
        return Config.from_dict({"stage": stage, **merged})
    except MavliteError as error:
        raise MavliteError(f"{path} ({stage}): {error}") from None


def check_sections(mapping, sections, within=""):
    """Refuse unknown or mistyped keys of sections; whether their values go together is for `from_dict`."""
    for key, values in mapping.items():
        require(key in sections,
                f"unknown section {shown(within + str(key))}; there are {', '.join(sections)}")
        if sections[key] is not None and values is not None:
            fill(sections[key], values, within + key)
