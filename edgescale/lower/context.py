"""State of one lowering: known constants, stored values, layers so far, and how bytes get rearranged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edgescale.lower.constants import Constant
from edgescale.lower.errors import NodeError
from edgescale.lower.layout import Shape, View, channels_last, permutation_between, stored_shape, view
from edgescale.lower.program import LIMITS, Dequantize, DType, Layer, Pair, Reshape, Tensor, Transpose

if TYPE_CHECKING:
    import onnx_ir


class Units(NamedTuple):
    """Scale, zero-point and type of an integer tensor; the zero-point of int16 is 0."""

    scale: float
    zero_point: int
    dtype: DType = "int8"

    @property
    def limits(self) -> Pair:
        """Least and greatest stored value."""
        return LIMITS[self.dtype]


def units_of_tensor(tensor: Tensor) -> Units | None:
    """Units of an integer tensor; None for float32."""
    return Units(tensor.scale, tensor.zero_point, tensor.dtype) if tensor.dtype in LIMITS else None


@dataclass(frozen=True)
class Value:
    """An ONNX activation: the stored tensor that holds it and how its elements lie there."""

    tensor: str
    view: View

    @property
    def shape(self) -> Shape:
        """ONNX shape."""
        return self.view.shape


class Context:
    """What handlers read and extend.

    `values` maps ONNX value names to activations (the output of a DequantizeLinear is the int8 tensor
    itself), `constants` to constants. Node ids in `done` were folded into earlier nodes; those in
    `needed` reach a graph output.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Layer] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Constant] = {}
        self.done: set[int] = set()
        self.needed: set[int] = set()
        self.names: dict[int, str] = {}
        self._rearranged: dict[tuple[Any, ...], str] = {}

    # Reading a node

    def name_of(self, node: onnx_ir.Node) -> str:
        """The node's name in the user's model, or operator and position where it has none."""
        return self.names.get(id(node)) or node.name or node.op_type

    def operand(self, node: onnx_ir.Node, index: int) -> Value | Constant:
        """Input `index`, whichever it is. Raises NodeError where the node has none."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or not value.name:
            raise NodeError(f"no input {index}")
        if value.name in self.constants:
            return self.constants[value.name]
        if value.name not in self.values:
            raise NodeError(f"input {value.name!r}", "inputs are computed by earlier nodes")
        return self.values[value.name]

    def value(self, node: onnx_ir.Node, index: int = 0) -> Value:
        """Input `index` as an activation."""
        operand = self.operand(node, index)
        if isinstance(operand, Constant):
            raise NodeError(f"input {index} is a constant of shape {list(operand.shape)}")
        return operand

    def constant(self, node: onnx_ir.Node, index: int) -> Constant:
        """Input `index`, which must be a constant."""
        operand = self.operand(node, index)
        if isinstance(operand, Value):
            raise NodeError(f"input {index} is computed at run time")
        return operand

    def optional(self, node: onnx_ir.Node, index: int) -> Constant | None:
        """Input `index` as a constant, or None where it is omitted."""
        if index >= len(node.inputs) or node.inputs[index] is None or not node.inputs[index].name:  # type: ignore[union-attr]
            return None
        return self.constant(node, index)

    # Tensors and layers

    def fresh(self, name: str) -> str:
        """`name`, or a variant of it that no tensor has yet."""
        candidate, number = name, 1
        while candidate in self.tensors:
            number += 1
            candidate = f"{name}.{number}"
        return candidate

    def tensor(self, name: str, shape: Shape, units: Units | None) -> Tensor:
        """A new tensor, of integers in `units` or float32 without."""
        scale, zero, dtype = Units(0.0, 0, "float32") if units is None else Units(*units)
        made = Tensor(self.fresh(name), tuple(int(size) for size in shape), dtype, scale, zero)
        self.tensors[made.name] = made
        return made

    def is_integer(self, value: Value) -> bool:
        """Whether the value is stored as int8 or int16."""
        return self.units(value) is not None

    def units(self, value: Value) -> Units | None:
        """Units of a value stored as integers; None for float32."""
        return units_of_tensor(self.tensors[value.tensor])

    def real(self, value: Value, node: onnx_ir.Node) -> Value:
        """The value as float32, through a Dequantize layer where it is of integers."""
        if not self.is_integer(value):
            return value
        key = ("real", value.tensor)
        if key not in self._rearranged:
            source = self.tensors[value.tensor]
            made = self.tensor(f"{source.name}.real", source.shape, None)
            self.layers.append(Dequantize(f"{self.name_of(node)}/dequantize", (source.name,), made.name))
            self._rearranged[key] = made.name
        return Value(self._rearranged[key], value.view)

    # Arranging bytes

    def arrange(self, value: Value, target: View, shape: Shape, node: onnx_ir.Node) -> str:
        """Name of a tensor of `shape` holding the value in the order of `target`.

        Adds a Transpose only where the order differs, a Reshape (free) only where the shape does.
        """
        if value.view == target:
            return self._reshaped(value.tensor, shape, node)
        key = ("order", value.tensor, value.view, target, shape)
        if key not in self._rearranged:
            self._rearranged[key] = self._transposed(value, target, shape, node)
        return self._rearranged[key]

    def spatial(self, value: Value, node: onnx_ir.Node) -> Tensor:
        """[1, C, H, W] or [1, C, L] as the stored tensor [1, H, W, C] or [1, 1, L, C]."""
        axes = channels_last(len(value.shape))
        name = self.arrange(value, view(value.shape, axes), stored_shape(value.shape, axes), node)
        return self.tensors[name]

    def _reshaped(self, name: str, shape: Shape, node: onnx_ir.Node) -> str:
        source = self.tensors[name]
        if source.shape == shape:
            return name
        key = ("shape", name, shape)
        if key not in self._rearranged:
            made = dataclasses.replace(source, name=self.fresh(f"{name}.reshaped"), shape=shape)
            self.tensors[made.name] = made
            self.layers.append(Reshape(f"{self.name_of(node)}/reshape", (name,), made.name))
            self._rearranged[key] = made.name
        return self._rearranged[key]

    def _transposed(self, value: Value, target: View, shape: Shape, node: onnx_ir.Node) -> str:
        moves = self._whole_axes(value, target, shape) or permutation_between(value.view, target)
        if moves is None:
            # Orders whose factors do not fit together meet in ONNX's own row-major order.
            plain = view(value.shape, range(len(value.shape)))
            flat = View(plain.shape, value.view.factors, tuple(range(len(value.view.order))))
            middle = permutation_between(value.view, flat)
            if middle is None or value.view == plain:
                raise NodeError(f"an order of elements that cannot be rearranged, shape {list(value.shape)}")
            name = self._permuted(value.tensor, *middle, node)
            return self.arrange(Value(name, plain), target, shape, node)
        return self._reshaped(self._permuted(value.tensor, *moves, node), shape, node)

    def _whole_axes(self, value: Value, target: View, shape: Shape) -> tuple[Shape, Shape] | None:
        """The permutation in terms of the tensor's own shape, where both orders are of whole axes."""
        source, wanted = value.view.axes(), target.axes()
        if source is None or wanted is None:
            return None
        stored = tuple(value.shape[axis] for axis in source)
        if stored != self.tensors[value.tensor].shape or tuple(value.shape[axis] for axis in wanted) != shape:
            return None
        return stored, tuple(source.index(axis) for axis in wanted)

    def _permuted(self, name: str, shape: Shape, permutation: Shape, node: onnx_ir.Node) -> str:
        source = self.tensors[self._reshaped(name, shape, node)]
        moved = tuple(shape[axis] for axis in permutation)
        made = dataclasses.replace(source, name=self.fresh(f"{name}.transposed"), shape=moved)
        self.tensors[made.name] = made
        self.layers.append(Transpose(f"{self.name_of(node)}/transpose", (source.name,), made.name, permutation))
        return made.name
