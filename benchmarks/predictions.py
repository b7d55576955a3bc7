"""What fewer evaluations would save: predicted from the cost sheet first, then measured in the same run.

    python -m benchmarks.predictions [--weights DIR] [--repeats 5] [--out docs/predictions.md]

A stage's seconds are taken to grow with its evaluations: predicted = measured * evaluations after / before.
Seconds do not depend on what the weights say, so a student's time is known before there is a student; what
it is worth only `mavlite evaluate` and `python -m benchmarks.steps` can tell.
"""

import argparse
import dataclasses

from benchmarks.command import command_line, machine, run, table, write
from benchmarks.cost import evaluations
from benchmarks.timing import stage_seconds
from mavlite.checkpoint import SHIPPED
from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo

STUDENTS = (8, 4, 2, 1)                      # steps, as in progressive distillation


def changes():
    """(what is changed, stage -> overrides of its SampleConfig), from little to much."""
    yield "D^t's guidance folded into a student", {"decoder_t": {"guidance_scale": 1.0}}
    for steps in STUDENTS:
        one = {"guidance_scale": 1.0, "steps": steps}
        yield f"D^t a student of {steps}", {"decoder_t": one}
    for steps in STUDENTS:
        one = {"guidance_scale": 1.0, "steps": steps}
        yield f"D^t and upF students of {steps}", {"decoder_t": one, "interpolation": one}


def predict(seconds, before, after):
    """Seconds of each stage (dict) under other SampleConfigs: before, after map stages to those."""
    return {stage: spent * evaluations(after[stage]) / evaluations(before[stage]) if stage in after else spent
            for stage, spent in seconds.items()}


def measured(pipe, repeats, overrides=None):
    """Median seconds of each stage for one video, after warm-up."""
    overrides = overrides or {}
    options = {name: {stage: one[name] for stage, one in overrides.items() if name in one}
               for name in ("steps", "guidance_scale")}
    return stage_seconds(pipe, repeats, **options)[0]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if args.repeats < 1:
        raise MavliteError(f"--repeats {args.repeats}: must be 1 or more")
    pipe = MakeAVideo.from_pretrained(args.weights)
    sheet = measured(pipe, args.repeats)                     # all that the predictions are made from
    before = {stage: config.sample for stage, config in pipe.configs.items()}
    rows = [["as it is", "", "", "", "", f"{sum(sheet.values()):.3f}"]]
    for what, overrides in changes():
        after = {stage: dataclasses.replace(before[stage], **one) for stage, one in overrides.items()}
        predicted, outcome = predict(sheet, before, after), measured(pipe, args.repeats, overrides)
        counts = ", ".join(f"{evaluations(before[stage])} → {evaluations(after[stage])}" for stage in after)
        here = [sum(found[stage] for stage in after) for found in (predicted, outcome)]
        rows.append([what, counts, *(f"{value:.3f}" for value in here),
                     *(f"{sum(found.values()):.3f}" for found in (predicted, outcome))])
    header = ["change", "evaluations", "these stages, predicted s", "measured s",
              "whole video, predicted s", "measured s"]
    write(f"Seconds of one video, median of {args.repeats}, `{command_line()}`; a guided "
          f"step is two evaluations. {machine(pipe.device, pipe.precision)}.\n\n"
          + table(header, rows), args.out)


if __name__ == "__main__":
    run(main)
