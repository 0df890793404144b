"""ONNX Runtime's profile of single nodes, told in the names of the user's graph."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgescale.core.errors import RigError
from edgescale.core.measurement import LayerFigures
from edgescale.core.quantity import Quantity
from edgescale.rigs.timing import percentile

_SUFFIX = "_kernel_time"
_REACH = 6
"""How many nodes back a fusion's operator may lie: Conv, BatchNormalization, Clip, Q, DQ."""
_LAYOUT_OPERATORS = ("Transpose", "ReorderInput", "ReorderOutput", "Reshape", "Cast")


def layer_figures(profile: Path, model: Path) -> tuple[LayerFigures, ...]:
    """Median time of every node ONNX Runtime executed, in execution order.

    A node keeps the name it has in the model; one that ONNX Runtime made itself (fusion, layout) has
    kernel "fused" where it names the nodes it grew from, else "inserted". Raises RigError for a profile
    that cannot be read.
    """
    try:
        events = json.loads(profile.read_text())
    except (OSError, ValueError) as error:
        raise RigError(f"ONNX Runtime's profile cannot be read: {error}") from None
    durations: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        arguments = event.get("args", {})
        operator = str(arguments.get("op_name", ""))
        node = name.removesuffix(_SUFFIX) or f"{operator}#{arguments.get('node_index', '?')}"
        durations.setdefault(node, []).append(float(event["dur"]) / 1e3)
        operators[node] = operator
    graph = _Graph(model)
    figures = []
    for node, values in durations.items():
        name, origin = graph.original(node, operators[node])
        latency = Quantity(percentile(values, 50), "ms", "measured", f"median of {len(values)} profiled runs")
        figures.append(LayerFigures(name, operators[node], graph.macs(name), {"latency": latency}, origin))
    return tuple(figures)


class _Graph:
    """Names, producers and static shapes of an ONNX file."""

    def __init__(self, path: Path) -> None:
        import onnx

        model = onnx.load(str(path), load_external_data=False)
        with suppress(Exception):  # a model that ONNX cannot infer still has names
            model = onnx.shape_inference.infer_shapes(model)
        self._nodes = {node.name: node for node in model.graph.node if node.name}
        self._producer = {output: node for node in model.graph.node for output in node.output}
        self._shapes: dict[str, tuple[int, ...]] = {i.name: tuple(i.dims) for i in model.graph.initializer}
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
            self._shapes.setdefault(value.name, tuple(d.dim_value for d in value.type.tensor_type.shape.dim))

    def original(self, node: str, operator: str) -> tuple[str, str]:
        """(the user's name for an executed node, "" | "fused" | "inserted").

        ONNX Runtime names a fusion after one of its nodes or after the tensor it makes, with a suffix; the
        node that gave it its operator is that one or a few steps before it.
        """
        plain = {"QGemm": "Gemm"}.get(operator, operator.removeprefix("QLinear").removeprefix("Fused"))
        if node in self._nodes and self._nodes[node].op_type == operator:
            return node, ""
        start = self._nodes.get(node) or self._longest_prefix(node)
        if start is None:
            return node, "inserted"
        grown = self._step_back(start, plain)
        if grown is None and operator in _LAYOUT_OPERATORS:
            return node, "inserted"
        return (grown or start).name, "fused"

    def _longest_prefix(self, node: str) -> Any:
        names: dict[str, Any] = {**self._producer, **self._nodes}
        grown = [name for name in names if name and node.startswith(name)]
        return names[max(grown, key=len)] if grown else None

    def _step_back(self, node: Any, operator: str) -> Any:
        """`node` or the nearest one before it, along first inputs, of an operator; None within `_REACH` steps."""
        for _ in range(_REACH):
            if node is None:
                return None
            if node.op_type == operator and node.name:
                return node
            node = self._producer.get(node.input[0]) if node.input else None
        return None

    def macs(self, name: str) -> int:
        """Multiply-accumulates for one sample of a Conv, Gemm, MatMul, LSTM or GRU with static shapes, else 0."""
        node = self._nodes.get(name)
        return _macs(node, self._shapes) if node is not None else 0


def _macs(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type in ("LSTM", "GRU"):
        x, *matrices = (shapes.get(name, ()) for name in node.input[:3])
        late = any(a.name == "layout" and a.i for a in node.attribute)
        return (x[1 if late else 0] if len(x) == 3 else 0) * sum(map(math.prod, matrices))
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
        return 0
    weights, out = shapes.get(node.input[1], ()), shapes.get(node.output[0], ())
    if len(weights) < 2 or not out:
        return 0
    if node.op_type == "Conv":
        each = math.prod(weights[1:])
    elif node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        each = weights[1] if transposed else weights[0]
    else:
        each = weights[-2]
    return math.prod(max(d, 1) for d in out) * each  # an unknown dimension is the batch, which is 1
