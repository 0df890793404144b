"""What the run-time session answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.budget import Constraint
from edgescale.core.quantity import Quantity


class BudgetWarning(UserWarning):
    """No variant of the bundle meets a budget; the smallest runs instead."""


@dataclass(frozen=True)
class Choice:
    """The variant a budget picks, before anything runs.

    `figures` are the bundle's, with their sources; `met` tells whether they meet every limit,
    `unmet` lists those they miss, `reason` says why this variant in one sentence. `entry` is the
    bundle's id for the variant on this target.
    """

    variant: str
    entry: str
    target: str
    figures: Mapping[str, Quantity]
    met: bool
    unmet: tuple[Constraint, ...]
    reason: str


@dataclass(frozen=True)
class RunResult:
    """Outputs of a run, and the choice behind them.

    outputs: name -> [n, ...] for a batch, without the batch axis for a single sample. `figures` are
    the bundle's (what the decision was made by); `observed` is this process's own latency of one
    sample, median over this call, in ms (measured).
    """

    outputs: Mapping[str, npt.NDArray[np.generic]]
    variant: str
    entry: str
    figures: Mapping[str, Quantity]
    met: bool
    reason: str
    observed: Quantity

    @property
    def output(self) -> npt.NDArray[np.generic]:
        """The first output."""
        return next(iter(self.outputs.values()))
