"""Which TensorFlow Lite operators are translated, and the small questions their handlers share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgescale.frontend.tflite.graph import ELEMENTS, Graph, Layout, Refusal
from edgescale.frontend.tflite.options import ACTIVATIONS
from edgescale.frontend.tflite.reader import Operator, Tensor

Array = npt.NDArray[np.generic]
Handler = Callable[[Graph, Operator], None]

HANDLERS: dict[str, Handler] = {}
"""Operator -> handler, which appends nodes and binds the operator's output. Its docstring is the rule users read."""

STATE = frozenset(
    {"SVDF", "LSTM", "RNN"}
    | {"UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM"}
    | {"BIDIRECTIONAL_SEQUENCE_RNN", "HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE"}
)
"""Operators that remember something from one inference to the next in a form that is not read."""


def handles(*kinds: str) -> Callable[[Handler], Handler]:
    """Register a handler for operators of the schema."""

    def register(handler: Handler) -> Handler:
        for kind in kinds:
            HANDLERS[kind] = handler
        return handler

    return register


def rule_of(kind: str) -> str:
    """The rule an operator must meet, on one line."""
    return " ".join((inspect.getdoc(HANDLERS[kind]) or "").split())


def operands(graph: Graph, op: Operator, least: int, most: int | None = None) -> tuple[Tensor | None, ...]:
    """The operator's inputs, None for omitted ones, padded to `most` (default: `least`); the first `least` exist."""
    most = least if most is None else most
    found = [None if index < 0 else graph.tensor(index) for index in op.inputs]
    if not least <= len(found) <= most or any(tensor is None for tensor in found[:least]):
        raise Refusal(f"{least} to {most} inputs" if most > least else f"{least} input(s)", f"{len(found)}")
    return (*found, *[None] * (most - len(found)))


def activation(graph: Graph, index: int) -> Tensor:
    """A tensor computed at run time, of a type and shape that activations have."""
    tensor = graph.tensor(index)
    if tensor.data is not None:
        raise Refusal("its data is computed, not constant", f"the constant {tensor.name!r}")
    checked_type(tensor)
    if not graph.known(index):
        raise Refusal("operators read what operators before them made", f"{tensor.name!r}")
    return tensor


def checked_type(tensor: Tensor) -> None:
    """An activation is float32, or int8, uint8 or int16 with units."""
    if tensor.variable:
        raise Refusal("nothing remembers from one inference to the next", f"the variable tensor {tensor.name!r}")
    if tensor.kind not in ELEMENTS or (tensor.kind != "FLOAT32" and not tensor.quantized):
        kind = tensor.kind.lower() if tensor.kind not in ELEMENTS else f"{tensor.kind.lower()} without a scale"
        raise Refusal(
            "activations are float32, or int8, uint8 or int16 with a scale", f"{tensor.name!r} of type {kind}"
        )
    if tensor.sparse:
        raise Refusal("tensors are stored dense", f"the sparse tensor {tensor.name!r}")


def result(graph: Graph, op: Operator) -> Tensor:
    """The operator's one output."""
    if len(op.outputs) != 1:
        raise Refusal("one output", f"{len(op.outputs)}")
    tensor = graph.tensor(op.outputs[0])
    checked_type(tensor)
    return tensor


def same_kind(*tensors: Tensor) -> None:
    """All float32, or all of one integer type."""
    kinds = {tensor.kind for tensor in tensors}
    if len(kinds) != 1:
        raise Refusal("inputs and output have one type", ", ".join(tensor.kind.lower() for tensor in tensors))


def one_scale(graph: Graph, *tensors: Tensor) -> None:
    """LiteRT moves int16 without a look at the scales, so that more than one would change the numbers' meaning."""
    if tensors[0].kind == "INT16":
        scales = {float(graph.quantization(tensor.index).scale[0]) for tensor in tensors}
        if len(scales) > 1:
            raise Refusal(
                "int16 inputs and output have one scale (QUANTIZE in front)", ", ".join(f"{s:g}" for s in scales)
            )


def numbers(tensor: Tensor | None, what: str) -> tuple[int, ...]:
    """A constant vector of integers."""
    if tensor is None or tensor.data is None or tensor.data.dtype.kind not in "iu":
        raise Refusal(f"{what} is a constant of integers", "one that is not")
    return tuple(int(value) for value in tensor.data.reshape(-1))


def real_array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """A constant as float32: as it is, from float16, or dequantized."""
    if tensor.data is None:
        raise Refusal("a constant", f"{tensor.name!r}, which is computed or stored in a form not read here")
    if tensor.data.dtype.kind == "f":
        return tensor.data.astype(np.float32)
    found = tensor.quantization
    if found is None or tensor.data.dtype.kind not in "iu":
        raise Refusal("constants are float or have a scale", f"{tensor.name!r} of type {tensor.kind.lower()}")
    scale, zero = (_spread(v.astype(np.float64), found.axis, tensor) for v in (found.scale, found.zero_point))
    real: npt.NDArray[np.float32] = ((tensor.data.astype(np.float64) - zero) * scale).astype(np.float32)
    return real


def _spread(values: npt.NDArray[np.float64], axis: int, tensor: Tensor) -> npt.NDArray[np.float64]:
    """One value, or one along `axis`, shaped to broadcast against the tensor."""
    if values.size == 1:
        return values.reshape(())
    if not 0 <= axis < len(tensor.shape) or tensor.shape[axis] != values.size:
        raise Refusal(
            "one scale a tensor, or one along an axis", f"{values.size} scales on axis {axis} of {list(tensor.shape)}"
        )
    return values.reshape([-1 if a == axis else 1 for a in range(len(tensor.shape))])


def finish(
    graph: Graph, op: Operator, layout: Layout, operator: str, inputs: Sequence[str], **attributes: object
) -> None:
    """Append the ONNX `operator` under the operator's name, its fused activation behind it, and bind the output."""
    made = graph.result_name(op.outputs[0], layout)
    activated(graph, op, made, operator, inputs, **attributes)
    graph.bind(op.outputs[0], made, layout)


def activated(
    graph: Graph, op: Operator, output: str, operator: str, inputs: Sequence[str], **attributes: object
) -> None:
    """The ONNX `operator` and the fused activation behind it, leaving the value `output`."""
    fused = ACTIVATIONS.get(int(op.options.get("FusedActivationFunction", 0)), "an unknown one")
    if fused == "NONE":
        graph.node(operator, inputs, output, label=graph.operator, **attributes)
        return
    if fused not in CLIPS:
        raise Refusal("the fused activation is NONE, RELU, RELU6 or RELU_N1_TO_1", fused)
    linear = graph.unique(f"{output}/linear")
    graph.node(operator, inputs, linear, label=graph.operator, **attributes)
    clip(graph, linear, fused, output, None)


CLIPS: dict[str, tuple[float, float]] = {
    "RELU": (0.0, np.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU_0_TO_1": (0.0, 1.0),
}
"""Bounds of the clamping activations."""


def clip(graph: Graph, value: str, kind: str, output: str, label: str | None) -> None:
    """A clamping activation as Relu or Clip."""
    low, high = CLIPS[kind]
    label = label or f"{graph.operator}/{kind}"
    if kind == "RELU":
        graph.node("Relu", [value], output, label=label)
        return
    bounds = [graph.constant(f"bound_{bound:g}", np.float32(bound)) for bound in (low, high)]
    graph.node("Clip", [value, *bounds], output, label=label)
