"""Median seconds of a call, after warm-up."""

import statistics
import time

from mavlite.device import synchronize


def median_seconds(call, device, repeats=7):
    call()
    times = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
