"""Layers by the quality their quantization costs, and the overrides to paste."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgescale.report.figures import plain

if TYPE_CHECKING:
    from rich.table import Table

    from edgescale.bundle.manifest import DiagnosisRecord


def diagnosis_table(layers: Sequence[DiagnosisRecord], title: str, count: int) -> Table:
    """The first `count` layers: error of the output when that layer alone is quantized, answers changed, why."""
    from rich.table import Table

    table = Table(title=plain(title), title_justify="left")
    for heading, options in (
        ("layer", {"overflow": "fold"}),
        ("op", {}),
        ("output SQNR", {"justify": "right"}),
        ("share of error", {"justify": "right"}),
        ("answers changed", {"justify": "right"}),
        ("why", {"overflow": "fold"}),
        ("verdict", {"overflow": "fold"}),
    ):
        settings: dict[str, Any] = dict(options)
        table.add_column(heading, **settings)
    for layer in layers[:count]:
        table.add_row(
            plain(layer.name),
            layer.op,
            f"{-10 * math.log10(layer.loss):.1f} dB" if layer.loss > 0 else "exact",
            f"{layer.share:.0%}",
            f"{layer.changed:.1%}",
            plain("; ".join(layer.causes) or "-"),
            plain(layer.verdict),
        )
    return table


def override_lines(layers: Sequence[DiagnosisRecord]) -> list[str]:
    """`--override` arguments for the layers worth one, or none."""
    rules = [layer.override for layer in layers if layer.override]
    return [f"to keep more quality: --override '{rule}'" for rule in rules]
