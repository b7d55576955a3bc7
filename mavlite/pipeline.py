"""MakeAVideo: eq. 1 in one call.

    y_t = SR_h o SR_l^t o upF o D^t o P o (x_hat, C_x(x))
"""

import functools
import math

import torch
from einops import rearrange

from mavlite import cascade
from mavlite.candidates import FEW, best_candidates, closest_candidates
from mavlite.device import full_precision, keep_freed_memory, pick_device, pick_precision
from mavlite.errors import MavliteError
from mavlite.given import given_pictures, given_video
from mavlite.guidance import single_frames
from mavlite.hub import weights_folder
from mavlite.moving_mnist import box_resize, clearest
from mavlite.options import (
    FRAME_CANDIDATES,
    LONGEST,
    MOST_MORPHED,
    checked_length,
    checked_prompts,
    checked_skip,
    number,
)
from mavlite.prior import renormalise, spherical
from mavlite.session import Session, to_unit
from mavlite.stages import CASCADE, load_clip, load_network, read_config


class MakeAVideo:
    """The whole cascade. `from_pretrained()` loads it, calling it makes videos from prompts.

    networks: stage -> network in eval mode. configs: stage -> Config it was trained with. critic: helps to
    choose among finished clips, if there is one.
    """

    def __init__(self, networks, configs, device, precision="auto", critic=None):
        self.networks, self.configs, self.device, self.critic = networks, configs, device, critic
        self.precision = pick_precision(device, precision)
        self.data = configs["decoder_t"].data
        self.single_frames = single_frames(networks["decoder"], configs["decoder"])

    @classmethod
    def from_pretrained(cls, source=None, *, device=None, precision="auto"):
        """source: None for the package's weights, a folder of weights folders, or a Hub id ("owner/name").

        Raises MavliteError for missing, damaged or mismatched weights.
        """
        keep_freed_memory()
        device = pick_device(device)
        folder = weights_folder(source)
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
        critic = None
        if (folder / "critic").is_dir():
            critic, _, _ = load_network(folder, "critic", device=device)
            critic.to(memory_format=torch.channels_last_3d)
        return cls(networks, configs, device, precision, critic)

    # ------------------------------------------------------------ text to video

    @torch.no_grad()
    def __call__(self, prompt, *, num_frames=None, frame_skip=None, **options):
        """Text to video, or with num_frames=1 text to image through D, SR_l and SR_h.

        prompt: str, or a list of them for a batch. num_frames: of the finished video, 76 by default (the
        length of 16 key frames at skip 5); of a longer one the key frames go on by extrapolation, at the same
        rate and with the same embedding. frame_skip: frames of the finished video per key frame, whose rate
        it multiplies; the key frames stay the same. Returns a `Video`; its `.stages` holds every
        intermediate, on the CPU (of `animate`, `interpolate` and `extend`, which ask no D^t, "key_frames" in
        the place of "decoder_t"), `.seconds` the time of each stage.

        options, of this and every other method:
            fps: key-frame rate, within what training covered; the finished video's is fps * frame_skip.
            steps, guidance_scale, sampler: one value for every stage that has it (guidance: those with an
                image embedding or a prompt), or a dict stage -> value; "extrapolate" stands for upF where
                it makes key frames, as D^t does.
            seed, index: video i of the batch draws from (seed, index + i).
            candidates: how often the key frames (or the one frame) of a video are drawn; half way, or at the
                end of four steps or fewer, C keeps what is closest to the embedding; against finished clips
                count digits that do not stay who they are, and the critic's faults. 8 by default, 32 of one
                frame; 1 draws once, in less time. Frames between two given ones are drawn once.
            shared_noise: False gives SR_h independent noise for each frame, to see the flicker.
            progress: show a bar.
        Raises MavliteError for what the weights were not trained for, before work begins.
        """
        prompts, skip = checked_prompts(prompt), checked_skip(self.data, frame_skip)
        num_frames = checked_length(num_frames, (self.data.num_frames - 1) * skip + 1)
        if num_frames == 1 and options.get("candidates") is None:
            options["candidates"] = FRAME_CANDIDATES
        run = Session(self, len(prompts), **options)
        with run:
            y_e = self._embed_prompts(run, prompts)
            if num_frames == 1:
                frames = self._image(run, y_e)
            else:
                # All key frames, however few are needed, wherever frames know of each other: training saw
                # whole clips, and a shorter video is then the beginning of the longer one.
                keys = self._decode(run, y_e)
                num_keys = -(-(num_frames - 1) // skip) + 1
                if num_keys > keys.shape[2]:
                    keys = self._extend(run, keys, num_keys, y_e)
                frames = self._finish(run, keys, y_e, skip, num_frames)
        return run.video(frames, run.fps * skip, prompts)

    def _embed_prompts(self, run, prompts):
        """P: image embeddings (b, d) for prompts.

        In fp32: they cost nothing beside the frames, and a 16-bit network rounds a little differently in
        another batch size. Sampling makes that grow into other frames.
        """
        self.networks["clip"].tokenizer(prompts)             # refuses unknown words before anything starts
        with full_precision(self.device):
            with run.clock("clip"):
                tokens, text_embeds = self.networks["clip"].text(prompts)
            with run.clock("prior"):
                y_e = cascade.run_prior(*run.stage("prior"), tokens, text_embeds,
                                        settings=run.settings["prior"])
        run.kept |= {"text_embeds": text_embeds, "image_embeds": y_e}
        return y_e

    def _image(self, run, y_e):
        """SR_h o SR_l o D: one frame (b, c, 1, h, w), the best of its candidates too."""
        n = run.candidates
        with run.clock("decoder"):
            frame = run.kept["decoder"] = cascade.run_decoder(
                *run.stage("decoder", each=n), y_e.repeat_interleave(n, dim=0),
                settings=run.settings["decoder"], choose=self.choice(run.candidates, y_e))
        for stage in ("sr_l", "sr_h"):
            with run.clock(stage):
                frame = run.kept[stage] = cascade.run_super_resolution(*run.stage(stage), frame,
                                                                       settings=run.settings[stage])
        return frame[:, :, None]

    def _decode(self, run, y_e, start=None, strength=1.0):
        """D^t: embeddings (b, d) -> key frames (b, c, f, h, w), for each video the best of its candidates."""
        n, steps = run.candidates, run.settings["decoder_t"].steps
        start = None if start is None else start.repeat_interleave(n, dim=0)
        with run.clock("decoder_t"):
            return cascade.run_decoder_t(*run.stage("decoder_t", each=n), y_e.repeat_interleave(n, dim=0),
                                         run.fps, settings=run.settings["decoder_t"], start=start,
                                         strength=strength, choose=self.choice(n, y_e, run.fps, steps),
                                         away_from=self.single_frames)

    def choice(self, n, y_e, fps=None, steps=None):
        """x_0 of n candidates of each video -> the rows (b,) to keep; None where there is but one of each.

        By C. fps, steps: of clips, their key-frame rate and the walk's steps; few are all made before the
        choice, and finished clips are looked at more closely (`merit`).
        """
        if n == 1:
            return None
        if fps is None or steps > FEW:
            return functools.partial(closest_candidates, self.networks["clip"], image_embeds=y_e)
        return functools.partial(best_candidates, self.networks["clip"], self.critic, image_embeds=y_e,
                                 fps=fps)

    def _extend(self, run, keys, num_keys, y_e):
        """Key frames (b, c, k, h, w), going on to num_keys of them by extrapolation.

        Here and in `animate` upF makes key frames from the embedding, as D^t does, and is sampled with other
        settings than for the frames between two given ones, which leave little to make up.
        """
        settings = run.settings["extrapolate"]
        with run.clock("interpolation"):
            return cascade.extend_keys(*run.stage("interpolation", "extend", run.candidates), keys, num_keys,
                                       y_e, run.fps, settings=settings, away_from=self.single_frames,
                                       choose=self.choice(run.candidates, y_e, run.fps, settings.steps))

    def _finish(self, run, keys, y_e, skip, num_frames=None, source="decoder_t"):
        """SR_h o SR_l^t o upF: key frames -> the first num_frames of the finished ones (b, c, f, h, w).

        source: what the key frames are called in `Video.stages`; not D^t's, where D^t made none.
        """
        with run.clock("interpolation"):
            frames = cascade.run_interpolation(*run.stage("interpolation"), keys, y_e, run.fps, skip,
                                               settings=run.settings["interpolation"])
        with run.clock("sr_l_t"):
            middle = cascade.run_super_resolution(*run.stage("sr_l_t"), frames,
                                                  settings=run.settings["sr_l_t"])
        frames, middle = frames[:, :, :num_frames], middle[:, :, :num_frames]
        with run.clock("sr_h"):                              # frame by frame: it need not make the others
            large = cascade.run_super_resolution(*run.stage("sr_h"), middle, settings=run.settings["sr_h"],
                                                 shared_noise=run.shared_noise)
        run.kept |= {source: keys, "interpolation": frames, "sr_l_t": middle, "sr_h": large}
        return large.clone()                                 # given frames are written into it

    # ------------------------------------------------------------ the paper's applications

    @torch.no_grad()
    def animate(self, image, *, prompt=None, position="first", **options):
        """A picture set in motion: upF extrapolates key frames from the one given, then the cascade goes on.

        image: (b, c, s, s) in [0, 1], s the finished size (64), or a path, see `given_pictures`. It comes
        back exactly, as the first, the last or the middle frame (position). prompt: its embedding by P takes
        the place of the image's own; a list of them has one for each image.
        """
        image = given_pictures("image", image, self.data)
        low = self._small(image[:, :, None])
        at = {"first": 0, "middle": self.data.num_frames // 2, "last": self.data.num_frames - 1}.get(position)
        if at is None:
            raise MavliteError(f"position: {position!r} is none of first, middle, last")
        run, skip = Session(self, len(image), **options), self.data.frame_skip
        with run:
            y_e = self._embed(run, low, prompt=prompt)
            known = torch.arange(self.data.num_frames, device=self.device) == at
            with run.clock("interpolation"):
                n, settings = run.candidates, run.settings["extrapolate"]
                given = low.expand(-1, -1, len(known), -1, -1)[:, None]              # read where known only
                filled = cascade.fill_frames(
                    *run.stage("interpolation", "keys", n), given.repeat_interleave(n, dim=0), known,
                    y_e.repeat_interleave(n, dim=0), run.fps, 1, settings=settings,
                    choose=self.choice(n, y_e, run.fps, settings.steps), away_from=self.single_frames)
            frames = self._finish(run, filled[:, 0], y_e, skip, source="key_frames")
        frames[:, :, at * skip] = image.to(frames) * 2 - 1
        return run.video(frames, run.fps * skip)

    @torch.no_grad()
    def interpolate(self, first, last, *, num_frames=16, prompt=None, **options):
        """The frames between two pictures (see `animate`), which come back exactly at both ends.

        Up to 16 frames are made at rate `fps`, amid a window of 16, as upF was taught; more are 16 key frames
        and frames between, of which those are kept that lie nearest to even times. prompt: as in `animate`.
        """
        first, last = (given_pictures(name, picture, self.data)
                       for name, picture in (("first", first), ("last", last)))
        if len(first) != len(last):
            raise MavliteError(f"first, last: {len(first)} and {len(last)} pictures; give as many of each")
        num_frames = number("num_frames", num_frames, int)
        length, most = self.data.num_frames, (self.data.num_frames - 1) * self.data.max_frame_skip + 1
        if not 3 <= num_frames <= most:
            raise MavliteError(f"num_frames: {num_frames} is not within 3 ... {most}, both given ones "
                               "included")
        skip, chosen = cascade.even_times(num_frames, length, self.data.max_frame_skip)
        low = self._small(torch.stack([first, last], dim=2))
        run, start = Session(self, len(first), **options), max(0, length - num_frames) // 2
        ends = [start, start + min(num_frames, length) - 1]
        with run:
            y_e = self._embed(run, low, prompt=prompt)
            frames = torch.zeros(*low.shape[:2], length, *low.shape[3:], device=self.device)
            known = torch.zeros(length, dtype=torch.bool, device=self.device)
            frames[:, :, ends], known[ends] = low, True
            with run.clock("interpolation"):
                filled = cascade.fill_frames(*run.stage("interpolation", "keys"), frames[:, None], known, y_e,
                                             run.fps, 1, settings=run.settings["interpolation"])
            frames = self._finish(run, filled[:, 0, :, ends[0]:ends[1] + 1], y_e, skip, source="key_frames")
        frames[:, :, 0], frames[:, :, -1] = (image.to(frames) * 2 - 1 for image in (first, last))
        return run.video(frames[:, :, chosen], run.fps * skip * (num_frames - 1) / (frames.shape[2] - 1))

    @torch.no_grad()
    def vary(self, video, *, strength=1.0, **options):
        """Another video of the same digits: D^t from the mean embedding of the given one's frames.

        video: a `Video` of the finished size, or a path, see `given_video`; as many of its key frames are
        looked at as D^t makes, 16 from the first. strength in (0, 1]: 1 is a new one; below, D^t starts
        part-way from those, and keeps to them the more the lower it is. It is the share of D^t's steps that
        are taken, rounded: quarters, with the four of the shipped D^t.
        """
        video, strength = given_video(video, self.data), number("strength", strength, float)
        if not 0 < strength <= 1:
            raise MavliteError(f"strength: {strength} is not within (0, 1]")
        run = Session(self, len(video), **self._no_faster(video, options))
        keys = self._small(self._key_frames(video, run.fps))
        with run:
            y_e = self._embed(run, keys, mean=True)
            start = None
            if strength < 1:                                 # a short video stands still at its end
                missing = self.data.num_frames - keys.shape[2]
                start = torch.cat([keys, keys[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
            made = self._decode(run, y_e, start, strength)
            frames = self._finish(run, made, y_e, self.data.frame_skip)
        return run.video(frames, run.fps * self.data.frame_skip)

    @torch.no_grad()
    def extend(self, video, *, num_frames, prompt=None, **options):
        """A video that goes on: key frames extrapolated from its own, with the embedding of the clearest.

        video: a `Video` of the finished size, or a path, see `given_video`. It goes on at its own rate, and
        its frames come back exactly: the last of them is a key frame, and so is every skip-th before it,
        where skip brings the key-frame rate as near as can be to that of the weights. Where `fps` is given,
        that is the key-frame rate, and the finished one fps * the skip of the weights, whatever the video's;
        its frames then come back if it has that rate. prompt: as in `animate`.
        """
        video, num_frames = given_video(video, self.data), number("num_frames", num_frames, int)
        given, skip = video.frames.shape[2], self.data.frame_skip
        if options.get("fps") is None:
            options["fps"], skip = self._own_rate(video)
        run = Session(self, len(video), **self._no_faster(video, options))
        # A GIF rounds its times: 30 fps come back as 30.04. What is not off by half a frame is the same rate.
        exact = abs(video.fps / (run.fps * skip) - 1) < min(0.01, 0.5 / given)
        lead = (given - 1) % skip if exact else 0            # frames before the first key frame
        keys = self._small(video.frames[:, :, lead::skip] if exact
                           else self._key_frames(video, run.fps, every=True))
        least = given + 1 if exact else (keys.shape[2] - 1) * skip + 2
        if not least <= num_frames <= LONGEST:
            raise MavliteError(f"num_frames: {num_frames} is not within {least} ... {LONGEST}: the given "
                               f"video has {least - 1} frames, at {run.fps * skip:g} a second")
        num_keys = -(-(num_frames - lead - 1) // skip) + 1
        with run:
            y_e = self._embed(run, keys, prompt=prompt)
            keys = self._extend(run, keys, num_keys, y_e)
            frames = self._finish(run, keys, y_e, skip, num_frames - lead, source="key_frames")
        if exact:
            own = video.frames.to(frames) * 2 - 1
            frames = torch.cat([own, frames[:, :, given - lead:]], dim=2)
        return run.video(frames, run.fps * skip)

    @torch.no_grad()
    def morph(self, first, last, *, num_videos=5, **options):
        """From one prompt to another: a video for each of some embeddings on the arc between P's two.

        All start from the same noise, so what changes from one to the next comes from the embedding. Hence
        one candidate each, unless more are asked for.
        """
        (first, last), num_videos = checked_prompts([first, last]), number("num_videos", num_videos, int)
        if not 2 <= num_videos <= MOST_MORPHED:
            raise MavliteError(f"num_videos: {num_videos} steps from one prompt to the other are not within "
                               f"2 ... {MOST_MORPHED}")
        run = Session(self, num_videos, same=True, **{"candidates": 1, **options})
        with run:
            ends = self._embed_prompts(run, [first] * (num_videos - 1) + [last])[[0, -1]]
            y_e = spherical(ends[0], ends[1], torch.linspace(0, 1, num_videos, device=self.device))
            run.kept["image_embeds"] = y_e
            frames = self._finish(run, self._decode(run, y_e), y_e, self.data.frame_skip)
        captions = [f"{first} to {last}, {k / (num_videos - 1):.0%}" for k in range(num_videos)]
        return run.video(frames, run.fps * self.data.frame_skip, captions)

    def _small(self, frames):
        """Finished-size frames (b, c, f, s, s) in [0, 1] -> what D^t and upF work on: small, in [-1, 1]."""
        return box_resize(frames.to(self.device), self.data.sizes[0]) * 2 - 1

    def _own_rate(self, video):
        """(key-frame rate, frames per key frame) whose product is the video's rate, both as trained.

        As near as can be to the rate of the weights, but with two key frames or more, or nobody knows which
        way the digits go. A video that is too fast for any is read at the rates of the weights.
        """
        (low, high), given = self.data.fps_range, video.frames.shape[2]
        ways = [(video.fps / skip, skip) for skip in range(1, self.data.max_frame_skip + 1)
                if low <= video.fps / skip <= high]
        ways = [way for way in ways if way[1] < given] or ways or [(self.data.fps, self.data.frame_skip)]
        return min(ways, key=lambda way: abs(math.log(way[0] / self.data.fps)))

    def _no_faster(self, video, options):
        """The options, with a key-frame rate at which the given video has a frame of its own for each key."""
        fps, (lowest, _), few = options.get("fps"), self.data.fps_range, video.frames.shape[2] == 1
        if video.fps < lowest and not few:
            raise MavliteError(f"the given video has {video.fps:g} frames a second, and no key-frame rate "
                               f"below {lowest:g} was trained; give a faster one")
        if fps is None:
            return {**options, "fps": self.data.fps if few else min(self.data.fps, video.fps)}
        if number("fps", fps, float) > 1.01 * video.fps and not few:
            raise MavliteError(f"fps: {fps:g} key frames a second are more than the given video's "
                               f"{video.fps:g} frames a second; choose fewer")
        return options

    def _key_frames(self, video, fps, every=False):
        """The frames (b, c, k, s, s) of a video at key times, as many as D^t makes, or every one."""
        count = int((video.frames.shape[2] - 1) * fps / video.fps + 1e-6) + 1
        times = torch.arange(count if every else min(count, self.data.num_frames))
        return video.frames[:, :, (times * video.fps / fps).round().long()]

    def _embed(self, run, frames, *, mean=False, prompt=None):
        """y_e (b, d): C_y of the clearest of frames (b, c, f, h, w) in [-1, 1], or their mean; or P's."""
        if prompt is not None:
            prompts = checked_prompts(prompt)
            prompts = prompts * len(frames) if isinstance(prompt, str) else prompts
            if len(prompts) != len(frames):
                raise MavliteError(f"prompt: {len(prompts)} for {len(frames)} given; one is enough")
            return self._embed_prompts(run, prompts)
        frames = to_unit(frames)
        with run.clock("clip"), full_precision(self.device):
            if not mean:
                rows = torch.arange(len(frames), device=frames.device)
                frames = frames[rows, :, clearest(frames)][:, :, None]
            folded = rearrange(frames, "b c f h w -> (b f) c h w")
            y_e = self.networks["clip"].image_embeds(folded).float()
            y_e = renormalise(rearrange(y_e, "(b f) d -> b f d", f=frames.shape[2]).mean(dim=1))
        run.kept["image_embeds"] = y_e
        return y_e
