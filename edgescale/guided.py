"""Compile fewer variants than were asked for: a law fitted to those measured predicts the rest, with intervals.

A candidate is a model under a recipe. The law (`laws.forms.family`) knows it by the model's weights, the bits of a
weight and the share of the multiply-accumulates left; `select.search` chooses what is measured next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from edgescale.core.errors import UsageError
from edgescale.core.recipe import Recipe
from edgescale.core.sparsity import Sparsity
from edgescale.sources import LoadedModel

Figure = tuple[Literal["accuracy", "error"], float]
"""A measured quality by name; of accuracy more is better, of error less."""

LEVEL = 0.9
"""Of the intervals."""

ENOUGH = 16.0
"""Bits beyond which the law counts no rounding: a float model 16 bits away would draw the first spread to itself."""


@dataclass(frozen=True)
class Prediction:
    """The quality a variant that was not measured is expected to have, and the interval at level `LEVEL`.

    weight_bytes: of its weights, by their count and bits. may_win: it may be on the front of quality and bytes; such
    stay only where the share of measurements is used up.
    """

    variant: str
    metric: Literal["accuracy", "error"]
    value: float
    low: float
    high: float
    weight_bytes: int
    may_win: bool


@dataclass(frozen=True)
class Exploration:
    """How many of `count` candidates were measured, the law's equation, and the rest by it.

    trouble: why the law predicts nothing, or "".
    """

    measured: int
    count: int
    equation: str
    predictions: tuple[Prediction, ...]
    trouble: str = ""


def explore(
    candidates: Sequence[tuple[LoadedModel, Recipe]],
    measure: Callable[[LoadedModel, Recipe], Figure | None],
    share: float,
    samples: int | None = None,
) -> Exploration:
    """Measure at most `share` of the candidates: those that fix the law first, then those that may be on the front.

    measure: the quality of one, None where it could not be made; samples: how many it is a share of, None where it is
    none. Raises UsageError where there is nothing to predict, the law cannot tell the candidates apart or the share is
    too small to fit it; nothing is measured then.
    """
    # Imported here: a compile that measures all must not wait for SciPy or ONNX.
    import numpy as np

    from edgescale.laws.forms.family import family_form, family_holds
    from edgescale.select.search import guided_search

    weights = {loaded.variant.model: _weights(loaded) for loaded, _ in candidates}
    table = _known(candidates, weights)
    varying = [name for name, values in table.items() if len(set(values)) > 1]
    if not varying:
        raise UsageError("--measure predicts from variants that differ; give several models or recipes")
    form = family_form(varying)
    sizes = [_weight_bytes(weights[loaded.variant.model], recipe) for loaded, recipe in candidates]
    metrics: list[Literal["accuracy", "error"]] = []

    def error(index: int) -> float:
        found = measure(*candidates[index])
        if found is None:
            return math.nan
        metrics.append(found[0])
        return 1.0 - found[1] if found[0] == "accuracy" else found[1]

    columns = {name: table[name] for name in varying}
    held, usual = family_holds(columns)
    found = guided_search(
        form, columns, np.log(sizes), error, share, fixed=held, fallback=usual, samples=samples, level=LEVEL
    )
    metric = metrics[0] if metrics else "accuracy"
    predictions = []
    for index in sorted(set(range(len(candidates))) - set(found.measured)) if not found.trouble else ():
        value, low, high = (float(side[index]) for side in (found.predicted, found.low, found.high))
        if metric == "accuracy":
            value, low, high = (min(max(1.0 - each, 0.0), 1.0) for each in (value, high, low))
        loaded, recipe = candidates[index]
        name = f"{loaded.variant.model}-{recipe}"
        predictions.append(Prediction(name, metric, value, low, high, sizes[index], index in found.open))
    return Exploration(len(found.measured), len(candidates), form.equation, tuple(predictions), found.trouble)


def _known(candidates: Sequence[tuple[LoadedModel, Recipe]], weights: Mapping[str, int]) -> dict[str, list[float]]:
    """The law's inputs of each candidate. Raises UsageError where two share them all, or sparsity is of many kinds."""
    if not candidates:
        raise UsageError("--measure predicts what recipes do to float models; those given arrived quantized")
    kinds = {_kind(recipe) for _, recipe in candidates} - {()}
    if len(kinds) > 1:
        raise UsageError(
            f"--measure: sparsity of several kinds ({', '.join(sorted('+'.join(k) for k in kinds))}) costs differently "
            "at the same share; give one kind, or measure all"
        )
    seen: dict[tuple[float, float, float], str] = {}
    for loaded, recipe in candidates:
        key = (float(weights[loaded.variant.model]), _bits(recipe), _kept(recipe))
        name = f"{loaded.variant.model}-{recipe}"
        if (other := seen.setdefault(key, name)) != name:
            raise UsageError(
                f"--measure: {other} and {name} have the same weights, bits and sparsity, by which the law knows them; "
                "leave one out, or measure all"
            )
    count, bits, kept = zip(*seen, strict=True)
    return {"N": list(count), "P_w": [min(b, ENOUGH) for b in bits], "kept": list(kept)}


def _kind(recipe: Recipe) -> tuple[str, ...]:
    return tuple(part.pattern for part in recipe.sparsity)


def _bits(recipe: Recipe) -> float:
    """Of a weight, on average where they are chosen layer by layer."""
    return 8.0 * recipe.share if recipe.share is not None else float(recipe.weight_bits)


def _kept(recipe: Recipe) -> float:
    return prod(_left(part, recipe) for part in recipe.sparsity)


def _left(part: Sparsity, recipe: Recipe) -> float:
    if part.is_auto:
        raise UsageError(f"--measure: the share of {recipe} is chosen while it is made; name shares, as in w8a8+ch0.5")
    if part.pattern == "channels":
        return part.share
    return part.n / part.m if part.pattern == "n:m" else 1.0 - part.share


def _weights(loaded: LoadedModel) -> int:
    """Weights of the layers that quantization rounds."""
    from edgescale.frontend.graph import shape_of
    from edgescale.quantize.rules import WEIGHTED

    nodes = [node for node in loaded.source.model.ir.graph if node.op_type in WEIGHTED]
    constants = [value for node in nodes for value in node.inputs[1:2] if value is not None and value.is_initializer()]
    return max(1, sum(prod(shape_of(value) or ()) for value in dict.fromkeys(constants)))


def _weight_bytes(weights: int, recipe: Recipe) -> int:
    """Of channels that are cut off nothing is stored; zeros are stored like other weights."""
    channels = prod(part.share for part in recipe.sparsity if part.pattern == "channels")
    return max(1, round(weights * channels * _bits(recipe) / 8))
