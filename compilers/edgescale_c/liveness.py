"""Buffers and their lifetimes: which tensors share bytes, and from which layer to which they are needed."""

from __future__ import annotations

from dataclasses import dataclass

from edgescale.lower.program import ITEM_BYTES, Layer, Program, Reshape, Transpose


@dataclass(frozen=True)
class Buffer:
    """Bytes that one or more tensors name.

    `name` is the tensor that creates it; `tensors` all that alias it. Live in layers first..last, both
    included. Graph inputs live from layer 0, graph outputs to the last layer.
    """

    name: str
    tensors: tuple[str, ...]
    nbytes: int
    item: int
    """Bytes of an element: the least alignment."""
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are live in some layer."""
        return self.first <= other.last and other.first <= self.last


def moves_nothing(program: Program, layer: Layer) -> bool:
    """Whether the output has the input's bytes: Reshape, and a Transpose that moves only axes of extent 1."""
    if isinstance(layer, Reshape):
        return True
    if not isinstance(layer, Transpose):
        return False
    shape = program.tensors[layer.inputs[0]].shape
    moved = [axis for axis in layer.permutation if shape[axis] != 1]
    return moved == sorted(moved)


def roots(program: Program) -> dict[str, str]:
    """Tensor name -> name of the tensor whose buffer it shares (itself where it has its own)."""
    found = {port.tensor: port.tensor for port in program.inputs}
    for layer in program.layers:
        found[layer.output] = found[layer.inputs[0]] if moves_nothing(program, layer) else layer.output
    return found


def buffers(program: Program) -> list[Buffer]:
    """The buffers of a program in order of creation."""
    root = roots(program)
    final = max(len(program.layers) - 1, 0)
    first = {port.tensor: 0 for port in program.inputs}
    last: dict[str, int] = dict.fromkeys(first, 0)
    for index, layer in enumerate(program.layers):
        first.setdefault(root[layer.output], index)
        for name in (*layer.inputs, layer.output):
            last[root[name]] = index
    for port in program.outputs:
        last[root[port.tensor]] = final
    names: dict[str, list[str]] = {}
    for tensor, owner in root.items():
        names.setdefault(owner, []).append(tensor)
    return [
        Buffer(
            owner,
            tuple(members),
            max(program.tensors[name].nbytes for name in members),
            ITEM_BYTES[program.tensors[owner].dtype],
            first[owner],
            last[owner],
        )
        for owner, members in names.items()
    ]
