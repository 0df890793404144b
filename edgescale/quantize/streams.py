"""Runs the float and the quantized net side by side, node by node, and lets a visitor replace weights on the way.

Each layer is seen with the input it will really get: that of the layers before it as they were quantized. Only the
values that nodes further on still read are kept, of a number of samples that a fixed budget of bytes allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.progress import Progress, track
from edgescale.frontend.graph import constant, input_at, shape_of
from edgescale.quantize.prepared import Prepared
from edgescale.quantize.units import Units

Array = npt.NDArray[np.generic]

MOST_SAMPLES = 512
LIVE_BYTES = 64 * 2**20
"""Activations of both nets that may be held at once; fewer samples are used where that many do not fit."""
CHUNK_BYTES = 8 * 2**20
"""Largest output computed by one call of a node."""


@dataclass(frozen=True)
class Layer:
    """What a visitor sees of a weighted node: its weights, and input and output over the samples.

    weights, bias: float, as the node has them (bias None where it has none); x: the quantized net's input;
    y: the float net's output, before a fused activation.
    """

    node: ir.Node
    weights: Array
    bias: Array | None
    x: Array
    y: Array


@dataclass(frozen=True)
class Replacement:
    """Weights of the node's shape and a bias [outputs] (None: none) as the quantized net computes with them."""

    weights: Array
    bias: Array | None


Visitor = Callable[[Layer], Replacement | None]
Feeds = list[tuple[str, Array, bool]]
"""(name, values over all samples, whether they are stacked) of each fed input."""


def walk(prepared: Prepared, data: Dataset, visit: Visitor, progress: Progress) -> dict[str, tuple[Array, Array]]:
    """Call `visit` for every node to get quantized weights, in order; {graph output: (float, quantized) values}.

    Activations are rounded to their units where the plan has a Q/DQ pair; weights are those `visit` returns
    (None: the float ones).
    """
    graph, units = prepared.graph.graph, prepared.units
    nodes = list(graph)
    samples = np.asarray(spread_evenly(data.x, samples_within(graph)))
    inputs = [v for v in graph.inputs if not v.is_initializer()]
    if len(inputs) != 1:
        raise UsageError(
            f"this recipe fits weights to activations, which needs a model of one input; {graph.name} has "
            f"{len(inputs)} with its states. Round to nearest instead (w8a8)"
        )
    (source,) = inputs
    floating: dict[ir.Value, Array] = {source: samples}
    rounded: dict[ir.Value, Array] = {source: samples}
    reads = _reads(nodes)
    chosen = set(prepared.plan.nodes)
    opset = graph.opset_imports[""]
    for node in track(nodes, progress, "reconstructing", len(nodes)):
        fed = _fed(node)
        runner = _Runner(node, opset)
        exact = {v: floating[v] for v in fed}
        inner = node in chosen
        given = {v: _at_reader(v, rounded[v], units, chosen, inner) for v in fed}
        results = runner(exact)
        if node in prepared.weighted:
            own = constant(node.inputs[1]), constant(input_at(node, 2))
            if own[0] is None:
                raise ValueError(f"{node.name}: planned without constant weights")
            first = node.inputs[0]
            made = visit(Layer(node, own[0], own[1], given[first], results[0])) if first is not None else None
            replaced = _Runner(node, opset, made) if made is not None else runner
            answers = replaced(given)
        else:
            answers = runner(given)
        for value, plain, quantized in zip(node.outputs, results, answers, strict=False):
            floating[value] = plain
            rounded[value] = units[value].round_trip(quantized) if inner and value in units else quantized
        for value in [*fed, *node.outputs]:
            reads[value] = reads.get(value, 0) - (value in fed)
            if reads[value] <= 0 and not value.is_graph_output():
                floating.pop(value, None)
                rounded.pop(value, None)
    return {str(v.name): (floating[v], rounded[v]) for v in graph.outputs if v in floating}


def samples_within(graph: ir.Graph) -> int:
    """How many samples' activations fit LIVE_BYTES while the graph runs in order, two nets at a time."""
    nodes = list(graph)
    reads = _reads(nodes)
    live: dict[ir.Value, int] = {}
    peak = 1
    for node in nodes:
        fed = _fed(node)
        for value in (*fed, *node.outputs):
            live[value] = int(np.prod(shape_of(value) or (1,)))
        peak = max(peak, sum(live.values()))
        for value in fed:
            reads[value] -= 1
            if reads[value] <= 0 and not value.is_graph_output():
                live.pop(value, None)
    return int(np.clip(LIVE_BYTES // (8 * peak), 1, MOST_SAMPLES))


def spread_evenly(x: Array, count: int) -> Array:
    """At most `count` samples, at equal distances."""
    if len(x) <= count:
        return x
    return x[(np.arange(count) * len(x)) // count]


def _fed(node: ir.Node) -> list[ir.Value]:
    """The computed (not constant) inputs of a node, each once."""
    return list(dict.fromkeys(v for v in node.inputs if v is not None and constant(v) is None))


def _reads(nodes: list[ir.Node]) -> dict[ir.Value, int]:
    counts: dict[ir.Value, int] = {}
    for node in nodes:
        for value in _fed(node):
            counts[value] = counts.get(value, 0) + 1
    return counts


def _at_reader(
    value: ir.Value, array: Array, units: Mapping[ir.Value, Units], chosen: set[ir.Node], inner: bool
) -> Array:
    """A float producer's value is rounded only for the quantized nodes that read it."""
    return units[value].round_trip(array) if inner and value in units and value.producer() not in chosen else array


class _Runner:
    """One node in ONNX Runtime, over many samples: in chunks where the node treats them apart, else one by one."""

    def __init__(self, node: ir.Node, opset: int, replaced: Replacement | None = None) -> None:
        import onnx
        import onnxruntime

        self._node = node
        self._fed = _fed(node)
        self._chunk: int | None = None
        proto = ir.serde.serialize_node(node)
        constants = {str(v.name): constant(v) for v in node.inputs if v is not None and constant(v) is not None}
        if replaced is not None:
            constants[str(proto.input[1])] = np.asarray(replaced.weights, np.float32)
            if replaced.bias is not None:
                while len(proto.input) < 3:
                    proto.input.append("")
                proto.input[2] = proto.input[2] or f"{proto.input[1]} bias"
                constants[str(proto.input[2])] = np.asarray(replaced.bias, np.float32)
        made = onnx.helper.make_model(
            onnx.helper.make_graph(
                [proto],
                "node",
                [onnx.helper.make_tensor_value_info(str(v.name), _type_of(v), None) for v in self._fed],
                [onnx.ValueInfoProto(name=str(v.name)) for v in node.outputs if v.name],
                [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
            ),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )
        made.ir_version = 10
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session: Any = onnxruntime.InferenceSession(
                made.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises its own hierarchy of pybind exceptions
            reason = str(error).splitlines()[0]
            raise UnsupportedModelError(f"node {node.name!r} ({node.op_type}) cannot run alone: {reason}") from None

    def __call__(self, arrays: Mapping[ir.Value, Array]) -> list[Array]:
        """All outputs over all samples, each [samples, ...]: along the batch axis, which is 1 in the model, or
        stacked where a value has no such axis in front. Without a fed input, the constant result.
        """
        if not self._fed:
            return [np.asarray(out) for out in self._session.run(None, {})]
        feeds = [(str(v.name), np.asarray(arrays[v]), _stacked(v, arrays[v])) for v in self._fed]
        count = max(len(array) for _, array, _ in feeds)
        if self._chunk is None:
            self._chunk = 1 if any(stacked for _, _, stacked in feeds) else self._largest_chunk(feeds, count)
        results: list[Array] = []
        for start in range(0, count, self._chunk):
            outputs = self._run(feeds, start, self._chunk, count)
            size = min(self._chunk, count - start)
            alike = [out.ndim > 0 and len(out) == size for out in outputs]
            if not results:
                results = [
                    np.empty((count, *(out.shape[1:] if same else out.shape)), out.dtype)
                    for out, same in zip(outputs, alike, strict=True)
                ]
            for result, out in zip(results, outputs, strict=True):
                result[start : start + size] = out
        return results

    def _run(self, feeds: Feeds, start: int, size: int, count: int) -> list[Array]:
        cut = {}
        for name, array, stacked in feeds:
            whole = len(array) != count  # a constant computed on the way
            cut[name] = array if whole else array[start] if stacked else array[start : start + size]
        outputs: list[Array] = self._session.run(None, cut)
        return outputs

    def _largest_chunk(self, feeds: Feeds, count: int) -> int:
        """One sample, or more where three at once give what each gives alone."""
        if count == 1:
            return 1
        few = min(count, 3)
        alone = [self._run(feeds, i, 1, count) for i in range(few)]
        size = max(out.nbytes for out in alone[0]) or 1
        try:
            together = self._run(feeds, 0, few, count)
        except Exception:  # shapes written for one sample: ONNX Runtime refuses more
            return 1
        for k, out in enumerate(together):
            if any(row[k].ndim == 0 or len(row[k]) != 1 for row in alone):
                return 1
            single = np.concatenate([row[k] for row in alone])
            if single.shape != out.shape or not np.allclose(single, out, rtol=1e-3, atol=1e-5):
                return 1
        return int(np.clip(CHUNK_BYTES // size, 1, 64))


def _stacked(value: ir.Value, array: Array) -> bool:
    """Whether samples are stacked in front of the value's own axes."""
    shape = shape_of(value)
    return shape is not None and array.ndim == len(shape) + 1


def _type_of(value: ir.Value) -> int:
    return int(value.dtype.value) if value.dtype is not None else int(ir.DataType.FLOAT.value)
