"""A region of a program rewritten as stripes: the same values, row by row, and where its tensors must lie.

The result is a program like any other: the reference executes it, the planner places it, the verifier checks it.
Rows of a tensor are tensors of their own. Reading some rows of a held tensor is a Slice, new rows behind old ones
a Concat; both cost nothing where everything lies in one buffer, which `places` asks for. What costs is the Slice
that moves the window of held rows to the buffer's start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgescale.lower.program import Concat, Layer, Program, Slice, Tensor
from edgescale_c.rows import Rows, restricted, row_bytes, rows_of, with_rows
from edgescale_c.schedule import Region, Timetable
from edgescale_c.states import Place


@dataclass(frozen=True)
class Striped:
    """A program in stripes.

    places: tensors that must lie in another's buffer, and how many bytes from its start. origin: for each layer,
    its index in the program that was given, so that the stripes of one layer can be told together.
    """

    program: Program
    places: Mapping[str, Place] = field(default_factory=dict)
    origin: tuple[int, ...] = ()

    @staticmethod
    def plain(program: Program) -> Striped:
        """The program as it is."""
        return Striped(program, {}, tuple(range(len(program.layers))))


@dataclass
class _Held:
    """Rows of a tensor that exist now: `name` holds rows [base, done)."""

    name: str
    base: int
    done: int
    owner: str


class _Writer:
    """Collects the layers and tensors of a region in stripes."""

    def __init__(self, striped: Striped, table: Timetable) -> None:
        self.program = striped.program
        self.table = table
        self.axis = table.region.axis
        self.tensors = dict(striped.program.tensors)
        self.places = dict(striped.places)
        self.layers: list[Layer] = []
        self.origin: list[int] = []
        self.now: dict[str, _Held] = {}
        self.views: dict[tuple[str, Rows], str] = {}

    def size(self, name: str) -> int:
        return row_bytes(self.program.tensors[name], self.axis)

    def tensor(self, source: str, rows: int, name: str) -> str:
        self.tensors[name] = with_rows(self.program.tensors[source], self.axis, rows, name)
        return name

    def add(self, layer: Layer, origin: int) -> None:
        self.layers.append(layer)
        self.origin.append(origin)

    def slice(self, whole: str, made: str, first: int, rows: int, name: str, origin: int) -> str:
        """Rows first..first + rows - 1 of the tensor `whole`, which are rows of the original tensor `made`."""
        self.tensor(made, rows, name)
        axes = len(self.tensors[whole].shape)
        begin = tuple(first if axis == self.axis else 0 for axis in range(axes))
        self.add(Slice(self.program.layers[origin].name, (whole,), name, begin=begin, step=(1,) * axes), origin)
        return name

    def read(self, name: str, rows: Rows, origin: int) -> str:
        """The tensor that holds just `rows` of an original tensor."""
        held = self.now.get(name) or _Held(name, 0, rows_of(self.program.tensors[name], self.axis), name)
        if rows == (held.base, held.done):
            return held.name
        key = held.name, rows
        if key not in self.views:
            first = rows[0] - held.base
            view = f"{held.name}[{rows[0]}:{rows[1]}]"
            self.views[key] = self.slice(held.name, name, first, rows[1] - rows[0], view, origin)
        return self.views[key]

    def make(self, index: int, stripe: int) -> None:
        """Compute the rows that a layer makes in a stripe."""
        layer = self.program.layers[index]
        name = layer.output
        rows = self.table.made[name][stripe]
        if rows[0] == rows[1]:
            return
        inputs = []
        for source, row_map in zip(layer.inputs, self.table.maps[name], strict=True):
            if row_map is None:
                inputs.append(source)
                continue
            need = row_map.needed(rows, rows_of(self.program.tensors[source], self.axis))
            inputs.append(self.read(source, need, index))
        if not self.table.held(name):
            part = self.tensor(name, rows[1] - rows[0], f"{name}#{stripe}")
            self.now[name] = _Held(part, *rows, part)
        else:
            part = self._behind(name, rows, stripe, index)
        self.add(restricted(self.program, layer, self.axis, rows, tuple(inputs), part), index)
        if self.table.held(name):
            self._join(name, part, rows, stripe, index)

    def _behind(self, name: str, rows: Rows, stripe: int, origin: int) -> str:
        """Make room for new rows of a held tensor; the name of the tensor that will hold them."""
        base = self.table.base[name][stripe]
        held = self.now.get(name)
        whole = rows_of(self.program.tensors[name], self.axis)
        alone = held is None or held.done <= base
        last = rows[1] == whole and name in self.table.exits
        if held is not None and base > held.base:
            left = held.done - base
            if left > 0:
                kept = self.slice(held.name, name, base - held.base, left, f"{name}@{stripe}", origin)
                self.places[kept] = held.owner, 0
                held.name = kept
            held.base = base
        part = self.tensor(name, rows[1] - rows[0], name if last and alone else f"{name}#{stripe}")
        if held is None:
            self.now[name] = _Held(part, base, rows[0], part)
            self.places[part] = part, 0  # later rows follow it, so nothing may move it
            return part
        self.places[part] = held.owner, (rows[0] - base) * self.size(name)
        return part

    def _join(self, name: str, part: str, rows: Rows, stripe: int, origin: int) -> None:
        """Note the new rows: alone, or behind those that were there."""
        held = self.now[name]
        if held.done <= held.base:
            held.name = part
        else:
            whole = rows[1] == rows_of(self.program.tensors[name], self.axis) and name in self.table.exits
            joined = self.tensor(name, rows[1] - held.base, name if whole else f"{name}+{stripe}")
            layer = Concat(
                self.program.layers[origin].name, (held.name, part), joined, axis=self.axis, rescale=(None, None)
            )
            self.add(layer, origin)
            self.places[joined] = held.owner, 0
            held.name = joined
        held.done = rows[1]


def stripe(striped: Striped, table: Timetable) -> Striped:
    """Rewrite the region of `table`, a timetable of `striped.program`, as stripes."""
    region: Region = table.region
    program = striped.program
    writer = _Writer(striped, table)
    for number in range(table.stripes):
        for index in range(region.first, region.last + 1):
            writer.make(index, number)
    inner = {layer.output for layer in program.layers[region.first : region.last + 1]} - table.exits
    tensors: dict[str, Tensor] = {name: tensor for name, tensor in writer.tensors.items() if name not in inner}
    layers = (*program.layers[: region.first], *writer.layers, *program.layers[region.last + 1 :])
    origin = (
        *striped.origin[: region.first],
        *(striped.origin[index] for index in writer.origin),
        *striped.origin[region.last + 1 :],
    )
    return Striped(dataclasses.replace(program, layers=layers, tensors=tensors), writer.places, origin)
