"""Beside two open U-Nets for video, in one run on the same work.

    pip install -e ".[bench]"
    python -m benchmarks.peers [--weights DIR] [--repeats 5] [--out docs/peers.md]

The work is a batch of 8 clips of 16 x 32 x 32, one channel: one evaluation, and one training step
(forward, squared error, backward). D^t stands beside make-a-video-pytorch's SpaceTimeUnet (dim 64) and
diffusers' UNet3DConditionModel with the same four widths, 64 ... 512; all in the same precision, each in a
process of its own. Then text -> clip: ours as it is, and a loop of 50 guided steps around each peer. For
neither are there weights or text for such clips, so that loop is arithmetic: the seconds of one evaluation
of two clips (guidance's doubled batch), times 50.
"""

import argparse
import importlib.util
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.command import machine, run, table, write
from benchmarks.timing import median_seconds
from mavlite.checkpoint import SHIPPED
from mavlite.device import autocast, keep_freed_memory, pick_device, pick_precision
from mavlite.errors import MavliteError
from mavlite.pipeline import MakeAVideo
from mavlite.stages import build_network, load_clip, read_config

BATCH, SHAPE = 8, (1, 16, 32, 32)            # clips; channels, frames, height, width
LOOP = 50                                    # steps of the loop around a peer
OURS, SPACE_TIME, UNET_3D = "mavlite D^t", "SpaceTimeUnet", "UNet3DConditionModel"
NEEDS = {SPACE_TIME: ("make_a_video_pytorch", "make-a-video-pytorch"), UNET_3D: ("diffusers", "diffusers")}


def build(name, weights):
    """(network, predict): predict(x_t (b c f h w), t (b,) in [0, 1]) -> the network's output."""
    if name == SPACE_TIME:
        from make_a_video_pytorch import SpaceTimeUnet
        network = SpaceTimeUnet(dim=64, channels=SHAPE[0])
        return network, lambda x, t: network(x, timestep=t * 1000)
    if name == UNET_3D:
        from diffusers import UNet3DConditionModel
        network = UNet3DConditionModel(sample_size=SHAPE[-1], in_channels=SHAPE[0], out_channels=SHAPE[0],
                                       block_out_channels=(64, 128, 256, 512), cross_attention_dim=64)
        return network, lambda x, t: network(x, t * 1000, x.new_zeros(len(x), 1, 64)).sample
    config = read_config(weights, "decoder_t")
    clip = load_clip(weights, config)
    network = build_network(config, clip).to(memory_format=torch.channels_last)

    def predict(x, t):
        return network(x, t, image_embeds=x.new_zeros(len(x), clip.embed_dim), fps=torch.zeros_like(t))
    return network, predict


def peak_memory(device):
    """Bytes: on a CUDA device what tensors took at most, elsewhere what the whole process did."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(name, weights, repeats):
    """One network, in this process: a dict of seconds, FLOPs, bytes and parameters."""
    keep_freed_memory()
    device = pick_device()
    precision = pick_precision(device)
    before = peak_memory(device)
    network, predict = build(name, weights)
    network.to(device).eval()

    def inputs(batch):
        return torch.randn(batch, *SHAPE, device=device), torch.rand(batch, device=device)

    def evaluate(x, t):
        with torch.no_grad(), autocast(device, precision):
            predict(x, t)

    def train(x, t):
        network.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = F.mse_loss(predict(x, t).float(), torch.zeros_like(x))
        loss.backward()

    def flops(step):                                         # written-out attention: all of it is counted
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            step(*inputs(1))
        return counter.get_total_flops()

    result = {"name": name, "parameters": sum(p.numel() for p in network.parameters())}
    x, t = inputs(BATCH)
    for kind, step in (("evaluation", evaluate), ("training", train)):               # the peak only grows
        result[f"{kind}, s"] = median_seconds(lambda: step(x, t), device, repeats)
        result[f"{kind}, bytes"] = peak_memory(device) - before
    x, t = inputs(2)
    result["guided, s"] = median_seconds(lambda: evaluate(x, t), device, repeats)
    for kind, step in (("evaluation", evaluate), ("training", train)):
        result[f"{kind}, flops"] = BATCH * flops(step)
    return result


def text_to_clip(weights, repeats):
    """Median seconds of our key frames and of the whole cascade, and how many evaluations each takes."""
    pipe = MakeAVideo.from_pretrained(weights)
    pipe("two and 4")
    runs = [pipe("two and 4", seed=k).seconds for k in range(repeats)]
    keys = statistics.median(sum(one[stage] for stage in ("clip", "prior", "decoder_t")) for one in runs)
    return {"keys": keys, "whole": statistics.median(sum(one.values()) for one in runs),
            "steps": {stage: config.sample.steps for stage, config in pipe.configs.items()},
            "frames": (pipe.data.num_frames, pipe.data.sizes[0],
                       (pipe.data.num_frames - 1) * pipe.data.frame_skip + 1, pipe.data.sizes[-1])}


def times(value, ours):
    """How many times ours: "12 x"."""
    return f"{value / ours:.3g} ×"


def step_table(results):
    """Networks side by side; the first is ours."""
    ours, rows = results[0], []
    for one in results:
        row = [one["name"], f"{one['parameters'] / 1e6:.1f}"]
        for kind in ("evaluation", "training"):
            seconds, flops = one[f"{kind}, s"], one[f"{kind}, flops"]
            row += [f"{seconds:.3f}", times(seconds, ours[f"{kind}, s"]), f"{flops / 1e9:.0f}",
                    times(flops, ours[f"{kind}, flops"]), f"{one[f'{kind}, bytes'] / 2**30:.2f}"]
        rows.append(row)
    columns = ["s", "of ours", "GFLOP", "of ours", "peak GiB"]
    return table(["network", "M parameters", *(f"{kind}: {column}" for kind in ("evaluation", "training step")
                                               for column in columns)], rows)


def clip_table(results, ours):
    """From text to a clip."""
    f, size, length, large = ours["frames"]
    rows = [[f"mavlite, C, P and D^t: {f} frames of {size} px", ours["steps"]["decoder_t"],
             f"{ours['keys']:.3f}", times(ours["keys"], ours["keys"]), times(ours["keys"], ours["whole"])],
            [f"mavlite, whole cascade: {length} frames of {large} px", sum(ours["steps"].values()),
             f"{ours['whole']:.3f}", times(ours["whole"], ours["keys"]), times(ours["whole"], ours["whole"])]]
    for one in results[1:]:
        loop = LOOP * one["guided, s"]
        rows.append([f"{LOOP} guided evaluations of {one['name']}: {SHAPE[1]} frames of {SHAPE[2]} px", LOOP,
                     f"{loop:.3f}", times(loop, ours["keys"]), times(loop, ours["whole"])])
    return table(["text → clip", "steps", "s", "of our key frames", "of our cascade"], rows)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", default=SHIPPED)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--out", metavar="MARKDOWN")
    args = p.parse_args()
    if args.repeats < 1:
        raise MavliteError(f"--repeats {args.repeats}: must be 1 or more")
    names = [OURS]
    for name, (module, package) in NEEDS.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name} is left out: pip install {package}   (or both: pip install -e \".[bench]\")",
                  file=sys.stderr)
        else:
            names.append(name)
    # Processes of their own, so that the peak of memory is too.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"),
                             max_tasks_per_child=1) as pool:
        try:
            results = [pool.submit(measure, name, args.weights, args.repeats).result()
                       for name in tqdm(names, unit="network")]
            ours = pool.submit(text_to_clip, args.weights, args.repeats).result()
        except BrokenProcessPool:
            raise MavliteError("a measuring process was killed, probably for want of memory; "
                               "uninstall the largest peer or use a larger machine") from None
    device = pick_device()
    write(f"Batch of {BATCH} clips of {' × '.join(map(str, SHAPE[1:]))}, median of {args.repeats}, "
          f"`python -m benchmarks.peers`: {machine(device, pick_precision(device))}. Peak memory holds "
          "weights, activations and, in training, gradients, and not what PyTorch takes by itself.\n\n"
          + step_table(results) + "\nThe peers' loop is not run: it is one evaluation of two clips "
          f"(guidance doubles the batch) times {LOOP}.\n\n" + clip_table(results, ours), args.out)


if __name__ == "__main__":
    run(main)
