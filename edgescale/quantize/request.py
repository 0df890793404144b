"""What is asked for, checked before any work, and noted in what was made."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from edgescale import __version__
from edgescale.core.errors import UsageError
from edgescale.core.model import Model
from edgescale.core.recipe import OBSERVERS, Recipe, override_texts

if TYPE_CHECKING:
    import onnx_ir as ir


def check_request(model: Model, recipe: Recipe) -> None:
    """Raise UsageError for a model or recipe that cannot be quantized whatever the data."""
    if model.quantized:
        raise UsageError(
            f"{model.name} already holds QuantizeLinear/DequantizeLinear nodes; compile it as it is, or quantize the "
            "float model it came from"
        )
    if recipe.is_float:
        raise UsageError(f"recipe {recipe} quantizes nothing")
    if recipe.trained:
        raise UsageError(f"recipe {recipe} is trained: give --train to `edgescale compile`, or use edgescale.finetune")
    if recipe.observer not in OBSERVERS:
        raise UsageError(f"unknown observer {recipe.observer!r}; known: {', '.join(OBSERVERS)}")
    if not 50.0 < recipe.percentile <= 100.0:
        raise UsageError(f"percentile {recipe.percentile} must lie above 50 and at most at 100")


def check_overrides(recipe: Recipe, names: list[str], model: str) -> None:
    """Raise UsageError for an override that matches no node."""
    for rule in recipe.overrides:
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise UsageError(f"override {rule.pattern!r} matches no node of {model}; its nodes: {listed}")


def describe_recipe(graph: ir.Model, recipe: Recipe) -> None:
    """Note in a graph's metadata how it was quantized."""
    metadata = {
        "edgescale.recipe": str(recipe),
        "edgescale.observer": recipe.observer,
        "edgescale.version": __version__,
    }
    if recipe.overrides:
        metadata["edgescale.overrides"] = "; ".join(override_texts(recipe))
    if recipe.simulated:
        metadata["edgescale.simulated"] = recipe.simulated
    graph.metadata_props.update(metadata)
