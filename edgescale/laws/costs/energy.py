"""Energy: measured power where there is a meter, a target's stated power, or figures published for operations."""

from __future__ import annotations

from collections.abc import Mapping

from edgescale.core.quantity import Quantity
from edgescale.core.target import Target
from edgescale.laws.errors import FitError

HOROWITZ = "Horowitz, Computing's energy problem, ISSCC 2014, 45 nm, 0.9 V"
PICOJOULES: Mapping[str, tuple[float, str]] = {
    "int32-add": (0.1, HOROWITZ),
    "int32-mul": (3.1, HOROWITZ),
    "fp32-add": (0.9, HOROWITZ),
    "fp32-mul": (3.7, HOROWITZ),
}
"""Operation -> (pJ, source). Another process or voltage scales all of them: ratios are worth more than values."""


def energy_from_power(target: Target, milliseconds: Quantity) -> Quantity:
    """Energy of an inference in uJ: the target's active power times its time; never better known than either."""
    if target.power is None:
        raise FitError(f"{target.name} states no power: add [power] active_mw and origin to its profile")
    note = (
        f"{target.power.active_mw:g} mW ({target.power.origin}) x {milliseconds.value:.4g} ms ({milliseconds.source})"
    )
    return Quantity(target.power.active_mw * milliseconds.value, "uJ", "modelled", note)


def energy_from_operations(
    counts: Mapping[str, float], picojoules: Mapping[str, tuple[float, str]] = PICOJOULES
) -> Quantity:
    """Energy in uJ of counted operations; the note names every source, the figure is marked published."""
    unknown = set(counts) - set(picojoules)
    if unknown:
        raise FitError(f"no energy of {', '.join(sorted(unknown))}; known: {', '.join(sorted(picojoules))}")
    total = sum(count * picojoules[name][0] for name, count in counts.items()) * 1e-6
    sources = sorted({picojoules[name][1] for name in counts})
    return Quantity(total, "uJ", "published", f"operation counts x {'; '.join(sources)}")
