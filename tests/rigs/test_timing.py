"""Percentiles against NumPy, and a timing loop driven by a clock that we control."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgescale.rigs.timing import clock_resolution_ms, percentile, time_calls


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0, 100))
def test_percentile_equals_numpy(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-12, abs=1e-12)


class Clock:
    """Nanoseconds that pass only when asked for (`step` a reading) or by `wait`."""

    def __init__(self, step: int) -> None:
        self.now, self.step = 0, step

    def __call__(self) -> int:
        self.now += self.step
        return self.now

    def wait(self, nanoseconds: int) -> None:
        self.now += nanoseconds


def test_resolution_is_the_clocks_own_step() -> None:
    assert clock_resolution_ms(Clock(1000)) == pytest.approx(1e-3)
    assert clock_resolution_ms(lambda: 5) == float("inf")


def test_time_calls_measures_each_call() -> None:
    clock = Clock(10)
    durations = [1_000_000] * 19 + [21_000_000]  # every twentieth call is slow
    timing = time_calls(lambda i: clock.wait(durations[i % 20]), clock=clock, min_runs=100, min_seconds=0.1)
    assert timing.runs == 100
    assert timing.p50_ms == pytest.approx(1.0, rel=1e-3)
    assert timing.p99_ms == pytest.approx(21.0, rel=1e-3)
    assert timing.trustworthy


def test_time_calls_obeys_its_limits() -> None:
    clock = Clock(10)
    slow = time_calls(lambda i: clock.wait(300_000_000), clock=clock, max_seconds=2.0)
    assert slow.runs == 7  # 7 x 0.3 s passes 2 s
    fast = time_calls(lambda i: clock.wait(1_000_000), clock=clock)
    assert fast.runs == 500  # half a second, not fifty runs


def test_durations_near_the_resolution_are_not_trusted() -> None:
    clock = Clock(1_000_000)
    assert not time_calls(lambda i: None, clock=clock, min_seconds=0.01, min_runs=5).trustworthy
