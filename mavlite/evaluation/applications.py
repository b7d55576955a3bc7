"""The paper's applications on clips of the test split: is what was given kept, does the rest follow from it?

Clips are (n, c, f, h, w) in [0, 1]. What is animated, varied and extended shows its two digits apart in the
first frame: of merged digits nobody could say which they are. Given frames come back as they were, so digits
are looked for in the others only, at key times. A video that stands still keeps its digits without effort:
hence the share of those beside it.

Each function takes the report's `Evaluation`, and adds its rows to it.
"""

import torch

from mavlite import cascade
from mavlite.device import autocast
from mavlite.evaluation import fidelity, identity, motion
from mavlite.evaluation.accuracy import interval, score
from mavlite.evaluation.judge import judge_clips, pooled
from mavlite.evaluation.samples import RealClips, decode, image_embeds, matched_clips
from mavlite.evaluation.tracker import track
from mavlite.moving_mnist import box_resize
from mavlite.prompts import PAIRS, make_prompt
from mavlite.session import to_unit
from mavlite.two_digits import separated
from mavlite.video import Video

CHANCE = 1 / len(PAIRS)
GAP, GAP_FPS = 8, 24                         # frames and their rate between the two ends of an interpolation
SKIPS, OTHER_FPS = (2, 3, 5), (3, 12)        # of upF; key-frame rates beside the default one
BATCH, LONG_BATCH = 8, 4                     # videos at a time


def measure(e):
    """All applications. Returns what the report plots."""
    for part in (animation, interpolation, variation, frame_rate, morph):
        part(e)
    return extension(e)


def shown_apart(data, count):
    """`RealClips` of the test split, the first `count` whose first frame shows the digits apart."""
    some = RealClips(data, 8 * count + 32)                   # about a third are
    return some.only(separated(some.centres())[:, 0].nonzero()[:count, 0].tolist())


def batches(call, count):
    """call(rows, index of the first) for `count` videos, a few at a time, joined."""
    # Copies: a view of every fifth frame would keep the others in memory.
    return torch.cat([call(slice(i, i + BATCH), i).clone() for i in range(0, count, BATCH)])


# ---------------------------------------------------------------- one clip long

def animation(e):
    """Pictures set in motion."""
    real, (small, *_, large), skip = shown_apart(e.data, e.sizes.applied), e.data.sizes, e.data.frame_skip
    true = real.frames(large)                                # n c f s s
    made = batches(lambda rows, i: e.pipe.animate(true[rows, :, 0], seed=e.seed,
                                                  index=i).frames[:, :, ::skip], len(true))
    _kept(e, "animation", "interpolation", made[:, :, 1:], true[:, :, 1:], real.pairs)
    given, back = true[:, :, :1], made[:, :, :1]
    baseline = fidelity.bicubic(box_resize(given, small), large)                     # of what upF is given
    values = fidelity.psnr(back, given)
    e.add("animation", "the given frame comes back", values.mean().item(), len(values), unit="dB PSNR",
          interval=fidelity.bootstrap(values), floor=fidelity.psnr(baseline, given).mean().item())
    e.add("animation", "the given frame, largest error", (back - given).abs().max().item(), len(values),
          unit="of 0 ... 1", floor=(baseline - given).abs().max().item())


def interpolation(e):
    """Frames between two real ones: against the true frames, and against cross-fading."""
    gap, n = min(GAP, e.data.num_frames - 1), e.sizes.frames
    true = RealClips(e.data, n).frames(e.data.sizes[-1], GAP_FPS, gap + 1)
    made = batches(lambda rows, i: e.pipe.interpolate(
        true[rows, :, 0], true[rows, :, -1], num_frames=gap + 1, fps=GAP_FPS, seed=e.seed, index=i).frames, n)
    blend = fidelity.linear_blend(true[:, :, [0, -1]], gap)
    values, floor = (fidelity.psnr(x[:, :, 1:-1], true[:, :, 1:-1]) for x in (made, blend))
    e.add("interpolation", f"{gap} frames apart at {GAP_FPS} fps", values.mean().item(), n, unit="dB PSNR",
          stage="interpolation", interval=fidelity.bootstrap(values), floor=floor.mean().item())
    gain = values - floor                                    # of the same pairs: what makes one hard cancels
    e.add("interpolation", "... more than linear blend", gain.mean().item(), n, unit="dB PSNR",
          stage="interpolation", interval=fidelity.bootstrap(gain), floor=0.0)


def variation(e):
    """Other videos of the same digits: as far from the given one as real clips of its pair are?"""
    real = shown_apart(e.data, e.sizes.applied)
    true, skip = real.frames(e.data.sizes[-1]), e.data.frame_skip
    made = batches(lambda rows, i: e.pipe.vary(Video(true[rows], e.data.fps), seed=e.seed,
                                               index=i).frames[:, :, ::skip], len(true))
    _kept(e, "variation", "decoder_t", made, true, real.pairs)
    others, values = matched_clips(e.data, real.pairs, block=3), fidelity.psnr(made, true)
    e.add("variation", "likeness to the given clip", values.mean().item(), len(values), unit="dB PSNR",
          stage="decoder_t", interval=fidelity.bootstrap(values),
          ceiling=fidelity.psnr(others.frames(e.data.sizes[-1]), true).mean().item(), floor=fidelity.PSNR_CAP)


def _kept(e, section, stage, made, true, pairs):
    """Digits and motion of key-time clips `made`, beside those of the real ones."""
    found, real = (score(e.judge, frames, pairs) for frames in (made, true))
    e.add(section, "both digits kept", found["clip"], len(pairs), unit="clips", stage=stage,
          interval=found["interval"], ceiling=real["clip"], floor=CHANCE)
    e.add(section, "both digits kept, frame by frame", found["frame"], len(pairs), unit="frames",
          ceiling=real["frame"], floor=CHANCE)
    _still(e, section, "stands still", stage, made, true)
    (changed, n), (real, told) = (identity.look(e.judge, x, track(e.tracker, x)) for x in (made, true))
    if n:
        e.add(section, "changed in sight", changed, n, unit="clips", stage=stage,
              interval=interval(changed, n), ceiling=real if told else None, floor=1.0)


def _still(e, section, name, stage, made, true):
    (share, n), (real, _) = (motion.still_share(track(e.tracker, x), e.data.fps) for x in (made, true))
    e.add(section, name, share, n, unit="clips", stage=stage, interval=interval(share, n), ceiling=real,
          floor=1.0)


def frame_rate(e):
    """The same key frames at several output rates, and other key-frame rates: is the speed right?

    36 px/s is right at any rate. The floor is what key frames give that are merely played faster.
    """
    real, small = RealClips(e.data, e.sizes.applied), e.data.sizes[0]
    embeds, fps = image_embeds(e.pipe, real.conditions()), e.data.fps
    keys = {rate: decode(e.pipe, "decoder_t", embeds, fps=rate) for rate in (fps, *OTHER_FPS)}
    for rate, skip in [(fps, skip) for skip in SKIPS] + [(other, SKIPS[0]) for other in OTHER_FPS]:
        made = batches(lambda rows, i: between(e, keys[rate][rows], embeds[rows], rate, skip, i), len(embeds))
        true = real.frames(small, rate * skip, made.shape[2])
        speed, real_speed = (motion.clip_speeds(track(e.tracker, x), rate * skip) for x in (made, true))
        played = motion.clip_speeds(track(e.tracker, keys[rate]), rate) * skip
        if len(speed):                                       # a clip counts if it has a straight stretch
            e.add("frame rate", f"speed at {rate:g} key frames/s, skip {skip}", speed.mean().item(),
                  len(speed), unit="px/s", stage="interpolation", interval=fidelity.bootstrap(speed),
                  ceiling=real_speed.mean().item() if len(real_speed) else None,
                  floor=played.mean().item() if len(played) else None)


def between(e, keys, embeds, fps, skip, index):
    """upF on key frames (b, c, k, h, w): (b, c, (k - 1) skip + 1, h, w)."""
    device = e.pipe.device
    noise = cascade.Noise(e.seed, range(index, index + len(keys)), "interpolation", device)
    with autocast(device, e.pipe.precision):
        made = cascade.run_interpolation(e.pipe.networks["interpolation"], e.pipe.configs["interpolation"],
                                         noise, keys.to(device) * 2 - 1, embeds.to(device), fps, skip)
    return to_unit(made).float().cpu()


def morph(e):
    """Both ends of morphs between prompts: do they still show their own digits?"""
    count, skip, frames, pairs = max(1, e.sizes.applied // 2), e.data.frame_skip, [], []
    for k in range(count):
        ends = 7 * k % len(PAIRS), (7 * k + 27) % len(PAIRS)                         # 7: all pairs in turn
        prompts = [make_prompt(*PAIRS[end], k % 2 == 0, k % 2 == 1) for end in ends]
        frames.append(e.pipe.morph(*prompts, num_videos=2, seed=e.seed, index=k).frames[:, :, ::skip])
        pairs += ends
    real = RealClips(e.data, len(pairs))
    found = score(e.judge, torch.cat(frames), torch.tensor(pairs))
    e.add("morph", "both digits of the ends", found["clip"], len(pairs), unit="clips", stage="prior",
          interval=found["interval"], floor=CHANCE,
          ceiling=score(e.judge, real.frames(e.data.sizes[-1]), real.pairs)["clip"])


# ---------------------------------------------------------------- many clips long

def extension(e):
    """Real clips made many times as long: digits second by second, motion at the end, jumps at seams.

    "told" are the same clips, extended with a prompt that names their digits instead of their embedding.
    """
    data, skip, n = e.data, e.data.frame_skip, e.sizes.extended
    real, rate, given = shown_apart(data, n), data.fps * skip, (data.num_frames - 1) * skip + 1
    keys, jumps = {"extended": [], "told": [], "real": []}, {"extended": [], "real": [], "cut": []}
    for start in range(0, n, LONG_BATCH):
        some = real.only(range(start, min(start + LONG_BATCH, n)))
        true = some.frames(data.sizes[-1], rate, e.sizes.length)                     # n c f s s
        prompts = [make_prompt(*PAIRS[pair], True, False) for pair in some.pairs.tolist()]
        made, told = (e.pipe.extend(Video(true[:, :, :given], rate), num_frames=e.sizes.length, seed=e.seed,
                                    index=start, prompt=prompt).frames for prompt in (None, prompts))
        for name, frames in (("extended", made), ("told", told), ("real", true)):
            keys[name].append(frames[:, :, ::skip].clone())
            if name in jumps:
                jumps[name].append(changes(frames))
        jumps["cut"].append(changes(true, true.flip(-1)))
    keys, jumps = ({name: torch.cat(parts) for name, parts in kept.items()} for kept in (keys, jumps))

    log_p = {name: judge_clips(e.judge, frames) for name, frames in keys.items()}    # n k 55
    last, name = slice(-data.num_frames, None), f"last {(data.num_frames - 1) / data.fps:g} s"
    kept = {which: (pooled(p[:, last]) == real.pairs).float().mean().item() for which, p in log_p.items()}
    for which, how in (("extended", ""), ("told", ", with a prompt")):
        e.add("extension", f"both digits, {name} of {e.sizes.length} frames{how}", kept[which], n,
              unit="clips", stage="interpolation", interval=interval(kept[which], n), ceiling=kept["real"],
              floor=CHANCE)
    _still(e, "extension", f"stands still, {name}", "interpolation",
           *(keys[which][:, :, last] for which in ("extended", "real")))

    at_windows, at_keys, at_extensions = seams(data, e.sizes.length)
    key_jumps = {name: changes(frames) for name, frames in keys.items()}
    key_jumps["cut"] = changes(keys["real"], keys["real"].flip(-1))
    for name, steps, besides, found, first in (
            ("from the given frames", [given - 1], [], jumps, given),
            ("where windows meet", at_windows, [], jumps, given),
            ("at other key frames", at_keys, at_windows, jumps, given),
            ("where extensions meet", at_extensions, [], key_jumps, data.num_frames)):
        if steps:                                            # too short a video has none
            at, inside = at_and_inside(found["extended"], steps, first, besides)
            real_at, real_inside = (x.mean() for x in at_and_inside(found["real"], steps, first, besides))
            cut = found["cut"][:, steps].mean()
            e.add("extension", f"jump {name}", (at.mean() / inside.mean()).item(), n, unit="of other jumps",
                  stage="interpolation", interval=fidelity.bootstrap(at, inside),
                  ceiling=(real_at / real_inside).item(), floor=(cut / real_inside).item())

    table = {name: by_second(p, real.pairs, data.fps) for name, p in log_p.items()}
    return {"extension": table | {"interval": [interval(share, n) for share in table["extended"]],
                                  "given_seconds": given / rate}}


def by_second(log_probabilities, pairs, fps):
    """Share of clips whose pair is found in each second: (n, k, 55) at rate `fps`, pairs (n,) -> list."""
    second = (torch.arange(log_probabilities.shape[1]) / fps + 1e-6).long()          # k
    return [(pooled(log_probabilities[:, second == s]) == pairs).float().mean().item()
            for s in range(int(second[-1]) + 1)]


def changes(frames, following=None):
    """Mean absolute change from each frame to the next, (n, f-1); step i leads to frame i + 1.

    With `following`, to the next frame of that clip: what a cut to it would be.
    """
    following = frames if following is None else following
    return (following[:, :, 1:] - frames[:, :, :-1]).abs().mean(dim=(1, 3, 4))


def at_and_inside(jumps, steps, first, besides=()):
    """Each clip's mean of jumps (n, f-1) at `steps`, and at all from `first` on but those and `besides`."""
    inside = torch.arange(jumps.shape[1]) >= first
    inside[[*steps, *besides]] = False
    return jumps[:, steps].mean(dim=1), jumps[:, inside].mean(dim=1)


def seams(data, length):
    """Where windows meet in what was made of a clip of D^t's length extended to `length` frames.

    Returns three lists: steps between frames next to a frame that two windows of upF share; those next to
    another key frame, which one window knows; steps between key frames, from the last that a window of the
    extension knew to the first that it made.
    """
    skip, count = data.frame_skip, (length - 1) // data.frame_skip + 1
    per_window = (data.num_frames - 1) // skip + 1
    starts = cascade.window_starts(-(-(length - 1) // skip) + 1, per_window)
    shared = [start + per_window - 1 for start in starts[:-1]]       # a window's last key; the next goes on
    given = (data.num_frames - 1) * skip

    def beside(keys):
        steps = [step for key in keys for step in (key * skip - 1, key * skip)]
        return [step for step in steps if given < step < length - 1]
    new = data.num_frames - cascade.given_keys(data.num_frames)      # of a window; the first follows on given
    made = range(data.num_frames + new, count, new)
    return beside(shared), beside(set(range(count)) - set(shared)), [key - 1 for key in made]
