"""Which device and which precision. The one place that knows hardware."""

import contextlib
import ctypes
import functools
import math
import re
import sys
from pathlib import Path

import torch

from mavlite.errors import MavliteError


def pick_device(name=None):
    """"cuda", "mps" or "cpu": the best there is, or the named one. Raises MavliteError if it is missing."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", str(name)):
            raise RuntimeError("unknown")
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MavliteError(f"device {str(name)[:40]!r} cannot be used here "
                           f"({str(error).splitlines()[0].partition('. ')[0][:100]}); "
                           "leave it out or name cpu, cuda or mps") from None
    return device


def pick_precision(device, wanted="auto"):
    """"bf16", "fp16", "fp32" or "fp64".

    bf16 where the hardware has it: CUDA from compute capability 8.0 (a T4 reports support but emulates it,
    slowly), CPUs with AVX512-BF16 or AMX. fp16 with loss scaling on older CUDA GPUs, fp32 elsewhere.
    Raises MavliteError for an unknown one.
    """
    if wanted not in ("auto", "bf16", "fp16", "fp32", "fp64"):
        raise MavliteError(f"precision: {wanted!r} is none of auto, bf16, fp16, fp32, fp64")
    if wanted != "auto":
        return wanted
    if fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


@functools.cache
def fast_bf16(device):
    """Whether the device computes in bf16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    tests = [getattr(torch.cpu, name, None) for name in names]
    return device.type == "cpu" and any(test is not None and test() for test in tests)


def autocast(device, precision):
    """The autocast context for a precision; fp32 and fp64 run as they are."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def full_precision(device):
    """Within `autocast`: fp32 after all. For small work that much larger work starts from."""
    return torch.autocast(device.type, enabled=False)


def synchronize(device):
    """Wait for the device, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device):
    """Bytes: on a CUDA device what tensors took at most, elsewhere what this process did; it only grows.

    NaN where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux: getrusage would not do, as a child begins with its parent's peak there.
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if peak is not None:
        return 1024 * int(peak[1])
    try:
        import resource
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def keep_freed_memory():
    """On Linux with glibc: let malloc keep what is freed, instead of returning it to the kernel.

    By default every large tensor is mapped anew and its pages are zeroed at first touch, in each step
    again; on CPU that can cost more than the arithmetic. A no-op elsewhere.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    arena_max, mmap_max, top_pad, trim_threshold = -8, -4, -2, -1                    # <malloc.h>
    mallopt(arena_max, 1)                                    # one heap for all threads
    mallopt(mmap_max, 0)                                     # and everything comes from it
    mallopt(top_pad, 64 << 20)
    mallopt(trim_threshold, 2**31 - 1)
