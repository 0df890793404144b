"""The integer program: fused layers over channels-last tensors, the one contract of integer back ends.

Arithmetic is that of LiteRT's reference kernels: int8 activations with one scale and zero-point a
tensor, int8 weights with symmetric per-channel scales, int32 accumulators and biases, a 31-bit
multiplier with a shift, saturation. Activations may also be int16, symmetric (zero-point 0): sums and
biases of layers with weights then have 64 bits. `reference.py` executes a program in NumPy and is the oracle;
generated C and every emulated core must equal it bit for bit.

A program may also hold float32 tensors (float models, or layers a QDQ graph leaves in float): the
same layer classes, with float weights, `requant=None` and a clamp in real units. Float results
agree with the reference to rounding, not to the bit.

Stored shapes start with the batch (always 1) and are channels-last: [1, H, W, C] for images,
[1, 1, L, C] for 1-D convolutions, [1, F] for vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
DType = Literal["int8", "int16", "int32", "float32"]
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]
"""Rows above, columns left, rows below, columns right."""

ITEM_BYTES: dict[str, int] = {"int8": 1, "int16": 2, "int32": 4, "float32": 4}
LIMITS: dict[str, Pair] = {"int8": (-128, 127), "int16": (-(2**15), 2**15 - 1)}
"""Least and greatest value of the integer types that activations have."""


@dataclass(frozen=True)
class Tensor:
    """An activation. real = scale * (q - zero_point) for int8 and int16 (zero_point 0); scale 0 for float32."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    scale: float = 0.0
    zero_point: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return self.size * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Port:
    """A graph input or output: the ONNX value `name` of `shape` is `tensor` after transposing by `axes`.

    stored = onnx_value.transpose(axes).reshape(tensor.shape)

    `dtype` is that of the ONNX value: float32 (an integer tensor then holds it quantized), or the integers
    themselves, int8 and int16 as they are stored and uint8 as 128 more.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: Literal["float32", "int8", "uint8", "int16"] = "float32"


@dataclass(frozen=True)
class Requant:
    """Accumulator -> output units, one entry a channel (or a single one for all).

    multiplier: int32 in [2^30, 2^31) or 0 (a Mean's from 2^29 on); shift: int32, positive is left (LiteRT
    convention), so that real factor = multiplier * 2^(shift - 31). rounding "double":
    SaturatingRoundingDoublingHighMul then RoundingDivideByPOT (convolutions, and every layer not noted
    otherwise); "single": one round-half-up of the 64-bit product (fully connected). LiteRT 2.3 scales fully
    connected accumulators in double precision; the two differ only where the product lies within 2^-31 of its
    size from a half (192 of 244,800 accumulators chosen there, none of the 743,200 outputs of an AD model).

    Layers with weights of int16 activations, whose accumulators have up to 47 bits: "reduced" (convolutions), the
    multiplier rounded to 15 bits and one round-half-up; "real" (fully connected), the accumulator times the factor in
    double precision, rounded half away from zero. Multipliers of "real" are int64 in [2^52, 2^53) or 0, and the
    factor is multiplier * 2^(shift - 53).
    """

    multiplier: npt.NDArray[np.int32] | npt.NDArray[np.int64]
    shift: npt.NDArray[np.int32]
    rounding: Literal["double", "single", "reduced", "real"] = "double"


Clamp = tuple[float, float]
"""Least and greatest output: in output q units for integers (within `LIMITS` of the type), real for float32."""


@dataclass(frozen=True)
class Layer:
    """One step. `name` is the node's name in the user's model; `nodes` all the nodes folded into it.

    Recurrent layers are in `program_recurrent`.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    nodes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def op(self) -> str:
        """The layer's kind, as reports print it."""
        return type(self).__name__

    def macs(self, tensors: Mapping[str, Tensor]) -> int:
        """Multiply-accumulates for one sample, given the program's tensors; see `program.macs`."""
        return 0

    @property
    def updates(self) -> tuple[str, ...]:
        """Inputs that the layer overwrites: layers behind it find there what it left. None is a state's input, a port
        or read through another name."""
        return ()


@dataclass(frozen=True)
class Conv2D(Layer):
    """weights [O, KH, KW, I/groups]; bias [O], int32, int64 for int16 activations, or float32 (input zero-point NOT
    folded in).

    weight_bits: bits in which a back end may store an integer weight (here, and in the other layers with weights);
    the arrays hold int8 all the same, with values in [-2^(bits-1), 2^(bits-1)).
    """

    weights: Array
    bias: Array
    stride: Pair
    dilation: Pair
    padding: Padding
    groups: int
    requant: Requant | None
    clamp: Clamp
    weight_bits: int = field(default=8, kw_only=True)

    def macs(self, tensors: Mapping[str, Tensor]) -> int:
        """One for each weight and position of the output it reaches."""
        return tensors[self.output].size * int(np.prod(self.weights.shape[1:]))


@dataclass(frozen=True)
class DepthwiseConv2D(Layer):
    """weights [KH, KW, C*multiplier]; output channel c*multiplier+m reads input channel c."""

    weights: Array
    bias: Array
    stride: Pair
    dilation: Pair
    padding: Padding
    multiplier: int
    requant: Requant | None
    clamp: Clamp
    weight_bits: int = field(default=8, kw_only=True)

    def macs(self, tensors: Mapping[str, Tensor]) -> int:
        """One for each weight and position of the output it reaches."""
        return tensors[self.output].size * int(np.prod(self.weights.shape[:2]))


@dataclass(frozen=True)
class FullyConnected(Layer):
    """weights [O, I]; input is any tensor of I elements per row: [rows, I] -> [rows, O]."""

    weights: Array
    bias: Array
    requant: Requant | None
    clamp: Clamp
    weight_bits: int = field(default=8, kw_only=True)

    def macs(self, tensors: Mapping[str, Tensor]) -> int:
        """One for each weight and position of the output it reaches."""
        return tensors[self.output].size * int(self.weights.shape[1])


@dataclass(frozen=True)
class Add(Layer):
    """Sum of two tensors (second may broadcast: same shape, one value per channel, or a scalar).

    Integers: LiteRT's Add: (x - zp) << left_shift, each rescaled by its own multiplier, summed, rescaled
    by `requant`. `constant` holds the second operand when it is a weight (then `inputs` has one name)
    in the same units as a tensor with `constant_zero_point`.
    """

    left_shift: int
    rescale: tuple[Requant, Requant] | None
    requant: Requant | None
    clamp: Clamp
    subtract: bool = False
    constant: Array | None = None
    constant_zero_point: int = 0


@dataclass(frozen=True)
class Mul(Layer):
    """Product of two tensors, broadcasting and `constant` as in Add. int8: (a-za)*(b-zb) then `requant`."""

    requant: Requant | None
    clamp: Clamp
    constant: Array | None = None
    constant_zero_point: int = 0


@dataclass(frozen=True)
class Concat(Layer):
    """Concatenation along `axis` of the stored shape; `rescale[i]` is None where input i has the output's units."""

    axis: int
    rescale: tuple[Requant | None, ...]


@dataclass(frozen=True)
class Pad(Layer):
    """Constant padding; `before`/`after` per stored axis; `value` in the tensor's own units."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class Pool2D(Layer):
    """Max or average pooling. Average: divisor counts only real pixels unless `count_padding`.

    Integer average with `requant` None: LiteRT's AveragePool, the rounded mean (half away from zero) in
    unchanged units; with `requant`: that mean is then rescaled like `Rescale`. Max needs equal units.
    """

    kind: Literal["max", "avg"]
    kernel: Pair
    stride: Pair
    padding: Padding
    count_padding: bool
    requant: Requant | None
    clamp: Clamp


@dataclass(frozen=True)
class Mean(Layer):
    """Mean over H and W (global average pooling): int32 sum of (x - zp), then `requant` (1/count folded in)."""

    requant: Requant | None
    clamp: Clamp


@dataclass(frozen=True)
class Softmax(Layer):
    """Softmax over the last stored axis, in LiteRT's fixed point.

    int8: output scale 1/256, zero-point -128. int16: output scale 1/32768; tables of `interpolated`, the shift may
    be negative (to the right), diff_min is 0 and unused.
    """

    input_multiplier: int
    input_left_shift: int
    diff_min: int


@dataclass(frozen=True)
class Lut(Layer):
    """Element-wise function of one int8 tensor: out = table[q + 128], table int8 [256]. `function` names it."""

    table: npt.NDArray[np.int8]
    function: str


@dataclass(frozen=True)
class InterpolatedLut(Layer):
    """sigmoid or tanh of one int16 tensor, output scale 1/32768: `interpolated.sigmoid` or `tanh` of
    (q * multiplier) >> shift, rounded half up."""

    function: Literal["sigmoid", "tanh"]
    multiplier: int
    shift: int


@dataclass(frozen=True)
class Unary(Layer):
    """Element-wise float32 function: relu, clip, sigmoid, tanh, exp, hardswish, hardsigmoid, leakyrelu, elu."""

    function: str
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rescale(Layer):
    """Integers to integers of other units or the other type: (q - zp_in), `requant`, + zp_out, clamp."""

    requant: Requant
    clamp: Clamp


@dataclass(frozen=True)
class Quantize(Layer):
    """float32 -> int8 or int16: round half to even of x/scale, + zero_point, saturated."""


@dataclass(frozen=True)
class Dequantize(Layer):
    """int8 or int16 -> float32: scale * (q - zero_point)."""


@dataclass(frozen=True)
class Reshape(Layer):
    """Same bytes, another shape; costs nothing (the planner gives both tensors one place)."""


@dataclass(frozen=True)
class Transpose(Layer):
    """out = in.transpose(permutation)."""

    permutation: tuple[int, ...]


@dataclass(frozen=True)
class Slice(Layer):
    """Every `step`-th element from `begin` on along each stored axis, as many as the output's shape has.

    One of the whole input is a copy that is wanted as such: a state must not share bytes with what it came from.
    """

    begin: tuple[int, ...]
    step: tuple[int, ...]


@dataclass(frozen=True)
class State:
    """What a program keeps from one run to the next: tensor `input` holds what `output` held after the last one.

    Both have one shape, dtype and units. `initial`: what `input` holds at the start and after a reset, stored,
    of the tensor's shape. `output` is made by a layer and is no other state's; where it is `input` itself, the
    state never changes.
    """

    name: str
    input: str
    output: str
    initial: Array


@dataclass(frozen=True)
class Program:
    """Layers in execution order over named tensors.

    Every tensor is a graph input, a state's input or the output of exactly one layer.
    """

    name: str
    tensors: Mapping[str, Tensor]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...]
    states: tuple[State, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Tensors that are there before the first layer runs: inputs, then states."""
        return (*(port.tensor for port in self.inputs), *(state.input for state in self.states))

    @property
    def results(self) -> tuple[str, ...]:
        """Tensors that are needed after the last layer: outputs, then states."""
        return (*(port.tensor for port in self.outputs), *(state.output for state in self.states))


def macs(program: Program, layer: Layer) -> int:
    """Multiply-accumulates of one layer for one sample (weights times output positions)."""
    return layer.macs(program.tensors)
