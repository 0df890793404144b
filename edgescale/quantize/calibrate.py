"""Runs a float model over calibration samples; of its activations nothing but histograms is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.progress import Progress, track
from edgescale.core.state import decode_states
from edgescale.quantize.histogram import Histogram
from edgescale.quantize.recurrent_rules import CELL, HIDDEN, RECURRENT

if TYPE_CHECKING:
    import onnx_ir


COUNTED = 8192
"""Elements of one sample's tensor that are counted; of larger ones a regular part, minimum and maximum of all."""


def collect(
    model: Model, graph: onnx_ir.Model, data: Dataset, values: Sequence[str], progress: Progress
) -> dict[str, Histogram]:
    """A histogram of every value named, over all samples of `data` (x: [count, *sample_shape]).

    `graph` is the float graph to run, that of `model` or one of the same input and meaning. ONNX Runtime runs it
    sample by sample with the values as outputs, on one thread, so that the result does not depend on the machine's
    cores. Memory: one sample's activations plus the histograms.
    Raises UsageError for data of another shape, UnsupportedModelError naming the first node whose output
    is NaN or infinite.
    """
    source = _single_input(model, data)
    histograms = {name: Histogram() for name in values}
    computed = [name for name in values if name != source]
    stream = Stream(model, _session(model, graph, computed))
    for index, sample in enumerate(track(data.batches(1), progress, "calibrating", len(data))):
        before = dict(stream.held)
        arrays = stream.run(computed, {source: sample})
        if source in histograms:
            arrays[source] = sample
        for name, array in arrays.items():
            try:
                histograms[name].update(*_counted(array))
            except ValueError:
                node = _first_broken(model, graph, {source: sample, **before})
                raise UnsupportedModelError(
                    f"{model.name}: {node} gives NaN or infinity for calibration sample {index}; the float model is "
                    "broken for this input"
                ) from None
    return histograms


def each_sample(
    model: Model, graph: onnx_ir.Model, data: Dataset, values: Sequence[str]
) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """The values named, sample by sample, as `collect` sees them."""
    source = _single_input(model, data)
    computed = [name for name in dict.fromkeys(values) if name != source]
    stream = Stream(model, _session(model, graph, computed))
    for sample in data.batches(1):
        yield {source: sample, **stream.run(computed, {source: sample})}


class Stream:
    """Runs of one session; a model's states go on from each to the next. `held`: state inputs before the next run."""

    def __init__(self, model: Model, session: Any) -> None:
        self._states = decode_states(model.ir.metadata_props, model.name)
        self._session = session
        self.held: dict[str, npt.NDArray[np.generic]] = {state.input: state.initial for state in self._states}

    def run(
        self, values: Sequence[str], feed: dict[str, npt.NDArray[np.generic]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """The values named, for one sample."""
        left = [state.output for state in self._states]
        wanted = [*values, *left]
        outputs = self._session.run(wanted, {**feed, **self.held}) if wanted else []
        found = dict(zip(wanted, outputs, strict=True))
        self.held = {state.input: found[state.output] for state in self._states}
        return {name: found[name] for name in values}


@dataclass(frozen=True)
class ChannelSpread:
    """Of each channel of a value, [channels]: least and largest number (0 included) and mean square."""

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    power: npt.NDArray[np.float64]

    @property
    def reach(self) -> npt.NDArray[np.float64]:
        """Largest magnitude of each channel."""
        return np.maximum(-self.low, self.high)

    def step(self, factors: npt.NDArray[np.float64]) -> float:
        """What 256 levels are apart over the range of all channels, each divided by its factor."""
        return float((self.high / factors).max() - (self.low / factors).min()) / 255


def channel_spreads(
    model: Model, graph: onnx_ir.Model, data: Dataset, values: Sequence[str], progress: Progress
) -> dict[str, ChannelSpread]:
    """The channels of the values named, over all samples.

    The channels are axis 1 of images and the last axis of all else. Raises as `collect`.
    """
    source = _single_input(model, data)
    names = list(dict.fromkeys(values))
    stream = Stream(model, _session(model, graph, names))
    found: dict[str, ChannelSpread] = {}
    for sample in track(data.batches(1), progress, "calibrating channels", len(data)):
        for name, array in stream.run(names, {source: sample}).items():
            channels = np.moveaxis(array, 1 if array.ndim > 2 else -1, 0).astype(np.float64)
            rows = channels.reshape(len(channels), -1)
            low, high = np.minimum(rows.min(axis=1), 0.0), np.maximum(rows.max(axis=1), 0.0)
            power = np.einsum("cr,cr->c", rows, rows) / (rows.shape[1] * len(data))
            if name in found:
                known = found[name]
                low, high = np.minimum(low, known.low), np.maximum(high, known.high)
                power = power + known.power
            found[name] = ChannelSpread(low, high, power)
    return found


def _single_input(model: Model, data: Dataset) -> str:
    if len(model.inputs) != 1:
        raise UsageError(f"{model.name} has {len(model.inputs)} inputs; calibration needs a model of one")
    carried = {state.input for state in decode_states(model.ir.metadata_props, model.name)}
    if carried - _of_recurrent_nodes(model):
        raise UsageError(
            f"{model.name} keeps state between inferences; calibration is of models without. Quantize it where it was "
            "trained, and give the quantized file"
        )
    spec = model.inputs[0]
    if data.x.shape[1:] != spec.shape[1:] or data.x.dtype.name != spec.dtype:
        raise UsageError(
            f"calibration data {data.name}: samples are {data.x.dtype} {list(data.x.shape[1:])}, the input "
            f"{spec.name!r} of {model.name} takes {spec.dtype} {list(spec.shape[1:])}"
        )
    if not len(data):
        raise UsageError(f"calibration data {data.name} holds no samples")
    return spec.name


def _of_recurrent_nodes(model: Model) -> set[str]:
    """Graph inputs that nothing but LSTM and GRU reads, as a state that they start from."""
    found = set()
    for value in model.ir.graph.inputs:
        uses = list(value.uses())
        if uses and all(use.node.op_type in RECURRENT and use.idx in (HIDDEN, CELL) for use in uses):
            found.add(str(value.name))
    return found


def _counted(array: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.generic], tuple[float, float] | None]:
    """What of a tensor is counted, and its (minimum, maximum) where that is not all of it."""
    if array.size <= COUNTED:
        return array, None
    flat = array.reshape(-1)
    step = -(-flat.size // COUNTED)
    step += 1 - step % 2  # odd, so that it does not stay on the same columns of rows of even length
    return flat[::step], (float(flat.min()), float(flat.max()))


def _session(model: Model, graph: onnx_ir.Model, outputs: Sequence[str]) -> Any:
    """An ONNX Runtime session of the float graph that also returns inner values."""
    import onnx
    import onnx_ir
    import onnxruntime

    proto = onnx_ir.to_proto(graph)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in present)
    data = proto.SerializeToString()
    del proto
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Every inner value leaves the session: a layout of its own would be undone for each, and an arena of the
    # largest sizes seen would only be held beside them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own hierarchy of pybind exceptions
        reason = str(error).splitlines()[0]
        raise UnsupportedModelError(f"{model.name}: ONNX Runtime cannot run the float model: {reason}") from None


def _first_broken(model: Model, graph: onnx_ir.Model, feed: dict[str, npt.NDArray[np.generic]]) -> str:
    """Name the first node in graph order with a NaN or infinite output for the inputs `feed`."""
    import onnx_ir

    nodes = {}
    for node in graph.graph:
        for value in node.outputs:
            if value.dtype == onnx_ir.DataType.FLOAT and value.name and (value.uses() or value.is_graph_output()):
                nodes[value.name] = node
    if not all(np.isfinite(array).all() for array in feed.values()):
        return "the input"
    names = list(nodes)
    results = _session(model, graph, names).run(names, feed)
    for name, array in zip(names, results, strict=True):
        if not np.isfinite(array).all():
            return f"node {nodes[name].name!r} ({nodes[name].op_type})"
    return "a node"
