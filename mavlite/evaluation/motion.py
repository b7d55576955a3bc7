"""Motion on tracked centres: do digits keep their speed, go straight, bounce off walls, stay who they are?

Everywhere `centres` are (b, f, 2, 2) px on the 64-px canvas: clip, frame, digit, (y, x), each within
14 ... 50, at least two frames, the digits in the same order in all frames of a clip. `fps` is one number,
the rate of those frames. A measure is a pair (value, count of what was measured); with a count of 0 there
was nothing to measure and the value is 0.0, which then says nothing.

Trackers err, so a real clip does not measure as perfect either: read each number beside that of real clips.
"""

import math

import torch

from mavlite.evaluation import identity
from mavlite.evaluation.accuracy import interval
from mavlite.evaluation.fidelity import bootstrap
from mavlite.evaluation.identity import SURE
from mavlite.evaluation.judge import judge_clips
from mavlite.evaluation.samples import decode
from mavlite.evaluation.tracker import match, track
from mavlite.moving_mnist import CANVAS, DIGIT, SPEED, reflected
from mavlite.options import CANDIDATES
from mavlite.two_digits import separated

LOW, HIGH = DIGIT / 2, CANVAS - DIGIT / 2    # px, where a centre meets a wall: 14 and 50
SLACK = 1.0                                  # px: errors of 0.5 px in both frames of a step
WINDOW = 0.25                                # s, over which speed is measured
STILL = SPEED / 4                            # px/s


# ---------------------------------------------------------------- what can be trusted

def bounce_free(centres, fps):
    """Steps in which surely no wall was met -> bool (b, f-1, 2).

    A digit that meets a wall between two frames goes there and comes back,

        distance before + distance after = |v_axis| / fps <= 36 / fps

    for that wall; a larger sum, by more than the tracker's error, rules it out. Steps close to a wall are
    doubted even without a bounce, but that depends on where a digit is, and hardly on how fast.
    """
    distance = torch.stack([centres - LOW, HIGH - centres])                          # 2 walls b f 2 2
    there_and_back = distance[:, :, :-1] + distance[:, :, 1:]                        # 2 walls b f-1 2 2
    return (there_and_back > SPEED / fps + SLACK).all(dim=-1).all(dim=0)


def clean_steps(centres, fps):
    """Bounce-free steps between separated frames -> bool (b, f-1, 2)."""
    apart = separated(centres)
    return bounce_free(centres, fps) & (apart[:, :-1] & apart[:, 1:])[..., None]


# ---------------------------------------------------------------- speed

def speeds(centres, fps):
    """Speeds over windows of k steps, about 0.25 s -> (px/s (b, n, 2), bool (b, n, 2)), n = f - k.

        |p[i+k] - p[i]| fps / k

    The mask says whether all steps of a window are clean: it then is a straight line, as long as its path.
    Single steps would not do: at 24 fps they are 1.5 px long, little more than the tracker's error, which
    makes steps longer on average.
    """
    k = min(max(1, round(WINDOW * fps)), centres.shape[1] - 1)
    speed = (centres[:, k:] - centres[:, :-k]).norm(dim=-1) * fps / k
    return speed, clean_steps(centres, fps).unfold(1, k, 1).all(dim=-1)


def clip_speeds(centres, fps):
    """Median speed of each clip that has a clean window, (n,) px/s."""
    speed, clean = speeds(centres, fps)
    medians = speed.where(clean, math.nan).flatten(1).nanquantile(0.5, dim=1)
    return medians[clean.flatten(1).any(dim=1)]


def speed_error(centres, fps):
    """|speed - 36| / 36, each clip by its median speed: (median over clips, clips)."""
    return median((clip_speeds(centres, fps) - SPEED).abs() / SPEED)


def still_share(centres, fps):
    """Share of clips with a median speed below 9 px/s: (share, clips).

    All windows count, clean or not, so that no clip is left out. A bounce makes a window as short as that
    only if it happens close to its middle, hence in few of a clip's windows.
    """
    speed, _ = speeds(centres, fps)
    still = speed.flatten(1).quantile(0.5, dim=1) < STILL                            # b
    return still.float().mean().item(), len(still)


def apart_share(centres):
    """Share of frames whose digits are apart: (share, frames).

    Most measures ask such frames only. A generator may please them by never showing its digits apart.
    """
    apart = separated(centres)
    return apart.float().mean().item(), apart.numel()


# ---------------------------------------------------------------- straight lines and walls

def straightness(centres, fps):
    """How much two clean steps in a row differ, in true step lengths: (median, pairs of steps).

        |p[i+2] - 2 p[i+1] + p[i]| / (36 / fps)

    0 is straight and steady. The unit shrinks with the rate while the tracker's error does not.
    """
    clean = clean_steps(centres, fps)
    bend = (centres[:, 2:] - 2 * centres[:, 1:-1] + centres[:, :-2]).norm(dim=-1)    # b f-2 2
    return median(bend[clean[:, :-1] & clean[:, 1:]] * fps / SPEED)


def reflection_error(centres, fps):
    """Distance in px between a digit that met a wall and where exact reflection puts it: (median, bounces).

    From a clean step p0 -> p1 the straight continuation is p1 + (p1 - p0). Where that leaves 14 ... 50, a
    wall must be met, and p2 be the continuation reflected. p2 counts in separated frames only.
    """
    straight = 2 * centres[:, 1:-1] - centres[:, :-2]                                # b f-2 2 2
    meets = ((straight < LOW) | (straight > HIGH)).any(dim=-1)                       # b f-2 2
    meets &= clean_steps(centres, fps)[:, :-1] & separated(centres)[:, 2:, None]
    return median((centres[:, 2:] - (LOW + reflected(straight - LOW))).norm(dim=-1)[meets])


# ---------------------------------------------------------------- identity

def identity_switches(log_probabilities, centres):
    """Share of clips whose pair of digits changes: (share, clips that could tell).

    log_probabilities (b, f, 55): the judge's, for each frame. Only separated frames with a best pair above
    0.9 are asked, and only clips with two or more such frames can tell.
    """
    best, pair = log_probabilities.max(dim=-1)                                       # b f each
    sure = separated(centres) & (best > math.log(SURE))
    lowest, highest = pair.where(sure, 55).amin(dim=1), pair.where(sure, -1).amax(dim=1)                 # b
    switched = (highest > lowest)[sure.sum(dim=1) >= 2]
    return (switched.float().mean().item() if len(switched) else 0.0), len(switched)


# ---------------------------------------------------------------- all of it

def median(values):
    """Median of (n,) values and their count."""
    return (values.quantile(0.5).item() if len(values) else 0.0), len(values)


def median_interval(values):
    """95 % interval of the median of (n,) independent values, from their order; None if n < 6: too few.

    The k-th smallest and the k-th largest, of the largest k with P(Binomial(n, 1/2) < k) <= 2.5 %.
    """
    n, k, below = len(values), 0, 0.0
    while (below := below + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    ordered = values.sort().values
    return (ordered[k - 1].item(), ordered[n - k].item()) if k else None


def summary(centres, fps, log_probabilities=None, **of_clips):
    """Every measure as {name: value, name_count: count}, plain numbers for JSON; `speed` is in px/s.

    of_clips: further shares of the same clips, as pairs (share, clips). Measures of whole clips have a
    `name_interval` of 95 % as well: clips are independent, steps are not.
    """
    measures = {
        "speed": median(clip_speeds(centres, fps)),
        "speed_error": speed_error(centres, fps),
        "still_share": still_share(centres, fps),
        "apart_share": apart_share(centres),
        "straightness": straightness(centres, fps),
        "reflection_error": reflection_error(centres, fps),
    }
    if log_probabilities is not None:
        measures["identity_switches"] = identity_switches(log_probabilities, centres)
    measures |= of_clips
    shares = {name: interval(*measures[name]) for name in ("still_share", "identity_switches", *of_clips)
              if measures.get(name, (0, 0))[1]}
    errors = (clip_speeds(centres, fps) - SPEED).abs() / SPEED
    intervals = {**shares, "speed_error": median_interval(errors)}
    return ({name: value for name, (value, _) in measures.items()}
            | {f"{name}_count": count for name, (_, count) in measures.items()}
            | {f"{name}_interval": between and list(between) for name, between in intervals.items()})


def of_values(name, values):
    """The mean of a measure's values (n,), one a clip, as `summary` writes it: with count and interval."""
    n = len(values)
    return {name: values.mean().item() if n else 0.0, f"{name}_count": n,
            f"{name}_interval": list(bootstrap(values)) if n > 1 else None}


# ---------------------------------------------------------------- the report's part

RATES = (3, 6, 12, 24)                       # key-frame rates at which motion is measured
NAMES = {"speed_error": "share", "identity_switches": "clips", "changed_in_sight": "clips",
         "third_digit": "clips", "handwriting": "of 0 ... 1", "straightness": "share",
         "reflection_error": "px", "still_share": "clips", "apart_share": "frames"}      # and their units


def measure(e):
    """Motion of D^t's key frames at several rates, through the tracker, beside real clips through it.

    At the default rate these are the key frames of all videos of the report; at other rates, where only the
    error of speed has a row, of the first `e.sizes.motion` prompts. e: the report's `Evaluation`, which gets
    the rows. Returns the table.
    """
    table = []
    for fps in RATES:
        n = e.sizes.videos if fps == e.data.fps else e.sizes.motion
        real = e.real.only(range(n))
        made = (e.made.frames["decoder_t"] if fps == e.data.fps else
                decode(e.pipe, "decoder_t", e.made.image_embeds[:n], fps=fps, candidates=CANDIDATES))
        entry, true = {"fps": fps, "clips": n}, real.centres(fps)
        for which, frames in (("real", real.frames(e.data.sizes[0], fps)), ("generated", made)):
            centres = track(e.tracker, frames)
            entry[which] = summary(centres, fps, judge_clips(e.judge, frames),
                                   changed_in_sight=identity.look(e.judge, frames, centres),
                                   third_digit=identity.third_digit_share(frames))
            entry[which] |= of_values("handwriting", identity.handwriting(frames, centres))
            if which == "real":
                entry["tracker error, px"] = (match(centres, true) - true).norm(dim=-1).median().item()
        e.add("motion", f"tracker error on real clips at {fps} fps", entry["tracker error, px"], n, unit="px",
              stage="tracker")
        table.append(entry)
    for name, unit in NAMES.items():
        for entry in table:
            made, real = entry["generated"], entry["real"]
            if made[f"{name}_count"] and (name == "speed_error" or entry["fps"] == e.data.fps):
                e.add("motion", f"{name.replace('_', ' ')} at {entry['fps']} fps", made[name],
                      made[f"{name}_count"], unit=unit, stage="decoder_t",
                      interval=made.get(f"{name}_interval"),
                      ceiling=real[name] if real[f"{name}_count"] else None)
    return {"motion": table}
