"""One call of the pipeline, from its options to a `Video`."""

import time

from tqdm import tqdm

from mavlite import cascade
from mavlite.device import autocast, synchronize
from mavlite.options import checked_candidates, checked_fps, number, sample_settings
from mavlite.video import Video


class Session:
    """One call of a pipeline: its settings, its noise, what its stages made and how long they took.

    count: videos in the batch; same=True gives them all the same noise. The rest: see `MakeAVideo.__call__`.
    """

    def __init__(self, pipe, count, *, fps=None, steps=None, guidance_scale=None, sampler=None, seed=0,
                 index=0, candidates=None, shared_noise=True, progress=False, same=False):
        self.pipe, self.fps, self.shared_noise = pipe, checked_fps(pipe.data, fps), shared_noise
        self.candidates = checked_candidates(candidates)
        self.settings = sample_settings(pipe.configs, steps, guidance_scale, sampler)
        self.seed, index = number("seed", seed, int), number("index", index, int)
        self.indices = [index] * count if same else range(index, index + count)
        self.clock, self.kept = Clock(pipe.device, progress), {}
        self.precision = autocast(pipe.device, pipe.precision)

    def stage(self, name, use="", each=1):
        """(network, config, noise) of a stage; another use of it draws other noise. each: candidates."""
        noise = cascade.Noise(self.seed, self.indices, name + use, self.pipe.device, each)
        return self.pipe.networks[name], self.pipe.configs[name], noise

    def __enter__(self):
        self.precision.__enter__()

    def __exit__(self, *exception):
        self.precision.__exit__(*exception)
        self.clock.close()

    def video(self, frames, fps, prompts=()):
        """Finished frames in [-1, 1] as a `Video` on the CPU, with everything that was kept on the way."""
        stages = {name: (x if name.endswith("embeds") else to_unit(x)).float().cpu()
                  for name, x in self.kept.items()}
        return Video(to_unit(frames).float().cpu(), fps, stages, self.clock.seconds, list(prompts), self.fps)


def to_unit(frames):
    """[-1, 1] -> [0, 1], clipped."""
    return ((frames + 1) / 2).clamp(0, 1)


class Clock:
    """Times each stage and shows what is at work."""

    def __init__(self, device, progress):
        self.device, self.progress, self.seconds, self.bar = device, progress, {}, None

    def __call__(self, name):
        if self.bar is None:                                 # not sooner: what is refused shows no bar
            self.bar = tqdm(disable=not self.progress, unit="stage",
                            bar_format="{desc:14s} {n} stages done [{elapsed}]")
        self.name = name
        self.bar.set_description_str(name)
        return self

    def __enter__(self):
        self.started = time.perf_counter()

    def __exit__(self, *exception):
        synchronize(self.device)
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.started
        self.bar.update()

    def close(self):
        if self.bar is not None:
            self.bar.set_description_str("done")
            self.bar.close()
