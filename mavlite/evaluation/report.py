"""`mavlite evaluate`: every score of the cascade in one report, each beside a ceiling and a floor.

The ceiling is the same score on real clips of the test split, the floor a trivial baseline. Nothing here
was seen in training: test digits, other clips, and networks that share nothing with those that generate.
"""

import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from tqdm import tqdm

from mavlite import cascade
from mavlite.checkpoint import RECORD, SHIPPED, read_record, record_scores, write_file
from mavlite.device import autocast, peak_memory
from mavlite.errors import MavliteError
from mavlite.evaluation import applications, distances, faults, fidelity, motion
from mavlite.evaluation.accuracy import accuracy_by_pair, digit_confusion, interval, score
from mavlite.evaluation.samples import (
    RealClips,
    clearest_embeds,
    decode,
    generate,
    image_embeds,
    matched_clips,
    pairs_in_turn,
    text_embeds,
)
from mavlite.moving_mnist import box_resize
from mavlite.options import CANDIDATES, FRAME_CANDIDATES
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import PAIRS, make_prompt
from mavlite.session import to_unit
from mavlite.stages import MEASURING, STAGES, load_network

SKIPS = (2, 3, 5)                            # of upF
SHUFFLE = 19                                 # prompts further is one that hardly ever shares a digit


@dataclass
class Sizes:
    """How many clips each part looks at."""
    videos: int                              # whole cascade: accuracy, CLIPSIM, distances, motion
    reference: int                           # real clips from which kernel distances are measured
    motion: int                              # key-frame clips for each rate but the default
    frames: int                              # real clips for upF and super-resolution
    timed: int                               # videos timed, one by one
    applied: int                             # real clips animated, varied, ...
    extended: int                            # real clips extended
    length: int                              # frames that those get


QUICK = Sizes(videos=6, reference=256, motion=2, frames=4, timed=1, applied=2, extended=1, length=150)


def in_proportion(videos):
    """What a report of so many videos looks at; 2048 are the full one. Where every clip counts by itself, and
    no distance between sets needs more, 256 say enough."""
    share, few = min(256, max(1, videos // 4)), min(64, max(1, videos // 8))
    return Sizes(videos, 2048, motion=share, frames=share, timed=5, applied=share, extended=few, length=600)


FULL = in_proportion(2048)


class Evaluation:
    """Loads everything once; each method is a part of the report and returns or stores its scores."""

    def __init__(self, weights=None, sizes=FULL, seed=0, device=None, progress=False):
        self.weights, self.pipe = weights or SHIPPED, MakeAVideo.from_pretrained(weights, device=device)
        self.judge, self.tracker, self.features = (
            load_network(self.weights, stage, device=self.pipe.device)[0] for stage in MEASURING)
        self.sizes, self.seed, self.progress, self.data = sizes, seed, progress, self.pipe.data
        self.real = matched_clips(self.data, pairs_in_turn(sizes.videos))
        self.scores = []

    def add(self, section, name, value, n, *, unit, interval=None, ceiling=None, floor=None, stage=None):
        """stage: whose weights the score says most about."""
        self.scores.append({"section": section, "score": name, "value": value, "n": n, "unit": unit,
                            "interval": interval, "ceiling": ceiling, "floor": floor, "stage": stage})

    def run(self):
        """The whole report as a dict of plain numbers, ready for JSON."""
        started, report = time.perf_counter(), {}
        parts = [self.prompt_accuracy, self.clip_similarity, self.distances, self.motion, self.interpolation,
                 self.super_resolution, self.applications, self.cost]
        with torch.inference_mode():
            bar = tqdm(total=len(parts) + 1, disable=not self.progress)
            bar.set_description("videos")
            self.made = generate(self.pipe, self.sizes.videos, seed=self.seed, progress=self.progress)
            bar.update()
            for part in parts:
                bar.set_description(part.__name__.replace("_", " "))
                report |= part() or {}
                bar.update()
            bar.close()
        sums = {path.parent.name: read_record(path.parent)["sha256"][:12]
                for path in sorted(Path(self.weights).glob(f"*/{RECORD}"))}
        return {"digits": self.real.source, "seed": self.seed, "sizes": vars(self.sizes), "weights": sums,
                "device": self.pipe.device.type, "torch": torch.__version__,
                "threads": torch.get_num_threads(), "seconds": time.perf_counter() - started,
                "scores": self.scores, **report}

    # ------------------------------------------------------------ prompt accuracy

    def prompt_accuracy(self):
        """Each stage with perfect input, then in chain: where is accuracy lost?"""
        large, chance = self.data.sizes[-1], 1 / len(PAIRS)
        pipe, made = self.pipe, self.made
        truth = image_embeds(pipe, self.real.conditions())
        chosen = f"prompt, P, D^t, the best of {CANDIDATES}"
        chain = [("real clips", "judge", self.real.frames(large), self.real.pairs),
                 ("true embedding, D, one frame", "decoder", decode(pipe, "decoder", truth), self.real.pairs),
                 (f"true embedding, D, one frame, the best of {FRAME_CANDIDATES}", "decoder",
                  decode(pipe, "decoder", truth, candidates=FRAME_CANDIDATES), self.real.pairs),
                 ("true embedding, D^t drawn once", "decoder_t", decode(pipe, "decoder_t", truth),
                  self.real.pairs),
                 ("prompt, P, D^t drawn once", "prior", decode(pipe, "decoder_t", made.image_embeds),
                  made.pairs),
                 (chosen, "decoder_t", made.frames["decoder_t"], made.pairs),
                 ("... upF, frames between", "interpolation", made.frames["interpolation"], made.pairs),
                 ("... SR_l^t", "sr_l_t", made.frames["sr_l_t"], made.pairs),
                 ("... SR_h: the whole cascade", "sr_h", made.frames["sr_h"], made.pairs)]
        results = {name: (stage, score(self.judge, frames, pairs)) for name, stage, frames, pairs in chain}
        real = results["real clips"][1]
        for name, (stage, result) in results.items():
            ceiling = real["frame"] if "one frame" in name else real["clip"]
            self.add("prompt accuracy", name, result["clip"], result["clips"], unit="clips", stage=stage,
                     interval=result["interval"], ceiling=ceiling, floor=chance)
        whole = results["... SR_h: the whole cascade"][1]
        self.add("prompt accuracy", "the whole cascade, frame by frame", whole["frame"], whole["clips"],
                 unit="frames", ceiling=real["frame"], floor=chance)
        by_pair = accuracy_by_pair(made.pairs, whole["found"])
        return {"confusion": digit_confusion(made.pairs, whole["found"]).tolist(),
                "accuracy_by_pair": [[None if math.isnan(x) else x for x in row] for row in by_pair.tolist()]}

    # ------------------------------------------------------------ CLIPSIM and the prior

    def clip_similarity(self):
        """Text-frame cosine under C, and how good P's embeddings are.

        C is part of the cascade, rewarded D^t and chose among candidates: no blind judge, unlike the others.
        """
        wanted = F.normalize(text_embeds(self.pipe, self.made.prompts), dim=-1)                      # n d

        def similarity(frames, text):
            embeds = image_embeds(self.pipe, rearrange(frames, "n c f h w -> (n f) c h w"))
            embeds = rearrange(F.normalize(embeds, dim=-1), "(n f) d -> n f d", n=len(frames))
            return torch.einsum("n f d, n d -> n f", embeds, text).mean(dim=1)                       # n
        shift = SHUFFLE % len(wanted) or 1
        generated = similarity(self.made.frames["sr_h"], wanted)
        self.add("CLIPSIM", "frames and prompt", generated.mean().item(), len(generated), unit="cosine",
                 stage="clip", interval=fidelity.bootstrap(generated),
                 ceiling=similarity(self.real.frames(self.data.sizes[-1]), wanted).mean().item(),
                 floor=similarity(self.made.frames["sr_h"], wanted.roll(shift, dims=0)).mean().item())

        real = F.normalize(image_embeds(self.pipe, self.real.conditions()), dim=-1)
        made = F.normalize(self.made.image_embeds, dim=-1)
        prompts = [make_prompt(*pair, False, False) for pair in PAIRS]
        captions = F.normalize(text_embeds(self.pipe, prompts), dim=-1)
        same, cosine = self.made.pairs[:, None] == self.real.pairs, made @ real.T                    # n n
        alike = same.clone().fill_diagonal_(False)           # real.pairs are made.pairs
        within = (real @ real.T)[alike]
        self.add("prior", "cosine with real embeddings of the pair", cosine[same].mean().item(),
                 int(same.sum()), unit="cosine", stage="prior",
                 ceiling=within.mean().item() if len(within) else None, floor=cosine[~same].mean().item())
        if len(within):                                      # near 1, P would make one embedding of each pair
            self.add("prior", "cosine among its embeddings of a pair", (made @ made.T)[alike].mean().item(),
                     len(within), unit="cosine", stage="prior", ceiling=within.mean().item())
        hit = ((made @ captions.T).argmax(dim=1) == self.made.pairs).float().mean().item()
        self.add("prior", "nearest of the 55 prompts is its own", hit, len(made), unit="share",
                 stage="prior", interval=interval(hit, len(made)),
                 ceiling=((real @ captions.T).argmax(dim=1) == self.real.pairs).float().mean().item(),
                 floor=1 / len(PAIRS))

    # ------------------------------------------------------------ distances, motion

    def distances(self):
        """MM-FID and MM-FVD, and the kernel distances beside them, with those of known corruptions."""
        return distances.measure(self)

    def motion(self):
        """Motion of D^t's key frames at several rates, beside real clips; and what taught D^t motion."""
        faults.measure(self)
        return motion.measure(self)

    # ------------------------------------------------------------ interpolation

    def interpolation(self):
        """Hidden frames of real clips: upF against baselines that see the same pixels.

        Each as the cascade makes it: what lies beyond the given frames is sampled as `animate` samples it. It
        is then one of the clips that may be, where their mean would have the higher PSNR.
        """
        n, size = self.sizes.frames, self.data.sizes[0]
        real = RealClips(self.data, n)
        for skip in SKIPS:
            keys = (self.data.num_frames - 1) // skip + 1
            length = (keys - 1) * skip + 1
            true = real.frames(size, self.data.fps * skip, length)
            hidden = torch.arange(length) % skip > 0
            known = true[:, :, ::skip]
            filled = self._fill(true, ~hidden, skip)
            self._compare(f"upF, skip {skip}", filled, true, hidden, fidelity.linear_blend(known, skip),
                          fidelity.nearest_frame(known, skip))
        half = self.data.num_frames // 2
        true = real.frames(size)
        for name, hidden, last in (("forward", torch.arange(2 * half) >= half, half - 1),
                                   ("backward", torch.arange(2 * half) < half, half)):
            filled = self._fill(true, ~hidden, 1, self.pipe.configs["interpolation"].extrapolate)
            still = torch.where(hidden.view(1, 1, -1, 1, 1), true[:, :, last:last + 1], true)
            self._compare(f"upF, extrapolation {name}", filled, true, hidden, still)

    def _fill(self, frames, known, skip, settings=None):
        network, config, parts = self.pipe.networks["interpolation"], self.pipe.configs["interpolation"], []
        device, embeds = self.pipe.device, clearest_embeds(self.pipe, frames[:, :, known])
        with autocast(device, self.pipe.precision):
            for start in range(0, len(frames), 16):
                part, y_e = (x[start:start + 16].to(device) for x in (frames, embeds))
                noise = cascade.Noise(self.seed, range(start, start + len(part)), "interpolation", device)
                filled = cascade.fill_frames(network, config, noise, part[:, None] * 2 - 1, known.to(device),
                                             y_e, self.data.fps, skip, settings=settings,
                                             away_from=self.pipe.single_frames)
                parts.append(to_unit(filled[:, 0]).float().cpu())
        return torch.cat(parts)

    def _compare(self, name, made, true, hidden, *baselines):
        """The hidden frames against those of the better baseline."""
        made, true, *baselines = (x[:, :, hidden] for x in (made, true, *baselines))
        self._fidelity("frames between", name, "interpolation", made, true, baselines)

    def _fidelity(self, section, name, stage, made, true, baselines):
        """PSNR and SSIM, each above that of the better baseline."""
        for unit, measure in (("dB PSNR", fidelity.psnr), ("SSIM", fidelity.ssim)):
            values, floor = measure(made, true), max((measure(baseline, true) for baseline in baselines),
                                                     key=torch.mean)
            self.add(section, name, values.mean().item(), len(values), unit=unit, stage=stage,
                     interval=fidelity.bootstrap(values), floor=floor.mean().item())
            gain = values - floor                            # of the same clips: what makes one hard cancels
            if unit == "dB PSNR":
                self.add(section, f"{name}, more than baseline", gain.mean().item(), len(gain), unit=unit,
                         stage=stage, interval=fidelity.bootstrap(gain), floor=0.0)

    # ------------------------------------------------------------ super-resolution

    def super_resolution(self):
        """PSNR and SSIM against bicubic on clean frames and on upF's; flicker, the paper's two claims."""
        n, (small, middle, large) = self.sizes.frames, self.data.sizes
        real, skip = RealClips(self.data, n), self.data.frame_skip
        keys = (self.data.num_frames - 1) // skip + 1
        length = (keys - 1) * skip + 1
        full = real.frames(64, self.data.fps * skip, length)
        low, mid, high = (box_resize(full, size) for size in (small, middle, large))
        filled = self._fill(low, torch.arange(length) % skip == 0, skip)
        together, alone = self._enlarge("sr_l_t", low), self._enlarge("sr_l", low)
        shared, independent = self._enlarge("sr_h", mid, True), self._enlarge("sr_h", mid, False)
        for stage, name, made, given, true in (
                ("sr_l_t", "SR_l^t, clean input", together, low, mid),
                ("sr_l_t", "SR_l^t, upF's frames", self._enlarge("sr_l_t", filled), filled, mid),
                ("sr_l", "SR_l, clean input", alone, low, mid),
                ("sr_h", "SR_h, clean input", shared, mid, high),
                ("sr_h", "SR_h, SR_l^t's frames", self._enlarge("sr_h", together, True), together, high)):
            self._fidelity("super-resolution", name, stage, made, true,
                           [fidelity.bicubic(given, true.shape[-1])])
        for stage, name, first, second, true in (
                ("sr_l_t", "SR_l^t / SR_l frame by frame", together, alone, mid),
                ("sr_h", "SR_h shared / independent noise", shared, independent, high)):
            a, b = fidelity.flicker(first, true), fidelity.flicker(second, true)
            self.add("flicker", name, (a.mean() / b.mean()).item(), n, unit="ratio", stage=stage,
                     interval=fidelity.bootstrap(a, b))

    def _enlarge(self, stage, frames, shared_noise=False):
        network, config, parts = self.pipe.networks[stage], self.pipe.configs[stage], []
        with autocast(self.pipe.device, self.pipe.precision):
            for start in range(0, len(frames), 16):
                part = frames[start:start + 16].to(self.pipe.device) * 2 - 1
                noise = cascade.Noise(self.seed, range(start, start + len(part)), stage, self.pipe.device)
                made = cascade.run_super_resolution(network, config, noise, part, shared_noise=shared_noise)
                parts.append(to_unit(made).float().cpu())
        return torch.cat(parts)

    # ------------------------------------------------------------ applications

    def applications(self):
        """Animation, interpolation, variation, frame rates, morphing and extension: a section each."""
        return applications.measure(self)

    # ------------------------------------------------------------ cost

    def cost(self):
        """Median seconds of each stage for one video, and the peak of memory so far."""
        if self.pipe.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.pipe.device)
        self.pipe("two and 4")                               # warm up
        runs = [self.pipe("two and 4", seed=k).seconds for k in range(self.sizes.timed)]
        seconds = {name: torch.tensor([run[name] for run in runs]).median().item() for name in runs[0]}
        for name, value in {**seconds, "in all": sum(seconds.values())}.items():
            self.add("cost", name, value, len(runs), unit="s a video")
        peak = peak_memory(self.pipe.device)
        if not math.isnan(peak):
            name = "peak memory" + ("" if self.pipe.device.type == "cuda" else " of this whole report")
            self.add("cost", name, peak / 2**30, 1, unit="GiB")


def print_table(report):
    """The scores, one a line: value, 95 % interval, ceiling (real clips), floor (baseline)."""
    print(f"{'':42s} {'score':>8s} {'95 % interval':>17s} {'ceiling':>8s} {'floor':>8s} {'n':>6s}  unit")
    section = None
    for row in report["scores"]:
        if row["section"] != section:
            section = row["section"]
            print(section)
        ceiling, floor = (" " * 8 if row[key] is None else f"{row[key]:8.3f}" for key in ("ceiling", "floor"))
        between = "{:7.3f} ... {:.3f}".format(*row["interval"]) if row["interval"] else ""
        print(f"  {row['score']:40s} {row['value']:8.3f} {between:>17s} {ceiling} {floor} "
              f"{row['n']:6d}  {row['unit']}")


def markdown(report):
    """The same table as Markdown."""
    def cell(row, key):
        return "" if row[key] is None else f"{row[key]:.3f}"
    lines = ["| part | score | value | 95 % interval | ceiling | floor | n | unit |",
             "|---|---|---|---|---|---|---|---|"]
    for row in report["scores"]:
        between = "{:.3f} … {:.3f}".format(*row["interval"]) if row["interval"] else ""
        lines.append(f"| {row['section']} | {row['score']} | {row['value']:.3f} | {between} | "
                     f"{cell(row, 'ceiling')} | {cell(row, 'floor')} | {row['n']} | {row['unit']} |")
    return "\n".join([*lines, "", source(report)]) + "\n"


def source(report):
    """How many clips of what made a report, and where: one line."""
    sizes = ", ".join(f"{count} {name}" for name, count in report["sizes"].items())
    return (f"{report['digits']} digits, test split; {sizes}; seed {report['seed']}; "
            f"{report['device']}, {report['threads']} threads, {report['seconds']:.0f} s.")


def record(report, weights):
    """Write each stage's scores into its config.json."""
    for stage in STAGES:
        rows = [row for row in report["scores"] if row["stage"] == stage]
        if rows:
            scores = {f"{row['section']}: {row['score']}, {row['unit']} (n {row['n']})":
                      round(row["value"], 4) for row in rows}
            record_scores(Path(weights) / stage, scores)


def evaluate(out, *, weights=None, quick=False, videos=None, applied=None, seed=0, device=None,
             record_in_weights=False):
    """Write a report (JSON), its table as Markdown and plots beside it, print the table; returns the report.

    videos: how many to make; other parts look at fewer in proportion, with `quick` at a fixed few. applied:
    how many real clips to animate and vary, half of them to extend.
    record_in_weights: also write every stage's scores into its config.json, where `mavlite info` reads them.
    """
    out, sizes = Path(out), QUICK if quick else FULL
    if videos is not None:
        sizes = replace(sizes, videos=videos, motion=min(videos, sizes.motion)) if quick else in_proportion(
            videos)
    if applied is not None:
        sizes = replace(sizes, applied=applied, extended=max(1, applied // 2))
    if sizes.applied < 1:
        raise MavliteError(f"{sizes.applied} clips for the applications; they need 1 or more")
    if sizes.videos < 3:
        raise MavliteError("a distance between sets of clips needs 3 videos or more")
    if out.suffix != ".json" or out.is_dir():
        raise MavliteError(f"{out}: a report is written as a .json file; name one")
    try:                                                     # before hours of work
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):         # nothing stays there if the work is stopped
            pass
    except OSError as error:
        raise MavliteError(f"{out}: cannot be written ({error.strerror})") from None
    # Here, as matplotlib takes a while to import.
    from mavlite.evaluation.plots import save_plots
    report = Evaluation(weights, sizes, seed, device, progress=True).run()
    print_table(report)
    write_file(out, json.dumps(report, indent=1).encode())
    if record_in_weights:
        record(report, weights or SHIPPED)
    table = out.with_suffix(".md")
    write_file(table, markdown(report).encode())
    print(f"wrote {out}", table, *save_plots(report, out.with_suffix("")), sep="\n      ")
    return report
