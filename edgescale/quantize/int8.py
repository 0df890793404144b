"""Post-training int8, the plainest recipe, and what it leaves in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.core.recipe import Recipe

if TYPE_CHECKING:
    import onnx_ir


def quantize_int8(model: Model, calibration: Dataset, recipe: Recipe, progress: Progress = SILENT) -> onnx_ir.Model:
    """`quantize` for recipes of 8-bit weights and activations only. Raises UsageError for another."""
    from edgescale.quantize.post_training import quantize

    if (recipe.weight_bits, recipe.activation_bits) != (8, 8):
        raise UsageError(f"recipe {recipe}: quantize_int8 makes w8a8 only")
    return quantize(model, calibration, recipe, progress)


@dataclass(frozen=True)
class FloatNode:
    """A node that stays float in the int8 model, and why."""

    name: str
    op: str
    reason: str


def float_nodes(model: Model) -> tuple[FloatNode, ...]:
    """The nodes of a float model that `quantize_int8` leaves in float, in graph order, each with its reason."""
    from edgescale.quantize.rules import quantizable, refusal

    chosen = quantizable(model.ir.graph)
    return tuple(
        FloatNode(str(node.name), node.op_type, refusal(node) or "it only moves values between float operators")
        for node in model.ir.graph
        if node not in chosen
    )
