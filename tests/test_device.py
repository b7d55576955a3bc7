"""Which device and which precision."""

import pytest
import torch

from mavlite import device
from mavlite.device import pick_device, pick_precision
from mavlite.errors import MavliteError


@pytest.mark.parametrize("name", ["hpu", "meta", "privateuseone", "cuda:99", "cuda:-1", "", "cpu:0:0", 3])
def test_a_device_that_there_is_not_is_refused_in_one_line(name):
    with pytest.raises(MavliteError, match="name cpu, cuda or mps") as caught:
        pick_device(name)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


@pytest.mark.parametrize("capability, precision", [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"),
                                                   ((9, 0), "bf16")])
def test_a_gpu_computes_in_bf16_if_it_was_built_for_it(monkeypatch, capability, precision):
    """A T4 (7.5) says that it can, and emulates it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device.fast_bf16.cache_clear()
    assert pick_precision(torch.device("cuda", 0)) == precision
    device.fast_bf16.cache_clear()


@pytest.mark.parametrize("supported", [True, False])
def test_a_cpu_computes_in_bf16_if_it_was_built_for_it(monkeypatch, supported):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: supported, raising=False)
    device.fast_bf16.cache_clear()
    assert pick_precision(torch.device("cpu")) == ("bf16" if supported else "fp32")
    assert pick_precision(torch.device("cpu"), "fp64") == "fp64"
    device.fast_bf16.cache_clear()
    with pytest.raises(MavliteError, match="none of auto, bf16"):
        pick_precision(torch.device("cpu"), "fp8")
