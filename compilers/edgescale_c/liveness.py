"""Buffers and their lifetimes: which tensors share bytes, and from which layer to which they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgescale.lower.program import ITEM_BYTES, Layer, Program
from edgescale_c import states
from edgescale_c.choice import Choice
from edgescale_c.states import Place, is_view, view_start


@dataclass(frozen=True)
class Buffer:
    """Bytes that one or more tensors name.

    `name` is the tensor that creates it; `tensors` all that alias it. Live in layers first..last, both
    included. Graph inputs live from layer 0, graph outputs to the last layer, states always.
    """

    name: str
    tensors: tuple[str, ...]
    nbytes: int
    item: int
    """Bytes of an element: the least alignment."""
    first: int
    last: int
    starts: tuple[int, ...] = ()
    """Bytes from the buffer's start to each of `tensors`; all 0 where it is empty."""

    def start(self, tensor: str) -> int:
        """Bytes from the buffer's start to a tensor that names it."""
        return self.starts[self.tensors.index(tensor)] if self.starts else 0

    def meets(self, other: Buffer) -> bool:
        """Whether both are live in some layer."""
        return self.first <= other.last and other.first <= self.last


def moves_nothing(program: Program, layer: Layer) -> bool:
    """Whether the output has the input's bytes: Reshape, a Transpose that moves only axes of extent 1, and a Slice
    in one piece that no state needs moved."""
    return is_view(program, layer)


def scratch_name(index: int) -> str:
    """What the scratch buffer of a layer is called in plans."""
    return f"scratch of layer {index}"


def roots(program: Program, choices: Sequence[Choice] = ()) -> dict[str, str]:
    """Tensor name -> name of the tensor whose buffer it shares (itself where it has its own)."""
    return {name: owner for name, (owner, _) in places(program, choices).items()}


def places(program: Program, choices: Sequence[Choice] = ()) -> dict[str, Place]:
    """Tensor name -> the tensor whose buffer it shares, and bytes from that buffer's start.

    The output of a layer that works channel by channel on planes takes its input's place where nobody
    needs the input any more.
    """
    fixed = states.places(program)
    found = {name: fixed.get(name, (name, 0)) for name in program.sources}
    kept = set(program.results)
    always = {state.input for state in program.states}
    for index, layer in enumerate(program.layers):
        found[layer.output] = fixed.get(layer.output, (layer.output, 0))
        if layer.output in fixed:
            continue
        if moves_nothing(program, layer):
            owner, start = found[layer.inputs[0]]
            found[layer.output] = owner, start + view_start(program, layer)
        elif choices and choices[index].order == "plane" and _fits(program, layer):
            owner, start = found[layer.inputs[0]]
            aliases = {name for name, (root, _) in found.items() if root == owner}
            # Names that later views of the same bytes would add are read through one of these first.
            needed = kept.union(*(later.inputs for later in program.layers[index + 1 :]))
            if not aliases & needed and owner not in always:
                found[layer.output] = owner, start
    return found


def _fits(program: Program, layer: Layer) -> bool:
    """Whether each output pixel has a pixel of the input of the same size to go to."""
    source, out = program.tensors[layer.inputs[0]], program.tensors[layer.output]
    return source.shape[-1] == out.shape[-1] and out.nbytes <= source.nbytes


def buffers(program: Program, choices: Sequence[Choice] = ()) -> list[Buffer]:
    """The buffers of a program in order of creation, then the scratch of its layers."""
    place = places(program, choices)
    root = {name: owner for name, (owner, _) in place.items()}
    final = max(len(program.layers) - 1, 0)
    first = dict.fromkeys((root[name] for name in program.sources), 0)
    last: dict[str, int] = dict.fromkeys(first, 0)
    for index, layer in enumerate(program.layers):
        first.setdefault(root[layer.output], index)
        for name in (*layer.inputs, layer.output):
            last[root[name]] = index
    for name in (*program.results, *(state.input for state in program.states)):
        last[root[name]] = final
    names: dict[str, list[str]] = {}
    for tensor, owner in root.items():
        names.setdefault(owner, []).append(tensor)
    tensors = [
        Buffer(
            owner,
            tuple(members),
            max(place[name][1] + program.tensors[name].nbytes for name in members),
            ITEM_BYTES[program.tensors[owner].dtype],
            first[owner],
            last[owner],
            tuple(place[name][1] for name in members),
        )
        for owner, members in names.items()
    ]
    scratch = [
        Buffer(scratch_name(index), (scratch_name(index),), choice.scratch, 4, index, index)
        for index, choice in enumerate(choices)
        if choice.scratch
    ]
    return tensors + scratch
