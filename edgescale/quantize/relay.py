"""Runs a float graph over samples stretch by stretch, holding only the values that later nodes read.

What a layer sees is what the layers before it made, with the weights they have by then: whoever rounds weights
between two stretches calibrates the next layer on the input it will really get.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.frontend.graph import constant

Array = npt.NDArray[np.generic]

LIVE_BYTES = 96 * 2**20
"""Activations held at once over all samples; where more would be, every second sample is let go."""
MOST_SAMPLES = 512
_MASK = "attention_mask"
"""Input that marks by 0 the positions of a sample that are padding, as exporters of language models name it."""


class Relay:
    """Samples on their way through a graph; `at` is the index of the next node to run."""

    def __init__(self, model: Model, graph: ir.Model, data: Dataset, limit: int = LIVE_BYTES) -> None:
        """`data` feeds every input of `model`; `limit`: bytes held at once. Raises UsageError where it does not."""
        self._limit = limit
        self._graph = graph
        self._nodes = list(graph.graph)
        self._last = _last_reads(self._nodes)
        self._name = model.name
        self.at = 0
        feeds = feeds_of(model, data)
        count = len(data)
        chosen = np.arange(count) if count <= MOST_SAMPLES else (np.arange(MOST_SAMPLES) * count) // MOST_SAMPLES
        self.samples = [int(i) for i in chosen]
        """Those that are held, by their position in the data."""
        by_name = {str(v.name): v for v in graph.graph.inputs if v.name in feeds}
        self._live = [{by_name[name]: array[i : i + 1] for name, array in feeds.items()} for i in chosen]
        masks = feeds.get(_MASK)
        self._masks = [masks[i] for i in chosen] if masks is not None and masks.ndim == 2 else None

    def advance(self, index: int) -> None:
        """Run the nodes before `index` on every sample. Raises UnsupportedModelError where they cannot run."""
        stretch = self._nodes[self.at : index]
        self.at = max(self.at, index)
        if not stretch:
            return
        run = _session(stretch, self._graph, self._last, index, self._name)
        for position, live in enumerate(self._live):
            made = run(live)
            kept = {v: a for v, a in live.items() if self._last.get(v, -1) >= index}
            self._live[position] = kept | made
        held = sum(array.nbytes for live in self._live for array in live.values())
        while held > self._limit and len(self._live) > 1:
            self._live, self.samples = self._live[::2], self.samples[::2]
            self._masks = None if self._masks is None else self._masks[::2]
            held = sum(array.nbytes for live in self._live for array in live.values())

    def rows(self, value: ir.Value) -> Iterator[npt.NDArray[np.float32]]:
        """The value's rows [positions, channels] of each sample, padded positions left out.

        Raises UnsupportedModelError for NaN or infinity.
        """
        for position, live in enumerate(self._live):
            array = np.asarray(live[value], np.float32)
            if not np.isfinite(array).all():
                raise UnsupportedModelError(
                    f"{self._name}: {value.name!r} holds NaN or infinity for calibration sample {position}; the float "
                    "model is broken for this input"
                )
            yield self._unpadded(array, position)

    def _unpadded(self, array: npt.NDArray[np.float32], position: int) -> npt.NDArray[np.float32]:
        rows = array.reshape(-1, array.shape[-1])
        if self._masks is None or array.ndim != 3 or array.shape[0] != 1:
            return rows
        mask = self._masks[position]
        if len(mask) < len(rows):
            return rows
        kept = rows[mask[len(mask) - len(rows) :] != 0]  # with a cache the mask covers the past too
        return kept if len(kept) else rows


def feeds_of(model: Model, data: Dataset) -> dict[str, Array]:
    """{input: [count, *sample_shape]} for every input. Raises UsageError where data and model do not fit."""
    first = model.inputs[0].name
    fed = data.fed()
    feeds = dict(fed) if isinstance(fed, Mapping) else {first: fed}
    missing = [spec.name for spec in model.inputs if spec.name not in feeds]
    if missing or not len(data):
        lacking = f"no array for {', '.join(missing)}" if missing else "no samples"
        raise UsageError(f"calibration data {data.name} holds {lacking}, which {model.name} takes")
    for spec in model.inputs:
        array = feeds[spec.name]
        if not spec.accepts(array.shape[1:]) or array.dtype.name != spec.dtype:
            raise UsageError(
                f"calibration data {data.name}: samples of {spec.name!r} are {array.dtype} {list(array.shape[1:])}, "
                f"{model.name} takes {spec.dtype} {list(spec.shape[1:])}"
            )
    return {spec.name: feeds[spec.name] for spec in model.inputs}


def _read(node: ir.Node) -> list[ir.Value]:
    """Every value a node reads, those that its subgraphs take from outside included."""
    values = [v for v in node.inputs if v is not None]
    for attribute in node.attributes.values():
        graphs: Sequence[Any] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for graph in graphs:
            inner = {v for n in graph for v in n.outputs} | set(graph.inputs) | set(graph.initializers.values())
            values += [v for n in graph for v in _read(n) if v not in inner]
            values += [v for v in graph.outputs if v not in inner]
    return values


def _last_reads(nodes: Sequence[ir.Node]) -> dict[ir.Value, int]:
    """{value: index of the last node that reads it}."""
    return {value: index for index, node in enumerate(nodes) for value in _read(node)}


def _session(stretch: Sequence[ir.Node], graph: ir.Model, last: Mapping[ir.Value, int], end: int, name: str) -> Any:
    """A function from live values to those that the stretch makes and later nodes read."""
    import onnxruntime

    inside = {v for node in stretch for v in node.outputs}
    read = dict.fromkeys(v for node in stretch for v in _read(node))
    fed = [v for v in read if v not in inside and constant(v) is None]
    made = [v for node in stretch for v in node.outputs if last.get(v, -1) >= end]
    if not made:
        return lambda live: {}
    constants = [(str(v.name), array) for v in read if (array := constant(v)) is not None]

    def build(live: Mapping[ir.Value, Array]) -> Any:
        proto = onnx.helper.make_model(
            onnx.helper.make_graph(
                [ir.serde.serialize_node(node) for node in stretch],
                "stretch",
                [onnx.helper.make_tensor_value_info(str(v.name), _element(live[v]), None) for v in fed],
                [onnx.ValueInfoProto(name=str(v.name)) for v in made],
                [onnx.numpy_helper.from_array(np.asarray(array), label) for label, array in constants],
            ),
            opset_imports=[onnx.helper.make_opsetid(domain, v) for domain, v in graph.opset_imports.items()],
        )
        proto.ir_version = 10
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        try:
            return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own hierarchy of pybind exceptions
            reason = str(error).splitlines()[0]
            raise UnsupportedModelError(f"{name}: ONNX Runtime cannot run the float model: {reason}") from None

    opened: list[Any] = []

    def run(live: Mapping[ir.Value, Array]) -> dict[ir.Value, Array]:
        if not opened:
            opened.append(build(live))
        try:
            results = opened[0].run([str(v.name) for v in made], {str(v.name): live[v] for v in fed})
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UnsupportedModelError(f"{name}: ONNX Runtime cannot run a calibration sample: {reason}") from None
        return dict(zip(made, results, strict=True))

    return run


def _element(array: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
