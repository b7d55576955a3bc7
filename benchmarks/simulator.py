"""Clips and frames a second that the simulator draws.

    python -m benchmarks.simulator [--out docs/simulator.md]
"""

import argparse

from benchmarks.command import command_line, machine, run, table, write
from benchmarks.timing import median_seconds
from mavlite.device import keep_freed_memory, pick_device
from mavlite.digits import load_digits
from mavlite.moving_mnist import UnlabelledClips

CLIPS, FRAMES = 16, 16                       # a call's
CONDITIONS = 128


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    keep_freed_memory()
    device = pick_device()
    clips, rows = UnlabelledClips(load_digits("train", "glyphs").to(device).images, seed=0), []
    for size in (32, 48, 64):
        seconds = median_seconds(lambda: clips.clips(range(CLIPS), 6.0, FRAMES, size), device)
        rows.append([f"clips of {FRAMES} frames, {size} px", f"{CLIPS / seconds:,.0f}",
                     f"{CLIPS * FRAMES / seconds:,.0f}"])
    seconds = median_seconds(lambda: clips.condition_frames(range(CONDITIONS), 32), device)
    rows.append([f"clearest of {FRAMES} frames, 32 px", f"{CONDITIONS / seconds:,.0f}", ""])
    write(f"{CLIPS} clips of glyph digits a call, `{command_line()}`: {machine(device, 'fp32')}.\n\n"
          + table(["what is drawn", "clips/s", "frames/s"], rows), args.out)


if __name__ == "__main__":
    run(main)
