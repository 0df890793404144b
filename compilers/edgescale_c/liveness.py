"""Buffers and their lifetimes: which tensors share bytes, and which of them are needed from which layer to which."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgescale.lower.program import ITEM_BYTES, Concat, Layer, Program, Slice
from edgescale_c import states
from edgescale_c.choice import Choice
from edgescale_c.states import Place, is_view, view_start

Places = Mapping[str, Place]


@dataclass(frozen=True)
class Piece:
    """Bytes [low, high) of a buffer that `tensor` needs in layers first..last, both included."""

    tensor: str
    low: int
    high: int
    first: int
    last: int

    def meets(self, other: Piece) -> bool:
        """Whether both are live in some layer."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Buffer:
    """Bytes that one or more tensors name.

    `name` is the tensor that creates it; `tensors` all that alias it, `starts` bytes from the buffer's start to
    each. Graph inputs live from layer 0, graph outputs to the last layer, states always.
    """

    name: str
    tensors: tuple[str, ...]
    nbytes: int
    item: int
    """Bytes of an element: the least alignment."""
    starts: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def start(self, tensor: str) -> int:
        """Bytes from the buffer's start to a tensor that names it."""
        return self.starts[self.tensors.index(tensor)]

    @cached_property
    def first(self) -> int:
        """First layer in which something of it is live."""
        return min(piece.first for piece in self.pieces)

    @cached_property
    def last(self) -> int:
        """Last layer in which something of it is live."""
        return max(piece.last for piece in self.pieces)


def moves_nothing(program: Program, layer: Layer, place: Places) -> bool:
    """Whether the output's bytes are where they should be already.

    So it is for Reshape, a Transpose that moves only axes of extent 1, a Slice in one piece that is wanted nowhere
    else, and a Concat whose inputs lie side by side in its own place. place: of every tensor, as `places` tells.
    """
    owner, start = place[layer.output]
    if isinstance(layer, Concat):
        if math.prod(program.tensors[layer.output].shape[: layer.axis]) != 1 or any(layer.rescale):
            return False
        for name in layer.inputs:
            if place[name] != (owner, start):
                return False
            start += program.tensors[name].nbytes
        return True
    if not is_view(program, layer):
        return False
    source, at = place[layer.inputs[0]]
    return not isinstance(layer, Slice) or (owner, start) == (source, at + view_start(program, layer))


def scratch_name(index: int) -> str:
    """What the scratch buffer of a layer is called in plans."""
    return f"scratch of layer {index}"


def places(program: Program, choices: Sequence[Choice] = (), wanted: Places | None = None) -> dict[str, Place]:
    """Tensor name -> the tensor whose buffer it shares (itself where it has its own), and bytes from its start.

    wanted: places that are given. The output of a layer that works channel by channel on planes takes its input's
    place where nobody needs the input any more.
    """
    fixed = {**states.places(program), **(wanted or {})}
    found = {name: fixed.get(name, (name, 0)) for name in program.sources}
    kept = set(program.results)
    always = {state.input for state in program.states}
    for index, layer in enumerate(program.layers):
        found[layer.output] = fixed.get(layer.output, (layer.output, 0))
        if layer.output in fixed:
            continue
        if is_view(program, layer):
            owner, start = found[layer.inputs[0]]
            found[layer.output] = owner, start + view_start(program, layer)
        elif choices and choices[index].order == "plane" and _fits(program, layer):
            owner, start = found[layer.inputs[0]]
            aliases = {name for name, (root, _) in found.items() if root == owner}
            # Names that later views of the same bytes would add are read through one of these first.
            needed = kept.union(*(later.inputs for later in program.layers[index + 1 :]))
            if not aliases & needed and owner not in always and owner not in fixed:
                found[layer.output] = owner, start
    return found


def _fits(program: Program, layer: Layer) -> bool:
    """Whether each output pixel has a pixel of the input of the same size to go to."""
    source, out = program.tensors[layer.inputs[0]], program.tensors[layer.output]
    return source.shape[-1] == out.shape[-1] and out.nbytes <= source.nbytes


def buffers(program: Program, choices: Sequence[Choice] = (), wanted: Places | None = None) -> list[Buffer]:
    """The buffers of a program in order of creation, then the scratch of its layers."""
    place = places(program, choices, wanted)
    pieces = _pieces(program, place)
    names: dict[str, list[str]] = {}
    for tensor, (owner, _) in place.items():
        names.setdefault(owner, []).append(tensor)
    tensors = [
        Buffer(
            owner,
            tuple(members),
            max(place[name][1] + program.tensors[name].nbytes for name in members),
            ITEM_BYTES[program.tensors[owner].dtype],
            tuple(place[name][1] for name in members),
            tuple(piece for name in members for piece in pieces[name]),
        )
        for owner, members in names.items()
    ]
    return tensors + [
        Buffer(name, (name,), choice.scratch, 4, (0,), (Piece(name, 0, choice.scratch, index, index),))
        for index, choice in enumerate(choices)
        if choice.scratch and (name := scratch_name(index))
    ]


def _pieces(program: Program, place: Places) -> dict[str, list[Piece]]:
    """For each tensor, its bytes by how long they are needed."""
    final = max(len(program.layers) - 1, 0)
    born = dict.fromkeys(program.sources, 0) | {layer.output: i for i, layer in enumerate(program.layers)}
    # (bytes read, in which layer); a part that is only looked at through another name lives on under that name.
    reads: dict[str, list[tuple[int, int, int]]] = {name: [] for name in born}
    for index, layer in enumerate(program.layers):
        for name in layer.inputs:
            low, high = 0, program.tensors[name].nbytes
            if isinstance(layer, Slice) and moves_nothing(program, layer, place):
                low = view_start(program, layer)
                high = low + program.tensors[layer.output].nbytes
            reads[name].append((low, high, index))
    always = {state.input for state in program.states}
    for name in {*program.results, *always}:
        reads[name].append((0, program.tensors[name].nbytes, final))
    found: dict[str, list[Piece]] = {}
    for name, first in born.items():
        if place[name][0] in always:
            first, reads[name] = 0, [(0, program.tensors[name].nbytes, final)]
        found[name] = list(_merged(name, place[name][1], program.tensors[name].nbytes, first, reads[name]))
    return found


def _merged(name: str, start: int, nbytes: int, first: int, reads: Iterable[tuple[int, int, int]]) -> Iterable[Piece]:
    """Neighbouring bytes that are read for the last time in the same layer, as one piece each."""
    reads = list(reads)
    edges = sorted({0, nbytes, *(low for low, _, _ in reads), *(high for _, high, _ in reads)})
    open_low, open_last = 0, None
    for low, high in itertools.pairwise(edges):
        last = max((index for a, b, index in reads if a <= low and high <= b), default=first)
        if open_last is not None and last != open_last:
            yield Piece(name, start + open_low, start + low, first, open_last)
            open_low = low
        open_last = last
    if open_last is not None:
        yield Piece(name, start + open_low, start + nbytes, first, open_last)
