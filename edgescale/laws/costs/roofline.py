"""Time from work and traffic, calibrated on what the profiler measured.

time = overhead + MACs * per_mac[kind] + bytes * per_byte[kind], summed over layers: an in-order core neither overlaps
memory with arithmetic nor runs two layers at once. `overlap` takes the larger of the two instead, as a core with
prefetching does. Coefficients are non-negative least squares of relative errors; sum or overlap, and byte rates shared
or of each kind, are chosen by leaving rows out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """Milliseconds a MAC and a byte by kind, and a call. `error`: mean relative error of a layer left out.

    `spread`: 90 % quantile of |ln(predicted/measured)| of layers left out; `overlap`: the larger of arithmetic and
    memory counts instead of their sum. `rival`: the other way to share byte rates among kinds; measured layers hardly
    tell the two apart, larger ones do.
    """

    per_mac: dict[str, float]
    per_byte: dict[str, float]
    per_call: float
    overlap: bool
    error: float
    spread: float
    rival: Roofline | None = None

    def parts(self, work: Work) -> dict[str, float]:
        """Milliseconds of "compute", "memory" and "overhead"; a kind never seen is an error."""
        if work.kind not in self.per_mac:
            raise FitError(f"no measurement of {work.kind!r}; known kinds: {', '.join(sorted(self.per_mac))}")
        compute, memory = work.macs * self.per_mac[work.kind], work.bytes * self.per_byte[work.kind]
        return {"compute": compute, "memory": memory, "overhead": self.per_call}

    def predict(self, work: Work) -> float:
        """Milliseconds of a layer."""
        compute, memory, overhead = self.parts(work).values()
        return overhead + (max(compute, memory) if self.overlap else compute + memory)

    def total(self, layers: Sequence[Work]) -> tuple[float, float, float]:
        """(value, low, high) in ms of the layers together.

        Half of a layer's left-out error counts as its own (they add as squares), half as shared by all. The interval
        reaches over what the rival predicts, so that it opens where the measurements are left behind.
        """
        times = np.array([self.predict(layer) for layer in layers])
        value = float(times.sum())
        own = float(np.sqrt((times**2).sum())) / max(value, 1e-300)
        width = self.spread * float(np.sqrt(0.5 * own**2 + 0.25))
        low, high = value * float(np.exp(-width)), value * float(np.exp(width))
        if self.rival is not None:
            other = sum(self.rival.predict(layer) for layer in layers)
            low, high = min(low, other * float(np.exp(-width))), max(high, other * float(np.exp(width)))
        return value, low, high

    def bound(self, work: Work) -> str:
        """What takes most of the layer's time: "compute", "memory" or "overhead"."""
        parts = self.parts(work)
        return max(parts, key=lambda name: parts[name])


OWN_RATE = 4
"""Rows a kind needs for a byte rate of its own: kernels convert every element they read or write at their own cost."""


def calibrate(work: Sequence[Work], milliseconds: Sequence[float]) -> Roofline:
    """Fit a roofline to measured layers (or models); needs more rows than kinds + 2."""
    times = np.asarray(milliseconds, dtype=np.float64)
    kinds = sorted({w.kind for w in work})
    if times.size != len(work) or times.size < len(kinds) + 3:
        raise FitError(f"{times.size} times for {len(work)} rows of {len(kinds)} kinds: give at least {len(kinds) + 3}")
    if not (np.isfinite(times) & (times > 0)).all():
        raise FitError("times must be finite and above 0")
    rows = {kind: sum(w.kind == kind for w in work) for kind in kinds}
    if max(rows.values()) < 2:
        raise FitError("every kind was measured once only: nothing can be checked; measure each at least twice")
    shared = _best(work, times, kinds, [])
    own = [kind for kind in kinds if rows[kind] > OWN_RATE]
    if not own:
        return shared
    first, second = sorted((shared, _best(work, times, kinds, own)), key=lambda r: r.error)
    return replace(first, rival=second)


def _best(work: Sequence[Work], times: Real, kinds: Sequence[str], own: Sequence[str]) -> Roofline:
    """The better of sum and overlap for one sharing of byte rates, by leaving rows out."""
    shapes = []
    for overlap in (False, True):
        errors = []
        for left in range(times.size):
            others = [w for i, w in enumerate(work) if i != left]
            if not any(w.kind == work[left].kind for w in others):
                continue
            columns = _solve(others, np.delete(times, left), kinds, own, overlap)
            guess = float((_design([work[left]], kinds, own, overlap, columns) @ columns)[0])
            errors.append(np.log(max(guess, 1e-12) / times[left]))
        shapes.append((float(np.abs(np.expm1(errors)).mean()), overlap, errors))
    error, overlap, errors = min(shapes, key=lambda s: s[0])
    found = _solve(list(work), times, kinds, own, overlap)
    macs = dict(zip(kinds, (float(v) for v in found), strict=False))
    moved = {kind: float(found[len(kinds) + own.index(kind)] if kind in own else found[-2]) for kind in kinds}
    return Roofline(macs, moved, float(found[-1]), overlap, error, float(np.quantile(np.abs(errors), 0.9)))


def _design(work: Sequence[Work], kinds: Sequence[str], own: Sequence[str], overlap: bool, now: Real | None) -> Real:
    """[rows, MAC rates, own byte rates, shared byte rate, call]."""
    rows = np.zeros((len(work), len(kinds) + len(own) + 2))
    for i, w in enumerate(work):
        arithmetic = kinds.index(w.kind)
        memory = len(kinds) + own.index(w.kind) if w.kind in own else rows.shape[1] - 2
        rows[i, arithmetic], rows[i, memory], rows[i, -1] = w.macs, w.bytes, 1.0
        if overlap and now is not None:
            rows[i, memory if w.macs * now[arithmetic] >= w.bytes * now[memory] else arithmetic] = 0.0
    return rows


def _solve(work: Sequence[Work], times: Real, kinds: Sequence[str], own: Sequence[str], overlap: bool) -> Real:
    from scipy.optimize import nnls

    now: Real | None = None
    found: Real = np.zeros(0)
    for _ in range(20 if overlap else 1):
        rows = _design(work, kinds, own, overlap, now) / times[:, None]
        size = np.maximum(np.abs(rows).max(axis=0), 1e-300)
        found = np.asarray(nnls(rows / size, np.ones(times.size))[0], dtype=np.float64) / size
        if now is not None and np.allclose(found, now, rtol=1e-9):
            break
        now = found
    return found


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
