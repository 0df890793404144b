"""What a rig reports of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgescale.core.quantity import Quantity

# Metric names used in `Measurement.metrics` and in budgets, with their canonical units.
METRIC_UNITS: dict[str, str] = {
    "latency": "ms",
    "latency_p95": "ms",
    "latency_p99": "ms",
    "init": "ms",
    "first_run": "ms",
    "instructions": "1",
    "cycles": "1",
    "flash": "B",
    "weights": "B",
    "ram": "B",
    "arena": "B",
    "stack": "B",
    "energy": "uJ",
    "traffic": "B",
    "accuracy": "1",
    "error": "1",
    "drop": "1",
    "npu": "1",
    "npu_macs": "1",
    "density": "1",
}

SHARES = ("accuracy", "error", "drop", "npu", "npu_macs", "density")
"""Metrics that are shares, which do not add up over layers."""


@dataclass(frozen=True)
class LayerFigures:
    """Cost of one layer: `name` is the node's name in the model the user gave."""

    name: str
    op: str
    macs: int
    metrics: Mapping[str, Quantity]
    kernel: str = ""


@dataclass(frozen=True)
class Measurement:
    """Figures of one artifact on one target.

    `artifact_sha256` ties them to the bytes measured; `unavailable` maps a metric to the reason it
    is missing; `environment` records tool versions, flags and the hashes of inputs.
    """

    artifact_sha256: str
    target: str
    rig: str
    metrics: Mapping[str, Quantity]
    layers: tuple[LayerFigures, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
