"""A sample picture of a stage in training: what its averaged weights make of a few conditions."""

from pathlib import Path

import imageio.v3
import torch
from einops import rearrange

from mavlite import cascade
from mavlite.device import autocast
from mavlite.moving_mnist import box_resize
from mavlite.prompts import PAIRS, make_prompt
from mavlite.session import to_unit
from mavlite.training import uninterrupted
from mavlite.video import contact_sheet

COUNT = 6                                    # rows of the picture
FIRST_INDEX = 1_000_000_000                  # clips that no step of training reaches


@torch.no_grad()
def save_preview(trainer, path):
    """Write a PNG for the trainer's stage: samples above one another, with what they were made from.

    None in fp64, which is for looking at rounding: nothing here draws such noise.
    """
    if trainer.precision == "fp64":
        return
    current = {name: p.detach().clone() for name, p in trainer.network.state_dict().items()}
    try:
        trainer.network.load_state_dict(trainer.averaged())
        trainer.network.eval()
        with autocast(trainer.device, trainer.precision):
            picture = PREVIEWS[trainer.config.stage](trainer)
    finally:
        with uninterrupted():                                # or Ctrl-C would save the average as the network
            trainer.network.load_state_dict(current)
            trainer.network.train()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.v3.imwrite(path, picture)


def _sheet(rows, **options):
    return contact_sheet(to_unit(rows.float()).cpu(), **options)


def _indices():
    return range(FIRST_INDEX, FIRST_INDEX + COUNT)


def _noise(trainer):
    return cascade.Noise(0, range(COUNT), trainer.config.stage, trainer.device)


def _similarity(matrix):
    """A matrix of cosines as an enlarged grey picture: white is 1, black is -1."""
    grey = ((matrix.float().cpu().clamp(-1, 1) + 1) * 127.5).byte().numpy()
    return grey.repeat(8, axis=0).repeat(8, axis=1)


def _by_pair(trainer):
    """Frames and prompts of the first clip of each pair of digits."""
    pairs = trainer.objective.pairs
    indices = range(FIRST_INDEX, FIRST_INDEX + 1024)
    digits = pairs.labels(indices).sort(dim=1).values.tolist()
    first = {}
    for index, pair in zip(indices, digits):
        first.setdefault(tuple(pair), index)
    found = [pair for pair in PAIRS if pair in first]
    frames = pairs.pairs([first[pair] for pair in found], trainer.config.data.sizes[0])[0]
    return frames, [make_prompt(*pair, False, True) for pair in found]


def preview_clip(trainer):
    """Cosine of each pair's frame (row) with each pair's prompt (column): a bright diagonal when trained."""
    frames, prompts = _by_pair(trainer)
    image, text = trainer.network.image_embeds(frames), trainer.network.text(prompts)[1]
    return _similarity(torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T)


def preview_prior(trainer):
    """Cosine of the embedding made for every pair's prompt (row) with every pair's real frame (column)."""
    frames, prompts = _by_pair(trainer)
    tokens, text = (x.float() for x in trainer.objective.clip.text(prompts))
    noise = cascade.Noise(0, range(len(prompts)), "prior", trainer.device)
    made = cascade.run_prior(trainer.network, trainer.config, noise, tokens, text)
    real = trainer.objective.clip.image_embeds(frames)
    return _similarity(torch.nn.functional.normalize(made) @ torch.nn.functional.normalize(real).T)


def preview_decoder(trainer):
    """One row a condition: the conditioning frame, then frames made from its embedding."""
    size = trainer.config.data.sizes[0]
    given = trainer.objective.clips.condition_frames(_indices(), size) * 2 - 1
    y_e = trainer.objective.condition(_indices()).float()
    noises = [cascade.Noise(k, range(COUNT), "decoder", trainer.device) for k in range(7)]
    made = [cascade.run_decoder(trainer.network, trainer.config, noise, y_e) for noise in noises]
    return _sheet(torch.stack([given, *made], dim=2))


def preview_decoder_t(trainer):
    """One row a condition: the conditioning frame, then the key frames of one clip.

    Guided away from D^t's own unconditional prediction: a training does not hold D, as the pipeline does.
    """
    size, data = trainer.config.data.sizes[0], trainer.config.data
    given = trainer.objective.clips.condition_frames(_indices(), size)[:, :, None] * 2 - 1
    y_e = trainer.objective.condition(_indices()).float()
    made = cascade.run_decoder_t(trainer.network, trainer.config, _noise(trainer), y_e, data.fps)
    return _sheet(torch.cat([given, made], dim=2), columns=data.num_frames + 1)


def preview_interpolation(trainer):
    """Real key frames filled in: the first window of each clip."""
    data = trainer.config.data
    keys = trainer.objective.clips.clips(_indices(), data.fps, 4, data.sizes[0])[0] * 2 - 1
    y_e = trainer.objective.condition(_indices()).float()
    made = cascade.run_interpolation(trainer.network, trainer.config, _noise(trainer), keys, y_e, data.fps,
                                     data.frame_skip)
    return _sheet(made, columns=made.shape[2])


def preview_super_resolution(trainer):
    """Triples of columns: the small frame enlarged, what the network makes of it, the true large frame."""
    stage, size = trainer.objective.stage, trainer.objective.size
    small = trainer.config.data.sizes[stage.size[1]]
    full, _ = trainer.objective.clips.clips(_indices(), 10.0, 4, 64)
    low, true = box_resize(full, small) * 2 - 1, box_resize(full, size) * 2 - 1
    made = cascade.run_super_resolution(trainer.network, trainer.config, _noise(trainer), low,
                                        shared_noise=trainer.config.stage == "sr_h")
    columns = torch.stack([cascade.upsample(low, size), made.to(true.dtype), true], dim=3)
    return _sheet(columns.flatten(2, 3), columns=12)


def preview_judge(trainer):
    """Probability of every pair (column) for frames of every pair (row)."""
    frames, _ = _by_pair(trainer)
    return _similarity(trainer.network(frames).softmax(dim=-1) * 2 - 1)


def preview_tracker(trainer):
    """Real clips, with a grey dot on each centre that was found."""
    data, objective = trainer.config.data, trainer.objective
    frames, _ = objective.clips.clips(_indices(), data.fps, data.num_frames, 64)
    found = trainer.network(frames)                                                  # b f k 2
    pixel = torch.arange(64, device=frames.device) + 0.5
    near = (pixel - found[..., None]).abs() < 2                                      # b f k yx 64
    dots = (near[..., 0, :, None] & near[..., 1, None, :]).any(dim=2)                # b f 64 64
    return _sheet(torch.where(dots[:, None], 0.5, frames) * 2 - 1, columns=data.num_frames)


def preview_video_features(trainer):
    """Probability of every pair (column) for one clip of every pair (row)."""
    clips, data = trainer.objective.clips, trainer.config.data
    indices = range(FIRST_INDEX, FIRST_INDEX + 1024)
    labels = clips.labels(indices).sort(dim=1).values.tolist()
    first = {tuple(pair): index for index, pair in zip(indices, labels)}
    frames, _ = clips.clips([first[pair] for pair in PAIRS if pair in first], data.fps, data.num_frames, 64)
    return _similarity(trainer.network(frames)[0].softmax(dim=-1) * 2 - 1)


def preview_critic(trainer):
    """Clips with rendered faults, a row each; below, a bar as bright as the probability of one, and below it
    as bright as the truth."""
    data, objective = trainer.config.data, trainer.objective
    pair = objective.clips.pairs(_indices(), data.fps, data.num_frames, objective.size)
    faults, _ = trainer.network(pair.frames * 2 - 1, pair.fps.log())
    bars = torch.stack([faults.sigmoid(), pair.at_fault.to(faults.dtype)], dim=1)    # b 2 f
    bars = bars[..., None].repeat_interleave(2, dim=1).expand(-1, -1, -1, objective.size)            # b 4 f w
    bars = rearrange(bars, "b h f w -> b 1 f h w").expand(-1, data.channels, -1, -1, -1)
    return _sheet(torch.cat([pair.frames, bars], dim=3) * 2 - 1, columns=data.num_frames)


PREVIEWS = {"clip": preview_clip, "prior": preview_prior, "decoder": preview_decoder,
            "decoder_t": preview_decoder_t, "interpolation": preview_interpolation,
            "sr_l": preview_super_resolution, "sr_l_t": preview_super_resolution,
            "sr_h": preview_super_resolution, "judge": preview_judge, "tracker": preview_tracker,
            "video_features": preview_video_features, "critic": preview_critic}
