"""Clean-up of recurrent layers in a finished program."""

from __future__ import annotations

import dataclasses

from edgescale.lower.program import Layer, Program, Slice
from edgescale.lower.program_recurrent import Recurrent


def last_steps(program: Program) -> Program:
    """A recurrent layer of whose sequence nothing but the last step is read makes that step alone."""
    makers = {layer.output: index for index, layer in enumerate(program.layers) if isinstance(layer, Recurrent)}
    layers: list[Layer | None] = list(program.layers)
    for index, layer in enumerate(program.layers):
        maker = makers.get(layer.inputs[0]) if isinstance(layer, Slice) else None
        if maker is None:
            continue
        front = program.layers[maker]
        assert isinstance(layer, Slice) and isinstance(front, Recurrent)
        if not front.sequence or not _takes_last_step(program, front, layer) or _others(program, front, layer):
            continue
        layers[maker] = dataclasses.replace(
            front, output=layer.output, sequence=False, nodes=(*front.nodes, *layer.nodes)
        )
        layers[index] = None
    return dataclasses.replace(program, layers=tuple(layer for layer in layers if layer is not None))


def _takes_last_step(program: Program, front: Recurrent, layer: Slice) -> bool:
    *_, steps, units = program.tensors[front.output].shape
    shape = program.tensors[layer.output].shape
    return shape == (1, 1, 1, units) and layer.begin == (0, 0, 0 if front.reverse else steps - 1, 0)


def _others(program: Program, front: Recurrent, layer: Slice) -> bool:
    """Whether anything but `layer` reads the sequence."""
    read = [other for other in program.layers if other is not layer and front.output in other.inputs]
    return bool(read) or front.output in program.results
