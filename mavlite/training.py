"""One trainer for every stage.

    for report in Trainer(config, run).steps(): ...

AdamW or Muon, warm-up and decay, gradient clipping, EMA, mixed precision, gradient accumulation, atomic
checkpoints with exact resume, data-parallel under plain `torchrun`. What is trained, and on what, is in
objectives.py; nothing here knows a stage.
"""

import json
import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mavlite import checkpoint
from mavlite.batch import Batch, Draws
from mavlite.config import Config
from mavlite.device import autocast, pick_device, pick_precision, synchronize
from mavlite.digits import first_process, load_digits
from mavlite.errors import MavliteError
from mavlite.finite import first_not_finite
from mavlite.objectives import OBJECTIVES, frames_per_sample
from mavlite.optim import build_optimizers, rate
from mavlite.records import check_state
from mavlite.stages import STAGES, load_clip
from mavlite.starting import earlier_trainings, initial_network
from mavlite.training_log import Log, commit, hardware

MAX_SKIPS = 50                               # steps in a row that the fp16 loss scaler may skip


def join_ranks(device):
    """(rank, world, device): joins torchrun's process group if there is one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), world, device


def wait_for_ranks():
    """Return when all ranks have come here, such as after rank 0 wrote what the others will read."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def uninterrupted():
    """Ctrl-C or SIGTERM within this block takes effect at its end: what belongs together is done whole."""
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    if None in before.values() or threading.current_thread() is not threading.main_thread():
        yield                                                # not ours to change, or never interrupted
        return
    came = []
    for which in before:
        signal.signal(which, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
    if came:
        signal.raise_signal(came[0])


@contextmanager
def compiling(asked):
    """What torch.compile raises in the first step on a machine that cannot compile, as one line."""
    if not asked:
        yield
        return
    # Seconds to import: for those who asked.
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError
    try:
        yield
    except (TorchDynamoException, CppCompileError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MavliteError(f"train.compile: torch.compile failed here ({reason}); install a C++ compiler, "
                           "or train with --set train.compile=false") from None


class Trainer:
    """Trains one stage in a run folder.

    config: of the stage. run: folder for checkpoints, log and weights. weights: a folder of weights
    folders, for C and the stage to inflate. resume: go on from the run's newest checkpoint (or start if it
    has none).
    """

    def __init__(self, config: Config, run, *, weights=checkpoint.SHIPPED, init_from=None, resume=False,
                 device=None):
        self.config, self.run, self.train = config, Path(run), config.train
        self.rank, self.world, self.device = join_ranks(pick_device(device))
        if self.train.batch_size % (self.train.accumulate * self.world):
            raise MavliteError(f"train.batch_size: {self.train.batch_size} does not split over {self.world} "
                               f"ranks and {self.train.accumulate} micro-batches")
        trained = init_from is not None or (resume and checkpoint.checkpoints(self.run))
        if config.adversarial.critic is not None and not trained:
            raise MavliteError(f"stage {config.stage}: a critic teaches who can walk already; add "
                               "--init-from with a student's weights, or set adversarial.critic to null")
        self.precision = pick_precision(self.device, self.train.precision)
        dtype = torch.float64 if self.precision == "fp64" else torch.float32

        clip, self.clip_sha = None, None                     # which weights C has, unless it is a public one
        if STAGES[config.stage].uses_clip:
            clip = load_clip(weights, config, self.device).to(dtype)
            if config.clip.model == "tiny":
                self.clip_sha = checkpoint.read_record(Path(weights) / "clip", "clip")["sha256"][:12]
        if init_from is None and config.distill.teacher is not None:
            init_from = Path(config.distill.teacher) / config.stage      # a student starts as a copy
        network, self.origin = initial_network(config, clip, weights, init_from)
        if config.student:                                   # none is asked without its condition, but D
            for name, p in network.named_parameters():
                p.requires_grad_(not name.startswith("null_"))
        self.earlier = earlier_trainings(init_from, config.stage) if init_from else []
        in_3d = any(p.ndim == 5 for p in network.parameters())         # the critic's kernels
        self.network = network.to(self.device, dtype, memory_format=torch.channels_last_3d if in_3d
                                  else torch.channels_last)
        self.network.train()
        if first_process():
            load_digits("train", config.data.digits)         # may download what the other ranks then read
        wait_for_ranks()
        self.objective = OBJECTIVES[config.stage](config, clip, self.device, dtype)
        self.parallel = torch.compile(self.network) if self.train.compile else self.network
        if self.world > 1:
            self.parallel = DistributedDataParallel(
                self.parallel, device_ids=[self.device] if self.device.type == "cuda" else None)
        self.optimizers, self.contest = build_optimizers(self.network, self.train), self.objective.contest
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.ema = {name: p.detach().clone() for name, p in self.network.named_parameters()
                    if p.requires_grad}
        self.step, self.seconds, self.code = 0, 0.0, commit()        # now: files may change meanwhile
        self.skipped, self.skipped_in_a_row = 0, 0           # steps whose gradients overflowed fp16
        if self.rank == 0:                                   # nothing is left behind by what is refused above
            self.lock = checkpoint.claim(self.run)           # held for as long as this trainer lives
        wait_for_ranks()
        if not resume and checkpoint.checkpoints(self.run):  # those that the claim has put right, too
            raise MavliteError(f"{self.run} holds a run already; add --resume to continue it, or choose "
                               "another --out")
        if resume:
            self._restore()
        if self.rank == 0:                                   # after _restore, which may refuse this config
            content = json.dumps(self.config.to_dict(), indent=2)
            checkpoint.write_file(self.run / "config.json", content.encode())

    # ------------------------------------------------------------ run folder

    def _restore(self):
        tensors, state = checkpoint.load_checkpoint(self.run)
        if tensors is None:
            return
        check_state(self.run, state)
        wanted, had = self.config.to_dict(), Config.from_dict(state["config"]).to_dict()
        for key in ("stage", "data", "clip", "model", "diffusion", "distill", "adversarial"):
            if wanted[key] != had[key]:
                raise MavliteError(f"{self.run}: was trained with another {key} section; resume with the "
                                   "same configuration, or choose another --out")
        for key in ("optimizer", "batch_size", "seed"):      # what the checkpoint is made of, which clips
            if wanted["train"][key] != had["train"][key]:
                hint = " (train.accumulate splits one that is too large)" if key == "batch_size" else ""
                raise MavliteError(f"{self.run}: was trained with train.{key} {had['train'][key]}; resume "
                                   f"with the same{hint}, or choose another --out and --init-from")
        if state.get("clip") not in (None, self.clip_sha):   # None: C is public, or the checkpoint an old one
            raise MavliteError(f"{self.run}: was trained with other weights of clip ({state['clip']}, now "
                               f"{self.clip_sha}); resume with the same --weights, or choose another --out")
        if state.get("digits") not in (None, self.objective.digits_source):
            raise MavliteError(f"{self.run}: was trained on {state['digits']} digits, and here are "
                               f"{self.objective.digits_source}; see data/README.md, or choose another --out")
        walk = self.config.walk.section
        if self.config.student and wanted[walk]["steps"] != had[walk]["steps"]:
            raise MavliteError(f"{self.run}: is a student of {had[walk]['steps']} {walk}.steps; resume with "
                               "as many, or choose another --out")
        checkpoint.restore(tensors, self.run, self.network, self.ema, *self._others())
        if state["scaler"]:                                  # empty unless the run was in fp16 so far
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.origin = state["step"], state["seconds"], state["origin"]
        self.earlier = state.get("earlier", [])
        self.skipped = state.get("skipped", 0)

    def _others(self):
        """What a checkpoint holds beside the network and its averages: all optimizers, and the critic."""
        if self.contest is None:
            return self.optimizers, None
        return [*self.optimizers, self.contest.optimizer], self.contest.critic

    def save(self):
        """Checkpoint now (rank 0)."""
        if self.rank == 0:
            state = {"config": self.config.to_dict(), "seconds": self.seconds, "origin": self.origin,
                     "earlier": self.earlier, "clip": self.clip_sha, "scaler": self.scaler.state_dict(),
                     "skipped": self.skipped, "digits": self.objective.digits_source}
            optimizers, critic = self._others()
            checkpoint.save_checkpoint(self.run, self.step, self.network, self.ema, optimizers, state,
                                       critic=critic, keep=self.train.keep)

    def averaged(self):
        """The network's state with its parameters' moving averages: what is used and shipped."""
        return {**self.network.state_dict(), **self.ema}

    def export(self, folder=None):
        """Write the averaged weights, in 16 bits, as a weights folder with provenance; returns the folder."""
        folder = Path(folder or self.run / "weights")
        provenance = {"steps": self.step, "batch_size": self.train.batch_size, "started_from": self.origin,
                      "seconds": round(self.seconds), "hardware": hardware(self.device),
                      "precision": self.precision, "seed": self.train.seed,
                      "digits": self.objective.digits_source, "torch": torch.__version__, "commit": self.code}
        if self.earlier:
            provenance["earlier"] = self.earlier
        if self.clip_sha:
            provenance["clip"] = self.clip_sha
        if self.precision == "fp16":
            provenance["skipped"] = self.skipped
        if self.device.type == "cuda":
            provenance["peak_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        checkpoint.save_weights(folder, self.averaged(), self.config, provenance, half=True)
        return folder

    # ------------------------------------------------------------ the loop

    def steps(self):
        """Train to the last step, yielding a report {step, loss, rate, grad_norm, samples_per_s, ...} each.

        Wherever Ctrl-C strikes, the trainer is left between two whole steps and may be saved.
        """
        log = self._open_log()
        try:
            while self.step < self.train.steps:
                started = time.perf_counter()
                with compiling(self.train.compile):
                    report = self._one_step()
                synchronize(self.device)
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                speed = self.train.batch_size / elapsed
                report |= {"step": self.step, "seconds": self.seconds, "samples_per_s": speed,
                           "frames_per_s": speed * frames_per_sample(self.config)}
                log(report)
                if self.step % self.train.save_every == 0 or self.step == self.train.steps:
                    self.save()
                yield report
        finally:
            log.close()

    def _one_step(self):
        share = rate(self.step, self.train)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
        total = torch.zeros((), device=self.device, dtype=self.objective.dtype)
        for micro in range(self.train.accumulate):
            last = micro == self.train.accumulate - 1
            if self.world > 1:
                self.parallel.require_backward_grad_sync = last   # ranks exchange gradients once a step
            loss = self._loss(micro)
            self.scaler.scale(loss / self.train.accumulate).backward()
            total += loss.detach() / self.train.accumulate
        if self.world > 1:
            dist.all_reduce(total)                           # to look at: DDP averages gradients by itself
            total /= self.world
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        total_norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        # Here the host waits for the device: it must know of NaN before the update.
        loss, norm = torch.stack([total, total_norm.to(total.dtype)]).tolist()
        self._require_finite(loss, norm)
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.train.grad_clip, total_norm)
        with uninterrupted():
            # The scaler sees one optimizer's gradients at a time; what overflows in one must skip all.
            for optimizer in self.optimizers if math.isfinite(norm) else ():
                self.scaler.step(optimizer)
            self.scaler.update()
            if self.contest is not None:
                self.contest.step()
            self._average()
            self.step += 1
        return {"loss": loss, "grad_norm": norm, "rate": share, "skipped": self.skipped}

    def _loss(self, micro, network=None):
        """The loss of one micro-batch; the step alone decides on its data, times and noise."""
        batch = Batch(self.step, self.train.batch_size, self.train.accumulate, micro, self.rank, self.world,
                      first=sum(past["steps"] * past["batch_size"] for past in self.earlier))
        draws = Draws(self.train.seed, batch, self.device, self.objective.dtype)
        with autocast(self.device, self.precision):
            return self.objective.loss(self.parallel if network is None else network, batch, draws,
                                       self.step / self.train.steps)

    def _require_finite(self, loss, norm):
        """Stop before the update, so that neither the weights nor a checkpoint ever hold NaN."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite or (math.isfinite(loss) and self.scaler.is_enabled()):
            self._count_skips(not finite)                    # overflown in fp16: the scale is halved instead
            return
        if math.isfinite(loss):
            bad = next((f"the gradient of {name}" for name, p in self.network.named_parameters()
                        if p.grad is not None and not p.grad.isfinite().all()), "the gradients' norm")
        else:                                                # the same step once more, this time watched
            again = [lambda micro=micro: self._loss(micro, self.network)         # as it is, not compiled
                     for micro in range(self.train.accumulate)]
            bad = (first_not_finite(self.network, again) if self.world == 1 else None) or "the loss"
        then = (f"the last checkpoint in {self.run} is intact, lower train.lr and use --resume"
                if checkpoint.checkpoints(self.run) else "lower train.lr and start anew")
        raise MavliteError(f"stage {self.config.stage}, step {self.step}: {bad} is not finite (loss {loss}); "
                           f"{then}")

    def _count_skips(self, skipped):
        """A few skipped steps are how the fp16 scaler finds its scale; many in a row are a training lost."""
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.skipped += skipped
        if self.skipped_in_a_row == MAX_SKIPS:
            raise MavliteError(f"stage {self.config.stage}, step {self.step}: gradients overflowed fp16 in "
                               f"{MAX_SKIPS} steps in a row ({self.skipped} in all); use --resume with "
                               "--set train.precision=fp32, or a lower train.lr")

    @torch.no_grad()
    def _average(self):
        """ema <- ema + (1 - decay) (p - ema); the decay itself warms up, so that early noise is forgotten."""
        decay = min(self.train.ema_decay, (1 + self.step) / (10 + self.step))
        current = dict(self.network.named_parameters())
        torch._foreach_lerp_(list(self.ema.values()), [current[name].detach() for name in self.ema],
                             1 - decay)

    def _open_log(self):
        return Log(self.run, self.train.log_every, self.step) if self.rank == 0 else Log(None, 1, 0)
