"""Checks a memory plan without the planner: own lifetimes, own replay of the kernels' loops (replay.py).

Shares no code with planner.py, liveness.py or overlap.py. Two tensors that are live together must not
share a byte, unless one is the output and the other a dying input of a layer, and replaying that
layer's reads and writes shows that every shared byte is read for the last time before it is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgescale.core.errors import EdgescaleError
from edgescale.lower.program import (
    ITEM_BYTES,
    Concat,
    Layer,
    Program,
    Reshape,
    Slice,
    Transpose,
)
from edgescale_c.replay import Replay, simulation, taken


class PlanError(EdgescaleError):
    """A memory plan would let a layer overwrite bytes that are still needed. Always a fault of the planner."""


@dataclass(frozen=True)
class Workspace:
    """What a layer's kernel does: `order` as kernels.Order names it, and its scratch [offset, offset + nbytes)."""

    order: str = "scalar"
    offset: int = 0
    nbytes: int = 0


_SCALAR = Workspace()


def verify(
    program: Program,
    offsets: Mapping[str, int],
    arena_bytes: int,
    alignment: int = 1,
    workspaces: Mapping[int, Workspace] | None = None,
) -> None:
    """Raise PlanError unless `offsets` (bytes, one for every tensor) are safe within `arena_bytes`.

    workspaces: by index, of the layers whose kernels are not the scalar ones.
    """
    workspaces = workspaces or {}
    for name, tensor in program.tensors.items():
        if name not in offsets:
            raise PlanError(f"memory plan: tensor {name} has no place")
        start = offsets[name]
        if start < 0 or start + tensor.nbytes > arena_bytes:
            raise PlanError(f"memory plan: tensor {name} [{start}, {start + tensor.nbytes}) leaves the arena")
        inside = program.states or any(isinstance(layer, Slice) and layer.output == name for layer in program.layers)
        if (start % alignment and not inside) or start % ITEM_BYTES[tensor.dtype]:
            raise PlanError(f"memory plan: tensor {name} at {start} is not aligned")
    final = len(program.layers)
    # A tensor holds its value after layer `born` (-1: before the first) until layer `dead` has read it.
    born = dict.fromkeys(program.sources, -1) | {layer.output: i for i, layer in enumerate(program.layers)}
    dead = dict(born)
    for index, layer in enumerate(program.layers):
        dead.update(dict.fromkeys(layer.inputs, index))
    dead.update(dict.fromkeys(program.results, final))
    reads = _Reads(program, offsets)
    for index, workspace in workspaces.items():
        live = [name for name in born if born[name] <= index <= dead[name]]
        _check_scratch(reads, offsets, arena_bytes, index, live, workspace)
    for index, layer in enumerate(program.layers):
        if index in reads.standing:
            continue
        aliased = _same_bytes(program, layer)
        if aliased and offsets[layer.output] != offsets[layer.inputs[0]]:
            raise PlanError(f"memory plan: {layer.output} must lie where {layer.inputs[0]} does")
        if aliased:
            continue
        for name in born:
            if name == layer.output or born[name] >= index or dead[name] < index:
                continue
            place = offsets[layer.output], program.tensors[layer.output].nbytes
            if not reads.share(name, *place, index):
                continue
            if reads.share(name, *place, index + 1) or name not in layer.inputs:
                raise PlanError(
                    f"memory plan: layer {layer.name} would overwrite {name}, needed until layer {dead[name]}"
                )
            _check_reach(program, offsets, index, name, workspaces.get(index, _SCALAR).order)
    _check_states(program, offsets)
    held = list(program.sources)
    for i, name in enumerate(held):
        for other in held[i + 1 :]:
            if name != other and _share(program, offsets, name, other):
                raise PlanError(f"memory plan: inputs {name} and {other} share bytes")


def _check_states(program: Program, offsets: Mapping[str, int]) -> None:
    """What a run leaves is at the states' places when the next one starts, copied there at the end where it is not."""
    outputs = {port.tensor for port in program.outputs}
    for state in program.states:
        if offsets[state.input] == offsets[state.output]:
            continue
        for name in {*outputs, *(other.output for other in program.states)}:
            if name != state.input and _share(program, offsets, state.input, name):
                raise PlanError(f"memory plan: the next value of state {state.name} would overwrite {name}")


class _Reads:
    """Which bytes of every tensor are still to be read.

    `standing`: layers whose output is in place already: a Slice of bytes that stay where they are, a Concat of
    inputs that lie side by side in its place. Such a Slice reads just its part, which lives on under its own name.
    """

    def __init__(self, program: Program, offsets: Mapping[str, int]) -> None:
        self.program, self._offsets = program, offsets
        self._parts: dict[str, list[tuple[int, int, int]]] = {name: [] for name in program.tensors}
        self.standing: set[int] = set()
        for index, layer in enumerate(program.layers):
            stays = isinstance(layer, Slice) and _is_where_it_was(program, offsets, layer)
            if stays or (isinstance(layer, Concat) and _is_joined(program, offsets, layer)):
                self.standing.add(index)
            for name in layer.inputs:
                low, high = 0, program.tensors[name].nbytes
                if isinstance(layer, Slice) and index in self.standing:
                    low = offsets[layer.output] - offsets[name]
                    high = low + program.tensors[layer.output].nbytes
                self._parts[name].append((index, low, high))
        for name in program.results:
            self._parts[name].append((len(program.layers), 0, program.tensors[name].nbytes))

    def share(self, name: str, start: int, nbytes: int, index: int) -> bool:
        """Whether [start, start + nbytes) holds bytes of `name` that layer `index` or a later one reads."""
        at, end = self._offsets[name], start + nbytes
        return any(at + low < end and start < at + high for when, low, high in self._parts[name] if when >= index)


def _is_joined(program: Program, offsets: Mapping[str, int], layer: Concat) -> bool:
    """Whether the inputs lie one behind the other, in the output's units, where the output is."""
    at = offsets[layer.output]
    if any(layer.rescale) or math.prod(program.tensors[layer.output].shape[: layer.axis]) != 1:
        return False
    for name in layer.inputs:
        if offsets[name] != at:
            return False
        at += program.tensors[name].nbytes
    return True


def _is_where_it_was(program: Program, offsets: Mapping[str, int], layer: Slice) -> bool:
    """Whether the slice's elements lie side by side in the input, and the output is just there."""
    elements = taken(program, layer)
    whole = elements.size == program.tensors[layer.inputs[0]].size
    start = offsets[layer.inputs[0]] + int(elements[0]) * ITEM_BYTES[program.tensors[layer.output].dtype]
    return not whole and bool((np.diff(elements) == 1).all()) and offsets[layer.output] == start


def _share(program: Program, offsets: Mapping[str, int], a: str, b: str) -> bool:
    start_a, start_b = offsets[a], offsets[b]
    return start_a < start_b + program.tensors[b].nbytes and start_b < start_a + program.tensors[a].nbytes


def _same_bytes(program: Program, layer: Layer) -> bool:
    if isinstance(layer, Transpose):
        shape = program.tensors[layer.inputs[0]].shape
        index = np.arange(math.prod(shape)).reshape(shape)
        return bool(np.array_equal(index.transpose(layer.permutation).reshape(-1), index.reshape(-1)))
    return isinstance(layer, Reshape)


def _check_scratch(
    reads: _Reads, offsets: Mapping[str, int], arena_bytes: int, index: int, live: list[str], workspace: Workspace
) -> None:
    layer = reads.program.layers[index]
    low, high = workspace.offset, workspace.offset + workspace.nbytes
    if workspace.nbytes and (low < 0 or high > arena_bytes or low % 4):
        raise PlanError(f"memory plan: scratch of layer {layer.name} [{low}, {high}) leaves the arena or its alignment")
    start, out = offsets[layer.output], reads.program.tensors[layer.output].nbytes
    for name in live:
        written = name == layer.output and low < start + out and start < high
        if written or reads.share(name, low, workspace.nbytes, index):
            raise PlanError(f"memory plan: scratch of layer {layer.name} [{low}, {high}) overwrites {name}")


def _check_reach(program: Program, offsets: Mapping[str, int], index: int, name: str, order: str) -> None:
    layer = program.layers[index]
    source, out = program.tensors[name], program.tensors[layer.output]
    if order == "plane":
        # Channel c of a pixel is written where channel c of this or another pixel was, copied before.
        same_pixels = source.shape[-1] == out.shape[-1] and out.nbytes <= source.nbytes
        if offsets[name] != offsets[layer.output] or not same_pixels:
            raise PlanError(f"memory plan: layer {index} {layer.name} must lie where its input {name} does, or apart")
        return
    for block in (1, 2):
        replay = Replay(source.size, out.size)
        for operand, tensor in enumerate(layer.inputs):
            if tensor == name:
                simulate = simulation(layer, order)
                if simulate is None:
                    raise PlanError(f"memory plan: {layer.op} {layer.name} must not write into its input {name}")
                simulate(program, layer, operand, block, replay)
        read = np.repeat(replay.last_read, ITEM_BYTES[source.dtype])
        written = np.repeat(replay.first_write, ITEM_BYTES[out.dtype])
        low = max(offsets[name], offsets[layer.output])
        high = min(offsets[name] + source.nbytes, offsets[layer.output] + out.nbytes)
        inside = read[low - offsets[name] : high - offsets[name]]
        onto = written[low - offsets[layer.output] : high - offsets[layer.output]]
        if (onto < inside).any():
            raise PlanError(f"memory plan: layer {index} {layer.name} overwrites {name} before it has been read")
