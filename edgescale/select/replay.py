"""Ladders replayed on a table of completions: what `runtime.lm.poll` would ask and answer, many runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from edgescale.control.generators import NEVER, Ladder
from edgescale.core.errors import UsageError
from edgescale.runtime.lm.table import Table

Bools = npt.NDArray[np.bool_]
Real = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
_LARGEST = 160
"""Votes beyond which the probability of a lead is looked up as of so many."""


@dataclass(frozen=True)
class Replay:
    """What runs of a ladder came to. right, answered: [runs]; asked, tokens (generated): [runs, stages]."""

    prompt: Whole
    right: Bools
    answered: Bools
    asked: Whole
    tokens: Whole


@dataclass(frozen=True)
class Votes:
    """A vote as it grows: probability [runs, votes] that the leader leads after each, and whether it is right."""

    lead: Real
    right: Bools
    answered: Bools


class Runs:
    """Every prompt `rounds` times, each with its samples in an order of its own.

    verdicts: of a verifier, by variant, [prompts, samples]; by default it knows what is right.
    """

    def __init__(
        self, table: Table, rounds: int = 2, seed: int = 0, verdicts: Mapping[str, Bools] | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        self.table = table
        self.names = list(table.drawn)
        self.prompt = np.tile(np.arange(len(table.prompts)), rounds)
        rows = self.prompt[:, None]
        self.answers, self.right, self.tokens, self.accepted, self.sure = [], [], [], [], []
        for name, drawn in table.drawn.items():
            width = drawn.answers.shape[1]
            order = rng.permuted(np.tile(np.arange(width), (len(self.prompt), 1)), axis=1)
            passed = drawn.right if verdicts is None else verdicts[name]
            self.answers.append(drawn.answers[rows, order])
            self.right.append(drawn.right[rows, order])
            self.tokens.append(drawn.tokens[rows, order])
            self.sure.append(np.exp(drawn.scores[rows, order].astype(np.float64)))
            self.accepted.append((passed & (drawn.answers > 0))[rows, order])

    def replay(self, ladder: Ladder, votes: Sequence[float]) -> Replay:
        """Every run of a ladder. Raises UsageError where the table has fewer samples than it may ask for."""
        cuts = self._cuts(ladder)
        count = len(self.prompt)
        if not cuts:
            none = np.zeros(count, bool)
            return Replay(self.prompt, none, none, np.zeros((count, 0), np.int64), np.zeros((count, 0), np.int64))
        bounds = np.cumsum([0, *(stage.samples for stage in ladder.stages)])
        right = np.concatenate([self.right[v][:, a:b] for v, a, b in cuts], axis=1)
        tokens = np.concatenate([self.tokens[v][:, a:b] for v, a, b in cuts], axis=1)
        if ladder.rule == "verified":
            done = np.concatenate([self.accepted[v][:, a:b] for v, a, b in cuts], axis=1)
            at = np.where(done.any(axis=1), done.argmax(axis=1), done.shape[1] - 1)
            answered = np.asarray(done.any(axis=1))
            final = answered & right[np.arange(count), at]
        else:
            weights = np.concatenate([self.sure[v][:, a:b] * votes[v] for v, a, b in cuts], axis=1)
            units = np.repeat([votes[v] for v, _, _ in cuts], np.diff(bounds))
            ids = np.concatenate([self.answers[v][:, a:b] for v, a, b in cuts], axis=1)
            vote = grow(ids, right, weights, units)
            stops = np.repeat([stage.stop for stage in ladder.stages], np.diff(bounds))
            done = (vote.lead >= stops) & vote.answered & (stops < NEVER)
            at = np.where(done.any(axis=1), done.argmax(axis=1), done.shape[1] - 1)
            final, answered = vote.right[np.arange(count), at], vote.answered[np.arange(count), at]
        ran = np.arange(tokens.shape[1]) <= at[:, None]
        asked = np.add.reduceat(ran.astype(np.int64), bounds[:-1], axis=1)
        spent = np.add.reduceat(np.where(ran, tokens, 0), bounds[:-1], axis=1)
        return Replay(self.prompt, np.asarray(final), answered, asked, spent)

    def _cuts(self, ladder: Ladder) -> list[tuple[int, int, int]]:
        """(variant, from, to) samples of each stage; a variant asked again goes on where it was."""
        used = [0] * len(self.names)
        cuts = []
        for stage in ladder.stages:
            begin = used[stage.variant]
            used[stage.variant] = end = begin + stage.samples
            if end > self.answers[stage.variant].shape[1]:
                raise UsageError(f"a ladder asks {self.names[stage.variant]} for {end} samples; the table has fewer")
            cuts.append((stage.variant, begin, end))
        return cuts


def grow(ids: npt.NDArray[np.int32], right: Bools, weights: Real, units: Real, begin: int = 0) -> Votes:
    """Votes for answers `ids` [runs, votes] (0: none) of `weights` [runs, votes].

    units: of each vote, [votes], what the leads after it are counted in. Before vote `begin` nothing is looked up.
    """
    runs, votes = ids.shape
    # The first vote for the same answer stands for it: a lower number was given first, which settles ties.
    first = (ids[:, :, None] == ids[:, None, :]).argmax(axis=2)
    lines = np.arange(runs)
    totals = np.zeros((runs, max(votes, 2)))
    lead, correct, answered = np.zeros((runs, votes)), np.zeros((runs, votes), bool), np.zeros((runs, votes), bool)
    known = _leads()
    for vote in range(votes):
        totals[lines, first[:, vote]] += np.where(ids[:, vote] > 0, weights[:, vote], 0.0)
        if vote < begin:
            continue
        best = totals.argmax(axis=1)
        second, top = np.partition(totals, totals.shape[1] - 2, axis=1)[:, -2:].T
        lead[:, vote] = _between(
            known, np.minimum(top / units[vote], _LARGEST), np.minimum(second / units[vote], _LARGEST)
        )
        answered[:, vote] = top > 0
        correct[:, vote] = right[lines, np.minimum(best, votes - 1)] & (top > 0)
    return Votes(lead, correct, answered)


def _between(known: Real, a: Real, b: Real) -> Real:
    """`known` at votes that are no whole numbers, linear in each."""
    i, j = a.astype(np.int64), b.astype(np.int64)
    x, y = a - i, b - j
    below = known[i, j] * (1 - y) + known[i, j + 1] * y
    above = known[i + 1, j] * (1 - y) + known[i + 1, j + 1] * y
    return np.asarray(below * (1 - x) + above * x)


@cache
def _leads() -> Real:
    """`runtime.samples.lead_probability` of up to _LARGEST votes each."""
    from scipy.special import betainc

    a, b = np.ogrid[: _LARGEST + 2, : _LARGEST + 2]
    return np.asarray(betainc(b + 1.0, a + 1.0, 0.5), np.float64)
