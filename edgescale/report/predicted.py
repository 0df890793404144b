"""What a law predicts of the variants that were not measured, as a table and as data."""

from __future__ import annotations

from typing import Any

from edgescale.core.quantity import Quantity, format_value
from edgescale.guided import LEVEL, Exploration, Prediction
from edgescale.report.figures import plain, show_value


def headline(exploration: Exploration) -> str:
    """One sentence: how many were measured, and what became of the others."""
    told = f"{exploration.measured} of {exploration.count} variants measured"
    if exploration.trouble:
        return f"{told}; the others are not predicted, because the law does not fit: {exploration.trouble}"
    left = sum(p.may_win for p in exploration.predictions)
    if not left:
        return f"{told}; none of the others may be on the front of quality and weight bytes"
    return f"{told}; {left} of the others may still be on the front: allow more with --measure"


def predicted_table(exploration: Exploration) -> Any:
    """A rich table of the variants that were not measured."""
    from rich.table import Table

    table = Table(title="[bold]not measured[/]: predicted by a law", title_justify="left", caption=exploration.equation)
    table.add_column("variant", no_wrap=True)
    table.add_column(exploration.predictions[0].metric, justify="right")
    table.add_column(f"{LEVEL:.0%} interval", justify="right", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("may be on the front")
    for each in exploration.predictions:
        table.add_row(
            plain(each.variant),
            _shown(each, each.value),
            f"{_shown(each, each.low)} to {_shown(each, each.high)}",
            format_value(each.weight_bytes, "B"),
            "yes" if each.may_win else "no",
        )
    return table


def _shown(prediction: Prediction, value: float) -> str:
    return show_value(prediction.metric, Quantity(value, "1", "predicted"))


def exploration_payload(exploration: Exploration) -> dict[str, Any]:
    """The same as JSON-ready data."""
    return {
        "measured": exploration.measured,
        "variants": exploration.count,
        "law": exploration.equation,
        "level": LEVEL,
        "trouble": exploration.trouble,
        "predictions": [
            {
                "variant": each.variant,
                each.metric: {"value": each.value, "low": each.low, "high": each.high, "source": "predicted"},
                "weight_bytes": each.weight_bytes,
                "may_be_pareto": each.may_win,
            }
            for each in exploration.predictions
        ],
    }
