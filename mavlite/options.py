"""What a call of the pipeline may ask for: each option checked, before any work, against what was trained."""

import dataclasses
import operator

from mavlite.checked import check, require, shown
from mavlite.errors import MavliteError

LONGEST = 10_000                             # frames of a finished video
CANDIDATES, MOST_CANDIDATES = 8, 64          # of which a video's key frames are chosen
FRAME_CANDIDATES = 32                        # of which C chooses one frame: 128 evaluations of it
MOST_MORPHED = 64                            # videos of a morph, which are made together
# What has an embedding or a prompt to be guided by.
GUIDED = ("prior", "decoder", "decoder_t", "interpolation", "extrapolate")
KINDS = {"steps": int, "guidance_scale": float, "sampler": str}


def number(name, value, kind, default=None):
    """value as `kind`, the default, if there is one, for None. Raises MavliteError for what is none."""
    if value is None and default is not None:
        return default
    if kind is not int:
        return check(kind, value, name)
    require(hasattr(value, "__index__") and not isinstance(value, bool),
            f"{name}: must be a whole number, not {shown(value)}")
    return operator.index(value)                             # numpy's and torch's, too


def checked_prompts(prompt):
    """A prompt or several -> a list of str, not empty."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    require(isinstance(prompts, (list, tuple)) and all(isinstance(text, str) for text in prompts),
            "prompt: must be a text, such as \"two and 4\", or a list of them")
    require(prompts, "no prompt was given; write one like \"two and 4\"")
    return list(prompts)


def checked_length(num_frames, default):
    """Frames of a finished video."""
    num_frames = number("num_frames", num_frames, int, default)
    require(1 <= num_frames <= LONGEST, f"num_frames: {num_frames} is not within 1 ... {LONGEST}")
    return num_frames


def checked_fps(data, fps):
    """A key-frame rate that training covered; that of the weights by default."""
    (low, high), fps = data.fps_range, number("fps", fps, float, data.fps)
    require(low <= fps <= high,
            f"fps: a key-frame rate of {fps:g} was not trained; choose within {low:g} ... {high:g}")
    return float(fps)


def checked_skip(data, skip):
    """Frames of the finished video for each key frame."""
    skip, most = number("frame_skip", skip, int, data.frame_skip), data.max_frame_skip
    require(1 <= skip <= most, f"frame_skip: {skip} was not trained; choose within 1 ... {most}")
    return skip


def checked_candidates(candidates):
    candidates = number("candidates", candidates, int, CANDIDATES)
    require(1 <= candidates <= MOST_CANDIDATES,
            f"candidates: {candidates} is not within 1 ... {MOST_CANDIDATES}")
    return candidates


def sample_settings(configs, steps, guidance_scale, sampler):
    """Each stage's own sampling settings, with what the caller overrides: stage -> SampleConfig.

    Each override is one value for every stage that takes it, or a dict stage -> value.
    """
    own = {stage: config.sample for stage, config in configs.items()}
    own["extrapolate"] = configs["interpolation"].extrapolate
    changes = {stage: {} for stage in own}
    given = {"steps": (steps, tuple(own)), "sampler": (sampler, tuple(own)),
             "guidance_scale": (guidance_scale, GUIDED)}
    for key, (value, stages) in given.items():
        values = value if isinstance(value, dict) else {stage: value for stage in stages}
        for stage in values:
            if stage not in stages:
                raise MavliteError(f"{key}: no stage {stage!r} takes it; name {', '.join(stages)}")
            if values[stage] is not None:
                changes[stage][key] = number(key, values[stage], KINDS[key])
    return {stage: dataclasses.replace(own[stage], **changes[stage]) for stage in own}
