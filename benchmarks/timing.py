"""What benchmarks measure with: median seconds after warm-up, a process of one's own."""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from mavlite.device import synchronize
from mavlite.errors import MavliteError

PROMPT = "two and 4"


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


def stage_seconds(pipe, repeats):
    """({stage: median seconds}, median seconds of the whole call) of one video, after warm-up."""
    pipe(PROMPT)
    runs, calls = [], []
    for seed in range(repeats):
        started = time.perf_counter()
        runs.append(pipe(PROMPT, seed=seed).seconds)      # ends on the CPU: nothing to wait for
        calls.append(time.perf_counter() - started)
    stages = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
    return stages, statistics.median(calls)


def in_own_process(function, *arguments):
    """function(*arguments) in a fresh process, so that the peak of memory is its own.

    Raises MavliteError when the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise MavliteError("the measuring process was killed, probably for want of memory") from None
