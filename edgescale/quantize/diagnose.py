"""Which layers cost accuracy, and why: each layer is quantized alone in the float net and the output compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.progress import Progress, track
from edgescale.core.recipe import FLOAT
from edgescale.core.variant import LayerDiagnosis
from edgescale.frontend.graph import add_initializer, constant, input_at, only_consumer, shape_of
from edgescale.quantize.layers import Stored
from edgescale.quantize.patches import product_of
from edgescale.quantize.prepared import Prepared
from edgescale.quantize.rules import MOVES
from edgescale.quantize.streams import spread_evenly
from edgescale.quantize.units import Units

Array = npt.NDArray[np.generic]
Real = npt.NDArray[np.float64]

SAMPLES = (4, 64)
WORK = 3e10
"""Multiply-accumulates the whole diagnosis may take; more samples than SAMPLES[0] only within that."""
OUTLIER = 8.0
"""A channel that reaches this many times as far as the median one leaves the others few levels."""
CROWDED = 1 / 16
"""Part of the range that holds 99.9 % of the values, from which on the rest of the levels is called wasted."""
SATURATED = 1e-3
CALM = 1e-3
"""Output error relative to the output's power (30 dB) below which nothing needs to be done."""
BLAMED = 0.2
"""Share of all layers' errors from which one layer is worth an override."""


@dataclass(frozen=True)
class Spread:
    """Of one value over the samples: largest magnitude of each channel, the magnitude 99.9 % stay below, share of
    values beyond the range of its units, root of the mean square."""

    reach: Real
    common: float
    clipped: float
    typical: float


@dataclass(frozen=True)
class _Layer:
    """`weighted`: the node if it has quantized weights; `value`: what it makes, where that has units."""

    name: str
    op: str
    weighted: ir.Node | None
    value: ir.Value | None


def diagnose(
    prepared: Prepared, stored: Mapping[ir.Node, Stored], data: Dataset, progress: Progress
) -> tuple[LayerDiagnosis, ...]:
    """The layers of a prepared graph with the weights it is to get, worst first.

    A layer is a node with quantized weights, or one whose result gets units of its own; the graph's input is the
    layer "input". Its loss is the output's squared error when its weights and its result alone are quantized,
    relative to the output's power.
    """
    layers = _layers(prepared, stored)
    samples = spread_evenly(data.x, _sample_count(prepared, len(layers)))
    switch = _Switchboard(prepared, stored)
    exact = switch.run(samples, None, None)
    power = max(float(np.sum(exact**2)), 1e-30)
    answers = exact.reshape(len(exact), -1).argmax(axis=1)
    spreads = _spreads(prepared, [layer.value for layer in layers if layer.value is not None], samples)
    losses: list[tuple[_Layer, float, float, float]] = []
    for layer in track(layers, progress, "diagnosing", len(layers)):
        both = switch.run(samples, layer.weighted, layer.value)
        alone = both if layer.value is None else switch.run(samples, layer.weighted, None)
        loss, by_weights = (float(np.sum((result - exact) ** 2)) / power for result in (both, alone))
        changed = float(np.mean(both.reshape(len(both), -1).argmax(axis=1) != answers))
        losses.append((layer, loss, by_weights, changed))
    total = sum(loss for _, loss, _, _ in losses) or 1.0
    found = []
    for layer, loss, by_weights, changed in sorted(losses, key=lambda entry: -entry[1]):
        causes = _causes(layer, stored, spreads, prepared.units, by_weights, loss)
        verdict, override = _verdict(layer, prepared, loss, loss / total, by_weights)
        found.append(LayerDiagnosis(layer.name, layer.op, loss, loss / total, changed, causes, verdict, override))
    return tuple(found)


def _layers(prepared: Prepared, stored: Mapping[ir.Node, Stored]) -> list[_Layer]:
    """The graph's input, then every node with weights or a result of its own; no value belongs to two."""
    layers = [_Layer(str(v.name), "Input", None, v) for v in prepared.units if v.producer() is None]
    claimed = {layer.value for layer in layers}
    for node in prepared.graph.graph:
        result = _result_of(node, prepared)
        own = result if result in prepared.units and result not in claimed and node.op_type not in MOVES else None
        if node in stored or own is not None:
            layers.append(_Layer(str(node.name), node.op_type, node if node in stored else None, own))
            claimed.add(own)
    return layers


def _verdict(layer: _Layer, prepared: Prepared, loss: float, share: float, by_weights: float) -> tuple[str, str]:
    """(what to do, the override that does it or "")."""
    if loss < CALM:
        return "no action: its error is below what changes answers", ""
    if share < BLAMED:
        return "no action: one of many that cost alike", ""
    level = f"{-10 * np.log10(loss):.0f} dB"
    if layer.op == "Input":
        return f"holds the output at {level}: calibrate with data like those it will see, or try another --observer", ""
    recipe = prepared.weighted[layer.weighted] if layer.weighted is not None else None
    if recipe is not None and by_weights > loss / 2 and recipe.weight_bits < 8:
        better = "w8" if recipe.activation_bits == FLOAT else f"w8a{recipe.activation_bits}"
        words = f"its {recipe.weight_bits}-bit weights hold the output at {level}: give it 8 bits"
        return words, f"{escape(layer.name)}={better}"
    if recipe is not None and by_weights > loss / 2:
        return (
            f"its weights hold the output at {level} even with 8 bits: leave it in float",
            f"{escape(layer.name)}=fp32",
        )
    bits = 8 if recipe is None else recipe.weight_bits
    return f"its 8-bit result holds the output at {level}: give it 16 bits", f"{escape(layer.name)}=w{bits}a16"


def _causes(
    layer: _Layer,
    stored: Mapping[ir.Node, Stored],
    spreads: Mapping[ir.Value, Spread],
    units: Mapping[ir.Value, Units],
    by_weights: float,
    loss: float,
) -> tuple[str, ...]:
    causes = []
    node, value = layer.weighted, layer.value
    if node is not None and by_weights > loss / 2:
        made, weights = stored[node].real(), constant(node.inputs[1])
        if weights is not None:
            matrix = product_of(node, weights.shape).matrix(weights)
            error = product_of(node, weights.shape).matrix(made) - matrix
            causes.append(
                f"weights: rounding to {stored[node].bits} bits changes {_share(error, matrix)} of their power"
            )
    if value is None:
        return tuple(causes)
    spread = spreads[value]
    alive = spread.reach[spread.reach > 0]
    if alive.size and alive.size < spread.reach.size:
        causes.append(f"dead channels: {spread.reach.size - alive.size} of {spread.reach.size} are always zero")
    if alive.size > 1 and alive.max() > OUTLIER * np.median(alive):
        ratio = alive.max() / np.median(alive)
        causes.append(f"outlier channels: channel {int(spread.reach.argmax())} reaches {ratio:.1f}x the median channel")
    if spread.clipped > SATURATED:
        causes.append(f"saturation: {spread.clipped:.1%} of the values lie beyond the calibrated range")
    levels = 65535 if units[value].kind == "int16" else 256
    reach = units[value].scale * (levels // 2 if units[value].kind == "int16" else levels - 1)
    if 0 < spread.common < CROWDED * reach:
        causes.append(f"range: 99.9 % of the values lie within {spread.common / reach:.1%} of the range")
    if by_weights <= loss / 2 and spread.typical > 0:
        step = units[value].scale / spread.typical
        causes.append(f"result: a step of its {levels} levels is {step:.1%} of a typical value (root mean square)")
    return tuple(causes)


def _share(error: Real, whole: Real) -> str:
    return f"{float(np.sum(error**2)) / max(float(np.sum(whole**2)), 1e-30):.2%}"


def _result_of(node: ir.Node, prepared: Prepared) -> ir.Value:
    """What a node makes, after the Relu or Clip that is its clamp."""
    value = node.outputs[0]
    after = only_consumer(value) if value in prepared.plan.inner else None
    return after.outputs[0] if after is not None else value


def _sample_count(prepared: Prepared, layers: int) -> int:
    macs = 0.0
    for node in prepared.weighted:
        weights, shape = constant(node.inputs[1]), shape_of(node.outputs[0])
        if weights is not None and shape is not None:
            macs += float(np.prod(shape)) * product_of(node, weights.shape).terms
    return int(np.clip(WORK / max(2 * macs * layers, 1.0), *SAMPLES))


def _spreads(prepared: Prepared, values: Sequence[ir.Value], samples: Array) -> dict[ir.Value, Spread]:
    """Statistics of the float net's values."""
    import onnx
    import onnxruntime

    proto = ir.to_proto(prepared.graph)
    source = next(v for v in prepared.graph.graph.inputs if not v.is_initializer())
    names = [str(v.name) for v in values if v is not source]
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), _options(onnxruntime), providers=["CPUExecutionProvider"]
    )
    reach: dict[ir.Value, Real] = {}
    common: dict[ir.Value, list[float]] = {value: [] for value in values}
    clipped: dict[ir.Value, list[float]] = {value: [] for value in values}
    power: dict[ir.Value, list[float]] = {value: [] for value in values}
    for sample in samples:
        arrays = dict(zip(names, session.run(names, {str(source.name): sample[None]}) if names else [], strict=True))
        arrays[str(source.name)] = sample[None]
        for value in values:
            array = np.abs(arrays[str(value.name)])
            channels = np.moveaxis(array, 1 if array.ndim > 2 else -1, 0)
            largest = channels.reshape(len(channels), -1).max(axis=1).astype(np.float64)
            reach[value] = np.maximum(reach[value], largest) if value in reach else largest
            common[value].append(float(np.quantile(array, 0.999)))
            off = np.abs(prepared.units[value].round_trip(arrays[str(value.name)]) - arrays[str(value.name)])
            clipped[value].append(float(np.mean(off > 1.01 * prepared.units[value].scale)))
            power[value].append(float(np.mean(array.astype(np.float64) ** 2)))
    return {
        v: Spread(reach[v], float(np.max(common[v])), float(np.mean(clipped[v])), float(np.mean(power[v])) ** 0.5)
        for v in values
    }


class _Switchboard:
    """The float net in one ONNX Runtime session, each layer's weights and each value's rounding switched by inputs."""

    def __init__(self, prepared: Prepared, stored: Mapping[ir.Node, Stored]) -> None:
        import onnx
        import onnxruntime

        self._stored = stored
        self._source = str(next(v.name for v in prepared.graph.graph.inputs if not v.is_initializer()))
        self._flags = {value: f"switch {i}" for i, value in enumerate(prepared.units)}
        names = {str(value.name): (flag, prepared.units[value]) for value, flag in self._flags.items()}
        graph = prepared.graph.clone()
        by_name = {str(v.name): v for v in graph.graph.inputs}
        by_name |= {str(v.name): v for node in graph.graph for v in node.outputs}
        for name, (flag, units) in names.items():
            _switch(graph.graph, by_name[name], flag, units)
        graph.graph.sort()
        proto = ir.to_proto(graph)
        del proto.graph.value_info[:]
        fed = {str(v.name) for node in stored for v in (node.inputs[1], input_at(node, 2)) if v is not None}
        for tensor in proto.graph.initializer:
            if tensor.name in fed:
                proto.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        self._session: Any = onnxruntime.InferenceSession(
            proto.SerializeToString(), _options(onnxruntime), providers=["CPUExecutionProvider"]
        )

    def run(self, samples: Array, weights: ir.Node | None, rounded: ir.Value | None) -> Real:
        """First output [count, ...] with one node's weights quantized and one value rounded."""
        feeds: dict[str, Array] = {flag: np.asarray(value is rounded) for value, flag in self._flags.items()}
        if weights is not None:
            made = self._stored[weights]
            feeds[_name(weights.inputs[1])] = made.real().astype(np.float32)
            bias, value = made.real_bias(), input_at(weights, 2)
            if bias is not None and value is not None:
                feeds[str(value.name)] = bias.astype(np.float32)
        rows = [self._session.run(None, {self._source: sample[None], **feeds})[0] for sample in samples]
        return np.concatenate(rows).astype(np.float64)


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _switch(graph: ir.Graph, value: ir.Value, flag: str, units: Units) -> None:
    """Let every reader of `value` read Where(flag, its rounded form, itself)."""
    readers = [(use.node, use.idx) for use in value.uses()]
    port = ir.Value(name=flag, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(port)
    scale = add_initializer(graph, f"{flag} scale", np.asarray(units.scale, np.float32))
    if units.kind == "fp8":
        steps = [ir.node("Div", [value, scale])]
        steps.append(ir.node("Cast", steps[0].outputs, attributes={"to": int(ir.DataType.FLOAT8E4M3FN)}))
        steps.append(ir.node("Cast", steps[1].outputs, attributes={"to": int(ir.DataType.FLOAT)}))
        steps.append(ir.node("Mul", [steps[2].outputs[0], scale]))
    else:
        zero = add_initializer(graph, f"{flag} zero", np.asarray(units.zero_point, units.kind))
        steps = [ir.node("QuantizeLinear", [value, scale, zero])]
        steps.append(ir.node("DequantizeLinear", [steps[0].outputs[0], scale, zero]))
    steps.append(ir.node("Where", [port, steps[-1].outputs[0], value]))
    for index, step in enumerate(steps):
        step.outputs[0].name = f"{flag} step {index}"
    result = steps[-1].outputs[0]
    result.type, result.shape = value.type, value.shape
    for node, index in readers:
        node.replace_input_with(index, result)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, steps)
    else:
        graph.insert_before(graph[0], steps)


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return options
