"""Time from work and traffic, calibrated on what the profiler measured.

time = overhead + MACs * per_mac[kind] + bytes * per_byte, summed over layers: an in-order core neither overlaps
memory with arithmetic nor runs two layers at once. `overlap` takes the larger of the two instead, as a core with
prefetching does. Coefficients are non-negative least squares of relative errors; the better of the two shapes in
leave-one-out is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError


@dataclass(frozen=True)
class Work:
    """A layer or a whole model: `kind` names the kernel or operator; `bytes` moved (weights and activations)."""

    kind: str
    macs: float
    bytes: float
    activations: float = 0.0


@dataclass(frozen=True)
class Roofline:
    """Milliseconds a MAC by kind, a byte, and a call. `error`: mean relative error when left out."""

    per_mac: dict[str, float]
    per_byte: float
    per_call: float
    overlap: bool
    error: float
    spread: float

    def predict(self, work: Work) -> float:
        """Milliseconds; a kind never seen is an error."""
        if work.kind not in self.per_mac:
            raise FitError(f"no measurement of {work.kind!r}; known kinds: {', '.join(sorted(self.per_mac))}")
        arithmetic, memory = work.macs * self.per_mac[work.kind], work.bytes * self.per_byte
        return self.per_call + (max(arithmetic, memory) if self.overlap else arithmetic + memory)

    def total(self, layers: Sequence[Work]) -> tuple[float, float, float]:
        """(value, low, high) in ms of the layers together, with 90 % of the left-out spread."""
        value = sum(self.predict(layer) for layer in layers)
        return value, value * float(np.exp(-self.spread)), value * float(np.exp(self.spread))

    def bound(self, work: Work) -> str:
        """What limits the layer: "compute", "memory" or "overhead"."""
        parts = {
            "compute": work.macs * self.per_mac.get(work.kind, 0.0),
            "memory": work.bytes * self.per_byte,
            "overhead": self.per_call,
        }
        return max(parts, key=lambda name: parts[name])


def calibrate(work: Sequence[Work], milliseconds: Sequence[float]) -> Roofline:
    """Fit a roofline to measured layers (or models); needs more rows than kinds + 2."""
    times = np.asarray(milliseconds, dtype=np.float64)
    kinds = sorted({w.kind for w in work})
    if times.size != len(work) or times.size < len(kinds) + 3:
        raise FitError(f"{times.size} times for {len(work)} rows of {len(kinds)} kinds: give at least {len(kinds) + 3}")
    if not (np.isfinite(times) & (times > 0)).all():
        raise FitError("times must be finite and above 0")
    shapes = []
    for overlap in (False, True):
        errors = []
        for left in range(times.size):
            keep = np.arange(times.size) != left
            if not any(w.kind == work[left].kind for i, w in enumerate(work) if i != left):
                continue
            coefficients = _solve([w for i, w in enumerate(work) if i != left], times[keep], kinds, overlap)
            guess = float((_design([work[left]], kinds, overlap, coefficients) @ coefficients)[0])
            errors.append(np.log(max(guess, 1e-12) / times[left]))
        if not errors:
            raise FitError("every kind was measured once only: nothing can be checked; measure each at least twice")
        shapes.append((float(np.abs(np.expm1(errors)).mean()), overlap, errors))
    error, overlap, errors = min(shapes, key=lambda s: s[0])
    found = _solve(list(work), times, kinds, overlap)
    spread = float(np.quantile(np.abs(errors), 0.9))
    rates = dict(zip(kinds, (float(v) for v in found[:-2]), strict=True))
    return Roofline(rates, float(found[-2]), float(found[-1]), overlap, error, spread)


def _design(work: Sequence[Work], kinds: Sequence[str], overlap: bool, now: Real | None) -> Real:
    rows = np.zeros((len(work), len(kinds) + 2))
    for i, w in enumerate(work):
        at = kinds.index(w.kind)
        rows[i, at], rows[i, -2], rows[i, -1] = w.macs, w.bytes, 1.0
        if overlap and now is not None:
            rows[i, -2 if w.macs * now[at] >= w.bytes * now[-2] else at] = 0.0
    return rows


def _solve(work: Sequence[Work], times: Real, kinds: Sequence[str], overlap: bool) -> Real:
    from scipy.optimize import nnls

    now: Real | None = None
    for _ in range(20 if overlap else 1):
        rows = _design(work, kinds, overlap, now) / times[:, None]
        size = np.maximum(np.abs(rows).max(axis=0), 1e-300)
        found = np.asarray(nnls(rows / size, np.ones(times.size))[0]) / size
        if now is not None and np.allclose(found, now, rtol=1e-9):
            break
        now = found
    assert now is not None
    return np.asarray(found, dtype=np.float64)


class Valued(Protocol):
    """A figure: a quantity, or a bundle's record of one."""

    @property
    def value(self) -> float: ...


class Layer(Protocol):
    """A profiled layer, of a measurement (`LayerFigures`) or of a bundle (`LayerRecord`)."""

    @property
    def op(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def macs(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, Valued]: ...


def work_of(layers: Sequence[Layer], metric: str = "latency") -> tuple[list[Work], list[float]]:
    """Profiled layers as work and times (any metric with a figure a layer, e.g. "cycles")."""
    rows, times = [], []
    for layer in layers:
        figure = layer.metrics.get(metric)
        if figure is None or figure.value <= 0:
            continue
        moved = layer.metrics.get("traffic")
        rows.append(Work(layer.kernel or layer.op, layer.macs, moved.value if moved else 0.0))
        times.append(figure.value)
    if not rows:
        raise FitError(f"these measurements have no {metric} of single layers")
    return rows, times


def decode_traffic(weight_bytes: float, kv_bytes_per_token: float, context: float, batch: float = 1.0) -> float:
    """Bytes read for one generated token: the weights, shared by `batch` sequences, and the cache of `context`."""
    return weight_bytes / batch + kv_bytes_per_token * context
