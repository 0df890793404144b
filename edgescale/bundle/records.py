"""A variant, its figures, the verdict on them and its target as the records of a manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgescale.bundle.manifest import Figure, Limit, OnnxRecord, RecipeRecord, TargetRecord, TensorRecord, VerdictRecord
from edgescale.bundle.policy import value_of
from edgescale.core.budget import Budget
from edgescale.core.errors import EdgescaleError
from edgescale.core.measurement import METRIC_UNITS
from edgescale.core.quantity import Quantity
from edgescale.core.recipe import override_texts

if TYPE_CHECKING:
    from edgescale.core.target import Target
    from edgescale.core.variant import Artifact, Variant


def recipe_record(variant: Variant) -> RecipeRecord:
    """The recipe a variant was made by."""
    recipe = variant.recipe
    return RecipeRecord(
        name=str(recipe),
        weight_bits=recipe.weight_bits,
        activation_bits=recipe.activation_bits,
        observer=recipe.observer,
        percentile=recipe.percentile,
        overrides=override_texts(recipe),
        simulated=recipe.simulated or "",
    )


def figures_of(metrics: Mapping[str, Quantity], artifact_sha256: str) -> tuple[dict[str, Figure], dict[str, str]]:
    """The finite figures, and a reason for each that is not: JSON has no NaN and no infinity."""
    figures: dict[str, Figure] = {}
    broken: dict[str, str] = {}
    for metric, quantity in metrics.items():
        value = float(quantity.value)
        if quantity.unit != METRIC_UNITS.get(metric, quantity.unit):
            raise EdgescaleError(f"a rig gave {metric} in {quantity.unit!r}; it is counted in {METRIC_UNITS[metric]!r}")
        if not math.isfinite(value):
            broken[metric] = f"the rig reported {value}"
            continue
        figures[metric] = Figure(
            value=value,
            unit=quantity.unit,
            source=quantity.source,
            artifact_sha256=artifact_sha256,
            note=quantity.note,
        )
    return figures, broken


def verdict_record(budget: Budget, figures: Mapping[str, Quantity]) -> VerdictRecord:
    """Which limits the figures break."""
    unmet = tuple(
        Limit(metric=c.metric, relation=c.relation, limit=c.limit, unit=c.unit, value=value_of(figures, c.metric))
        for c in budget.unmet(figures)
    )
    return VerdictRecord(feasible=not unmet, unmet=unmet)


def onnx_record(artifact: Artifact) -> OnnxRecord:
    """How an ONNX artifact is run. Raises EdgescaleError where its back end left something out."""
    meta = artifact.meta
    try:
        return OnnxRecord(
            file=str(meta["file"]),
            session=dict(meta["session"]),
            inputs=tuple(_tensor(spec) for spec in meta["inputs"]),
            outputs=tuple(_tensor(spec) for spec in meta["outputs"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EdgescaleError(f"back end {artifact.backend}: its artifact lacks or breaks {error} in meta") from None


def _tensor(spec: Mapping[str, object]) -> TensorRecord:
    import numpy as np

    shape = spec["shape"]
    if not isinstance(shape, Sequence):
        raise TypeError("shape")
    # Through np.dtype, so that a name NumPy does not know is found here and not on the device.
    return TensorRecord(
        name=str(spec["name"]), shape=tuple(int(n) for n in shape), dtype=np.dtype(str(spec["dtype"])).name
    )


def target_record(target: Target) -> TargetRecord:
    """What is kept of a profile."""
    return TargetRecord(
        name=target.name,
        title=target.title,
        cpu=target.core.cpu,
        clock_hz=target.core.clock_hz,
        profile_sha256=target.sha256,
    )
