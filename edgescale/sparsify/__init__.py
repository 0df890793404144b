"""Fewer weights: channels taken out for a smaller dense net, zeros that a kernel skips or that need no flash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgescale.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgescale.core.dataset import Dataset
    from edgescale.core.model import Model
    from edgescale.core.sparsity import Sparsity

__all__ = ["sparsify"]


def sparsify(
    model: Model,
    data: Dataset,
    parts: Sequence[Sparsity],
    progress: Progress = SILENT,
    prices: Mapping[str, float] | None = None,
) -> tuple[Model, Mapping[str, Any]]:
    """The model under every part of a recipe's sparsity, in order, and a JSON-ready report of what is left.

    data: calibration samples of the model's input, labels unused. `prices`: instructions of one multiply-accumulate of
    each node on the target, for shares of them. Raises UsageError for a model that is quantized
    or a share that cannot be met, UnsupportedModelError where nothing of the model can be made sparse.
    """
    from edgescale.core.errors import UsageError
    from edgescale.core.model import takes_sequences
    from edgescale.sparsify.masks import prune_weights
    from edgescale.sparsify.prune import prune_channels, request_of
    from edgescale.sparsify.tolerance import prune_automatically

    if takes_sequences(model.inputs):
        raise UsageError(f"{model.name} takes more than one float input of fixed shape; sparsity needs a model of one")
    report: dict[str, Any] = {}
    for part in parts:
        if part.is_auto:
            pruned = prune_automatically(model, data, progress)
        elif part.pattern == "channels":
            pruned = prune_channels(model, data, request_of(part, prices), progress)
        else:
            model, report["density"] = prune_weights(model, data, part, progress)
            continue
        model = pruned.model
        report |= {
            "macs": {name: list(both) for name, both in pruned.macs.items()},
            "weights": {name: list(both) for name, both in pruned.parameters.items()},
            "error": pruned.error,
            "kept": {name: list(channels) for name, channels in pruned.kept.items()},
        }
    return model, report
