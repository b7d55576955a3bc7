"""Beside two open U-Nets for video, in one run on the same work.

    pip install -e ".[bench]"
    python -m benchmarks.peers [--weights DIR] [--repeats 5] [--micro-batch 8] [--out docs/peers.md]

The work is a batch of 8 clips of 16 x 32 x 32, one channel: one evaluation, and one training step (forward,
squared error, backward, AdamW). Beside D^t stand make-a-video-pytorch's SpaceTimeUnet at dim 64, and at a
dim that makes it about as large as D^t, and diffusers' UNet3DConditionModel at widths that do. All are in the
same precision, on as many threads, each in a process of its own and in whichever of two memory layouts it
evaluates faster. FLOPs are torch's count of matrix products and convolutions for one clip, times 8.

Then text -> clip: ours as it is, and a loop of 50 steps around each peer, guided and not. For no peer are
there weights or text for such clips, so that loop is arithmetic: 50 x the seconds of one evaluation, of one
clip or, guided, of two.
"""

import argparse
import importlib
import importlib.util
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.command import command_line, machine, run, table, write
from benchmarks.timing import in_own_process, median_seconds, stage_seconds
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast, keep_freed_memory, peak_memory, pick_device, pick_precision
from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo
from mavlite.stages import build_network, load_clip, read_config

BATCH, SHAPE = 8, (1, 16, 32, 32)            # clips; channels, frames, height, width
LOOP = 50                                    # steps of the loop around a peer
OURS, TEXT_WIDTH = "mavlite D^t", 64
PEERS = {                                    # module, class, its options
    "SpaceTimeUnet, dim 64": ("make_a_video_pytorch", "SpaceTimeUnet", {"dim": 64, "channels": SHAPE[0]}),
    "SpaceTimeUnet, dim 16": ("make_a_video_pytorch", "SpaceTimeUnet", {"dim": 16, "channels": SHAPE[0]}),
    "UNet3DConditionModel, 32 and 64 wide": ("diffusers", "UNet3DConditionModel", {
        "in_channels": SHAPE[0], "out_channels": SHAPE[0], "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "attention_head_dim": 32, "cross_attention_dim": TEXT_WIDTH}),
}
# Of the weights of 2-D convolutions; activations follow. (UNet3DConditionModel's 3-D convolutions are left as
# they are: channels last made it slower than as built.)
LAYOUTS = {"as built": torch.contiguous_format, "channels last": torch.channels_last}


def peer_class(name):
    module, kind, _ = PEERS[name]
    return getattr(importlib.import_module(module), kind)


def build(name, weights):
    """(network, predict): predict(x_t (b c f h w), t (b,) in [0, 1]) -> the network's output."""
    if name in PEERS:
        network = peer_class(name)(**PEERS[name][2])
        if PEERS[name][1] == "SpaceTimeUnet":
            return network, lambda x, t: network(x, timestep=t * 1000)
        return network, lambda x, t: network(x, t * 1000, x.new_zeros(len(x), 1, TEXT_WIDTH)).sample
    config = read_config(weights, "decoder_t")
    clip = load_clip(weights, config)
    network = build_network(config, clip)

    def predict(x, t):
        return network(x, t, image_embeds=x.new_zeros(len(x), clip.embed_dim), fps=torch.zeros_like(t))
    return network, predict


def set_layout(network, layout):
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=LAYOUTS[layout])


def measure(name, weights, repeats, micro_batch=BATCH):
    """One network, in this process: a dict of seconds, FLOPs, bytes, parameters and layout.

    micro_batch: how many clips a training step takes at a time; gradients add up over the batch.
    """
    keep_freed_memory()
    device = pick_device()
    precision = pick_precision(device)
    if name in PEERS:
        peer_class(name)                                     # importing is no part of its memory
    before = peak_memory(device)
    network, predict = build(name, weights)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters())

    def inputs(batch):
        return torch.randn(batch, *SHAPE, device=device), torch.rand(batch, device=device)

    def evaluate(x, t):
        with torch.no_grad(), autocast(device, precision):
            predict(x, t)

    def train(x, t):
        optimizer.zero_grad(set_to_none=True)
        for x_part, t_part in zip(x.split(micro_batch), t.split(micro_batch)):
            with autocast(device, precision):
                error = F.mse_loss(predict(x_part, t_part).float(), torch.zeros_like(x_part))
            (error * len(x_part) / len(x)).backward()
        optimizer.step()

    def flops(step):                                         # written-out attention: all of it is counted
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            step(*inputs(1))
        return counter.get_total_flops()

    def seconds(step, batch):
        x, t = inputs(batch)
        return median_seconds(lambda: step(x, t), device, repeats)

    result = {"name": name, "parameters": sum(p.numel() for p in network.parameters())}
    network.eval()
    guided = {}
    for layout in LAYOUTS:
        set_layout(network, layout)
        guided[layout] = seconds(evaluate, 2)
    layout = min(guided, key=guided.get)
    set_layout(network, layout)
    result |= {"layout": layout, "guided, s": guided[layout], "unguided, s": seconds(evaluate, 1)}
    for kind, step in (("evaluation", evaluate), ("training", train)):               # the peak only grows
        network.train(kind == "training")
        result[f"{kind}, s"] = seconds(step, BATCH)
        result[f"{kind}, bytes"] = peak_memory(device) - before
    for kind, step in (("evaluation", evaluate), ("training", train)):
        result[f"{kind}, flops"] = BATCH * flops(step)
    return result


def text_to_clip(weights, repeats):
    """Median seconds of our key frames and of the whole cascade, and how many steps each takes."""
    pipe = MakeAVideo.from_pretrained(weights)
    seconds, whole = stage_seconds(pipe, repeats)
    return {"keys": sum(seconds[stage] for stage in ("clip", "prior", "decoder_t")), "whole": whole,
            "steps": {stage: pipe.configs[stage].sample.steps for stage in seconds if stage in pipe.configs},
            "frames": (pipe.data.num_frames, pipe.data.sizes[0],
                       (pipe.data.num_frames - 1) * pipe.data.frame_skip + 1, pipe.data.sizes[-1])}


def times(value, ours):
    """How many times ours: "12 x"."""
    return f"{value / ours:.3g} ×"


def step_table(results):
    """Networks side by side; the first is ours."""
    ours, rows = results[0], []
    for one in results:
        row = [one["name"], f"{one['parameters'] / 1e6:.2f}", one["layout"]]
        for kind in ("evaluation", "training"):
            seconds, flops = one[f"{kind}, s"], one[f"{kind}, flops"]
            row += [f"{seconds:.3f}", times(seconds, ours[f"{kind}, s"]), f"{flops / 1e9:.0f}",
                    times(flops, ours[f"{kind}, flops"]), f"{one[f'{kind}, bytes'] / 2**30:.2f}"]
        rows.append(row)
    columns = ["s", "of ours", "GFLOP", "of ours", "peak GiB"]
    return table(["network", "M parameters", "layout", *(f"{kind}: {column}" for kind in
                                                         ("evaluation", "training step")
                                                         for column in columns)], rows)


def clip_table(results, ours):
    """From text to a clip."""
    f, size, length, large = ours["frames"]
    steps = ours["steps"]
    rows = [[f"mavlite, C, P and D^t: {f} frames of {size} px", steps["prior"] + steps["decoder_t"],
             f"{ours['keys']:.3f}", times(ours["keys"], ours["keys"]), times(ours["keys"], ours["whole"])],
            [f"mavlite, whole cascade: {length} frames of {large} px", sum(steps.values()),
             f"{ours['whole']:.3f}", times(ours["whole"], ours["keys"]), times(ours["whole"], ours["whole"])]]
    for one in results[1:]:
        for way in ("unguided", "guided"):
            loop = LOOP * one[f"{way}, s"]
            rows.append([f"{LOOP} × one {way} step of {one['name']}: {SHAPE[1]} frames of {SHAPE[2]} px",
                         LOOP, f"{loop:.3f}", times(loop, ours["keys"]), times(loop, ours["whole"])])
    return table(["text → clip", "steps", "s", "of our key frames", "of our cascade"], rows)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--micro-batch", type=int, default=BATCH, choices=(1, 2, 4, 8),
                   help="clips at a time in a training step, of all networks: fewer where memory is short")
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if args.repeats < 1:
        raise MavliteError(f"--repeats {args.repeats}: must be 1 or more")
    results, missing = [], []
    for name in tqdm([OURS, *PEERS], unit="network"):
        module = PEERS.get(name, ("mavlite",))[0]
        if importlib.util.find_spec(module) is None:
            missing.append(f"{name}: is not installed, pip install {module.replace('_', '-')}")
            continue
        try:
            results.append(in_own_process(measure, name, args.weights, args.repeats, args.micro_batch))
        except MavliteError as error:
            if name == OURS:
                raise
            missing.append(f"{name}: {error}; try --micro-batch 1")
    for line in missing:
        print(line, file=sys.stderr)
    ours = in_own_process(text_to_clip, args.weights, args.repeats)
    device = pick_device()
    at_a_time = "" if args.micro_batch == BATCH else f", {args.micro_batch} clips at a time"
    write(f"`{command_line()}`: {machine(device, pick_precision(device))}. Batch of {BATCH} clips "
          f"of {' × '.join(map(str, SHAPE[1:]))}, median of {args.repeats} after warm-up. A training step is "
          f"forward, squared error, backward and AdamW{at_a_time}. Layout: the faster of two. FLOPs are of "
          "matrix products and convolutions. Peak memory holds weights, activations and, in training, "
          "gradients and AdamW's averages, and not what PyTorch takes by itself."
          + "".join(f" Not measured: {line}." for line in missing) + "\n\n" + step_table(results)
          + "\nThe peers' loops were not run: each is the seconds of one evaluation, of one clip or, guided, "
          f"of two, times {LOOP}.\n\n" + clip_table(results, ours), args.out)


if __name__ == "__main__":
    run(main)
