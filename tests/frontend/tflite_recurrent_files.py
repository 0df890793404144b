"""Writes small .tflite files with a UNIDIRECTIONAL_SEQUENCE_LSTM."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def _files() -> Any:
    path = Path(__file__).with_name("tflite_files.py")
    spec = importlib.util.spec_from_file_location("recurrent_tflite_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


files = _files()
LiteRT = files.LiteRT


@dataclass(frozen=True)
class Lstm:
    """What a file holds: [1, steps, inputs] -> [1, steps, units]; x, h: units of input and output."""

    steps: int = 4
    inputs: int = 3
    units: int = 5
    x: tuple[float, int] = (0.02, -3)
    h: tuple[float, int] = (0.0078125, 4)
    cell_exponent: int = -11
    cell_clip: float = 0.0
    time_major: bool = False
    """Between two TRANSPOSE operators."""
    real: bool = False
    seed: int = 0
    intermediate: tuple[float, int] | None = None
    """Units of the hidden intermediate, where they are not the output's."""
    without: str = ""
    """"input gate": coupled gates; "bias": no forget gate bias."""
    extra: str = ""
    """"peephole", "projection", "norm" or "clip" of the projection."""
    layers: int = 1
    short: bool = False
    """20 inputs, as files before layer normalization."""


def write(spec: Lstm) -> bytes:
    """The file's bytes; random weights."""
    rng, w = np.random.default_rng(spec.seed), files.Writer()
    units = (None, None) if spec.real else (spec.x, spec.h)

    def matrix(columns: int) -> int:
        if spec.real:
            return w.const(rng.uniform(-0.7, 0.7, (spec.units, columns)).astype(np.float32))
        values = rng.integers(-127, 128, (spec.units, columns)).astype(np.int8)
        return w.const(values, (float(rng.uniform(0.002, 0.02)), 0))

    def vector() -> int:
        if spec.real:
            return w.const(rng.normal(0, 0.3, spec.units).astype(np.float32))
        return w.const(rng.integers(-3000, 3000, spec.units).astype(np.int32))

    def sequence(name: str, width: int, kind: Any, *, late: bool = spec.time_major) -> int:
        return w.tensor((spec.steps, 1, width) if late else (1, spec.steps, width), kind, name=name)

    port = x = sequence("x", spec.inputs, units[0], late=False)
    order = w.const(np.array([1, 0, 2], np.int32))
    if spec.time_major:
        x = w.operator("TRANSPOSE", [x, order], sequence("x_late", spec.inputs, units[0]))
    for layer in range(spec.layers):
        width = spec.units if layer else spec.inputs
        weights = [matrix(width) for _ in range(4)]
        recurrent = [matrix(spec.units) for _ in range(4)]
        biases = [vector() for _ in range(4)]
        if spec.without == "input gate":
            weights[0] = recurrent[0] = biases[0] = -1
        if spec.without == "bias":
            biases[1] = -1
        hidden = w.tensor((1, spec.units), units[1], name=f"h{layer}")
        cell = w.tensor((1, spec.units), None if spec.real else (2.0**spec.cell_exponent, 0), name=f"c{layer}",
                        kind=None if spec.real else "INT16")  # fmt: skip
        for state in (hidden, cell):
            w.tensors[state].isVariable = True
        y = sequence("lstm" if not layer else f"lstm{layer}", spec.units, units[1])
        extra = {name: vector() if spec.extra == name else -1 for name in ("peephole", "projection", "norm")}
        given = [x, *weights, *recurrent, extra["peephole"], -1, -1, *biases, extra["projection"], -1, hidden, cell]
        given += [] if spec.short else [extra["norm"], -1, -1, -1]
        w.operator(
            "UNIDIRECTIONAL_SEQUENCE_LSTM", given, y, "UnidirectionalSequenceLSTMOptions", 1 if spec.real else 3,
            fusedActivationFunction=4, cellClip=spec.cell_clip, projClip=1.0 if spec.extra == "clip" else 0.0,
            timeMajor=spec.time_major,
        )  # fmt: skip
        if not spec.real:
            inner = [w.tensor((0,), (2.0**-12, 0), kind="INT16") for _ in range(4)]
            w.operators[-1].intermediates = np.array([*inner, w.tensor((0,), spec.intermediate or spec.h)], np.int32)
        x = y
    if spec.time_major:
        y = w.operator("TRANSPOSE", [y, order], sequence("y", spec.units, units[1], late=False))
    return w.data([port], [y])


def frames(spec: Lstm, count: int) -> np.ndarray:
    """[count, steps, inputs] of the file's type; the first sample holds the extremes."""
    rng = np.random.default_rng(spec.seed + 1)
    shape = (count, spec.steps, spec.inputs)
    if spec.real:
        return rng.normal(0, 1, shape).astype(np.float32)
    x = rng.integers(-128, 128, shape).astype(np.int8)
    x[0] = rng.choice(np.array([-128, 127], np.int8), shape[1:])
    return x
