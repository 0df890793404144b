"""What devices go through, as traces: slowdown, noise, free memory and difficulty, call by call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """One call an element. slowdown: factor on every variant's profiled time; bias [variants]: a constant factor
    of each variant beside it, unknown to the controller; memory: free bytes (0: not known); difficulty: bins.
    """

    name: str
    slowdown: Floats
    bias: Floats
    memory: Integers
    difficulty: Integers

    def __len__(self) -> int:
        return len(self.slowdown)


def _noise(rng: np.random.Generator, calls: int, sigma: float = 0.03) -> Floats:
    return np.exp(rng.normal(0, sigma, calls))


def _calm(rng: np.random.Generator, calls: int) -> Floats:
    return _noise(rng, calls)


def _bursts(rng: np.random.Generator, calls: int) -> Floats:
    """Another process takes the core now and then: 1.6 to 3 times slower for some tens of calls."""
    level = np.ones(calls)
    at = 0
    while at < calls:
        at += int(rng.exponential(80)) + 10
        until = at + int(rng.exponential(30)) + 5
        level[at:until] = rng.uniform(1.6, 3.0)
        at = until
    return level * _noise(rng, calls, 0.05)


def _spikes(rng: np.random.Generator, calls: int) -> Floats:
    """Single slow calls, more seldom than the violations asked for."""
    return _noise(rng, calls) * np.where(rng.random(calls) < 0.02, rng.uniform(1.5, 4.0, calls), 1.0)


def _heavy(rng: np.random.Generator, calls: int) -> Floats:
    """Single slow calls, more often than the violations asked for: caution alone helps."""
    return _noise(rng, calls) * np.where(rng.random(calls) < 0.15, rng.uniform(1.3, 2.0, calls), 1.0)


def _throttling(rng: np.random.Generator, calls: int) -> Floats:
    """Heat slows the core in steps and by drift, then it recovers."""
    third = calls // 3
    up = np.linspace(1.0, 2.2, third)
    steps = np.floor(up * 5) / 5
    down = np.linspace(2.2, 1.0, calls - 2 * third)
    return np.concatenate([steps, np.full(third, 2.2), down]) * _noise(rng, calls, 0.04)


def _frequency(rng: np.random.Generator, calls: int) -> Floats:
    """A governor moves between three clock rates."""
    rates = np.array([1.0, 1.35, 1.9])
    state, out = 0, np.empty(calls)
    for index in range(calls):
        if rng.random() < 0.02:
            state = int(rng.integers(3))
        out[index] = rates[state]
    return out * _noise(rng, calls)


SHAPES: Mapping[str, Callable[[np.random.Generator, int], Floats]] = MappingProxyType(
    {
        "calm": _calm,
        "bursts": _bursts,
        "spikes": _spikes,
        "heavy tail": _heavy,
        "throttling": _throttling,
        "frequency": _frequency,
    }
)


def synthetic(name: str, calls: int, variants: int, seed: int = 0, largest: int = 0) -> Trace:
    """A trace by name (see SHAPES), with variants up to 25 % off their profiles.

    largest: peak bytes of the largest option; where given, free memory falls below it for a fifth of the trace.
    Raises KeyError for an unknown name.
    """
    rng = np.random.default_rng(seed)
    slowdown = SHAPES[name](rng, calls)
    bias = np.exp(rng.uniform(np.log(0.8), np.log(1.25), variants))
    memory = np.zeros(calls, np.int64)
    if largest:
        memory[:] = largest * 2
        memory[calls * 2 // 5 : calls * 3 // 5] = largest * 2 // 3
    difficulty = rng.integers(0, 4, calls)
    return Trace(name, slowdown, bias, memory, difficulty)
