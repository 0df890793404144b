"""The smallest share of channels whose removal the outputs bear: `--sparsity auto`."""

from __future__ import annotations

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.sparsify.allocate import outputs_of, relative_error
from edgescale.sparsify.prune import ChannelRequest, Pruned, prune_channels

TOLERANCE = 0.01
"""Squared error of the outputs that is borne, relative to their variance."""
_STEPS = 4
_LEAST = 0.1
_HELD = 4
"""Of so many samples one is kept out of the fit, to judge by."""


def prune_automatically(
    model: Model, data: Dataset, progress: Progress = SILENT, tolerance: float = TOLERANCE
) -> Pruned:
    """Halve the interval between the whole net and the least borne; judged on samples that nothing is fitted to.

    The dense model where no pruned one is borne. Raises as `prune_channels`; UsageError for fewer than 8 samples.
    """
    if len(data) < 2 * _HELD:
        raise UsageError(f"sparsity auto needs at least {2 * _HELD} calibration samples, found {len(data)}")
    held = Dataset(data.name, data.x[::_HELD], None, f"{data.sha256}:held")
    left = [i for i in range(len(data)) if i % _HELD]
    fitted = Dataset(data.name, data.x[left], None, f"{data.sha256}:fitted")
    wanted = outputs_of(model, model.ir, held)
    best = prune_channels(model, fitted, ChannelRequest(1.0), progress)
    low, high = _LEAST, 1.0
    for _ in range(_STEPS):
        share = (low + high) / 2
        try:
            found = prune_channels(model, fitted, ChannelRequest(share), progress)
        except UsageError:  # no way to so small a share
            low = share
            continue
        if relative_error(outputs_of(model, found.model.ir, held), wanted) <= tolerance:
            best, high = found, share
        else:
            low = share
    return best
