"""Particle filtering: samples grow side by side, and promising beginnings replace poor ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.runtime.lm.generation import Generation
from edgescale.runtime.lm.sampling import uniforms
from edgescale.runtime.lm.sequence import Completion

_RESAMPLER = 2**63
"""The sample number whose random numbers place the resampling comb; no sample has it."""


def systematic(weights: npt.ArrayLike, uniform: float) -> list[int]:
    """Parents of as many particles as `weights` has, by a comb of equal teeth shifted by `uniform` in [0, 1).

    Each particle has floor or ceil of its expected number of children. Raises UsageError where no weight is
    positive or one is negative or not finite.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if shares.size == 0 or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise UsageError("particle weights must be finite, not negative and not all 0")
    cumulated = np.cumsum(shares) / shares.sum()
    teeth = (np.arange(shares.size) + uniform) / shares.size
    parents = np.searchsorted(cumulated, teeth, side="right")
    return [int(parent) for parent in np.minimum(parents, np.flatnonzero(shares)[-1])]


def effective_size(weights: npt.ArrayLike) -> float:
    """1 / sum of squared shares: how many particles the weights are worth."""
    shares = np.asarray(weights, dtype=np.float64)
    return float(shares.sum() ** 2 / np.square(shares).sum()) if shares.sum() else 0.0


def particle_filter(
    generation: Generation, particles: int, score: Callable[[str], float], block: int, seed: int = 0,
    threshold: float = 0.5,
) -> list[Completion]:  # fmt: skip
    """Grow `particles` samples; after every `block` passes weigh each by score(text) >= 0 against its last score.

    Where the weights are worth fewer than threshold x particles, parents are drawn (`systematic`) and weights reset.
    Ended particles take part. `generation` must be fresh (`LanguageModel.start`).
    Raises UsageError for numbers out of range; if every particle scores 0, none is replaced.
    """
    if particles < 1 or block < 1 or not 0 <= threshold <= 1:
        raise UsageError(f"particles and block must be above 0, threshold in [0, 1]: {particles}, {block}, {threshold}")
    cache, logits = generation.prefill()
    group = generation.group(range(particles), cache)
    group.first(logits)
    weights, last, teeth = np.ones(particles), np.ones(particles), iter(uniforms(seed, _RESAMPLER, 10_000))
    while group.live:
        for _ in range(block):
            if group.live:
                group.step()
        now = np.array([score(sample.stream.text) for sample in group.samples])
        if not np.isfinite(now).all() or (now < 0).any():
            raise UsageError("score must give finite numbers that are not negative")
        weights = weights * np.divide(now, last, out=np.zeros_like(now), where=last > 0)
        last = now
        if group.live and weights.sum() > 0 and effective_size(weights) < threshold * particles:
            parents = systematic(weights, next(teeth))
            group.resample(parents)
            last, weights = now[parents], np.ones(particles)
    return [sample.completion() for sample in group.samples]
