"""The table of layers: what it says of zeros, and that it keeps silent where there are none."""

from __future__ import annotations

from rich.console import Console

from edgescale.core.measurement import LayerFigures
from edgescale.core.quantity import Quantity
from edgescale.report.layers import layer_table


def layer(name: str, density: float | None, note: str = "") -> LayerFigures:
    metrics = {"instructions": Quantity(1000, "1", "emulated")}
    if density is not None:
        metrics["density"] = Quantity(density, "1", "measured", note)
    return LayerFigures(name, "Conv2D", 100, metrics, "kernel")


def text(*layers: LayerFigures) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(layer_table(layers, "layers"))
    return captured.get()


def test_zeros_are_shown_with_what_exploits_them():
    shown = text(layer("a", 0.25, "skipping pairs takes 30% fewer instructions"), layer("b", 1.0), layer("pool", None))
    assert "density" in shown
    assert "exploited by" in shown
    rows = {line.split("│")[2].strip(): line for line in shown.splitlines() if "│" in line}
    assert "0.25" in rows["a"]
    assert "skipping pairs takes 30% fewer instructions" in rows["a"]
    assert "1.00" in rows["b"]


def test_dense_nets_are_shown_as_ever():
    assert "density" not in text(layer("a", 0.97), layer("pool", None))
