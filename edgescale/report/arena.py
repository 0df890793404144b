"""The arena over time: which bytes are taken while each layer runs, and the layer that sets the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from edgescale.report.figures import plain

WIDTH = 48
SHADES = "█▓▒"


@dataclass(frozen=True)
class Moment:
    """One layer: its name, the (offset, bytes) taken while it runs, and how many different bytes those are."""

    name: str
    taken: tuple[tuple[int, int], ...]
    live: int


def moments(meta: Mapping[str, Any]) -> list[Moment]:
    """The plan of a C artifact, layer by layer in run order. Overlapping buffers count once.

    Of a layer that runs in stripes, the stripe during which most is taken.
    """
    return [
        max((_moment(meta, layer["name"], step) for step in layer["steps"]), key=lambda moment: moment.live)
        for layer in meta["layers"]
    ]


def _moment(meta: Mapping[str, Any], name: str, step: int) -> Moment:
    rows = [row for row in meta["plan"] if row["first"] <= step <= row["last"]]
    taken = tuple(sorted({(int(row["offset"]), int(row["bytes"])) for row in rows}))
    return Moment(name, taken, _union(taken))


def peak(found: Sequence[Moment]) -> Moment:
    """The layer during which most bytes are taken."""
    return max(found, key=lambda moment: moment.live)


def arena_table(meta: Mapping[str, Any]) -> Table:
    """Addresses from left to right, layers from top to bottom; the peak is marked."""
    found = moments(meta)
    total, bound = int(meta["arena_bytes"]), meta.get("arena_lower_bound")
    highest = peak(found)
    limit = f", no plan for this order needs less than {bound:,} B" if bound is not None else ""
    title = f"arena {total:,} B{limit}; the peak is set by {plain(highest.name)}: {highest.live:,} B in use"
    table = Table(title=title, title_justify="left", caption=_stripes(meta) or None, caption_justify="left")
    table.add_column("layer", overflow="fold", min_width=24)
    table.add_column(f"0 .. {total:,} B", no_wrap=True)
    table.add_column("in use", justify="right", no_wrap=True)
    for moment in found:
        mark = " [bold]<- peak[/]" if moment is highest else ""
        table.add_row(plain(moment.name), _bar(moment.taken, total), f"{moment.live:,}{mark}")
    return table


def _stripes(meta: Mapping[str, Any]) -> str:
    """The regions that run in stripes, a line each."""
    return "\n".join(
        f"in {region['stripes']} stripes, {region['halo']} halo: {plain(region['first'])} to {plain(region['last'])} "
        f"({region['layers']} layers; {region['extra_macs']:,} MACs done again, {region['moved_bytes']:,} B moved)"
        for region in meta.get("memory", {}).get("regions", ())
    )


def _union(taken: Sequence[tuple[int, int]]) -> int:
    covered, end = 0, 0
    for offset, size in taken:
        covered += max(0, offset + size - max(offset, end))
        end = max(end, offset + size)
    return covered


def _bar(taken: Sequence[tuple[int, int]], total: int) -> str:
    """One character a WIDTH-th of the arena; neighbours in different shades, free memory as a dot."""
    cells = ["·"] * WIDTH
    for number, (offset, size) in enumerate(taken):
        for cell in range(offset * WIDTH // total, -(-(offset + size) * WIDTH // total)):
            cells[cell] = SHADES[number % len(SHADES)]
    return "".join(cells)
