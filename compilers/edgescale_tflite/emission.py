"""What the functions that write layers share: the program, the file under construction, and small questions.

A handler writes one kind of layer; `@writes(Kind)` registers it. Handlers raise `Inexpressible` for what no LiteRT
operator computes, and `write_layers` gathers every such verdict into one error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.integer import clamp_of
from edgescale.lower.program import LIMITS, Array, Clamp, FullyConnected, Layer, Program, Tensor
from edgescale_tflite.flatbuffer import Units, Writer
from edgescale_tflite.scales import Inexpressible, weight_scales

Handler = Callable[["Emission", Any], None]
HANDLERS: dict[type[Layer], Handler] = {}

ACTIVATIONS: dict[str, tuple[float, float]] = {
    "NONE": (-math.inf, math.inf), "RELU": (0.0, math.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0),
}  # fmt: skip
"""Activations that LiteRT's operators apply, with their real bounds."""


@dataclass(frozen=True)
class Dialect:
    """What the file may hold. int4: weights of four bits are packed two a byte; else they keep a byte each."""

    int4: bool = True


def writes(*kinds: type[Layer]) -> Callable[[Handler], Handler]:
    """Register the handler of these kinds of layers."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(kinds, handler))
        return handler

    return register


class Emission:
    """One program on its way into a file. `index` says which tensor of the file holds which of the program's."""

    def __init__(self, program: Program, dialect: Dialect) -> None:
        self.program = program
        self.dialect = dialect
        self.writer = Writer()
        self.index: dict[str, int] = {}
        self.weights_bytes = 0
        self.reset_each_run = False
        """Whether states have to be reset before every inference (layers that start from zeros each time)."""
        self.skipped: set[str] = set()
        """Layers whose work the file does elsewhere."""
        self.kept_inside: set[str] = set()
        """States that are an operator's own variables."""
        self.handles: dict[str, int] = {}
        """State -> the handle of its variable."""

    # Tensors

    def tensor(self, name: str) -> int:
        """The file's tensor that holds the program's `name`."""
        if name not in self.index:
            tensor = self.program.tensors[name]
            self.index[name] = self.writer.tensor(name, tensor.shape, tensor.dtype, units_of(tensor))
        return self.index[name]

    def inner(self, like: Tensor, purpose: str, shape: Sequence[int] | None = None) -> int:
        """A tensor in the units of `like` that only the file has."""
        return self.writer.tensor(f"{like.name}/{purpose}", shape or like.shape, like.dtype, units_of(like))

    def of(self, name: str) -> Tensor:
        """The program's tensor."""
        return self.program.tensors[name]

    def weight(self, name: str, values: Array, units: Units | None, dtype: str | None = None) -> int:
        """A constant that counts as weights."""
        bits = 4 if dtype == "int4" else 8 * values.dtype.itemsize
        self.weights_bytes += (values.size * bits + 7) // 8
        return self.writer.constant(name, values, units, dtype)

    def numbers(self, values: Sequence[int] | Sequence[Sequence[int]], what: str) -> int:
        """An int32 constant that steers an operator."""
        return self.writer.constant(what, np.asarray(values, np.int32))

    def scales(self, layer: Any) -> tuple[float, ...]:
        """Scales of a layer's weights; one for a fully connected layer whose channels all have it, since kernels for
        several are younger."""
        source, out = self.of(layer.inputs[0]), self.of(layer.output)
        found = weight_scales(layer.requant, source.scale, out.scale)
        return found[:1] if isinstance(layer, FullyConnected) and len(set(found)) == 1 else found

    # Operators that many layers need

    def operator(
        self, kind: str, inputs: Sequence[int], output: int, version: int, table: str = "", **options: object
    ) -> None:
        """Append an operator of one output."""
        self.writer.operator(kind, inputs, [output], version, table, (), **options)

    def bounded(self, layer: Layer, clamp: Clamp, make: Callable[[str, int], None]) -> None:
        """`make(activation, output)` appends the operator; bounds no activation has become MAXIMUM and MINIMUM."""
        out = self.of(layer.output)
        if (name := activation_of(out, clamp)) is not None:
            make(name, self.tensor(layer.output))
            return
        source = self.inner(out, "unbounded")
        make("NONE", source)
        self.bound(layer, clamp, source)

    def bound(self, layer: Layer, clamp: Clamp, source: int) -> None:
        """The layer's output is `source`, in its units, within `clamp`."""
        out = self.of(layer.output)
        least, most = LIMITS.get(out.dtype, (-math.inf, math.inf))
        wanted = [("MAXIMUM", clamp[0], clamp[0] > least), ("MINIMUM", clamp[1], clamp[1] < most)]
        steps = [(kind, value) for kind, value, needed in wanted if needed]
        for number, (kind, value) in enumerate(steps):
            limit = self.writer.constant(
                f"{layer.output}/{kind.lower()}", np.full((1,), value, out.dtype), units_of(out)
            )
            made = self.tensor(layer.output) if number == len(steps) - 1 else self.inner(out, "bounded")
            version = {"float32": 1, "int8": 2, "int16": 4}[out.dtype]
            self.operator(kind, [source, limit], made, version, "MaximumMinimumOptions")
            source = made

    def reshaped(self, source: int, output: int, shape: Sequence[int]) -> None:
        """`output` is `source` with another shape."""
        target = self.numbers(list(shape), f"shape_{'x'.join(map(str, shape))}")
        options = {"newShape": np.array(shape, np.int32)}
        self.operator("RESHAPE", [source, target], output, 1, "ReshapeOptions", **options)

    def padded(self, source: Tensor, before: Sequence[int], after: Sequence[int], value: float, output: int) -> None:
        """`output` is the program's tensor `source` between constants `value` (in its own units)."""
        amounts = self.numbers(
            [[b, a] for b, a in zip(before, after, strict=True)], f"pads_{_joined(before)}_{_joined(after)}"
        )
        version = {"float32": 1, "int8": 2, "int16": 2 if value == source.zero_point else 3}[source.dtype]
        if value == (source.zero_point if source.dtype != "float32" else 0):
            self.operator("PAD", [self.tensor(source.name), amounts], output, version, "PadOptions")
            return
        filler = self.writer.constant(f"{source.name}/filler", np.full((1,), value, source.dtype), units_of(source))
        self.operator("PADV2", [self.tensor(source.name), amounts, filler], output, version, "PadV2Options")

    def quantized(self, source: int, output: int, dtypes: tuple[str, str]) -> None:
        """`output` is the integers `source` in its own units."""
        version = 3 if "int16" in dtypes else 2
        self.operator("QUANTIZE", [source], output, version, "QuantizeOptions")


def write_layers(emission: Emission) -> None:
    """Write every layer. Raises UnsupportedModelError with one line for each that cannot be."""
    problems = []
    for layer in emission.program.layers:
        if layer.name in emission.skipped:
            continue
        emission.writer.layer = layer.name
        try:
            handler = HANDLERS.get(type(layer))
            if handler is None:
                raise Inexpressible("a layer that LiteRT has an operator for", layer.op)
            handler(emission, layer)
        except Inexpressible as verdict:
            problems.append(f"node {layer.name!r} (op {layer.op}): {verdict}")
    if problems:
        raise UnsupportedModelError("\n".join(problems))


def check_scales(program: Program) -> None:
    """Raise UnsupportedModelError for a tensor whose scale a file cannot hold."""
    for tensor in program.tensors.values():
        if tensor.dtype in LIMITS and not (tensor.scale > 0 and float(np.float32(tensor.scale)) == tensor.scale):
            raise UnsupportedModelError(
                f"tensor {tensor.name!r}: rule: a positive scale in float32; found {tensor.scale!r}"
            )


def units_of(tensor: Tensor) -> Units | None:
    """Scale and zero-point as the file notes them; None for float32."""
    return None if tensor.dtype == "float32" else Units((tensor.scale,), tensor.zero_point)


def activation_of(out: Tensor, clamp: Clamp) -> str | None:
    """The activation whose bounds in the output's units are these; None where none has them."""
    wanted = tuple(map(float, clamp))
    for name, bounds in ACTIVATIONS.items():
        if tuple(map(float, clamp_of(out, *bounds))) == wanted:
            return name
    return None


def fused(emission: Emission, name: str) -> int:
    """The schema's number of an activation."""
    return emission.writer.enumerated("ActivationFunctionType", name)


def _joined(values: Sequence[int]) -> str:
    return "x".join(map(str, values))
