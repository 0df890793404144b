"""Layers by the quality their quantization costs, and the overrides to paste."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgescale.report.figures import plain
from edgescale.report.layers import NAME_WIDTH

if TYPE_CHECKING:
    from rich.table import Table

    from edgescale.bundle.manifest import DiagnosisRecord
    from edgescale.core.variant import LayerDiagnosis

BAR = 40
"""Columns of the longest bar of a figure."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


def diagnosis_figure(layers: Sequence[DiagnosisRecord | LayerDiagnosis], title: str, count: int) -> Table:
    """The first `count` layers as bars: their shares of the error of the output, each layer quantized alone."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    table.title, table.title_justify = plain(title), "left"
    for options in ({"no_wrap": True}, {"no_wrap": True}, {"width": BAR}, {"justify": "right"}, {"justify": "right"}):
        settings: dict[str, Any] = dict(options)
        table.add_column(**settings)
    longest = max((layer.share for layer in layers[:count]), default=0.0)
    for layer in layers[:count]:
        color = "red" if layer.override else "cyan"
        bar = f"[{color}]{_bar(layer.share / longest if longest > 0 else 0.0)}[/]"
        table.add_row(plain(layer.name), layer.op, bar, f"{layer.share:.0%}", _level(layer.loss))
    rest = sum(layer.share for layer in layers[count:])
    if len(layers) > count:
        table.add_row(f"{len(layers) - count} more", "", _bar(0.0), f"{rest:.0%}", "")
    return table


def _bar(part: float) -> str:
    """A bar of `part` (0 to 1) of BAR columns, in eighths of one."""
    eighths = round(part * BAR * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _level(loss: float) -> str:
    return f"{-10 * math.log10(loss):.1f} dB" if loss > 0 else "exact"


def diagnosis_table(layers: Sequence[DiagnosisRecord | LayerDiagnosis], title: str, count: int) -> Table:
    """The first `count` layers, each quantized alone: SQNR of the output, share of all layers' error, share of answers
    changed, why, and what to do."""
    from rich.table import Table

    table = Table(title=plain(title), title_justify="left")
    longest = max((len(layer.name) for layer in layers[:count]), default=0)
    for heading, options in (
        ("layer", {"overflow": "fold", "min_width": min(longest, NAME_WIDTH)}),
        ("op", {}),
        ("SQNR", {"justify": "right"}),
        ("share", {"justify": "right"}),
        ("changed", {"justify": "right"}),
        ("why", {"overflow": "fold"}),
        ("verdict", {"overflow": "fold"}),
    ):
        settings: dict[str, Any] = dict(options)
        table.add_column(heading, **settings)
    for layer in layers[:count]:
        table.add_row(
            plain(layer.name),
            layer.op,
            _level(layer.loss),
            f"{layer.share:.0%}",
            f"{layer.changed:.1%}",
            plain("; ".join(layer.causes) or "-"),
            plain(layer.verdict),
        )
    return table


def override_lines(layers: Sequence[DiagnosisRecord | LayerDiagnosis]) -> list[str]:
    """`--override` arguments for the layers worth one, or none."""
    rules = [layer.override for layer in layers if layer.override]
    return [f"to keep more quality: --override '{rule}'" for rule in rules]
