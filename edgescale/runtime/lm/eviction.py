"""Which places of the cache a long generation may forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.runtime.lm.cache import KeyValueCache

Mask = npt.NDArray[np.bool_]


class Eviction(Protocol):
    """A rule that runs after every pass."""

    def keep(self, cache: KeyValueCache) -> Mask:
        """Which of the cache's places stay, [batch, places]; invalid ones may be either."""


@dataclass(frozen=True)
class SlidingWindow:
    """The last `window` positions and the first `sinks` (attention sinks), which hold surplus attention."""

    window: int
    sinks: int = 4

    def __post_init__(self) -> None:
        """Raises UsageError for a window below 1 or negative sinks."""
        if self.window < 1 or self.sinks < 0:
            raise UsageError(f"a window needs at least 1 place and no negative sinks, not {self.window}, {self.sinks}")

    def keep(self, cache: KeyValueCache) -> Mask:
        """True for the first `sinks` and the last `window` positions of each sequence."""
        return _recent(cache, self.window) | (cache.positions < self.sinks)


@dataclass(frozen=True)
class DelayedEviction:
    """At most `budget` places beyond the last `delay`: a token is attended to for `delay` steps, then judged.

    Without learning, the judge is the length of a token's keys (mean over layers and heads): keys that draw much
    attention are short, so the longest go first (ties: the oldest). The first `sinks` positions stay and count.
    """

    budget: int
    delay: int = 16
    sinks: int = 4

    def __post_init__(self) -> None:
        """Raises UsageError where the budget cannot hold the sinks, or for a delay below 1."""
        if self.delay < 1 or not 0 <= self.sinks <= self.budget:
            raise UsageError(f"delay {self.delay} must be at least 1 and budget {self.budget} hold {self.sinks} sinks")

    def keep(self, cache: KeyValueCache) -> Mask:
        """True for the last `delay` positions, the sinks, and the shortest keys among the rest."""
        recent = _recent(cache, self.delay) & cache.valid
        judged = cache.valid & ~recent
        if not (judged.sum(axis=1) > self.budget).any():
            return recent | judged
        norms = np.where(judged, cache.key_norms(), np.inf)
        norms = np.where(judged & (cache.positions < self.sinks), -1.0, norms)
        rank = np.lexsort((-cache.positions, norms), axis=1)
        keep = recent.copy()
        np.put_along_axis(keep, rank[:, : self.budget], True, axis=1)
        return keep & cache.valid


def _recent(cache: KeyValueCache, count: int) -> Mask:
    last = np.where(cache.valid, cache.positions, -1).max(axis=1, initial=-1)
    recent: Mask = cache.positions > last[:, None] - count
    return recent
