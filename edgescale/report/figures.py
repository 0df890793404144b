"""Tables of figures: every column says how its figures are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgescale.core.quantity import Quantity, format_value

if TYPE_CHECKING:
    from rich.table import Table

# Figures in the order tables show them: metric -> heading.
COLUMNS: dict[str, str] = {
    "accuracy": "accuracy",
    "error": "error",
    "drop": "drop",
    "latency": "latency",
    "latency_p95": "p95",
    "latency_p99": "p99",
    "init": "init",
    "first_run": "first run",
    "instructions": "instructions",
    "cycles": "cycles",
    "energy": "energy",
    "traffic": "moved",
    "flash": "flash",
    "weights": "weights",
    "ram": "RAM",
    "arena": "arena",
    "stack": "stack",
    "npu": "on NPU",
    "npu_macs": "MACs on NPU",
    "density": "density",
}
MISSING = "-"


def plain(text: object) -> str:
    """Text as it is: square brackets are not taken for markup."""
    return str(text).replace("[", r"\[")


def show_value(metric: str, quantity: Quantity | None) -> str:
    """A figure as tables print it; drops in points."""
    if quantity is None:
        return MISSING
    if metric == "drop":
        return f"{quantity.value * 100:+.2f} pt"
    if metric == "accuracy" and quantity.value <= 1:
        return f"{quantity.value * 100:.2f} %"
    if metric == "density":
        return f"{quantity.value:.2f}"
    if metric in ("npu", "npu_macs"):
        return f"{quantity.value * 100:.0f} %" if quantity.value in (0, 1) else f"{quantity.value * 100:.1f} %"
    return format_value(quantity.value, quantity.unit)


def add_figure_columns(table: Table, rows: Sequence[Mapping[str, Quantity]], metrics: Sequence[str]) -> list[str]:
    """Add a column for each of `metrics` some row has; the heading names the source where all share it.

    Returns the metrics shown, in order.
    """
    shown = [metric for metric in metrics if any(metric in row for row in rows)]
    for metric in shown:
        sources = {row[metric].source for row in rows if metric in row}
        source = f"\n[dim]{sources.pop()}[/]" if len(sources) == 1 else ""
        table.add_column(f"{COLUMNS.get(metric, metric)}{source}", justify="right", no_wrap=True)
    return shown


def figure_cells(
    row: Mapping[str, Quantity], shown: Sequence[str], rows: Sequence[Mapping[str, Quantity]]
) -> list[str]:
    """The cells of one row; a figure names its own source where its column mixes sources."""
    cells = []
    for metric in shown:
        mixed = len({other[metric].source for other in rows if metric in other}) > 1
        cell = show_value(metric, row.get(metric))
        cells.append(f"{cell} ({row[metric].source})" if mixed and metric in row else cell)
    return cells


def quantity_payload(figures: Mapping[str, Quantity]) -> dict[str, dict[str, object]]:
    """Figures for JSON: value, unit, source, note by metric."""
    return {name: {"value": q.value, "unit": q.unit, "source": q.source, "note": q.note} for name, q in figures.items()}
