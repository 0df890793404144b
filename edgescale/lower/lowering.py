"""From a QDQ or float ONNX graph to a Program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.model import PORTS_AS_GIVEN
from edgescale.core.state import decode_states
from edgescale.lower import handlers as _handlers  # noqa: F401  (fills the registry)
from edgescale.lower.constants import Constant, fold
from edgescale.lower.context import Context, Units, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.layout import channels_last, stored_shape, view
from edgescale.lower.passes import simplify
from edgescale.lower.program import Port, Program
from edgescale.lower.qdq import QDQ, fold_constant, units_of
from edgescale.lower.registry import HANDLERS, rule_of
from edgescale.lower.states import States
from edgescale.lower.types import check_types

if TYPE_CHECKING:
    import onnx_ir

_DOMAINS = ("", "ai.onnx")
PortType = Literal["float32", "int8", "uint8", "int16"]


def lower(ir: onnx_ir.Model, name: str) -> Program:
    """Lower a QDQ ONNX model to its integer program, or a float model to a float one.

    Every operator whose inputs come from DequantizeLinear and whose result goes to QuantizeLinear
    becomes an integer layer; the rest stays float32, with Quantize and Dequantize layers between.
    The batch axis must be 1 or dynamic. `ir` is not changed.
    Raises UnsupportedModelError with one line for every node that cannot be lowered, and for a model whose formats
    are only simulated.
    """
    if reason := ir.metadata_props.get("edgescale.simulated"):
        raise UnsupportedModelError(
            f"{name} is simulated ({reason}); no integer program computes it. Evaluate it on host"
        )
    return _Lowering(ir, name).run()


def lower_file(path: Path, name: str) -> Program:
    """`lower` of an ONNX file. Raises UnsupportedModelError where it cannot be read."""
    import onnx_ir

    try:
        model = onnx_ir.load(path)
    except Exception as error:
        raise UnsupportedModelError(f"{path}: not a readable ONNX model ({error})") from None
    return lower(model, name)


def operators() -> list[tuple[str, str]]:
    """ONNX operators that lower to integer or float layers, each with the rule it must meet, sorted."""
    return sorted((operator, rule_of(handler)) for operator, handler in HANDLERS.items())


class _Lowering:
    def __init__(self, model: onnx_ir.Model, name: str) -> None:
        self.name = name
        self.model = model
        self.graph = model.graph
        key, value = PORTS_AS_GIVEN
        self.as_given = model.metadata_props.get(key) == value
        opset = next((model.opset_imports[d] for d in _DOMAINS if d in model.opset_imports), 0)
        self.context = Context(opset)
        self.errors: list[str] = []
        self.unknown: set[str] = set()

    def run(self) -> Program:
        if not self.graph.outputs:
            raise UnsupportedModelError(f"{self.name}: rule: a model has an output; found none")
        self._find_needed()
        self._read_constants()
        self.states = States(decode_states(self.model.metadata_props, self.name), self.graph)
        self._read_inputs()
        for node in self.graph:
            if id(node) in self.context.needed and id(node) not in self.context.done:
                self._lower_node(node)
        check_types(self.context, self.context.layers, self._refuse)
        outputs = self._outputs()
        kept = self.states.finish(self.context, self._refuse) if not self.errors else ()
        if self.errors:
            raise UnsupportedModelError("\n".join(self.errors))
        program = Program(
            self.name, self.context.tensors, tuple(self.inputs), tuple(outputs), tuple(self.context.layers), kept
        )
        return simplify(program)

    def _find_needed(self) -> None:
        stack = [value.producer() for value in self.graph.outputs]
        counts: dict[str, int] = {}
        for node in self.graph:
            number = counts[node.op_type] = counts.get(node.op_type, -1) + 1
            self.context.names[id(node)] = node.name or f"{node.op_type}_{number}"
        while stack:
            node_or_none = stack.pop()
            if node_or_none is None or id(node_or_none) in self.context.needed:
                continue
            self.context.needed.add(id(node_or_none))
            stack.extend(value.producer() for value in node_or_none.inputs if value is not None)

    def _read_constants(self) -> None:
        constants = self.context.constants
        for name, value in self.graph.initializers.items():
            if value.const_value is None:
                self._refuse(f"initializer {name!r}: rule: initializers hold data; found none")
                continue
            constants[name] = Constant(np.asarray(value.const_value.numpy()))
        for node in self.graph:
            if id(node) in self.context.needed:
                self._try_fold(node)

    def _try_fold(self, node: onnx_ir.Node) -> bool:
        """Evaluate the node where all it reads is constant; whether it was."""
        constants = self.context.constants
        given = [constants.get(str(value.name)) if value is not None and value.name else None for value in node.inputs]
        absent = [value is None or not value.name for value in node.inputs]
        if any(constant is None and not gone for constant, gone in zip(given, absent, strict=True)):
            return False
        if not node.inputs and node.op_type != "Constant":
            return False
        try:
            if node.op_type in QDQ and given[0] is not None:
                results = [fold_constant(self.context, node, given[0])]
            else:
                results = fold(node, given, self.context.opset)
        except NodeError as rejection:
            self._reject(node, rejection)
            return True
        for value, constant in zip(node.outputs, results, strict=False):
            constants[str(value.name)] = constant
        self.context.done.add(id(node))
        return True

    def _read_inputs(self) -> None:
        self.inputs: list[Port] = []
        for value in self.graph.inputs:
            if value.name in self.context.constants:
                continue
            name = str(value.name)
            shape = self._input_shape(value)
            if shape is None:
                self.unknown.add(name)
                continue
            as_given = self.as_given or self._wants_onnx_order(value)
            axes = tuple(range(len(shape))) if as_given else channels_last(len(shape))
            dtype = _port_dtype(value)
            units = None
            if dtype != "float32":
                units = self._input_units(value)
                if units is None:
                    self._refuse(f"input {name!r}: rule: DequantizeLinear reads an integer input; found no such reader")
                    self.unknown.add(name)
                    continue
            tensor = self.context.tensor(name, stored_shape(shape, axes), units)
            self.context.values[name] = Value(tensor.name, view(shape, axes))
            port = Port(name, tensor.name, shape, axes, dtype or "float32")
            if name in self.states.inputs:
                self.states.inputs[name] = port
            else:
                self.inputs.append(port)

    def _input_units(self, value: onnx_ir.Value) -> Units | None:
        """Units of an integer input: those of the first DequantizeLinear it reaches through what moves elements."""
        waiting, seen = [value], set()
        while waiting:
            current = waiting.pop(0)
            for use in current.uses():
                if id(use.node) not in self.context.needed or use.idx or id(use.node) in seen:
                    continue
                seen.add(id(use.node))
                if use.node.op_type == "DequantizeLinear":
                    try:
                        return units_of(self.context, use.node)
                    except NodeError as rejection:
                        # The node says so itself when its turn comes.
                        return Units(1.0, 0) if rejection.rule else None
                if use.node.op_type in _MOVES:
                    waiting.append(use.node.outputs[0])
        return None if value.uses() else Units(1.0, 0)

    def _input_shape(self, value: onnx_ir.Value) -> tuple[int, ...] | None:
        if _port_dtype(value) is None:
            found = value.dtype.name.lower() if value.dtype is not None else "none"
            self._refuse(f"input {value.name!r}: rule: graph inputs are float32, int8, uint8 or int16; found {found}")
            return None
        if value.shape is None or len(value.shape) == 0:
            self._refuse(f"input {value.name!r}: rule: graph inputs have a shape with a batch axis; found none")
            return None
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        batch, rest = sizes[0], [size for size in sizes[1:] if size is not None and size > 0]
        if batch not in (None, 1) or len(rest) != len(sizes) - 1:
            shown = ", ".join(str(size) for size in value.shape)
            self._refuse(
                f"input {value.name!r}: rule: the batch axis is 1 or dynamic and all others are fixed; found [{shown}]"
            )
            return None
        return (1, *rest)

    def _wants_onnx_order(self, value: onnx_ir.Value) -> bool:
        """Whether the input is stored as ONNX has it: its first reader makes it channels-first, or it is no image.

        Exporters from channels-last frameworks put such a Transpose first; what enters is channels-last
        as it stands.
        """
        reader = value
        while True:
            nodes = [use.node for use in reader.uses() if id(use.node) in self.context.needed]
            if not nodes:
                return False
            if nodes[0].op_type not in (*QDQ, "Identity", "Cast"):
                break
            reader = nodes[0].outputs[0]
        rank = len(value.shape) if value.shape is not None else 0
        if nodes[0].op_type == "Transpose" and "perm" in nodes[0].attributes:
            permutation = list(nodes[0].attributes["perm"].as_ints())
            return permutation == [0, rank - 1, *range(1, rank - 1)] or rank == 3
        return rank == 3 and nodes[0].op_type not in _CHANNEL_OPERATORS

    def _lower_node(self, node: onnx_ir.Node) -> None:
        reads_unknown = any(value is not None and str(value.name) in self.unknown for value in node.inputs)
        if not reads_unknown and self._try_fold(node):
            return
        supported = node.domain in _DOMAINS or node.op_type in QDQ
        handler = HANDLERS.get(node.op_type) if supported else None
        if handler is None:
            found = node.op_type if node.domain in _DOMAINS else f"{node.domain}.{node.op_type}"
            self._reject(node, NodeError(found, "the operator must be one that `edgescale ops` lists"))
            return
        if reads_unknown:
            self._forget(node)
            return
        try:
            handler(self.context, node)
        except NodeError as rejection:
            self._reject(node, rejection)

    def _reject(self, node: onnx_ir.Node, rejection: NodeError) -> None:
        handler = HANDLERS.get(node.op_type)
        rule = rejection.rule or (rule_of(handler) if handler else "constant inputs can be evaluated")
        name = self.context.name_of(node)
        self._refuse(f"node {name!r} (op {node.op_type}): rule: {rule.rstrip('.')}; found {rejection.found}")
        self._forget(node)

    def _forget(self, node: onnx_ir.Node) -> None:
        """Nothing is known of the node's outputs: what reads them is checked for its operator only."""
        self.context.done.add(id(node))
        self.unknown.update(str(value.name) for value in node.outputs)

    def _refuse(self, message: str) -> None:
        self.errors.append(message)

    def _holds(self, held: Value, dtype: PortType) -> bool:
        """Whether a value is stored as a port of integers gives it."""
        units = self.context.units(held)
        return units is not None and units.dtype == ("int16" if dtype == "int16" else "int8")

    def _outputs(self) -> list[Port]:
        ports = []
        for value in self.graph.outputs:
            name = str(value.name)
            if name in self.unknown or name in self.states.outputs or self.errors:
                continue
            if name not in self.context.values:
                self._refuse(f"output {name!r}: rule: outputs depend on an input; found a constant")
                continue
            producer = value.producer()
            held = self.context.values[name]
            dtype = _port_dtype(value)
            if dtype is None or (dtype != "float32" and not self._holds(held, dtype)):
                found = value.dtype.name.lower() if value.dtype is not None else "none"
                self._refuse(
                    f"output {name!r}: rule: graph outputs are float32, or int8, uint8 or int16 behind QuantizeLinear; "
                    f"found {found}"
                )
                continue
            if held.shape[:1] != (1,):
                self._refuse(f"output {name!r}: rule: outputs keep the batch axis of 1; found {list(held.shape)}")
                continue
            axes = held.view.axes()
            tensor = held.tensor
            given = tuple(range(len(held.shape)))
            if axes is None or axes[0] != 0 or (self.as_given and axes != given):
                axes = given
                node = producer if producer is not None else next(iter(self.graph))
                tensor = self.context.arrange(held, view(held.shape, axes), held.shape, node)
            ports.append(Port(name, tensor, held.shape, axes, dtype))
        return ports


def _port_dtype(value: onnx_ir.Value) -> PortType | None:
    """The type of a graph input or output, float32 where none is noted; None for one that no tensor holds."""
    known: dict[str, PortType] = {"FLOAT": "float32", "INT8": "int8", "UINT8": "uint8", "INT16": "int16"}
    return "float32" if value.dtype is None else known.get(value.dtype.name)


_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Gather")
_CHANNEL_OPERATORS = (
    "Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
)  # fmt: skip
