"""MakeAVideo: eq. 1 in one call.

    y_t = SR_h o SR_l^t o upF o D^t o P o (x_hat, C_x(x))
"""

import dataclasses
import time
from pathlib import Path

import torch
from tqdm import tqdm

from mavlite import cascade
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast, keep_freed_memory, pick_device, pick_precision, synchronize
from mavlite.errors import MavliteError
from mavlite.stages import CASCADE, load_clip, load_network, read_config
from mavlite.video import Video

GUIDED = ("prior", "decoder", "decoder_t", "interpolation")  # have an embedding or a prompt to be guided by


class MakeAVideo:
    """The whole cascade. `from_pretrained()` loads it, calling it makes videos from prompts.

    networks: stage -> network in eval mode. configs: stage -> Config it was trained with.
    """

    def __init__(self, networks, configs, device, precision="auto"):
        self.networks, self.configs, self.device = networks, configs, device
        self.precision = pick_precision(device, precision)
        self.data = configs["decoder_t"].data

    @classmethod
    def from_pretrained(cls, source=None, *, device=None, precision="auto"):
        """source: None for the package's weights, a folder of weights folders, or a Hub id ("owner/name").

        Raises MavliteError for missing, damaged or mismatched weights.
        """
        keep_freed_memory()
        device = pick_device(device)
        folder = _weights_folder(source)
        reference = read_config(folder, "decoder_t")
        networks, configs = {"clip": load_clip(folder, reference, device)}, {}
        for stage in CASCADE:
            if stage != "clip":
                networks[stage], configs[stage], _ = load_network(folder, stage, networks["clip"], device)
        for stage, config in configs.items():
            for key in ("sizes", "channels"):
                had, wanted = getattr(config.data, key), getattr(reference.data, key)
                if had != wanted:
                    raise MavliteError(f"{folder / stage}: was trained with {key} {had}, decoder_t with "
                                       f"{wanted}; use one set of weights")
        for network in networks.values():
            network.to(memory_format=torch.channels_last)
        return cls(networks, configs, device, precision)

    @torch.no_grad()
    def __call__(self, prompt, *, num_frames=None, fps=None, steps=None, guidance_scale=None, sampler=None,
                 seed=0, index=0, shared_noise=True, progress=False):
        """Text to video, or with num_frames=1 text to image through D, SR_l and SR_h.

        prompt: str, or a list of them for a batch. num_frames: of the finished video, 1 ... 76 by default
        (the length of 16 key frames at skip 5). fps: key-frame rate, within what training covered; the
        finished video's is fps * skip. steps, guidance_scale, sampler: one value for every stage that has it
        (guidance: those with an image embedding or a prompt), or a dict stage -> value. seed, index: video i
        of the batch draws from (seed, index + i). shared_noise=False gives SR_h independent noise for each
        frame, to see the flicker. Returns a `Video`; its `.stages` holds every intermediate, on the CPU,
        `.seconds` the time of each stage.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        num_frames, fps = self._checked(prompts, num_frames, fps)
        settings = self._settings(steps, guidance_scale, sampler)
        image = num_frames == 1
        clock = _Clock(self.device, progress, 4 if image else 6)
        indices = range(index, index + len(prompts))

        def noise(stage):
            return cascade.Noise(seed, indices, stage, self.device)

        def network(stage):
            return self.networks[stage], self.configs[stage], noise(stage)

        with autocast(self.device, self.precision):
            with clock("clip"):
                tokens, text_embeds = (x.float() for x in self.networks["clip"].text(prompts))
            with clock("prior"):
                y_e = cascade.run_prior(*network("prior"), tokens, text_embeds, settings=settings["prior"])
            stages = {"text_embeds": text_embeds, "image_embeds": y_e}
            finished = self._image if image else self._video
            finished(network, settings, stages, y_e, num_frames, fps, clock, shared_noise)
        clock.close()
        stages = {name: (x if name.endswith("embeds") else to_unit(x)).float().cpu()
                  for name, x in stages.items()}
        frames = stages["sr_h"] if not image else stages["sr_h"][:, :, None]
        rate = fps * self.data.frame_skip
        return Video(frames, fps=rate, stages=stages, seconds=clock.seconds, prompts=prompts)

    def _video(self, network, settings, stages, y_e, num_frames, fps, clock, shared_noise):
        with clock("decoder_t"):
            # All frames, however few are needed, wherever frames know of each other: training saw whole
            # clips, and a shorter video is then the beginning of the longer one. Only SR_h need not make the
            # others.
            keys = cascade.run_decoder_t(*network("decoder_t"), y_e, fps, settings=settings["decoder_t"])
        with clock("interpolation"):
            frames = cascade.run_interpolation(*network("interpolation"), keys, y_e, fps,
                                               self.data.frame_skip, settings=settings["interpolation"])
        with clock("sr_l_t"):
            middle = cascade.run_super_resolution(*network("sr_l_t"), frames, settings=settings["sr_l_t"])
        frames, middle = frames[:, :, :num_frames], middle[:, :, :num_frames]
        with clock("sr_h"):
            large = cascade.run_super_resolution(*network("sr_h"), middle, settings=settings["sr_h"],
                                                 shared_noise=shared_noise)
        stages |= {"decoder_t": keys, "interpolation": frames, "sr_l_t": middle, "sr_h": large}

    def _image(self, network, settings, stages, y_e, num_frames, fps, clock, shared_noise):
        with clock("decoder"):
            frame = cascade.run_decoder(*network("decoder"), y_e, settings=settings["decoder"])
        with clock("sr_l"):
            middle = cascade.run_super_resolution(*network("sr_l"), frame, settings=settings["sr_l"])
        with clock("sr_h"):
            large = cascade.run_super_resolution(*network("sr_h"), middle, settings=settings["sr_h"])
        stages |= {"decoder": frame, "sr_l": middle, "sr_h": large}

    def _checked(self, prompts, num_frames, fps):
        """Refuse what the weights were not trained for, before work begins."""
        if not prompts:
            raise MavliteError("no prompt was given; write one like \"two and 4\"")
        most = (self.data.num_frames - 1) * self.data.frame_skip + 1
        num_frames = most if num_frames is None else num_frames
        if not 1 <= num_frames <= most:
            raise MavliteError(f"num_frames: {num_frames} is not within 1 ... {most} ({self.data.num_frames} "
                               f"key frames at skip {self.data.frame_skip})")
        low, high = self.data.fps_range
        fps = self.data.fps if fps is None else fps
        if not low <= fps <= high:
            raise MavliteError(f"fps: a key-frame rate of {fps} was not trained; choose within {low:g} ... "
                               f"{high:g}")
        return num_frames, float(fps)

    def _settings(self, steps, guidance_scale, sampler):
        """Each stage's own sampling settings, with what the caller overrides: stage -> SampleConfig."""
        changes = {stage: {} for stage in self.configs}
        given = {"steps": (steps, tuple(self.configs)), "sampler": (sampler, tuple(self.configs)),
                 "guidance_scale": (guidance_scale, GUIDED)}
        for key, (value, stages) in given.items():
            values = value if isinstance(value, dict) else {stage: value for stage in stages}
            for stage in values:
                if stage not in stages:
                    raise MavliteError(f"{key}: no stage {stage!r} takes it; name {', '.join(stages)}")
                if values[stage] is not None:
                    changes[stage][key] = values[stage]
        return {stage: dataclasses.replace(self.configs[stage].sample, **changes[stage]) for stage in changes}


def to_unit(frames):
    """[-1, 1] -> [0, 1], clipped."""
    return ((frames + 1) / 2).clamp(0, 1)


def _weights_folder(source):
    """The local folder of a weights source; a Hub id is downloaded (weights and JSON only, never code)."""
    if source is None:
        return SHIPPED
    folder = Path(source)
    if folder.is_dir():
        return folder
    if str(source).count("/") != 1 or folder.is_absolute() or str(source).startswith("."):
        raise MavliteError(f"{source}: no such folder of weights")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(source), allow_patterns=["*/model.safetensors", "*/config.json"],
                                      etag_timeout=5))
    except Exception as error:                               # the Hub client raises many kinds
        raise MavliteError(f"{source}: neither a folder nor a reachable Hub repository "
                           f"({' '.join(str(error).split())[:100]})") from None


class _Clock:
    """Times each stage and shows the progress."""

    def __init__(self, device, progress, total):
        self.device, self.seconds = device, {}
        self.bar = tqdm(total=total, disable=not progress, unit="stage",
                        bar_format="{desc:14s} {bar:20} {n}/{total} [{elapsed}]")

    def __call__(self, name):
        self.name = name
        self.bar.set_description_str(name)
        return self

    def __enter__(self):
        self.started = time.perf_counter()

    def __exit__(self, *exception):
        synchronize(self.device)
        self.seconds[self.name] = time.perf_counter() - self.started
        self.bar.update()
        if exception[0]:
            self.bar.close()

    def close(self):
        self.bar.set_description_str("done")
        self.bar.close()
