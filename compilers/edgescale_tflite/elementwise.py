"""Sums, products, functions of single values, changes of units."""

from __future__ import annotations

import math

import numpy as np

from edgescale.lower.integer import activation_rescaling, add_rescaling, product_requant, rescaling
from edgescale.lower.interpolated import sigmoid_scaling
from edgescale.lower.program import (
    LIMITS,
    Add,
    Dequantize,
    InterpolatedLut,
    Lut,
    Mul,
    Quantize,
    Rescale,
    Tensor,
    Unary,
)
from edgescale_tflite.emission import Emission, activation_of, fused, units_of, writes
from edgescale_tflite.flatbuffer import Units
from edgescale_tflite.scales import Inexpressible, derived, factors, same, search
from edgescale_tflite.tables import native_operator

_TABLE_SIZE = 256
_TO_WHOLE = 1.5 * 2.0**23
"""float32 numbers as large have no fraction: added and taken away again it rounds to even what is below 2^22."""


@writes(Add)
def add(emission: Emission, layer: Add) -> None:
    """ADD and SUB; the second operand may be a constant and may broadcast."""
    first, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    second = _second(emission, layer, first, out)
    kind = "SUB" if layer.subtract else "ADD"
    version = {"float32": 1, "int8": 2, "int16": 5 if layer.subtract else 3}[out.dtype]

    def make(activation: str, output: int) -> None:
        emission.operator(
            kind, [emission.tensor(first.name), second], output, version, f"{kind.capitalize()}Options",
            fusedActivationFunction=fused(emission, activation), potScaleInt16=False,
        )  # fmt: skip

    emission.bounded(layer, layer.clamp, make)


@writes(Mul)
def mul(emission: Emission, layer: Mul) -> None:
    """MUL, operands as in ADD."""
    first, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    second = _second(emission, layer, first, out)
    version = {"float32": 1, "int8": 2, "int16": 4}[out.dtype]

    def make(activation: str, output: int) -> None:
        chosen = fused(emission, activation)
        given = [emission.tensor(first.name), second]
        emission.operator("MUL", given, output, version, "MulOptions", fusedActivationFunction=chosen)

    emission.bounded(layer, layer.clamp, make)


def _second(emission: Emission, layer: Add | Mul, first: Tensor, out: Tensor) -> int:
    """The second operand: an activation whose units give the layer's rescaling, or a constant in units found so."""
    if layer.constant is None:
        other = emission.of(layer.inputs[1])
        if out.dtype != "float32" and not _matches(layer, first, other.scale, out):
            raise Inexpressible("the operands' scales give the rescaling", f"{first.scale:g} and {other.scale:g}")
        return emission.tensor(other.name)
    name = f"{layer.name}/constant"
    if out.dtype == "float32":
        return emission.weight(name, layer.constant.astype(np.float32), None)
    scale = search(_guess(layer, first, out), lambda s: _matches(layer, first, s, out), "the constant's rescaling")
    values = layer.constant.astype(out.dtype)
    return emission.weight(name, values, Units((scale,), layer.constant_zero_point))


def _guess(layer: Add | Mul, first: Tensor, out: Tensor) -> float:
    if isinstance(layer, Mul):
        if layer.requant is None or not layer.requant.multiplier.all():
            raise Inexpressible("a product that is not always 0", "a multiplier of 0")
        return float(factors(layer.requant)[0]) * out.scale / first.scale
    if layer.rescale is None:
        raise Inexpressible("integer layers are rescaled", "none")
    a, b = (float(factors(one)[0]) for one in layer.rescale)
    return first.scale * b / a if a > 0 else 0.0


def _matches(layer: Add | Mul, first: Tensor, scale: float, out: Tensor) -> bool:
    """Whether LiteRT derives the layer's integers from these scales."""
    if isinstance(layer, Mul):
        return derived(lambda: product_requant(first.scale, scale, out.scale, out.dtype), layer.requant)
    if layer.rescale is None or layer.requant is None:
        return False
    left, pair, made = add_rescaling(first.scale, scale, out.scale, out.dtype)
    return (
        left == layer.left_shift
        and all(same(a, b) for a, b in zip(pair, layer.rescale, strict=True))
        and same(made, layer.requant)
    )


@writes(Rescale)
def rescale(emission: Emission, layer: Rescale) -> None:
    """QUANTIZE, or a RELU of its own, where LiteRT divides the scales in float32."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    given = emission.tensor(source.name)
    if derived(lambda: rescaling(source.scale, out.scale, source.dtype), layer.requant):
        if tuple(layer.clamp) == LIMITS[out.dtype]:
            emission.quantized(given, emission.tensor(out.name), (source.dtype, out.dtype))
            return
        made = emission.inner(out, "requantized")
        emission.quantized(given, made, (source.dtype, out.dtype))
        emission.bound(layer, layer.clamp, made)
        return
    if source.dtype != out.dtype or not derived(
        lambda: activation_rescaling(source.scale, out.scale, source.dtype), layer.requant
    ):
        raise Inexpressible("a rescaling by the quotient of the scales", f"{source.scale:g} to {out.scale:g}")
    _activation(emission, layer, source, out)


def _activation(emission: Emission, layer: Rescale, source: Tensor, out: Tensor) -> None:
    given = emission.tensor(source.name)
    version = 3 if out.dtype == "int16" else 2
    name = activation_of(out, layer.clamp)
    if name in ("RELU", "RELU6"):
        emission.operator(name, [given], emission.tensor(out.name), version)
        return
    if layer.clamp[0] < out.zero_point:
        raise Inexpressible("a lower bound of real zero or more", f"{layer.clamp[0]:g} of zero-point {out.zero_point}")
    made = emission.inner(out, "unbounded")
    emission.operator("RELU", [given], made, version)
    emission.bound(layer, layer.clamp, made)


@writes(Lut)
def lut(emission: Emission, layer: Lut) -> None:
    """LiteRT's own operator where its table is this one, else GATHER from a constant table."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    given = emission.tensor(source.name)
    found = native_operator(layer.function, layer.table, (source.scale, source.zero_point), (out.scale, out.zero_point))
    if found is not None:
        table = {"LEAKY_RELU": "LeakyReluOptions"}.get(found.kind, "")
        emission.operator(found.kind, [given], emission.tensor(out.name), found.version, table, **found.options)
        return
    writer = emission.writer
    wide = writer.tensor(f"{layer.output}/index", source.shape, "int32")
    moved = writer.tensor(f"{layer.output}/moved", source.shape, "int32")
    types = {"inDataType": "INT8", "outDataType": "INT32"}
    options = {key: writer.enumerated("TensorType", name) for key, name in types.items()}
    emission.operator("CAST", [given], wide, 1, "CastOptions", **options)
    offset = emission.numbers([_TABLE_SIZE // 2], "table_offset")
    emission.operator("ADD", [wide, offset], moved, 1, "AddOptions", fusedActivationFunction=fused(emission, "NONE"))
    table_index = emission.weight(f"{layer.name}/table", layer.table, units_of(out))
    emission.operator("GATHER", [table_index, moved], emission.tensor(out.name), 2, "GatherOptions", axis=0)


@writes(InterpolatedLut)
def interpolated(emission: Emission, layer: InterpolatedLut) -> None:
    """LOGISTIC and TANH of int16."""
    source = emission.of(layer.inputs[0])
    if sigmoid_scaling(source.scale) != (layer.multiplier, layer.shift):
        raise Inexpressible("a multiplier that follows from the input's scale", f"{layer.multiplier}")
    kind = "LOGISTIC" if layer.function == "sigmoid" else "TANH"
    emission.operator(kind, [emission.tensor(source.name)], emission.tensor(layer.output), 3)


@writes(Unary)
def unary(emission: Emission, layer: Unary) -> None:
    """float32 functions; hard sigmoid and ELU from several operators."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    given, made = emission.tensor(source.name), emission.tensor(out.name)
    parameters = layer.parameters
    plain = {"relu": "RELU", "sigmoid": "LOGISTIC", "tanh": "TANH", "exp": "EXP", "hardswish": "HARD_SWISH"}
    if layer.function in plain:
        emission.operator(plain[layer.function], [given], made, 1)
    elif layer.function == "leakyrelu":
        emission.operator("LEAKY_RELU", [given], made, 1, "LeakyReluOptions", alpha=parameters[0])
    elif layer.function == "clip":
        _clip(emission, layer, (parameters[0], parameters[1]), given)
    elif layer.function == "hardsigmoid":
        scaled = _with_constant(emission, "MUL", out, given, parameters[0])
        _clip(emission, layer, (0.0, 1.0), _with_constant(emission, "ADD", out, scaled, parameters[1]))
    elif layer.function == "elu":
        # alpha * (exp(min(x, 0)) - 1) + max(x, 0): LiteRT's reference kernels have no ELU of float32.
        below, above = (_with_constant(emission, kind, out, given, 0.0) for kind in ("MINIMUM", "MAXIMUM"))
        grown = emission.inner(out, "exp")
        emission.operator("EXP", [below], grown, 1)
        scaled = _with_constant(emission, "MUL", out, _with_constant(emission, "ADD", out, grown, -1.0), *parameters)
        none = fused(emission, "NONE")
        emission.operator("ADD", [above, scaled], made, 1, "AddOptions", fusedActivationFunction=none)
    else:
        raise Inexpressible("a function that LiteRT has", layer.function)


def _clip(emission: Emission, layer: Unary, bounds: tuple[float, float], given: int) -> None:
    if bounds == (-math.inf, math.inf):
        emission.reshaped(given, emission.tensor(layer.output), emission.of(layer.output).shape)
    else:
        emission.bound(layer, bounds, given)


def _with_constant(emission: Emission, kind: str, out: Tensor, given: int, value: float) -> int:
    """A float32 operator with a constant as second operand; its result."""
    made = emission.inner(out, kind.lower())
    constant = emission.writer.constant(f"{out.name}/{kind.lower()}_{value:g}", np.full((1,), value, np.float32))
    tables = {"MUL": "MulOptions", "ADD": "AddOptions", "DIV": "DivOptions"}
    if kind in tables:
        none = fused(emission, "NONE")
        emission.operator(kind, [given, constant], made, 1, tables[kind], fusedActivationFunction=none)
    else:
        emission.operator(kind, [given, constant], made, 1, "MaximumMinimumOptions")
    return made


@writes(Quantize)
def quantize(emission: Emission, layer: Quantize) -> None:
    """QUANTIZE rounds halves away from zero, the program to even: so the number of steps is bounded and rounded
    before, and QUANTIZE only changes the type. (NaN becomes the upper bound, not the zero-point.)"""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    least, most = LIMITS[out.dtype]
    steps = _with_constant(emission, "DIV", source, emission.tensor(source.name), out.scale)
    bounded = _with_constant(emission, "MINIMUM", source, steps, most - out.zero_point)
    bounded = _with_constant(emission, "MAXIMUM", source, bounded, least - out.zero_point)
    moved = _with_constant(emission, "ADD", source, bounded, _TO_WHOLE)
    whole = _with_constant(emission, "ADD", source, moved, -_TO_WHOLE)
    real = _with_constant(emission, "MUL", source, whole, out.scale)
    version = 3 if out.dtype == "int16" else 1
    emission.operator("QUANTIZE", [real], emission.tensor(out.name), version, "QuantizeOptions")


@writes(Dequantize)
def dequantize(emission: Emission, layer: Dequantize) -> None:
    """DEQUANTIZE."""
    source = emission.of(layer.inputs[0])
    version = {"int8": 2, "int16": 3}[source.dtype]
    output = emission.tensor(layer.output)
    emission.operator("DEQUANTIZE", [emission.tensor(source.name)], output, version, "DequantizeOptions")
