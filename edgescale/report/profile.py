"""The result of profiling one artifact: its figures and every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgescale.core.measurement import Measurement
from edgescale.core.variant import Artifact
from edgescale.report.arena import arena_table
from edgescale.report.figures import COLUMNS, plain, quantity_payload, show_value
from edgescale.report.layers import layer_table

if TYPE_CHECKING:
    from rich.console import Console


def print_profile(artifact: Artifact, measurement: Measurement, console: Console) -> None:
    """Print figures with their sources, what is unavailable and why, and all layers in run order."""
    from rich.table import Table

    table = Table(
        title=f"[bold]{plain(artifact.variant)}[/] on {measurement.target}, rig {measurement.rig}", title_justify="left"
    )
    for heading in ("figure", "value", "source", "note"):
        table.add_column(heading, overflow="fold")
    for metric, heading in COLUMNS.items():
        if metric in measurement.metrics:
            quantity = measurement.metrics[metric]
            table.add_row(heading, show_value(metric, quantity), quantity.source, plain(quantity.note))
    for metric, reason in measurement.unavailable.items():
        table.add_row(COLUMNS.get(metric, metric), "-", "unavailable", plain(reason))
    console.print(table)
    if measurement.layers:
        console.print(layer_table(measurement.layers, "layers in run order"))
    if artifact.kind == "c":
        console.print(arena_table(artifact.meta))
    console.print(f"[dim]artifact sha256 {measurement.artifact_sha256}[/]")
    for key, value in measurement.environment.items():
        console.print(f"[dim]{key}: {plain(value)}[/]")


def profile_payload(artifact: Artifact, measurement: Measurement) -> dict[str, Any]:
    """The measurement as JSON-ready data."""
    return {
        "variant": artifact.variant,
        "target": measurement.target,
        "rig": measurement.rig,
        "artifact_sha256": measurement.artifact_sha256,
        "figures": quantity_payload(measurement.metrics),
        "unavailable": dict(measurement.unavailable),
        "environment": dict(measurement.environment),
        "layers": [
            {"name": x.name, "op": x.op, "macs": x.macs, "kernel": x.kernel, "figures": quantity_payload(x.metrics)}
            for x in measurement.layers
        ],
    }
