"""One table over back ends: what each makes of every variant, where, at what cost, and how true to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgescale.bundle.pack import Entry
from edgescale.report.figures import plain, show_value

METRICS = ("latency", "flash", "ram", "accuracy", "error")
_HEADINGS = {"latency": "latency", "flash": "size", "ram": "RAM", "accuracy": "accuracy", "error": "error"}
EXACT = "bit for bit"


def agreement(entry: Entry) -> str:
    """How the artifact's outputs compare with the reference of the integer program, in words."""
    environment = entry.measurement.environment
    for kind in ("verified", "compared"):
        if (reason := environment.get(f"{kind}_unavailable")) is not None:
            return reason
        if (count := environment.get(f"{kind}_samples")) is not None:
            largest = float(environment[f"{kind}_largest_difference"])
            if environment[f"{kind}_exact"] != "True":
                return f"within {largest:.2g} (float)"
            told = EXACT if not largest else f"within {_counted(largest, 'step')} on {_counted(float(count), 'sample')}"
            # LiteRT's reference kernels were compared; what users run by default may round otherwise.
            others = environment.get("default_kernels_differ_by", "0")
            return told if others.startswith("0") else f"{told} (reference kernels; default ones within {others})"
    return "not compared"


def _counted(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def comparison_table(entries: Sequence[Entry]) -> Any:
    """A rich table of the entries, variant by variant."""
    from rich.table import Table

    table = Table(title="[bold]back ends[/]: the same variant, made by each", title_justify="left")
    for heading in ("variant", "back end", "target"):
        table.add_column(heading, no_wrap=True)
    shown = [metric for metric in METRICS if any(metric in e.measurement.metrics for e in entries)]
    for metric in shown:
        table.add_column(_HEADINGS[metric], justify="right", no_wrap=True)
    table.add_column("agrees with the reference", overflow="fold")
    order = {name: index for index, name in enumerate(dict.fromkeys(e.variant.name for e in entries))}
    for entry in sorted(entries, key=lambda e: order[e.variant.name]):
        figures = entry.measurement.metrics
        cells = []
        for metric in shown:
            quantity = figures.get(metric)
            mark = "" if quantity is None or quantity.source == "measured" else f" [dim]{quantity.source}[/]"
            cells.append(f"{show_value(metric, quantity)}{mark}")
        backend = entry.artifact.backend.removeprefix("edgescale_")
        table.add_row(plain(entry.variant.name), plain(backend), plain(entry.target.name), *cells, agreement(entry))
    return table


def comparison_payload(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The same as JSON-ready rows."""
    return [
        {
            "variant": entry.variant.name,
            "backend": entry.artifact.backend,
            "target": entry.target.name,
            **{
                metric: {"value": found.value, "unit": found.unit, "source": found.source}
                for metric in METRICS
                if (found := entry.measurement.metrics.get(metric)) is not None
            },
            "agreement": agreement(entry),
        }
        for entry in entries
    ]
