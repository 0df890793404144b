"""Clean-up of a finished program. Every pass keeps what the program computes, bit for bit in integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from edgescale.lower.fixedpoint import requant
from edgescale.lower.passes_recurrent import last_steps
from edgescale.lower.program import (
    Add,
    Clamp,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Program,
    Quantize,
    Rescale,
    Reshape,
    Slice,
    Tensor,
)

_CLAMPED = (Conv2D, DepthwiseConv2D, FullyConnected, Add, Mul, Pool2D, Mean, Rescale)


def simplify(program: Program) -> Program:
    """All passes, in order."""
    passes: tuple[Callable[[Program], Program], ...] = (
        drop_unused,
        quantize_inputs,
        merge_clamps,
        fold_padding,
        merge_reshapes,
        merge_slices,
        last_steps,
        drop_unused,
        delay_updates,
    )
    for step in passes:
        program = step(program)
    return program


def drop_unused(program: Program) -> Program:
    """Remove layers and tensors that no output depends on; input ports stay."""
    wanted = set(program.results)
    kept: list[Layer] = []
    for layer in reversed(program.layers):
        if layer.output in wanted or wanted & set(layer.updates):
            kept.append(layer)
            wanted.update(layer.inputs)
    wanted.update(program.sources)
    wanted.update(layer.output for layer in kept)
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in wanted}
    return dataclasses.replace(program, layers=tuple(reversed(kept)), tensors=tensors)


def quantize_inputs(program: Program) -> Program:
    """A float32 input that is only quantized, and always alike, becomes an integer input: who calls quantizes."""
    outputs = set(program.results)
    tensors = dict(program.tensors)
    renamed: dict[str, str] = {}
    for port in program.inputs:
        readers = [layer for layer in program.layers if port.tensor in layer.inputs]
        if not readers or port.tensor in outputs or not all(isinstance(layer, Quantize) for layer in readers):
            continue
        quantized = [tensors[layer.output] for layer in readers]
        if len({(tensor.scale, tensor.zero_point, tensor.dtype) for tensor in quantized}) != 1:
            continue
        tensors[port.tensor] = dataclasses.replace(quantized[0], name=port.tensor, shape=tensors[port.tensor].shape)
        renamed.update((tensor.name, port.tensor) for tensor in quantized)
    return _rename(dataclasses.replace(program, tensors=tensors), renamed)


def merge_clamps(program: Program) -> Program:
    """A Rescale between equal units only clamps: the layer in front of it, if no one else reads it, does so itself."""
    readers = _reader_counts(program)
    layers: list[Layer] = []
    makers: dict[str, int] = {}
    renamed: dict[str, str] = {}
    for layer in program.layers:
        index = makers.get(layer.inputs[0]) if layer.inputs else None
        if isinstance(layer, Rescale) and _keeps_units(program, layer) and index is not None:
            front = layers[index]
            if isinstance(front, _CLAMPED) and readers[front.output] == 1:
                clamp = _intersection(front.clamp, layer.clamp)
                layers[index] = dataclasses.replace(
                    front, clamp=clamp, output=layer.output, nodes=(*front.nodes, *layer.nodes)
                )
                makers[layer.output] = index
                continue
        makers[layer.output] = len(layers)
        layers.append(layer)
    return _rename(dataclasses.replace(program, layers=tuple(layers)), renamed)


def fold_padding(program: Program) -> Program:
    """A Pad of H and W with real zeros in front of a convolution becomes the convolution's own padding."""
    readers = _reader_counts(program)
    pads = {layer.output: layer for layer in program.layers if isinstance(layer, Pad)}
    layers: list[Layer] = []
    folded: set[str] = set()
    for layer in program.layers:
        pad = pads.get(layer.inputs[0]) if isinstance(layer, (Conv2D, DepthwiseConv2D)) else None
        if pad is not None and readers[pad.output] == 1 and _pads_zeros(program.tensors[pad.output], pad):
            assert isinstance(layer, (Conv2D, DepthwiseConv2D))
            top, left, bottom, right = layer.padding
            padding = (top + pad.before[1], left + pad.before[2], bottom + pad.after[1], right + pad.after[2])
            layers.append(
                dataclasses.replace(layer, inputs=pad.inputs, padding=padding, nodes=(*pad.nodes, *layer.nodes))
            )
            folded.add(pad.output)
        else:
            layers.append(layer)
    kept = tuple(layer for layer in layers if layer.output not in folded)
    return dataclasses.replace(program, layers=kept)


def merge_reshapes(program: Program) -> Program:
    """Reshape of a Reshape reads the first one's input; one that changes nothing disappears."""
    sources: dict[str, str] = {}
    renamed: dict[str, str] = {}
    outputs = set(program.results)
    layers: list[Layer] = []
    for layer in program.layers:
        if isinstance(layer, Reshape):
            source = sources.get(layer.inputs[0], layer.inputs[0])
            source = renamed.get(source, source)
            before, after = program.tensors[source], program.tensors[layer.output]
            if dataclasses.replace(before, name="") == dataclasses.replace(after, name="") and (
                layer.output not in outputs
            ):
                renamed[layer.output] = source
                continue
            sources[layer.output] = source
            layer = dataclasses.replace(layer, inputs=(source,))
        layers.append(dataclasses.replace(layer, inputs=tuple(renamed.get(name, name) for name in layer.inputs)))
    return dataclasses.replace(program, layers=tuple(layers))


def merge_slices(program: Program) -> Program:
    """A Slice of a Slice that nobody else reads is one Slice."""
    readers = _reader_counts(program)
    slices = {layer.output: layer for layer in program.layers if isinstance(layer, Slice)}
    layers: list[Layer] = []
    for layer in program.layers:
        front = slices.get(layer.inputs[0]) if isinstance(layer, Slice) else None
        if isinstance(layer, Slice) and front is not None and readers[front.output] == 1:
            layer = dataclasses.replace(
                layer,
                inputs=front.inputs,
                nodes=(*front.nodes, *layer.nodes),
                begin=tuple(a + b * s for a, b, s in zip(front.begin, layer.begin, front.step, strict=True)),
                step=tuple(a * b for a, b in zip(front.step, layer.step, strict=True)),
            )
            slices[layer.output] = layer
        layers.append(layer)
    return dataclasses.replace(program, layers=tuple(layers))


def delay_updates(program: Program) -> Program:
    """A Slice that only makes a state's next value runs once its input is read by all others.

    Back ends may then let it overwrite its input: a shift in place.
    """
    readers = _reader_counts(program)
    layers = list(program.layers)
    for state in program.states:
        index = next((i for i, layer in enumerate(layers) if layer.output == state.output), None)
        if index is None or not isinstance(layers[index], Slice) or readers[state.output] != 1:
            continue
        update = layers[index]
        parts, last = {update.inputs[0]}, index
        for i, layer in enumerate(layers):
            if parts & set(layer.inputs):
                last = max(last, i)
                if isinstance(layer, (Reshape, Slice)):
                    parts.add(layer.output)
        layers.insert(last, layers.pop(index))
    return dataclasses.replace(program, layers=tuple(layers))


def _keeps_units(program: Program, layer: Rescale) -> bool:
    before, after = program.tensors[layer.inputs[0]], program.tensors[layer.output]
    one = requant(1.0)
    same = np.array_equal(layer.requant.multiplier, one.multiplier) and np.array_equal(layer.requant.shift, one.shift)
    alike = before.zero_point == after.zero_point and before.dtype == after.dtype
    return same and alike and before.shape == after.shape


def _intersection(first: Clamp, second: Clamp) -> Clamp:
    low, high = (min(max(bound, second[0]), second[1]) for bound in first)
    return low, high


def _pads_zeros(tensor: Tensor, pad: Pad) -> bool:
    zero = tensor.zero_point if tensor.dtype != "float32" else 0
    ends = (pad.before[0], pad.after[0], pad.before[-1], pad.after[-1])
    return len(tensor.shape) == 4 and pad.value == zero and not any(ends)


def _reader_counts(program: Program) -> dict[str, int]:
    """How often each tensor is read; being an output counts."""
    counts = dict.fromkeys(program.tensors, 0)
    for name in [name for layer in program.layers for name in layer.inputs] + list(program.results):
        counts[name] += 1
    return counts


def _rename(program: Program, renamed: dict[str, str]) -> Program:
    """Read `renamed[name]` wherever `name` was read, and drop the layers that made the old names."""
    if not renamed:
        return program
    layers = [
        dataclasses.replace(layer, inputs=tuple(renamed.get(name, name) for name in layer.inputs))
        for layer in program.layers
        if layer.output not in renamed
    ]
    outputs = tuple(dataclasses.replace(port, tensor=renamed.get(port.tensor, port.tensor)) for port in program.outputs)
    states = tuple(
        dataclasses.replace(state, output=renamed.get(state.output, state.output)) for state in program.states
    )
    return dataclasses.replace(program, layers=tuple(layers), outputs=outputs, states=states)
