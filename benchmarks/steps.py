"""How many denoising steps each stage needs: quality against steps, and where the knee is.

    python -m benchmarks.steps [--stages decoder_t ...] [--videos 110] [--weights DIR] [--out docs/steps]

Every diffusion stage is sampled with DDIM and DPM-Solver++(2M) at 1 ... 64 steps, with guidance and without
where it has an embedding or a prompt to be guided by, and scored as `mavlite evaluate` scores it, on true
input: P by its nearest prompt and its cosine, D and D^t by the judge, upF and the super-resolution stages by
PSNR on real clips. Writes OUT.csv after each score, then OUT.md (the knees beside the defaults) and OUT.png.

On two CPU cores this takes long, so it goes on where it stopped: a score that OUT.csv holds for the same
weights and the same clips is not measured again. One stage a call is fine, and what takes few
evaluations is measured first: a call that was stopped leaves whole curves, up to some number of them.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks import cost
from benchmarks.command import command_line, machine, run, table, write
from benchmarks.curve import TOLERANCE, curves, knee, measured_on, merge, read_rows, write_rows
from mavlite import cascade
from mavlite.checkpoint import SHIPPED, read_record
from mavlite.device import autocast, synchronize
from mavlite.errors import MavliteError
from mavlite.evaluation import fidelity
from mavlite.evaluation.accuracy import score
from mavlite.evaluation.samples import RealClips, image_embeds, text_embeds
from mavlite.moving_mnist import box_resize
from mavlite.options import GUIDED
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import PAIRS, make_prompt
from mavlite.session import to_unit
from mavlite.stages import CASCADE, STAGES, load_network

DIFFUSION = tuple(stage for stage in CASCADE if stage != "clip")
STEPS, SAMPLERS = (1, 2, 4, 8, 16, 32, 64), ("ddim", "dpmpp_2m")
GUIDANCE = 3.0                               # "on" for a stage that ships without
BATCH = 16                                   # clips at a time
START = 1_000_000                            # no clip of the report: these choose defaults


def settings(stage, config, steps=STEPS):
    """The ways of sampling that are compared, the stage's default among them: SampleConfigs, cheap first."""
    default, scales = config.sample, [1.0]
    # A student has its guidance within, but D goes on learning what to say without its embedding.
    if stage in GUIDED and (not config.student or stage == "decoder"):
        scales.append(GUIDANCE if default.guidance_scale == 1 else default.guidance_scale)
    grid = [dataclasses.replace(default, sampler=sampler, guidance_scale=scale, steps=count)
            for scale in scales for sampler in SAMPLERS for count in steps]
    return sorted(grid if default in grid else [*grid, default], key=cost.evaluations)


class Scores:
    """A stage's samples on true input, and what they are worth. Weights are read once."""

    def __init__(self, weights, videos, seed=0):
        self.pipe, self.seed, self.count = MakeAVideo.from_pretrained(weights), seed, videos
        self.judge, _, _ = load_network(weights, "judge", device=self.pipe.device)
        self.data, real = self.pipe.data, RealClips(self.pipe.data, videos, START)
        self.pairs, self.embeds = real.pairs, image_embeds(self.pipe, real.conditions())
        self.digits = real.source
        # As in the report: one window of upF, whose every skip-th frame is a key frame.
        self.skip = self.data.frame_skip
        length = (self.data.num_frames - 1) // self.skip * self.skip + 1
        full = real.frames(64, self.data.fps * self.skip, length)
        self.frames = [box_resize(full, size) * 2 - 1 for size in self.data.sizes]   # n c f h w each
        self.asked = torch.arange(videos) % len(PAIRS)
        self.prompts = [make_prompt(*PAIRS[pair], False, False) for pair in self.asked.tolist()]
        with torch.no_grad(), autocast(self.pipe.device, self.pipe.precision):
            self.text = [x.float() for x in self.pipe.networks["clip"].text(self.prompts)]

    def sample(self, stage, how):
        """The stage's output for all clips, on the CPU. how: a SampleConfig."""
        small, middle, _ = self.frames
        fps, keys = self.data.fps, small[:, :, ::self.skip]
        if stage == "prior":
            return self._run(stage, cascade.run_prior, *self.text, settings=how)
        if stage == "decoder":
            return self._run(stage, cascade.run_decoder, self.embeds, settings=how)[:, :, None]
        if stage == "decoder_t":
            return self._run(stage, cascade.run_decoder_t, self.embeds, fps=fps, settings=how,
                             away_from=self.pipe.single_frames)
        if stage == "interpolation":
            return self._run(stage, cascade.run_interpolation, keys, self.embeds, fps=fps, skip=self.skip,
                             settings=how)
        given = small if STAGES[stage].size[1] == 0 else middle
        return self._run(stage, cascade.run_super_resolution, given, settings=how,
                         shared_noise=stage == "sr_h")

    @torch.no_grad()
    def _run(self, stage, function, *inputs, **options):
        pipe, parts = self.pipe, []
        with autocast(pipe.device, pipe.precision):
            for start in range(0, self.count, BATCH):
                given = [x[start:start + BATCH].to(pipe.device) for x in inputs]
                noise = cascade.Noise(self.seed, range(start, start + len(given[0])), stage, pipe.device)
                made = function(pipe.networks[stage], pipe.configs[stage], noise, *given, **options)
                parts.append(made.float().cpu())
        return torch.cat(parts)

    def measure(self, stage, made):
        """What a sample is worth: {measure: (unit, score)}, the report's main one first."""
        if stage == "prior":
            captions = text_embeds(self.pipe, [make_prompt(*pair, False, False) for pair in PAIRS])
            made, captions, real = (F.normalize(x, dim=-1) for x in (made, captions, self.embeds))
            hit = (made @ captions.T).argmax(dim=1) == self.asked
            same = self.asked[:, None] == self.pairs
            scores = {"nearest prompt": ("share", hit.float().mean().item())}
            if same.any():
                scores["cosine with real embeddings"] = ("cosine", (made @ real.T)[same].mean().item())
            return scores
        if stage in ("decoder", "decoder_t"):
            return {"judge accuracy": ("share", score(self.judge, to_unit(made), self.pairs)["clip"])}
        truth = self.frames[STAGES[stage].size[0]]
        if stage == "interpolation":                         # the frames that it was not given
            hidden = torch.arange(truth.shape[2]) % self.skip > 0
            made, truth = made[:, :, hidden], truth[:, :, hidden]
        return {"PSNR": ("dB", fidelity.psnr(to_unit(made), to_unit(truth)).mean().item())}


def measure_stage(scores, stage, rows, weights, steps=STEPS):
    """Yield the new rows of a stage, one way of sampling after the other; `rows` holds what is known."""
    config, warm = scores.pipe.configs[stage], False
    known = {(row["sampler"], row["guidance_scale"], row["steps"]) for row in rows
             if row["stage"] == stage and measured_on(row) == (weights, scores.count, scores.digits)}
    for how in tqdm(settings(stage, config, steps), desc=stage):
        if (how.sampler, how.guidance_scale, how.steps) in known:
            continue
        if not warm:
            scores.sample(stage, dataclasses.replace(how, steps=1))
            warm = True
        synchronize(scores.pipe.device)
        started = time.perf_counter()
        made = scores.sample(stage, how)                     # ends on the CPU: nothing is left to wait for
        seconds = (time.perf_counter() - started) / scores.count / how.steps
        yield [{"stage": stage, "measure": measure, "unit": unit, "sampler": how.sampler,
                "guidance_scale": how.guidance_scale, "steps": how.steps,
                "evaluations": cost.evaluations(how), "score": value, "n": scores.count, "seconds": seconds,
                "shipped": int(how == config.sample), "weights": weights,
                "digits": scores.digits}
               for measure, (unit, value) in scores.measure(stage, made).items()]


def sum_of(weights, stage):
    """Which weights a score depends on: the stage's, C's where it conditions, the judge's where it judges."""
    own_clip = STAGES[stage].uses_clip and (Path(weights) / "clip").is_dir()         # else a public one
    stages = [stage, *(["clip"] if own_clip else []),
              *(["judge"] if stage in ("decoder", "decoder_t") else [])]
    return "+".join(read_record(Path(weights) / name, name)["sha256"][:8] for name in stages)


def knees(rows, note):
    """The knees beside the defaults, as Markdown."""
    def told(row):
        guided = "" if row["guidance_scale"] == 1 else f", guidance {row['guidance_scale']:g}"
        seconds = row["seconds"] * row["steps"]
        return [f"{row['sampler']}, {row['steps']} steps{guided}", f"{row['score']:.3f}", row["evaluations"],
                f"{seconds:.3f}"]
    lines = []
    for (stage, measure), points in curves(rows).items():
        best, bend = knee(points)
        shipped = next((told(row) for row in points if row["shipped"]), ["", "", "", ""])
        lines.append([f"`{stage}`", f"{measure}, {best['unit']}", best["n"], f"{best['score']:.3f}",
                      *told(bend), *shipped])
    header = ["stage", "score", "clips", "best", "knee", "score", "evaluations", "s a clip",
              "default", "score", "evaluations", "s a clip"]
    within = ", ".join(f"{value:g} ({unit})" for unit, value in TOLERANCE.items())
    return (f"Knee: fewest evaluations within {within} of the best, `{command_line()}`; "
            "a guided step is two evaluations (of D^t: one of it and one of D). Seconds are a clip's share "
            f"of a batch of {BATCH}. {note}\n\n"
            + table(header, lines))


def save_plot(rows, path):
    """A panel for each stage and measure: scores against steps, the default marked."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels = curves(rows)
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.6 * columns, 3 * lines), squeeze=False)
    for axis, ((stage, measure), points) in zip(axes.flat, panels.items()):
        best = max(row["score"] for row in points)
        axis.axhspan(best - TOLERANCE[points[0]["unit"]], best, color="0.9")
        for way in sorted({(row["sampler"], row["guidance_scale"]) for row in points}):
            x, y = zip(*sorted((row["steps"], row["score"]) for row in points
                               if (row["sampler"], row["guidance_scale"]) == way))
            guided = "" if way[1] == 1 else f", guidance {way[1]:g}"
            axis.plot(x, y, marker=".", color="C0" if way[0] == "ddim" else "C1",
                      linestyle="--" if way[1] == 1 else "-", label=way[0] + guided)
        for row in points:
            if row["shipped"]:
                axis.plot(row["steps"], row["score"], marker="*", color="black", markersize=11, linestyle="")
        axis.set(xscale="log", xlabel="steps", title=f"{STAGES[stage].symbol}: {measure}")
        axis.set_xticks(STEPS, STEPS)
        axis.minorticks_off()
        axis.legend(fontsize=7)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--stages", nargs="+", choices=DIFFUSION, default=DIFFUSION)
    p.add_argument("--steps", nargs="+", type=int, default=STEPS)
    p.add_argument("--videos", type=int, default=110, help="real clips of the test split, or prompts")
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--out", default="docs/steps", metavar="PATH", help="writes PATH.csv, PATH.md, PATH.png")
    args = p.parse_args()
    if min(args.steps) < 1 or args.videos < 1:
        raise MavliteError("--steps and --videos must be 1 or more")
    path = Path(args.out).with_suffix(".csv")
    rows = read_rows(path)
    scores = Scores(args.weights, args.videos)
    for stage in args.stages:
        for new in measure_stage(scores, stage, rows, sum_of(args.weights, stage), args.steps):
            rows = merge(rows, new)
            write_rows(rows, path)                           # what is measured stays
    save_plot(rows, path.with_suffix(".png"))
    note = f"{machine(scores.pipe.device, scores.pipe.precision)}; {scores.digits} digits."
    write(knees(rows, note), path.with_suffix(".md"))


if __name__ == "__main__":
    run(main)
