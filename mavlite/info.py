"""`mavlite info`: what the weights are, what they cost, how they were trained."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from mavlite.checked import require, shown
from mavlite.errors import MavliteError
from mavlite.records import check_provenance
from mavlite.stages import CASCADE, MEASURING, STAGES, available, load_clip, load_network, read_config


@torch.no_grad()
def flops_per_frame(stage, network, config):
    """Floating-point operations (two a multiply-add) of one evaluation, for one frame (P: one embedding)."""
    data, entry = config.data, STAGES[stage]
    frames = data.num_frames if entry.temporal else 1
    size = data.sizes[entry.size[0]]
    one = torch.ones(1)
    with FlopCounterMode(display=False) as counter:
        if stage == "clip":
            network.image_embeds(torch.zeros(1, data.channels, size, size))
        elif stage == "judge":
            network(torch.zeros(1, data.channels, 64, 64))
        elif stage in MEASURING:
            network(torch.zeros(1, data.channels, frames, 64, 64))
        elif stage == "critic":
            network(torch.zeros(1, data.channels, frames, size, size), one)
        elif stage == "prior":
            tokens = torch.zeros(1, network.context_length, network.token_dim)
            network(torch.zeros(1, network.embed_dim), one, tokens=tokens,
                    text_embeds=torch.zeros(1, network.embed_dim))
        else:
            shape = (frames, size, size) if entry.temporal else (size, size)
            conditions = {name: one for name in entry.scalars}
            if network.concat_channels:
                conditions["concat"] = torch.zeros(1, network.concat_channels, *shape)
            if network.embed is not None:
                conditions["image_embeds"] = torch.zeros(1, network.embed_dim)
            network(torch.zeros(1, network.in_channels, *shape), one, **conditions)
    return counter.get_total_flops() / frames


def print_info(weights):
    records = available(weights)
    if not records:
        raise MavliteError(f"{weights}: there are no weights here; train some, "
                           "or name another folder with --weights")
    print(f"weights in {weights}\n")
    print(f"{'stage':14s} {'symbol':7s} {'parameters':>10s} {'MFLOP/frame':>11s} "
          f"{'steps':>6s} {'sampler':>8s} {'guidance':>8s}  {'sha256':12s}  trained")
    for stage, record in records.items():
        config = read_config(weights, stage)
        clip = load_clip(weights, config) if STAGES[stage].uses_clip else None
        network, config, _ = load_network(weights, stage, clip)
        path = f"{weights}/{stage}/config.json"
        p, samples = check_provenance(path, record), stage in CASCADE and stage != "clip"
        scores, count = record.get("scores") or {}, sum(t.numel() for t in network.state_dict().values())
        require(isinstance(scores, dict), f"{path}: scores must be an object, not {shown(scores)}")
        mflop = flops_per_frame(stage, network, config) / 1e6
        print(f"{stage:14s} {STAGES[stage].symbol:7s} {count:10,d} {mflop:11.1f} "
              f"{config.sample.steps if samples else '-':>6} {config.sample.sampler if samples else '-':>8} "
              f"{config.sample.guidance_scale if samples else '-':>8}  {record['sha256'][:12]}  "
              f"{p['steps']} steps of {p['batch_size']}, {p['seconds']} s on {p['hardware']} "
              f"({p['precision']}), {p['digits']} digits, from {p['started_from']}, seed {p['seed']}, "
              f"commit {p['commit']}")
        for e in p.get("earlier", []):
            print(f"{'':14s} before: {e['steps']} steps of {e['batch_size']}, {e['seconds']} s on "
                  f"{e['hardware']}, from {e['started_from']}, seed {e['seed']}, commit {e['commit']}")
        for name, score in scores.items():
            print(f"{'':14s} {name}: {score}")
