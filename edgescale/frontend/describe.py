"""What a model costs before anything is compiled: MACs, parameters and activations, node by node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgescale.core.model import Model

if TYPE_CHECKING:
    import onnx_ir

# Outputs that share their input's memory: the bytes are the same, or written over element by element.
_VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "QuantizeLinear", "DequantizeLinear"))
_IN_PLACE = (
    frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Sigmoid", "HardSigmoid"})
    | {"HardSwish", "Tanh", "Softmax", "Softplus", "Exp", "Sqrt", "Erf", "Neg", "Abs"}
    | {"BatchNormalization", "Cast"}
)
# Inputs past the first that are settings, not parameters.
_SETTINGS = frozenset(("Clip", "Pad", "Resize", "Reshape", "Slice", "Expand", "Tile", "ReduceMean", "QuantizeLinear"))


@dataclass(frozen=True)
class NodeFigures:
    """Cost of one node for one sample.

    `macs`: multiply-accumulates of convolutions and matrix products, 0 elsewhere; `parameters`: elements of
    the constants it reads (a shared one counts where it is read first); `activation_bytes`: its
    outputs in the types the graph declares (float32: 4 bytes an element).
    """

    name: str
    op: str
    output_shape: tuple[int, ...]
    macs: int
    parameters: int
    activation_bytes: int


@dataclass(frozen=True)
class Description:
    """Cost of a model for one sample.

    `peak_*_bytes`: the most activation bytes alive at once when nodes run in graph order, inputs and outputs
    included, reshapes and element-wise functions of one operand in place; every element taken as 4 bytes (float32) or
    1 (int8). A bound by liveness, not a memory plan: the compiled arena is reported by the back ends.
    """

    nodes: tuple[NodeFigures, ...]
    parameters: int
    macs: int
    peak_float_bytes: int
    peak_int8_bytes: int


def describe(model: Model) -> Description:
    """Figures of a loaded model, float or QDQ (weights behind DequantizeLinear count where they are used)."""
    from edgescale.frontend.graph import constant, shape_of

    counted: set[str | None] = set()
    figures: list[NodeFigures] = []
    for node in model.ir.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        parameters = 0
        for index, value in enumerate(node.inputs):
            source = _behind_dequantize(value)
            array = constant(source)
            if array is None or source is None or source.name in counted or (index and node.op_type in _SETTINGS):
                continue
            counted.add(source.name)
            parameters += int(array.size)
        shape = shape_of(next((value for value in node.outputs if value.name), node.outputs[0]))
        figures.append(
            NodeFigures(
                str(node.name),
                node.op_type,
                shape or (),
                node_macs(node),
                parameters,
                sum(_bytes(value) for value in node.outputs),
            )
        )
    elements = _peak_elements(model.ir.graph)
    return Description(
        tuple(figures), sum(f.parameters for f in figures), sum(f.macs for f in figures), 4 * elements, elements
    )


def _behind_dequantize(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else value


def _bytes(value: onnx_ir.Value) -> int:
    from edgescale.frontend.graph import shape_of

    shape = shape_of(value)
    if shape is None or value.dtype is None:
        return 0
    return int(math.prod(shape) * value.dtype.itemsize)


def node_macs(node: onnx_ir.Node) -> int:
    """Multiply-accumulates of a Conv, ConvTranspose, Gemm, MatMul, LSTM or GRU of static shapes; 0 for all others."""
    from edgescale.frontend.graph import int_attribute, shape_of

    output = shape_of(node.outputs[0])
    shapes = [shape_of(value) for value in node.inputs]
    if node.op_type in ("LSTM", "GRU"):
        sequence, *matrices = shapes[:3]
        if sequence is None or None in matrices:
            return 0
        return sequence[int_attribute(node, "layout", 0)] * sum(math.prod(m) for m in matrices if m is not None)
    if output is None or len(shapes) < 2 or shapes[0] is None or shapes[1] is None:
        return 0
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(shapes[1][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    if node.op_type == "Gemm":
        return math.prod(output) * shapes[0][0 if int_attribute(node, "transA", 0) else 1]
    if node.op_type == "MatMul":
        return math.prod(output) * shapes[0][-1]
    return 0


def _peak_elements(graph: onnx_ir.Graph) -> int:
    """The most activation elements alive at once in graph order."""
    from edgescale.frontend.graph import constant, shape_of

    owner: dict[onnx_ir.Value, onnx_ir.Value] = {}

    def root(value: onnx_ir.Value) -> onnx_ir.Value:
        while value in owner:
            value = owner[value]
        return value

    nodes = list(graph)
    for node in nodes:
        source = node.inputs[0] if node.inputs else None
        if source is None or constant(source) is not None:
            continue
        overwrites = node.op_type in _IN_PLACE and len(source.uses()) == 1 and not source.is_graph_output()
        if node.op_type in _VIEWS or overwrites:
            owner[node.outputs[0]] = source
    last: dict[onnx_ir.Value, int] = {}
    size: dict[onnx_ir.Value, int] = {}
    for step, node in enumerate(nodes):
        for value in (*node.inputs, *node.outputs):
            if value is None or value.is_initializer() or _is_constant(value):
                continue
            base = root(value)
            last[base] = step
            size[base] = max(size.get(base, 0), math.prod(shape_of(value) or (0,)))
    for value in graph.outputs:
        last[root(value)] = len(nodes)
    first = {root(value): 0 for value in graph.inputs}
    for step, node in enumerate(nodes):
        for value in node.outputs:
            if not _is_constant(value):
                first.setdefault(root(value), step)
    return max(
        sum(size.get(v, 0) for v, begin in first.items() if begin <= step <= last.get(v, begin))
        for step in range(len(nodes))
    )


def _is_constant(value: onnx_ir.Value) -> bool:
    """Whether the value is a dequantized constant, which lives with the weights."""
    producer = value.producer()
    return (
        producer is not None
        and producer.op_type == "DequantizeLinear"
        and producer.inputs[0] is not None
        and producer.inputs[0].is_initializer()
    )
