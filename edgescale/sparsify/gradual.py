"""Channel pruning in steps, each recovered from before the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.sparsify.prune import ChannelRequest, Pruned, prune_channels

Trainer = Callable[[int, Pruned], Model]
"""(step from 0, what pruning left of the first model) -> its model after training."""


def prune_in_steps(
    model: Model, data: Dataset, request: ChannelRequest, steps: int, recover: Trainer, progress: Progress = SILENT
) -> Pruned:
    """As `prune_channels` in `steps` steps of equal ratio, `recover` after each; figures relate to `model`.

    Importance and sensitivity are measured anew on what training made of the step before. Raises as `prune_channels`.
    """
    done: Pruned | None = None
    for step in range(steps):
        aim = request.share ** ((step + 1) / steps)
        now = model if done is None else done.model
        before = 1.0 if done is None else _left(done, request)
        step_request = replace(request, share=min(aim / before, 1.0))
        found = prune_channels(now, data, step_request, progress)
        merged = found if done is None else _joined(done, found)
        done = replace(merged, model=recover(step, merged))
    if done is None:
        raise ValueError("pruning in no steps")
    return done


def _left(done: Pruned, request: ChannelRequest) -> float:
    """Share of the first model's cost that is left."""
    counts = done.parameters if request.of == "bytes" else done.macs
    prices = request.prices or {}
    full, left = (sum(both[i] * prices.get(name, 1.0) for name, both in counts.items()) for i in (0, 1))
    return left / max(full, 1e-12)


def _joined(first: Pruned, then: Pruned) -> Pruned:
    """Figures of two steps as if they were one; the error is that of the second."""
    return replace(
        then,
        macs={name: (first.macs[name][0], after) for name, (_, after) in then.macs.items()},
        parameters={name: (first.parameters[name][0], after) for name, (_, after) in then.parameters.items()},
        families={one: (first.families.get(one, both)[0], both[1]) for one, both in then.families.items()},
        kept={name: tuple(first.kept[name][i] for i in channels) for name, channels in then.kept.items()},
    )
