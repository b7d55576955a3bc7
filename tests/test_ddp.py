"""Two processes compute what one does.

Run as a script, this file is both of them: they train the CASES and leave their checkpoints.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mavlite.checkpoint import load_checkpoint
from mavlite.config import load_config
from mavlite.curves import read_curve
from mavlite.reproduce import reproduce_all
from mavlite.training import Trainer

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "configs" / "smoke.yaml"
# Each rank of two takes its share in so many micro-batches; one process takes the whole batch at once.
CASES = [("clip", "muon", 1), ("prior", "adamw", 1), ("decoder_t", "muon", 2), ("interpolation", "adamw", 2),
         ("decoder", "muon", 1), ("sr_l", "adamw", 2), ("sr_l_t", "muon", 1), ("sr_h", "muon", 2),
         ("decoder_t", "muon", 2, "rewarded"), ("decoder_t", "muon", 2, "adversarial"),
         ("interpolation", "muon", 1, "adversarial", "extrapolating")]
STUDENT = ["sample.sampler=ddim", "sample.steps=2", "sample.guidance_scale=1.0"]


def name(case):
    return "-".join(map(str, case))


def train_all(weights, folder, whole=False):
    for case in CASES:
        stage, optimizer, accumulate, *lesson = case
        lessons = {"rewarded": [*STUDENT, f"distill.teacher={weights}", "distill.own_walk=true",
                                "distill.reward=0.5", "distill.guidance_scale=2.0"],
                   "adversarial": [*STUDENT, f"adversarial.critic={weights}"],
                   "extrapolating": [f"extrapolate{setting[6:]}" for setting in STUDENT]}
        config = load_config(SMOKE, stage, [
            "train.steps=3", "train.precision=fp64", f"train.optimizer={optimizer}",
            f"train.accumulate={1 if whole else accumulate}",
            *(override for name in lesson for override in lessons[name])])
        init_from = weights / stage if "adversarial" in lesson else None
        trainer = Trainer(config, folder / name(case), weights=weights, init_from=init_from, device="cpu")
        for _ in trainer.steps():
            pass


@pytest.fixture(scope="module")
def runs(smoke_weights, tmp_path_factory):
    """(folder of one process's runs, folder of two processes' runs)"""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                   "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"             # whatever the name of this machine resolves to
    ranks = subprocess.Popen([sys.executable, __file__, str(smoke_weights), str(two)], env=environment,
                             text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        train_all(smoke_weights, one, whole=True)
        output, _ = ranks.communicate(timeout=900)
    finally:
        ranks.kill()
    assert ranks.returncode == 0, output
    return one, two


@pytest.mark.parametrize("case", CASES, ids=name)
def test_two_processes_train_the_weights_of_one(runs, case):
    (one, state), (two, _) = (load_checkpoint(folder / name(case)) for folder in runs)
    assert state["step"] == 3 and one.keys() == two.keys()
    tensors = [key for key in one if one[key].is_floating_point()]
    assert {one[key].dtype for key in tensors if key.startswith("network.")} == {torch.float64}
    assert max((one[key] - two[key]).abs().max().item() for key in tensors) < 1e-9   # and optimizers, critic
    averages = [key for key in tensors if key.startswith("ema.")]                # of what moves
    assert max((one[f"network.{key[4:]}"] - one[key]).abs().max().item() for key in averages) > 1e-4


@pytest.mark.parametrize("case", CASES, ids=name)
def test_two_processes_log_the_losses_of_one(runs, case):
    losses = [read_curve(folder / name(case) / "log.csv")[1] for folder in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_only_one_process_writes(runs):
    for folder in runs:
        for case in CASES:
            assert len((folder / name(case) / "log.csv").read_text().splitlines()) == 1 + 3


def test_no_process_goes_on_before_the_weights_are_there(runs):
    assert sorted(path.name for path in (runs[1] / "all" / "weights").iterdir()) == ["sr_l", "sr_l_t"]


def reproduce_with_a_slow_writer(folder):
    """Two stages of which the second starts from the first, which rank 0 takes its time to write."""
    export = Trainer.export

    def slow(trainer):
        time.sleep(1)
        return export(trainer)
    Trainer.export = slow
    reproduce_all(SMOKE, folder, only=["sr_l", "sr_l_t"], overrides=["train.steps=1"], device="cpu")


def two_processes(weights, folder):
    """Both ranks, with the variables that torchrun would set; forked, so that all is imported only once."""
    torch.set_num_threads(1)
    other = os.fork()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if other else "1"
    train_all(weights, folder)
    reproduce_with_a_slow_writer(folder / "all")
    assert dist.get_world_size() == 2
    dist.destroy_process_group()
    assert other == 0 or os.waitpid(other, 0)[1] == 0


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]), Path(sys.argv[2]))
