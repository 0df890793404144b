"""Timing short calls: a clock that tests itself, warm-up, enough runs, percentiles."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_RUNS = 50
MIN_SECONDS = 0.5
MAX_SECONDS = 20.0
WARMUP_RUNS = 5
WARMUP_SECONDS = 0.1
RESOLVED = 20
"""A duration counts as measured when it is at least this many times the clock's resolution."""


@dataclass(frozen=True)
class Timing:
    """Durations of single calls, in ms; `resolution_ms` is the smallest step the clock showed."""

    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    resolution_ms: float

    @property
    def trustworthy(self) -> bool:
        """Whether the clock is fine enough for these durations."""
        return self.p50_ms >= RESOLVED * self.resolution_ms


def clock_resolution_ms(clock: Callable[[], int] = time.perf_counter_ns, tries: int = 2000) -> float:
    """The median of the steps, other than none, between successive readings of a nanosecond clock, in ms.

    A clock that never steps has an infinite resolution.
    """
    readings = [clock() for _ in range(tries)]
    steps = sorted(b - a for a, b in itertools.pairwise(readings) if b > a)
    return steps[len(steps) // 2] / 1e6 if steps else float("inf")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of 100 lie, linear between neighbours; `values` must not be empty."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def time_calls(
    call: Callable[[int], object],
    *,
    min_runs: int = MIN_RUNS,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Timing:
    """Time `call(i)`, i = 0, 1, ..., after a warm-up, until both minima are reached or `max_seconds` have passed.

    Every call is timed alone, so that percentiles are those of single inferences.
    """
    resolution = clock_resolution_ms(clock)
    start = clock()
    for index in range(WARMUP_RUNS):
        call(index)
        if (clock() - start) / 1e9 > max_seconds / 4:
            break
    while (clock() - start) / 1e9 < min(WARMUP_SECONDS, max_seconds / 4):
        call(0)
    durations: list[int] = []
    start = clock()
    while True:
        begin = clock()
        call(len(durations))
        end = clock()
        durations.append(end - begin)
        elapsed = (end - start) / 1e9
        if elapsed >= max_seconds or (len(durations) >= min_runs and elapsed >= min_seconds):
            break
    values = [d / 1e6 for d in durations]
    p50, p95, p99 = (percentile(values, p) for p in (50, 95, 99))
    return Timing(len(values), p50, p95, p99, resolution)
