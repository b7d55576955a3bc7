"""What is configured of a student: its teacher, or its critic."""

from dataclasses import dataclass

from mavlite.checked import require, stays_inside, within


@dataclass
class DistillConfig:
    """Progressive distillation: set `teacher`, and sample.steps to what the student shall need."""
    teacher: str | None = None               # folder of weights folders; the student starts as a copy
    guidance_scale: float = 1.0              # of the teacher; the student needs none
    own_walk: bool = False                   # x_t of the student's own steps instead of noised data
    reward: float = 0.0                      # weight of 1 - cosine(C_y(frame), y_e), mean over frames

    def __post_init__(self):
        within("distill", self, guidance_scale=(0, 1000), reward=(0, 1000))
        if self.teacher is not None:
            stays_inside("distill.teacher", self.teacher)
        require(self.teacher is not None or not (self.own_walk or self.reward),
                "distill: own_walk and reward are for students; set distill.teacher")


@dataclass
class AdversarialConfig:
    """A student's last lesson (adversarial.py): set `critic`, and go on from a student's weights."""
    critic: str | None = None                # folder of weights folders: its critic knows rendered faults
    reward: float = 60.0                     # as in distill
    handwriting: float = 0.0                 # weight of how differently a digit is written (likeness.py)
    sameness: float = 0.0                    # ... of how much more alike the two are than the real clip's
    ink: float = 0.0                         # weight of (ink / ink of the real clip - 1)^2
    critic_lr: float = 5e-5                  # AdamW

    def __post_init__(self):
        within("adversarial", self, reward=(0, 1000), handwriting=(0, 1000), sameness=(0, 1000),
               ink=(0, 1000), critic_lr=(1e-9, 1))
        if self.critic is not None:
            stays_inside("adversarial.critic", self.critic)


def require_teachable(config):
    """Refuse a student (`Config.student`) whose stage or settings its teacher or critic has no use for."""
    if not config.student:
        return
    stage, walk = config.stage, config.walk
    contest = config.adversarial.critic is not None
    key = "adversarial.critic" if contest else "distill.teacher"
    require(config.model is not None and stage not in ("judge", "tracker", "video_features", "critic"),
            f"{key}: stage {stage} takes no denoising steps")
    require((walk.sampler, walk.guidance_scale) == ("ddim", 1.0),
            f"{key}: a student samples with {walk.section}.sampler ddim and {walk.section}.guidance_scale 1")
    require(config.diffusion.loss != "hybrid",
            f"{key}: a student has no use for a learned variance; set diffusion.loss to simple")
    require(not contest or config.distill.teacher is None,
            "adversarial.critic: takes the place of a teacher; set distill.teacher to null")
    require(not contest or stage in ("decoder", "decoder_t", "interpolation"),
            f"adversarial.critic: is for key frames, which {stage} does not make; set it to null")
    require(not config.adversarial.handwriting or stage != "decoder",
            "adversarial.handwriting: of one frame nobody can tell; set it to 0")
    require(not config.distill.own_walk or stage != "interpolation",
            "distill.own_walk: interpolation is told known frames in every step of a walk; set it to false")
    require(not config.distill.reward or stage in ("decoder", "decoder_t"),
            f"distill.reward: stage {stage} makes no frames from an embedding alone; set it to 0")
