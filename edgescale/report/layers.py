"""Layer tables: where time goes, by the names of the user's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.table import Table

from edgescale.core.quantity import Quantity
from edgescale.report.figures import MISSING, add_figure_columns, figure_cells, plain, show_value

COST_ORDER = ("cycles", "instructions", "latency")
"""What layers are ranked by: the first of these that the rig gave."""


DENSE = 0.6
"""Density from which on nobody expects zeros to be skipped."""

NAME_WIDTH = 32
"""Columns a layer's name keeps on a narrow terminal before it is folded."""


class LayerLike(Protocol):
    """A layer with figures: `LayerFigures` from a rig."""

    @property
    def name(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def macs(self) -> int: ...
    @property
    def kernel(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, Quantity]: ...


def cost_metric(layers: Sequence[LayerLike]) -> str | None:
    """The metric layers are ranked by, None where no layer has one."""
    return next((m for m in COST_ORDER if any(m in layer.metrics for layer in layers)), None)


def layer_table(layers: Sequence[LayerLike], title: str, limit: int | None = None) -> Table:
    """Layers with their share of the whole: all in run order, or the `limit` most expensive."""
    metric = cost_metric(layers)
    total = sum(layer.metrics[metric].value for layer in layers if metric and metric in layer.metrics)
    chosen = list(enumerate(layers))
    if limit is not None and metric is not None:
        chosen.sort(key=lambda item: -_value(item[1], metric))
        chosen = chosen[:limit]
    rows = [layer.metrics for _, layer in chosen]
    table = Table(title=title, title_justify="left")
    table.add_column("#", justify="right")
    longest = max((len(layer.name) for _, layer in chosen), default=0)
    table.add_column("layer", overflow="fold", min_width=min(longest, NAME_WIDTH))
    table.add_column("op", no_wrap=True)
    table.add_column("MACs", justify="right")
    # Cycles say what latency does; a table that fits the terminal shows one of them.
    time = "cycles" if any("cycles" in row for row in rows) else "latency"
    shown = add_figure_columns(table, rows, ("instructions", time, "traffic"))
    if metric:
        table.add_column("share", justify="right")
        table.add_column("per MAC", justify="right")
    table.add_column("kernel", overflow="fold")
    # What exploits zeros matters where a layer has many.
    sparse = any("density" in row and row["density"].value < DENSE for row in rows)
    if sparse:
        table.add_column("density", justify="right")
        table.add_column("exploited by", overflow="fold")
    for index, layer in chosen:
        extra = []
        if metric:
            cost = _value(layer, metric)
            per_mac = f"{cost / layer.macs:.2f}" if layer.macs and metric != "latency" else "-"
            extra = [f"{cost / total:.1%}" if total else "-", per_mac]
        cells = figure_cells(layer.metrics, shown, rows)
        if sparse:
            found = layer.metrics.get("density")
            zeros = [show_value("density", found), plain(found.note) if found and found.note else MISSING]
        else:
            zeros = []
        table.add_row(
            str(index), plain(layer.name), layer.op, f"{layer.macs:,}", *cells, *extra, plain(layer.kernel), *zeros
        )
    return table


def _value(layer: LayerLike, metric: str) -> float:
    return layer.metrics[metric].value if metric in layer.metrics else 0.0
