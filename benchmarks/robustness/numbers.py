"""Numbers that are not finite, that must come out the same, and a machine without a network."""

import math
import os
import shutil
import socket
from unittest import mock

import torch

from benchmarks.robustness.common import Bench, Child, Row, refusal
from benchmarks.robustness.golden import GOLDEN, TOLERANCE, train_all, worst_deviation
from mavlite import checkpoint
from mavlite.cli import main
from mavlite.digits import load_digits
from mavlite.pipeline import MakeAVideo
from mavlite.stages import CASCADE, load_clip
from mavlite.training import MAX_SKIPS, Trainer
from mavlite.video import to_uint8

# ---------------------------------------------------------------- 5. numerics

def poison_data(trainer, value):
    """The last number of everything that the simulator draws becomes `value` (D puts other frames first)."""
    def poison(draw):
        def poisoned(*args):
            out = draw(*args)
            first = out[0] if isinstance(out, tuple) else out
            first.view(-1)[-1] = value
            return out
        return poisoned
    for source in (getattr(trainer.objective, name, None) for name in ("clips", "pairs")):
        for name in ("frames", "clips", "pairs", "condition_frames"):
            if hasattr(source, name):
                setattr(source, name, poison(getattr(source, name)))


def poison_loss(trainer, value):
    loss = trainer.objective.loss
    trainer.objective.loss = lambda *args: loss(*args) * value


def poison_gradient(trainer, value):
    """A finite loss whose gradient is not: the last parameter's becomes `value`."""
    trainer.parameters[-1].register_hook(lambda grad: grad * value)


def poison_weight(trainer, value):
    with torch.no_grad():
        trainer.parameters[-1].view(-1)[0] = value           # the last is used in every step


POISONS = {"data": (poison_data, "input"), "loss": (poison_loss, "the loss"),
           "gradients": (poison_gradient, "the gradient of"), "weights": (poison_weight, "the weight")}


def not_finite(bench):
    stages = CASCADE if bench.long else ("clip", "prior", "decoder_t", "sr_h")
    stopped, wrong = 0, []
    for stage in stages:
        for where, (poison, named) in POISONS.items():
            for value in (math.nan, math.inf):
                run = shutil.copytree(bench.folder / "straight" / stage,
                                      bench.folder / "poisoned" / f"{stage}-{where}-{value}")
                trainer = Trainer(bench.config(stage, "train.steps=6"), run, weights=bench.weights,
                                  resume=True, device="cpu")
                poison(trainer, value)
                before = [p.detach().clone() for p in trainer.parameters]
                message = refusal(lambda: list(trainer.steps()))
                intact = all(torch.equal(a.nan_to_num(7), b.nan_to_num(7))
                             for a, b in zip(before, trainer.parameters))
                good = (f"stage {stage}, step 4: {named}" in message and intact
                        and checkpoint.load_checkpoint(run)[1]["step"] == 4)
                stopped += good
                if not good:
                    wrong.append(f"{stage} {where} {value}: {message[:120]}")
    yield Row("numerics", f"NaN and infinity in {', '.join(POISONS)}, {len(stages)} stages",
              f"{stopped} stopped before the update, with stage, step and the first bad tensor"
              + f"; NOT: {wrong}" * bool(wrong), not wrong)


def loss_scaler(bench):
    trainer = Trainer(bench.config("sr_l", "train.steps=1000", "train.precision=fp16"),
                      bench.folder / "overflow", device="cpu")
    trainer.parameters[-1].register_hook(lambda grad: grad * math.inf)
    before, steps = [p.detach().clone() for p in trainer.parameters], []
    message = refusal(lambda: steps.extend(trainer.steps()))
    same = all(torch.equal(a, b) for a, b in zip(before, trainer.parameters))
    counted = [report["skipped"] for report in steps]
    yield Row("numerics", "an fp16 scaler that can only skip",
              f"{trainer.skipped} skips counted, then stopped; no weight changed",
              same and trainer.skipped == MAX_SKIPS and "overflowed" in message
              and counted == list(range(1, MAX_SKIPS)))


# ---------------------------------------------------------------- 9. offline

def offline(bench):
    """Every socket raises, no wait is longer than a second, and no environment variable says so."""
    waits, tried = [], []

    def no_socket(*args, **options):
        tried.append(args)
        raise OSError("no network")

    def sleep(seconds):
        waits.append(seconds)
    run = str(bench.folder / "offline")

    def everything():
        for name in ("MAVLITE_DATA", "MAVLITE_OFFLINE", "HF_HUB_OFFLINE"):
            os.environ.pop(name, None)
        os.chdir(bench.folder)                               # where there is no data folder either
        smoke = ["--weights", str(bench.weights), "--device", "cpu"]
        auto = bench.training("decoder_t", run, "train.steps=1", "data.digits=auto")
        with mock.patch("socket.socket", no_socket), mock.patch("socket.getaddrinfo", no_socket), \
                mock.patch("socket.create_connection", no_socket), mock.patch("time.sleep", sleep):
            assert socket.socket is no_socket
            assert load_digits("test").source == "glyphs"
            assert main(auto) == 0
            assert main(["generate", "two and 4", "--out", "offline.gif", "--num-frames", "4", *smoke]) == 0
            assert main(["info", "--weights", str(bench.weights)]) == 0
            assert refusal(MakeAVideo.from_pretrained, "nobody/nothing", device="cpu")
            public = bench.config("prior", "clip.model=ViT-B-32", "clip.pretrained=laion2b_s34b_b79k")
            assert refusal(load_clip, bench.weights, public)
            if bench.long:
                assert main(["evaluate", "--quick", "--out", "offline.json", *smoke]) == 0
        assert max(waits, default=0) <= 1, sorted(waits)[-5:]
        print(f"\n{len(tried)} attempts to connect, {max(waits, default=0):g} s")
    code, text = Child(everything).ended()
    assert code == 0, text[-2000:]
    attempts, wait = text.splitlines()[-1].split(" attempts to connect, ")
    yield Row("offline", "digits, train, generate, info" + ", evaluate" * bench.long + " with every socket "
              "refused; weights by Hub id and public CLIP refused by name",
              f"all work, longest wait {wait} ({attempts} attempts to connect)", True)


# ---------------------------------------------------------------- 10. determinism

def same_bytes(bench):
    prompts = ["two and 4", "7 and seven", "one and 9", "3 and 5", "0 and eight"][:5 if bench.long else 2]
    sources = {"smoke weights": bench.weights}
    if bench.long:
        sources["the package's weights"] = None
    for name, source, precision in [(*item, p) for item in sources.items() for p in ("fp32", "bf16")]:
        pipe = MakeAVideo.from_pretrained(source, device="cpu", precision=precision)
        options = {"num_frames": 6, "seed": 3}
        whole = pipe(prompts, **options)
        again = pipe(prompts, **options)
        single = torch.cat([pipe(prompt, index=i, **options).frames for i, prompt in enumerate(prompts)])
        difference = (to_uint8(single).int() - to_uint8(whole.frames).int()).abs()
        close = (difference <= 2).float().mean().item()
        same = torch.equal(whole.frames, again.frames)
        yield Row("determinism", f"{name} in {pipe.precision}: the same call twice; batch size 1 and "
                  f"{len(prompts)}", f"{'the same' if same else 'DIFFERENT'} bytes; {100 * close:.2f} % of "
                  f"pixels within 2 grey levels, at most {difference.max()}",
                  same and close >= 0.99)


def golden(bench):
    losses = train_all(Bench(bench.folder / "golden"), "fp64")
    worst, stage = worst_deviation(losses)
    yield Row("determinism", f"golden loss curves ({GOLDEN.name}), {len(losses)} stages in fp64, torch "
              f"{torch.__version__.split('+')[0]}", f"largest deviation {100 * worst:.2g} % ({stage}), "
              f"{100 * TOLERANCE:g} % allowed", worst <= TOLERANCE)
