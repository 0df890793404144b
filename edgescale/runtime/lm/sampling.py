"""From logits to a token: temperature, top-k, top-p, min-p, and draws that depend on seed, sample and place alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError

Real = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Filters apply in this order, each to what the one before left.

    temperature: logits are divided by it; 0 takes the most likely token (ties: the lowest id). top_k: keep the k
    most likely (0: all; ties with the k-th stay). top_p: keep the fewest most likely tokens that hold this
    probability. min_p: keep tokens with at least this share of the most likely one's probability.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of range."""
        if not (0 <= self.temperature < np.inf):
            raise UsageError(f"temperature must be finite and not negative, not {self.temperature}")
        if self.top_k < 0:
            raise UsageError(f"top_k must not be negative, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must lie in (0, 1], not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p must lie in [0, 1], not {self.min_p}")


def distribution(logits: npt.ArrayLike, sampling: Sampling) -> Real:
    """Probabilities [..., vocabulary] (float64, sum 1) that `sampling` gives `logits` [..., vocabulary]."""
    scores = np.asarray(logits, dtype=np.float64)
    if sampling.temperature == 0:
        best = np.zeros(scores.shape)
        np.put_along_axis(best, scores.argmax(axis=-1, keepdims=True), 1.0, axis=-1)
        return best
    shifted = (scores - scores.max(axis=-1, keepdims=True)) / sampling.temperature
    share: Real = np.exp(shifted)
    share /= share.sum(axis=-1, keepdims=True)
    if 0 < sampling.top_k < share.shape[-1]:
        least = np.partition(share, -sampling.top_k, axis=-1)[..., [-sampling.top_k]]
        share = _kept(share, share >= least)
    if sampling.top_p < 1:
        order = np.argsort(-share, axis=-1, kind="stable")
        ranked = np.take_along_axis(share, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked
        keep = np.zeros(share.shape, dtype=bool)
        np.put_along_axis(keep, order, before < sampling.top_p, axis=-1)
        share = _kept(share, keep)
    if sampling.min_p > 0:
        share = _kept(share, share >= sampling.min_p * share.max(axis=-1, keepdims=True))
    return share


def _kept(share: Real, keep: npt.NDArray[np.bool_]) -> Real:
    left = np.where(keep, share, 0.0)
    kept: Real = left / left.sum(axis=-1, keepdims=True)
    return kept


def uniforms(seed: int, sample: int, count: int) -> Real:
    """The first `count` uniform numbers of sample `sample` under `seed`, one a generated token.

    A longer run begins with the same numbers. Raises UsageError for a negative seed or sample.
    """
    if seed < 0 or sample < 0:
        raise UsageError(f"seed and sample must not be negative, not {seed} and {sample}")
    key = np.array([seed & (2**64 - 1), sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw(probabilities: Real, uniform: float) -> int:
    """The token whose stretch of the cumulated `probabilities` [vocabulary] holds `uniform` in [0, 1)."""
    cumulated = np.cumsum(probabilities)
    token = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
    return min(token, int(np.flatnonzero(probabilities)[-1]))
