"""What all tests share: one thread, a fixed seed, no network, and weights of every stage."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["MAVLITE_OFFLINE"] = "1"       # before huggingface_hub is imported

import socket
from pathlib import Path

import pytest
import torch

from mavlite.config import load_config
from mavlite.device import keep_freed_memory

torch.set_num_threads(1)                                     # tensors this small are faster so
keep_freed_memory()

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "configs" / "smoke.yaml"


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Connections to other machines fail, and so does asking for their addresses."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo
    here = (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname())

    def local_connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in here:
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    def local_getaddrinfo(host, *args, **kwargs):
        if host not in here:
            raise OSError(f"a test asked for the address of {host}")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_connect)
        patch.setattr(socket, "getaddrinfo", local_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def smoke_config():
    """The smoke configuration of a stage: smoke_config("decoder", ["train.steps=2"])."""
    return lambda stage, overrides=(): load_config(SMOKE, stage, overrides)


@pytest.fixture(scope="session")
def smoke_weights(tmp_path_factory):
    """A folder of weights of all stages, trained for a few steps; do not write to it."""
    from mavlite.reproduce import reproduce_all

    return reproduce_all(SMOKE, tmp_path_factory.mktemp("smoke"), device="cpu")


@pytest.fixture(scope="session")
def randomise():
    """Gives every parameter of a network a value that is neither zero nor the identity."""
    @torch.no_grad()
    def fill(network):
        for p in network.parameters():
            p.add_(torch.randn_like(p) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
        return network

    return fill
