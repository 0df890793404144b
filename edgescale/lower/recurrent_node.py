"""One LSTM or GRU node on its way to a layer a direction: what it computes in, starts from, reads and leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgescale.lower.attributes import integer
from edgescale.lower.constants import Constant
from edgescale.lower.context import Context, Units, Value, units_of_tensor
from edgescale.lower.errors import NodeError
from edgescale.lower.fixedpoint16 import saturate16
from edgescale.lower.integer import rescaling
from edgescale.lower.layout import view
from edgescale.lower.program import Array, Concat, Quantize, Rescale, Slice, Tensor
from edgescale.lower.program_recurrent import Initial, Recurrent
from edgescale.lower.qdq import parameters, units_of
from edgescale.lower.recurrent_weights import Product, integer_product, real_product, stacks
from edgescale.lower.reference_elementwise import quantize_real
from edgescale.lower.sink import readers

if TYPE_CHECKING:
    import onnx_ir

_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


@dataclass
class RecurrentNode:
    """One node on its way to a layer a direction. `order`: ONNX's gate of each of the layer's gates."""

    context: Context
    node: onnx_ir.Node
    order: Sequence[int]

    def __post_init__(self) -> None:
        context, node = self.context, self.node
        self.label = context.name_of(node)
        self._check()
        self.layout = integer(node, "layout", 0)
        self.weights, self.recurrent = context.constant(node, 1), context.constant(node, 2)
        self.bias = context.optional(node, 3)
        self.value = context.value(node)
        if len(self.value.shape) != 3 or len(self.weights.shape) != 3 or self.weights.shape[2] != self.value.shape[2]:
            raise NodeError(f"X of shape {list(self.value.shape)} and W of shape {list(self.weights.shape)}")
        self.steps, batch = (self.value.shape[axis] for axis in ((1, 0) if self.layout else (0, 1)))
        if batch != 1:
            raise NodeError(f"a batch of {batch}", "the batch is 1")
        lengths = context.optional(node, 4)
        if lengths is not None and (lengths.values != self.steps).any():
            raise NodeError(f"sequence_lens of {lengths.values.reshape(-1)[0]} for {self.steps} steps")
        self.units = self.recurrent.shape[-1]
        direction = self._text("direction", "forward")
        self.reversed = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(direction, ())
        self.directions = len(self.reversed)
        if self.directions != self.weights.shape[0]:
            raise NodeError(f"direction {direction} and W of shape {list(self.weights.shape)}")
        self.outputs: list[str] = []
        self.left: list[str | None] = []
        self.sequence = self._read(0)
        self._source: str | None = None

    def _text(self, name: str, default: str) -> str:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else str(attribute.as_string()).lower()

    def _check(self) -> None:
        node = self.node
        given = node.attributes.get("activations")
        wanted = _DEFAULTS[node.op_type]
        names = [] if given is None else [str(name).lower() for name in given.as_strings()]
        if names and names != wanted * (len(names) // len(wanted)):
            raise NodeError(f"activations {', '.join(names)}")
        for name in ("clip", "activation_alpha", "activation_beta"):
            if name in node.attributes:
                raise NodeError(name)

    def _output(self, index: int) -> onnx_ir.Value | None:
        found = self.node.outputs[index] if index < len(self.node.outputs) else None
        return found if found is not None and found.name else None

    def _read(self, index: int) -> bool:
        """Whether anyone needs output `index`."""
        found = self._output(index)
        return found is not None and (found.is_graph_output() or bool(readers(self.context, found)))

    # What the layer computes in

    def integer_units(self, exponent: int, carried: tuple[int, int]) -> Units | None:
        """Units of the output of an integer layer; None where the node computes in float32.

        carried: input and output that hold the int16 vector, in units of 2^exponent.
        """
        if not self._input_is_int8() or not (self.weights.quantized and self.recurrent.quantized):
            return None
        given, left = carried
        held = self._operand(given)
        if isinstance(held, Value):
            tensor = self.context.tensors[held.tensor]
            if tensor.dtype != "int16" or tensor.scale != 2.0**exponent:
                return None
        wanted: set[Units | None] = set()
        for index in (0, 1):
            if not self._read(index):
                continue
            short, others = self._quantizers(index, exponent)
            if index != left or others:
                wanted.add(self._agreed([*others, *(short if index != left else ())]))
        if left == 2 and self._read(2) and (not self._quantizers(2, exponent)[0] or self._quantizers(2, exponent)[1]):
            return None
        return wanted.pop() if len(wanted) == 1 else None

    def _agreed(self, nodes: list[onnx_ir.Node]) -> Units | None:
        """The units of QuantizeLinear nodes to 8 bits; None where one is another operator or they differ."""
        found: set[Units] = set()
        for node in nodes:
            if node.op_type != "QuantizeLinear" or parameters(self.context, node)[1].dtype not in (np.int8, np.uint8):
                return None
            try:
                found.add(units_of(self.context, node))
            except NodeError:
                return None  # the node says so itself when its turn comes
        return found.pop() if len(found) == 1 else None

    def _quantizers(self, index: int, exponent: int) -> tuple[list[onnx_ir.Node], list[onnx_ir.Node]]:
        """(QuantizeLinear nodes to int16 of 2^exponent, all other readers) of output `index`."""
        value = self._output(index)
        short: list[onnx_ir.Node] = []
        others: list[onnx_ir.Node] = []
        for reader, position in readers(self.context, value) if value is not None else []:
            fits = reader.op_type == "QuantizeLinear" and position == 0
            if fits:
                scale, zero = parameters(self.context, reader)
                fits = zero.dtype == np.int16 and not zero.any() and bool((scale == 2.0**exponent).all())
            (short if fits else others).append(reader)
        if value is not None and value.is_graph_output():
            others.append(self.node)
        return short, others

    def _input_is_int8(self) -> bool:
        return self.context.tensors[self.value.tensor].dtype == "int8"

    def products(self, direction: int, units: Units | None, apart: int) -> tuple[Product, Product]:
        """The direction's two products; `apart`: as `recurrent_weights.stacks`."""
        ahead, back = stacks(self.weights, self.recurrent, self.bias, direction, self.order, apart)
        if units is None:
            return real_product(ahead), real_product(back)
        source = self.context.units(self.value)
        if source is None:
            raise NodeError("a float input of an integer layer")
        return integer_product(ahead, source), integer_product(back, units)

    # What the layer starts from

    def _operand(self, index: int) -> Value | Constant | None:
        """Input `index`; None where it is omitted or a constant of zeros."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None or not value.name:
            return None
        found = self.context.operand(self.node, index)
        return None if isinstance(found, Constant) and not found.real().any() else found

    def _vector(self, index: int, direction: int, units: Units | None, exponent: int | None) -> str | None:
        """Tensor [1, 1, 1, U] with the direction's part of input `index`, in the type of `units` or `exponent`."""
        found = self._operand(index)
        name = f"{self.label}/initial_{index}{self._suffix(direction)}"
        shape = (1, 1, 1, self.units)
        if found is None:
            return None
        if isinstance(found, Constant):
            if found.values.size != self.directions * self.units:
                raise NodeError(f"an initial state of shape {list(found.shape)}")
            real = found.real().reshape(self.directions, self.units)[direction]
            return self._filled(name, real, units, exponent)
        if found.shape != self._state_shape():
            raise NodeError(f"an initial state of shape {list(found.shape)}")
        if exponent is None and units is None:
            found = self.context.real(found, self.node)
        whole = (1, 1, self.directions, self.units)
        source = self.context.arrange(found, view(found.shape, range(3)), whole, self.node)
        if self.directions > 1:
            source = self._part(f"{name}/part", source, shape, direction)
        held = self.context.tensors[source]
        if units is None or units_of_tensor(held) == units:
            return source
        made = self.context.tensor(name, shape, units)
        if held.dtype == "float32":
            self.context.layers.append(Quantize(f"{self.label}/quantize", (source,), made.name))
        else:
            scaling = rescaling(held.scale, units.scale, held.dtype)
            self.context.layers.append(Rescale(f"{self.label}/rescale", (source,), made.name, scaling, (-128, 127)))
        return made.name

    def _filled(self, name: str, real: Array, units: Units | None, exponent: int | None) -> str:
        """A tensor that holds constants at the start of every run."""
        made = self._tensor(name, (1, 1, 1, self.units), units, exponent)
        if units is not None:
            values: Array = quantize_real(real, *units)
        elif exponent is not None:
            values = saturate16(np.rint(np.asarray(real, np.float64) / 2.0**exponent)).astype(np.int16)
        else:
            values = real.astype(np.float32)
        self.context.layers.append(Initial(name, (self.source(),), made.name, values.reshape(made.shape)))
        return made.name

    def _tensor(self, name: str, shape: tuple[int, ...], units: Units | None, exponent: int | None) -> Tensor:
        made = self.context.tensor(name, shape, units)
        if exponent is not None:
            made = dataclasses.replace(made, dtype="int16", scale=2.0**exponent)
            self.context.tensors[made.name] = made
        return made

    def _part(self, name: str, source: str, shape: tuple[int, ...], row: int) -> str:
        made = dataclasses.replace(self.context.tensors[source], name=self.context.fresh(name), shape=shape)
        self.context.tensors[made.name] = made
        step = (1,) * len(shape)
        self.context.layers.append(Slice(name, (source,), made.name, begin=(0, 0, row, 0), step=step))
        return made.name

    def hidden(self, direction: int, units: Units | None) -> str | None:
        """The tensor with the output before the first step; None for zeros."""
        return self._vector(5, direction, units, None)

    def carried(self, direction: int, given: int, left: int, exponent: int | None) -> str | None:
        """A tensor of its own for the vector that the layer updates, where it comes from outside (input `given`) or
        is wanted (output `left`); None where it does neither. exponent None: float32."""
        name = f"{self.label}/carried{self._suffix(direction)}"
        source = self._vector(given, direction, None, exponent)
        wanted = self._read(left) and (left == 2 or bool(self._quantizers(left, exponent or 0)[0]))
        if source is None and not wanted:
            self.left.append(None)
            return None
        if source is None:
            made = self._filled(name, np.zeros(self.units), None, exponent)
        else:
            made = self._part(name, source, (1, 1, 1, self.units), 0)
        self.left.append(made)
        return made

    # The layer and what it leaves

    def source(self) -> str:
        """The sequence as a tensor [1, 1, T, I]."""
        if self._source is None:
            shape = (1, 1, self.steps, self.value.shape[2])
            self._source = self.context.arrange(self.value, view(self.value.shape, range(3)), shape, self.node)
        return self._source

    def _state_shape(self) -> tuple[int, int, int]:
        """ONNX shape of states: of a direction, a sample, a unit, in the order of the layout."""
        return (1, self.directions, self.units) if self.layout else (self.directions, 1, self.units)

    def _suffix(self, direction: int) -> str:
        return "/reverse" if direction else ""

    def layer(
        self, direction: int, units: Units | None, others: Sequence[str], kind: type[Recurrent], **fields: Any
    ) -> None:
        """Append the layer of one direction."""
        if units is None and self.context.is_integer(self.value):
            self.value, self._source = self.context.real(self.value, self.node), None
        value = self._output(0) if self.sequence else self._output(1)
        name = str(value.name) if value is not None else f"{self.label}/output"
        name = name if self.directions == 1 else f"{name}/{'reverse' if direction else 'forward'}"
        shape = (1, 1, self.steps if self.sequence else 1, self.units)
        made = self.context.tensor(name, shape, units)
        self.context.layers.append(
            kind(
                f"{self.label}{self._suffix(direction)}", (self.source(), *others), made.name, nodes=(self.label,),
                reverse=self.reversed[direction], sequence=self.sequence, **fields,
            )
        )  # fmt: skip
        self.outputs.append(made.name)

    def finish(self, units: Units | None, exponent: int | None) -> None:
        """Bind Y and Y_h; `exponent`: units of an int16 Y_h that is not to be bound here."""
        if self.sequence:
            middle = (1, self.steps, self.directions) if self.layout else (self.steps, self.directions, 1)
            self._bind(0, self._joined(self.outputs, str(self.node.outputs[0].name), 3), (*middle, self.units), units)
        last = self._output(1)
        if last is None or not self._read(1):
            return
        if exponent is not None and units is not None and not self._quantizers(1, exponent)[1]:
            return
        ends = self.outputs
        if self.sequence:
            shape, rows = (1, 1, 1, self.units), [0 if reverse else self.steps - 1 for reverse in self.reversed]
            ends = [
                self._part(f"{last.name}{self._suffix(d)}", self.outputs[d], shape, row) for d, row in enumerate(rows)
            ]
        self._bind(1, self._joined(ends, str(last.name), 2), self._state_shape(), units)

    def bind_carried(self, index: int) -> None:
        """Bind output `index` to the vectors that the layers updated."""
        value = self._output(index)
        if value is None or not self._read(index) or None in self.left:
            return
        names = [name for name in self.left if name is not None]
        made = Value(self._joined(names, str(value.name), 2), view(self._state_shape(), range(3)))
        held = self.context.tensors[made.tensor]
        if held.dtype == "float32":
            self.context.values[str(value.name)] = made
            return
        for quantizer in self._quantizers(index, round(np.log2(held.scale)))[0]:
            self.context.values[str(quantizer.outputs[0].name)] = made
            self.context.done.add(id(quantizer))

    def _joined(self, names: Sequence[str], name: str, axis: int) -> str:
        """One tensor of both directions, side by side along `axis`."""
        if len(names) == 1:
            return names[0]
        first = self.context.tensors[names[0]]
        shape = tuple(size * (len(names) if a == axis else 1) for a, size in enumerate(first.shape))
        made = dataclasses.replace(first, name=self.context.fresh(name), shape=shape)
        self.context.tensors[made.name] = made
        rescale = (None,) * len(names)
        self.context.layers.append(
            Concat(f"{self.label}/concat", tuple(names), made.name, axis=axis, rescale=rescale, nodes=(self.label,))
        )
        return made.name

    def _bind(self, index: int, tensor: str, shape: tuple[int, ...], units: Units | None) -> None:
        value = self.node.outputs[index]
        made = Value(tensor, view(shape, range(len(shape))))
        if units is None:
            self.context.values[str(value.name)] = made
            return
        for reader, _ in readers(self.context, value):
            if id(reader) not in self.context.done and self._agreed([reader]) == units:
                self.context.values[str(reader.outputs[0].name)] = made
                self.context.done.add(id(reader))
