"""A fit for people: its table, its warnings, its plots; predictions as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgescale.laws.form import Form
from edgescale.laws.intervals import Band, Bootstrap, Interval
from edgescale.report.curves import Panel
from edgescale.report.figures import plain

if TYPE_CHECKING:
    from rich.table import Table

CURVE_POINTS = 60


def fit_table(refits: Bootstrap, level: float, profiles: Mapping[str, Interval] | None = None) -> Table:
    """Parameters with standard errors and intervals."""
    from rich.table import Table

    made = refits.fit
    table = Table(title=f"[bold]{plain(made.form.name)}[/]  {plain(made.form.equation)}", title_justify="left")
    for heading in ("parameter", "value", "std. error", f"{level:.0%} interval"):
        table.add_column(heading, justify="left" if heading == "parameter" else "right")
    if profiles:
        table.add_column(f"{level:.0%} profile", justify="right")
    errors, intervals = refits.standard_errors(), refits.intervals(level)
    for name, free in zip(made.form.names, made.problem.free, strict=True):
        cells = [name, f"{made.params[name]:.6g}"]
        cells += [f"{errors[name]:.3g}", span(intervals[name])] if free else ["held", ""]
        if profiles:
            cells.append(span(profiles[name]) if name in profiles else "")
        table.add_row(*map(plain, cells))
    return table


def span(interval: Interval) -> str:
    """[low, high] as text; an open side is infinite."""
    return f"[{interval.low:.4g}, {interval.high:.4g}]"


def band_table(form: Form, columns: Mapping[str, np.ndarray], band: Band | None, value: np.ndarray) -> Table:
    """Inputs, predictions and their intervals."""
    from rich.table import Table

    table = Table(title=f"[bold]{plain(form.name)}[/]", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column(f"{form.output}\n[dim]predicted[/]", justify="right")
    if band is not None:
        table.add_column(f"{band.level:.0%} interval", justify="right")
    for row in range(value.size):
        cells = [f"{values[row]:.6g}" for values in columns.values()] + [f"{value[row]:.6g}"]
        if band is not None:
            cells.append(span(Interval(float(band.low[row]), float(band.high[row]))))
        table.add_row(*map(plain, cells))
    return table


def panels(refits: Bootstrap, level: float) -> list[Panel]:
    """Observed against predicted, then for every input that varies the curve at the others' medians.

    The points of an input's panel are the observations moved along the law to those medians.
    """
    made = refits.fit
    problem, form = made.problem, made.form
    fitted = form.values(made.inner, problem.columns)[0]
    label = f"{form.output} ({form.unit})"
    drawn = [
        Panel(
            "observed and predicted",
            f"predicted {label}",
            f"observed {label}",
            _pairs(fitted, problem.y),
            diagonal=True,
        )
    ]
    middle = {name: float(np.median(values)) for name, values in problem.columns.items()}
    for i in form.inputs:
        values = problem.columns[i.name]
        low, high = float(values.min()), float(values.max())
        if low == high:
            continue
        grid = (
            np.geomspace(low, high, CURVE_POINTS)
            if low > 0 and high > 8 * low
            else np.linspace(low, high, CURVE_POINTS)
        )
        along = {name: np.full(grid.size, value) for name, value in middle.items()} | {i.name: grid}
        band = refits.band(along, level)
        there = {name: np.full(values.size, value) for name, value in middle.items()} | {i.name: values}
        base = form.values(made.inner, there)[0]
        moved = base * np.exp(made.residuals * -1) if problem.loss.space == "log" else base - made.residuals
        curve = [
            (float(a), float(b), float(c), float(d))
            for a, b, c, d in zip(grid, band.value, band.low, band.high, strict=True)
        ]
        drawn.append(
            Panel(
                f"along {i.name}, others at their medians", f"{i.name} ({i.unit})", label, _pairs(values, moved), curve
            )
        )
    return drawn


def _pairs(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
