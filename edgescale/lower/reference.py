"""The integer program executed in NumPy: the oracle of every integer back end.

Tensors carry any number of samples n in front: [n, *shape[1:]].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.lower import reference_conv, reference_elementwise, reference_recurrent, reference_reduce
from edgescale.lower.ports import from_stored, to_stored
from edgescale.lower.program import (
    LIMITS,
    Add,
    Array,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    InterpolatedLut,
    Layer,
    Lut,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Program,
    Quantize,
    Rescale,
    Reshape,
    Slice,
    Softmax,
    Tensor,
    Transpose,
    Unary,
)
from edgescale.lower.program_recurrent import Gru, Initial, Lstm

Kernel = Callable[[Any, list[Array], list[Tensor], Tensor], Array]

# Bytes that one slice of samples may take in the widest layer's work space.
_WORK_BYTES = 4 * 2**20


def _concat(layer: Concat, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    parts = []
    for value, tensor, scaling in zip(inputs, tensors, layer.rescale, strict=True):
        if scaling is None:
            parts.append(value)
            continue
        step = Rescale(layer.name, (tensor.name,), out.name, scaling, LIMITS[out.dtype])
        parts.append(reference_elementwise.rescale(step, [value], [tensor], out))
    return np.concatenate(parts, axis=layer.axis)


def _pad(layer: Pad, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    return np.pad(inputs[0], list(zip(layer.before, layer.after, strict=True)), constant_values=layer.value)


def _reshape(layer: Reshape, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    return inputs[0].reshape(inputs[0].shape[0], *out.shape[1:])


def _slice(layer: Slice, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    parts = [
        slice(begin, begin + (size - 1) * step + 1, step)
        for begin, size, step in zip(layer.begin[1:], out.shape[1:], layer.step[1:], strict=True)
    ]
    return np.ascontiguousarray(inputs[0][(slice(None), *parts)])


def _transpose(layer: Transpose, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    return np.ascontiguousarray(inputs[0].transpose(layer.permutation))


KERNELS: dict[type[Layer], Kernel] = {
    Conv2D: reference_conv.conv2d,
    DepthwiseConv2D: reference_conv.depthwise_conv2d,
    FullyConnected: reference_conv.fully_connected,
    Add: reference_elementwise.add,
    Mul: reference_elementwise.mul,
    Lut: reference_elementwise.lut,
    InterpolatedLut: reference_elementwise.interpolated_lut,
    Unary: reference_elementwise.unary,
    Rescale: reference_elementwise.rescale,
    Quantize: reference_elementwise.quantize,
    Dequantize: reference_elementwise.dequantize,
    Pool2D: reference_reduce.pool2d,
    Mean: reference_reduce.mean,
    Softmax: reference_reduce.softmax,
    Concat: _concat,
    Pad: _pad,
    Reshape: _reshape,
    Transpose: _transpose,
    Slice: _slice,
    Initial: reference_recurrent.initial,
}

UPDATING: dict[type[Layer], Callable[[Any, list[Array], list[Tensor], Tensor], tuple[Array, Array | None]]] = {
    Lstm: reference_recurrent.lstm,
    Gru: reference_recurrent.gru,
}
"""Layers with `updates`: output, and what they leave in the tensor they update."""


def run_layer(program: Program, layer: Layer, inputs: list[Array]) -> Array:
    """Output of one layer for stored inputs [n, *shape[1:]]."""
    return run_layer_whole(program, layer, inputs)[layer.output]


def run_layer_whole(program: Program, layer: Layer, inputs: list[Array]) -> dict[str, Array]:
    """All that one layer makes of stored inputs [n, *shape[1:]]: its output, and new values of what it updates."""
    tensors, out = [program.tensors[name] for name in layer.inputs], program.tensors[layer.output]
    if type(layer) not in UPDATING:
        return {layer.output: KERNELS[type(layer)](layer, inputs, tensors, out)}
    made, left = UPDATING[type(layer)](layer, inputs, tensors, out)
    updated = {} if left is None else dict.fromkeys(layer.updates, left)
    return {layer.output: made, **updated}


def reset(program: Program) -> dict[str, Array]:
    """What a program's states hold before the first run: input tensor -> stored [1, *shape[1:]]."""
    return {state.input: state.initial.copy() for state in program.states}


def run_stream(
    program: Program,
    inputs: Mapping[str, Array],
    state: dict[str, Array] | None = None,
    keep: Collection[str] | None = None,
) -> dict[str, Array]:
    """Execute `program` on n consecutive samples, carrying its states from each to the next.

    inputs, keep, returned: as `run`. state: what `reset` returned, or an earlier call left in it; it is updated
    to what the last sample leaves. Without it the stream starts from a reset.
    """
    count = _check_inputs(program, inputs)
    wanted = {port.tensor for port in program.outputs} | set(keep or ())
    held = reset(program) if state is None else state
    rows: list[dict[str, Array]] = []
    for index in range(count):
        part = {port.tensor: inputs[port.tensor][index : index + 1] for port in program.inputs}
        made = _run_slice(program, part | held, {*wanted, *program.results})
        held.update({kept.input: made[kept.output] for kept in program.states})
        rows.append({name: made[name] for name in wanted})
    return {name: np.concatenate([row[name] for row in rows]) for name in wanted}


def run(program: Program, inputs: Mapping[str, Array], keep: Collection[str] | None = None) -> dict[str, Array]:
    """Execute `program` on n samples; where it has states they are one stream, in order from a reset.

    inputs: tensor name of each input port -> stored array [n, *shape[1:]] of the tensor's dtype.
    Returns the output tensors and those named in `keep` (`program.tensors` keeps all), each
    [n, *shape[1:]]; everything else is freed as soon as its last reader has run.
    Raises UsageError for a missing input, a wrong shape or a wrong dtype.
    """
    if program.states:
        return run_stream(program, inputs, keep=keep)
    count = _check_inputs(program, inputs)
    wanted = {port.tensor for port in program.outputs} | set(keep or ())
    step = _slice_samples(program)
    slices = []
    for start in range(0, count, step):
        part = {port.tensor: inputs[port.tensor][start : start + step] for port in program.inputs}
        slices.append(_run_slice(program, part, wanted))
    if len(slices) == 1:
        return slices[0]
    return {name: np.concatenate([part[name] for part in slices]) for name in slices[0]}


def run_real(program: Program, x: Array | Mapping[str, Array]) -> npt.NDArray[np.float32]:
    """Execute on real inputs and return the first output as the ONNX graph would, float32 [n, *shape[1:]].

    x: [n, *shape[1:]] in ONNX layout, or one such array an input port by name where there are several.
    """
    if isinstance(x, Mapping):
        given = dict(x)
    elif len(program.inputs) == 1:
        given = {program.inputs[0].name: x}
    else:
        raise UsageError(f"{program.name} takes {len(program.inputs)} inputs; pass a mapping from name to array")
    missing = [port.name for port in program.inputs if port.name not in given]
    if missing:
        raise UsageError(f"{program.name}: no value for input {', '.join(missing)}")
    stored = {port.tensor: to_stored(program, port, given[port.name]) for port in program.inputs}
    first = program.outputs[0]
    return from_stored(program, first, run(program, stored)[first.tensor])


def _check_inputs(program: Program, inputs: Mapping[str, Array]) -> int:
    count: int | None = None
    for port in program.inputs:
        tensor = program.tensors[port.tensor]
        if port.tensor not in inputs:
            raise UsageError(f"{program.name}: no value for input tensor {port.tensor}")
        value = inputs[port.tensor]
        if value.shape[1:] != tensor.shape[1:] or str(value.dtype) != tensor.dtype:
            raise UsageError(
                f"{program.name}: input tensor {port.tensor} takes {tensor.dtype} [n, "
                f"{', '.join(map(str, tensor.shape[1:]))}], found {value.dtype} {list(value.shape)}"
            )
        if count is not None and count != value.shape[0]:
            raise UsageError(f"{program.name}: inputs hold different numbers of samples, {count} and {value.shape[0]}")
        count = value.shape[0]
    if not count:
        raise UsageError(f"{program.name}: no samples to run")
    return count


def _slice_samples(program: Program) -> int:
    """How many samples to run at once so that im2col columns and int64 accumulators stay in `_WORK_BYTES`."""
    widest = max((tensor.size for tensor in program.tensors.values()), default=1)
    for layer in program.layers:
        if isinstance(layer, Conv2D):
            out = program.tensors[layer.output]
            widest = max(widest, out.size // out.shape[-1] * int(np.prod(layer.weights.shape[1:])))
    return max(1, _WORK_BYTES // (8 * widest))


def _run_slice(program: Program, inputs: dict[str, Array], wanted: set[str]) -> dict[str, Array]:
    last_use = {name: index for index, layer in enumerate(program.layers) for name in layer.inputs}
    values: dict[str, Array] = dict(inputs)
    for index, layer in enumerate(program.layers):
        values.update(run_layer_whole(program, layer, [values[name] for name in layer.inputs]))
        for name in set(layer.inputs):
            if last_use[name] == index and name not in wanted:
                del values[name]
    return {name: value for name, value in values.items() if name in wanted}
