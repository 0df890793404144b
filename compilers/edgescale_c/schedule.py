"""The timetable of a region: layers that run stripe by stripe, so that most tensors between them never exist whole.

Stripe k makes some more rows of what leaves the region, and before that just the rows of every tensor on the way
that these need. Rows that a later stripe needs again are either held (a window of rows that moves down the tensor)
or, with `hold=False`, made again (patches of full width, MCUNetV2's execution with the halo recomputed).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from edgescale.lower.program import Layer, Program, macs
from edgescale_c.rows import RowMap, Rows, row_axis, row_bytes, row_maps, rows_of


@dataclass(frozen=True)
class Region:
    """Layers first..last (both included, all computed row by row along `axis`) in stripes of `rows` rows.

    rows: rows a stripe adds to the last layer's output; other outputs advance in proportion.
    """

    first: int
    last: int
    axis: int
    rows: int
    hold: bool = True


@dataclass(frozen=True)
class Timetable:
    """Rows by stripe and tensor; the tensors are those made in the region.

    made: rows computed in the stripe, empty where none; base: the first row held while the stripe runs (of held
    tensors); exits: tensors needed after the region, which are kept whole.
    """

    region: Region
    stripes: int
    made: Mapping[str, tuple[Rows, ...]]
    base: Mapping[str, tuple[int, ...]]
    exits: frozenset[str]
    maps: Mapping[str, tuple[RowMap | None, ...]]
    """By output tensor: of the layer's inputs."""

    def held(self, name: str) -> bool:
        """Whether rows of a tensor stay from one stripe to the next."""
        return name in self.base

    def rows_held(self, name: str) -> int:
        """The most rows of a tensor that exist at once."""
        if not self.held(name):
            return max(high - low for low, high in self.made[name])
        return max(max(high, low) - base for (low, high), base in zip(self.made[name], self.base[name], strict=True))

    def rows_made(self, name: str) -> int:
        """Rows computed in all stripes together: more than the tensor has where some are made again."""
        return sum(high - low for low, high in self.made[name])


def streamable(program: Program, axis: int, index: int) -> bool:
    """Whether a layer can be computed row by row along `axis`."""
    layer = program.layers[index]
    return row_axis(program, layer) == axis and row_maps(program, layer, axis) is not None


def timetable(program: Program, region: Region) -> Timetable | None:
    """Which rows every stripe of a region makes and holds. None where the region is no region: a layer that is not
    computed row by row, an output that nobody reads, less than two stripes."""
    layers = program.layers[region.first : region.last + 1]
    maps: dict[str, tuple[RowMap | None, ...]] = {}
    for layer in layers:
        found = row_maps(program, layer, region.axis)
        if found is None:
            return None
        # Outputs whose all rows another layer of the region wants cannot be streamed into it.
        if any(m is None and name in maps for m, name in zip(found, layer.inputs, strict=True)):
            return None
        maps[layer.output] = found
    later = set(program.results).union(*(layer.inputs for layer in program.layers[region.last + 1 :]))
    exits = frozenset(name for name in maps if name in later)
    read = {name for layer in layers for name in layer.inputs}
    if any(name not in read and name not in exits for name in maps):
        return None
    drive = rows_of(program.tensors[layers[-1].output], region.axis)
    stripes = -(-drive // region.rows)
    if stripes < 2:
        return None
    made = _made(program, region, layers, maps, exits, stripes)
    base = {
        name: _base(program, region, layers, maps, made, name) for name in maps if name not in exits and region.hold
    } | dict.fromkeys(exits, (0,) * stripes)
    return Timetable(region, stripes, made, base, exits, maps)


def _made(
    program: Program,
    region: Region,
    layers: tuple[Layer, ...],
    maps: Mapping[str, tuple[RowMap | None, ...]],
    exits: frozenset[str],
    stripes: int,
) -> dict[str, tuple[Rows, ...]]:
    size = {name: rows_of(program.tensors[name], region.axis) for name in maps}
    read = {name for layer in layers for name in layer.inputs}
    drive = size[layers[-1].output]
    done = dict.fromkeys(maps, 0)
    made: dict[str, list[Rows]] = {name: [] for name in maps}
    for stripe in range(stripes):
        share = min(drive, (stripe + 1) * region.rows)
        wanted: dict[str, Rows] = {}
        for name in exits:
            if name not in read:
                wanted[name] = done[name], -(-size[name] * share // drive)
            elif stripe == stripes - 1:
                wanted[name] = done[name], size[name]
        for layer in reversed(layers):
            name = layer.output
            low, high = wanted.get(name, (done[name], done[name]))
            if region.hold or name in exits:
                low, high = done[name], max(done[name], high)
            made[name].append((low, high))
            done[name] = max(done[name], high)
            if low == high:
                continue
            for source, row_map in zip(layer.inputs, maps[name], strict=True):
                if row_map is not None and source in maps:
                    need = row_map.needed((low, high), size[source])
                    old = wanted.get(source, need)
                    wanted[source] = min(old[0], need[0]), max(old[1], need[1])
    return {name: tuple(rows) for name, rows in made.items()}


def _base(
    program: Program,
    region: Region,
    layers: tuple[Layer, ...],
    maps: Mapping[str, tuple[RowMap | None, ...]],
    made: Mapping[str, tuple[Rows, ...]],
    name: str,
) -> tuple[int, ...]:
    """First row held in each stripe: the lowest that it or a later one reads. It moves only where rows are made."""
    size = rows_of(program.tensors[name], region.axis)
    lowest = []
    for stripe in range(len(made[name])):
        low = size
        for layer in layers:
            rows = made[layer.output][stripe]
            for source, row_map in zip(layer.inputs, maps[layer.output], strict=True):
                if source == name and row_map is not None and rows[0] < rows[1]:
                    low = min(low, row_map.needed(rows, size)[0])
        lowest.append(low)
    later = list(itertools.accumulate(reversed(lowest), min))[::-1]
    base, current = [], 0
    for stripe, (low, high) in enumerate(made[name]):
        if low < high:
            current = max(current, min(later[stripe], low))
        base.append(current)
    return tuple(base)


def extra_macs(program: Program, table: Timetable) -> int:
    """Multiply-accumulates of rows that are made more than once."""
    total = 0
    for layer in program.layers[table.region.first : table.region.last + 1]:
        rows = rows_of(program.tensors[layer.output], table.region.axis)
        total += macs(program, layer) * max(0, table.rows_made(layer.output) - rows) // rows
    return total


def moved_bytes(program: Program, table: Timetable) -> int:
    """Bytes that the windows of held rows move in all stripes together."""
    total = 0
    for name, bases in table.base.items():
        size, done = row_bytes(program.tensors[name], table.region.axis), 0
        for stripe, (low, high) in enumerate(table.made[name]):
            if low < high and bases[stripe] > (bases[stripe - 1] if stripe else 0):
                total += max(0, done - bases[stripe]) * size
            done = max(done, high)
    return total


def need_estimate(program: Program, table: Timetable) -> int:
    """Bytes that the region needs at once, roughly: inputs as far as they are unread, windows, outputs so far.

    Held rows count throughout, rows that are made again only beside the layer that reads them. Scratch is left out.
    """
    region = table.region
    layers = program.layers[region.first : region.last + 1]
    size = {name: row_bytes(program.tensors[name], region.axis) for name in table.made}
    held = sum(table.rows_held(name) * size[name] for name in table.base if name not in table.exits)
    entries = {name for layer in layers for name in layer.inputs if name not in table.made}
    needed_later = set(program.results).union(*(layer.inputs for layer in program.layers[region.last + 1 :]))
    worst = 0
    for stripe in range(table.stripes):
        standing = held
        for name in entries:
            tensor = program.tensors[name]
            first = 0 if name in needed_later else _first_unread(program, table, name, stripe)
            standing += tensor.nbytes - first * (tensor.nbytes // tensor.shape[region.axis])
        standing += sum(max(high for _, high in table.made[name][: stripe + 1]) * size[name] for name in table.exits)
        passing = 0
        for layer in layers:
            low, high = table.made[layer.output][stripe]
            here = 0 if table.held(layer.output) else (high - low) * size[layer.output]
            for name in layer.inputs:
                if name in table.made and not table.held(name):
                    here += (table.made[name][stripe][1] - table.made[name][stripe][0]) * size[name]
            passing = max(passing, here)
        worst = max(worst, standing + passing)
    return worst


def _first_unread(program: Program, table: Timetable, name: str, stripe: int) -> int:
    """The lowest row of an input that this stripe or a later one reads; 0 where a layer reads all of it each time."""
    axis = table.region.axis
    layers = program.layers[table.region.first : table.region.last + 1]
    rows = rows_of(program.tensors[name], axis) if len(program.tensors[name].shape) > axis else 1
    low = rows
    for layer in layers:
        for source, row_map in zip(layer.inputs, table.maps[layer.output], strict=True):
            if source != name:
                continue
            if row_map is None:
                return 0
            for made in table.made[layer.output][stripe:]:
                if made[0] < made[1]:
                    low = min(low, row_map.needed(made, rows)[0])
    return low
