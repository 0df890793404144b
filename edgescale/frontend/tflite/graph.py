"""The ONNX graph under construction: which value holds which tensor, as what, in which layout.

A quantized tensor lives as its integers ("stored"); who computes with it reads it through a DequantizeLinear
("real"), and results reach it through a QuantizeLinear. What only moves elements works on the integers, as
LiteRT does. Rank-4 tensors may be held channels-last (the file's order) or channels-first (what ONNX's image
operators take); the other layout is a Transpose, made when somebody asks for it.

Between the ports int8 is written as uint8, 128 added to integers and zero-point: the same numbers to the lowering,
and the form that ONNX Runtime fuses on every processor. int16 stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgescale.core.state import StateSpec
from edgescale.frontend.tflite.reader import File, Quantization, Tensor

Array = npt.NDArray[np.generic]
Layout = Literal["last", "first"]
"""Where a rank-4 tensor has its channels; tensors of other ranks are always "last", the file's own order."""

TO_FIRST = (0, 3, 1, 2)
TO_LAST = (0, 2, 3, 1)
FIRST_OF_LAST = (0, 2, 3, 1)
"""Axis of the channels-last tensor -> the same axis of the channels-first one."""

ELEMENTS = {
    "FLOAT32": TensorProto.FLOAT,
    "INT8": TensorProto.INT8,
    "UINT8": TensorProto.UINT8,
    "INT16": TensorProto.INT16,
}
"""Types of activations."""


class Refusal(Exception):  # noqa: N818  (what is raised is a verdict)
    """An operator of the file cannot be translated: `rule` is what it must meet, `found` what it is."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(f"rule: {rule}; found {found}")


@dataclass
class Variable:
    """A variable that is read or assigned. read: the tensor of its first READ_VARIABLE before any ASSIGN_VARIABLE,
    None where there is none; port: the ONNX input that holds it; assigned: the tensor it holds now, None while it
    holds what the last inference left."""

    read: int | None = None
    port: str = ""
    assigned: int | None = None


class Graph:
    """Nodes and constants so far. `name` is the label of the operator being translated."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.operator = ""
        self.handles: dict[int, str] = {}
        """Resource tensor -> variable."""
        self.variables: dict[str, Variable] = {}
        self.state_ports: dict[int, str] = {}
        """Variable tensor of a recurrent operator -> the ONNX input that holds it."""
        self.recurrent_states: list[StateSpec] = []
        self._used: set[str] = set()
        self._labels: set[str] = set()
        self._values: dict[tuple[int, Layout, bool], str] = {}
        self._native: dict[int, Layout] = {}
        self._folded: dict[int, Tensor] = {}
        self._arrays: dict[str, tuple[bytes, tuple[int, ...], str]] = {}
        # The names of what users see first: ports, then everything else in the file's order.
        edges = (*file.inputs, *file.outputs)
        ordered = dict.fromkeys((*edges, *range(len(file.tensors))))
        self._names = {index: self.unique(file.tensors[index].name or f"tensor_{index}") for index in ordered}
        self._reserved = set(self._names.values())

    # Names

    def unique(self, name: str) -> str:
        """A value's name, or the first of `name_1`, `name_2`, ... that is free."""
        return _free(name, self._used)

    def label(self, name: str) -> str:
        """A node's name, likewise."""
        return _free(name, self._labels)

    def readable(self, index: int) -> str:
        """The name of an operator by its output: converters join the names of all they fused with `;`."""
        return self._names[index].split(";")[0].removesuffix(":0") or self._names[index]

    def name(self, index: int) -> str:
        """The tensor's name in the ONNX graph: the file's, made unique."""
        return self._names[index]

    # Nodes and constants

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str | None = None,
        *,
        label: str | None = None,
        **attributes: object,
    ) -> str:
        """Append a node; the name of its output. Without a label it carries the operator's name and its own."""
        name = self.label(label or f"{self.operator}/{op}")
        made = output or self.unique(f"{name}_output")
        self.nodes.append(helper.make_node(op, list(inputs), [made], name, **attributes))
        return made

    def constant(self, name: str, array: npt.ArrayLike) -> str:
        """An initializer of `array`, a tensor's under its own name; equal ones of one name are shared."""
        values = np.asarray(array)
        key = (values.tobytes(), values.shape, str(values.dtype))
        if self._arrays.get(name) == key:
            return name
        made = name if name in self._reserved and name not in self._arrays else self.unique(name)
        self._arrays[made] = key
        self.constants.append(numpy_helper.from_array(np.asarray(values, order="C"), made))
        return made

    # Tensors in and out

    def feed(self, index: int) -> None:
        """Tensor `index` is a graph input."""
        self._native[index] = "last"
        value, quantized = self._names[index], self.tensor(index).quantized
        self._values[index, "last", quantized] = self._recoded(index, value, inward=True) if quantized else value

    def tensor(self, index: int) -> Tensor:
        """The file's tensor, with its data where that turned out to be constant."""
        return self._folded.get(index, self.file.tensors[index])

    def known(self, index: int) -> bool:
        """Whether an operator before made the tensor, or it is fed or constant."""
        return index in self._native or self.tensor(index).data is not None

    def native(self, index: int) -> Layout:
        """The layout a tensor was made in."""
        return self._native.get(index, "last")

    def layout_of(self, indices: Sequence[int]) -> Layout:
        """The layout in which an element-wise operator of these activations costs the fewest Transposes."""
        fed = [index for index in indices if self.tensor(index).data is None]
        if any(len(self.tensor(index).shape) != 4 for index in fed):
            return "last"
        return "first" if any(self.native(index) == "first" for index in fed) else "last"

    def real(self, index: int, layout: Layout = "last", gain: float = 1.0) -> str:
        """The activation `index` as a float32 value; gain scales it (a quantized one by its units, exactly)."""
        tensor = self.tensor(index)
        if tensor.quantized:
            key = (index, layout, False)
            if gain == 1.0 and key in self._values:
                return self._values[key]
            scale, zero = self.units(index, gain)
            stored = self.stored(index, layout)
            made = self.unique(f"{self._names[index]}/dequantized{_suffix(layout)}")
            self.node("DequantizeLinear", [stored, scale, zero], made, label=f"{self.readable(index)}/DequantizeLinear")
            if gain == 1.0:
                self._values[key] = made
            return made
        value = self._in_layout(index, layout, stored=False)
        if gain != 1.0:
            return self.node("Mul", [value, self.constant(f"{self.operator}/gain", np.float32(gain))])
        return value

    def stored(self, index: int, layout: Layout = "last") -> str:
        """The activation as the file holds it: integers of a quantized tensor, else float32."""
        return self._in_layout(index, layout, stored=self.tensor(index).quantized)

    def _in_layout(self, index: int, layout: Layout, *, stored: bool) -> str:
        key = (index, layout, stored)
        if key not in self._values:
            other = self._values.get((index, "first" if layout == "last" else "last", stored))
            if other is None:
                raise Refusal("an operator before computes what it reads", f"{self._names[index]!r}")
            made = self._output_name(index, layout, stored=stored)
            order = TO_FIRST if layout == "first" else TO_LAST
            label = f"{self.readable(index)}/Transpose{_suffix(layout)}"
            self.node("Transpose", [other], made, label=label, perm=order)
            self._values[key] = made
        return self._values[key]

    def _output_name(self, index: int, layout: Layout, *, stored: bool) -> str:
        """The tensor's own name for what a reader of the model looks for; a longer one for its companions.

        A graph output is its stored, channels-last value, made by `output` where it is int8; an inner tensor what
        its operator computes.
        """
        tensor, name = self.tensor(index), self._names[index]
        if index in self.file.outputs:
            own = layout == "last" and stored == tensor.quantized and tensor.kind != "INT8"
        else:
            own = not stored and (index, layout, stored) not in self._values and self._native.get(index) == layout
        if own:
            return name
        kind = "/quantized" if stored else "/real" if tensor.quantized else ""
        return self.unique(f"{name}{kind}{_suffix(layout) or ('/channels_last' if not kind else '')}")

    def result_name(self, index: int, layout: Layout) -> str:
        """The name under which an operator leaves its float32 result for tensor `index`."""
        self._native[index] = layout
        return self._output_name(index, layout, stored=False)

    def bind(self, index: int, value: str, layout: Layout) -> None:
        """`value` (float32, named by `result_name`) is tensor `index`; a quantized one is quantized from it."""
        self._native[index] = layout
        if not self.tensor(index).quantized:
            self._values[index, layout, False] = value
            return
        scale, zero = self.units(index)
        made = self._output_name(index, layout, stored=True)
        self.node("QuantizeLinear", [value, scale, zero], made, label=f"{self.readable(index)}/QuantizeLinear")
        self._values[index, layout, True] = made

    def bind_stored(self, index: int, make: Callable[[str], str], layout: Layout) -> None:
        """Tensor `index` as it is stored is what `make` appends under the name it is given."""
        self._native[index] = layout
        stored = self.tensor(index).quantized
        own = index not in self.file.outputs or (layout == "last" and self.tensor(index).kind != "INT8")
        name = self._names[index] if own else self._output_name(index, layout, stored=stored)
        self._values[index, layout, stored] = make(name)

    def make_constant(self, index: int, array: Array) -> None:
        """Tensor `index` turned out to be a constant: operators behind find its data in the file's tensor."""
        found = self.file.tensors[index]
        known = Tensor(index, found.name, found.shape, found.kind, None, array)
        self._folded[index] = known

    def output(self, index: int) -> None:
        """Give the finished tensor `index` the file's own name, layout and type."""
        value = self.stored(index)
        if self.tensor(index).kind == "INT8":
            value = self._recoded(index, value, inward=False)
        if value != self._names[index]:
            self.node("Identity", [value], self._names[index], label=f"{self.readable(index)}/Identity")

    def _recoded(self, index: int, value: str, *, inward: bool) -> str:
        """An int8 port's value as the uint8 in use inside, or the other way: equal numbers, so nothing is rounded."""
        if self.tensor(index).kind != "INT8":
            return value
        name, label = self._names[index], self.readable(index)
        scale, shifted = self.units(index)
        plain = self.constant(f"{name}/port_zero_point", np.asarray(self.quantization(index).zero_point[0], np.int8))
        before, after = (plain, shifted) if inward else (shifted, plain)
        real = self.unique(f"{name}/recoded")
        self.node("DequantizeLinear", [value, scale, before], real, label=f"{label}/DequantizeLinear")
        made = self.unique(f"{name}/quantized") if inward else name
        return self.node("QuantizeLinear", [real, scale, after], made, label=f"{label}/QuantizeLinear")

    def units(self, index: int, gain: float = 1.0) -> tuple[str, str]:
        """Initializers of an activation's scale (times gain) and zero-point, the latter as uint8 or int16."""
        tensor = self.tensor(index)
        found = self.quantization(index)
        least, most = {"UINT8": (0, 255), "INT16": (0, 0)}.get(tensor.kind, (-128, 127))
        zero = int(found.zero_point[0])
        if found.scale.size != 1 or not found.scale[0] > 0 or not least <= zero <= most:
            points = f"from {least} to {most}" if most else "of 0"
            raise Refusal(
                f"an activation has one positive scale and a zero-point {points}",
                f"{tensor.name!r} with {found.scale.size} scale(s), first {found.scale[0]:g}, and zero-point {zero}",
            )
        name = self._names[index]
        scale = np.float32(found.scale[0] * np.float64(gain))
        if tensor.kind == "INT16":
            point = np.asarray(0, np.int16)
        else:
            point = np.asarray(zero if tensor.kind == "UINT8" else zero + 128, np.uint8)
        return self.constant(f"{name}/scale", scale), self.constant(f"{name}/zero_point", point)

    def quantization(self, index: int) -> Quantization:
        """Scale and zero-point of a quantized tensor."""
        tensor = self.tensor(index)
        if tensor.quantization is None:
            raise Refusal("an integer tensor has a scale and a zero-point", f"{tensor.name!r} without")
        return tensor.quantization


def channels_first(shape: Sequence[int]) -> tuple[int, ...]:
    """A channels-last shape of rank 4 in ONNX's order."""
    return tuple(shape[axis] for axis in TO_FIRST)


def _suffix(layout: Layout) -> str:
    return "/channels_first" if layout == "first" else ""


def _free(name: str, used: set[str]) -> str:
    candidate, count = name, 0
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    used.add(candidate)
    return candidate
