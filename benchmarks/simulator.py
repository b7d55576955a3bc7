"""Clips and frames a second that the simulator draws.

    python -m benchmarks.simulator
"""

from benchmarks.timing import median_seconds
from mavlite.device import keep_freed_memory, pick_device
from mavlite.digits import load_digits
from mavlite.moving_mnist import UnlabelledClips


def main():
    keep_freed_memory()
    device = pick_device()
    clips = UnlabelledClips(load_digits("train", "glyphs").to(device).images, seed=0)
    print(f"{device.type}: 16 clips of 16 frames a call")
    for size in (32, 48, 64):
        seconds = median_seconds(lambda: clips.clips(range(16), 6.0, 16, size), device)
        print(f"{size} px: {16 / seconds:8.0f} clips/s, {256 / seconds:8.0f} frames/s")
    seconds = median_seconds(lambda: clips.condition_frames(range(128), 32), device)
    print(f"clearest of 16 frames: {128 / seconds:8.0f} conditioning frames/s")


if __name__ == "__main__":
    main()
