"""Candidate ladders: what a verifier's failures ask next, and what votes that do not agree hand on to.

A verified ladder is built greedily: after so many rejected answers each calibration prompt still counts by the chance
that it would have been rejected as often, and the variant is asked whose next samples bring most for their cost over
all of them. For equal costs that is the allocation of OSCA (arXiv:2410.22480) in its greedy order: a mix over variants,
since a rejected answer says that the prompt may be one this variant does not solve. Where samples are not worth their
risk any more (an unsound verifier accepts wrong ones: K*, arXiv:2411.17501) it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgescale.control.generators import NEVER
from edgescale.laws.samples.coverage import miss_at_k
from edgescale.runtime.lm.table import Table
from edgescale.select.replay import Bools, Real, Runs, grow

Plan = tuple[tuple[int, int, float], ...]
"""(variant, samples, stop) of each stage."""
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
STOPS = (0.65, 0.69, 0.72, 0.8, 0.85, 0.93, 0.96, NEVER)
"""Probabilities of the leader. One sure vote makes 0.75, two that agree 0.875, three 0.94, less sure ones less."""
FIRST_STOPS = (0.65, 0.69, 0.72, 0.8, 0.85, 0.93)
FIRST_COUNTS = (1, 2, 4)
MOST_VOTES = 64
LAST_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
BLOCKS = (1, 2, 4, 8)
STAYING = (1.02, 1.15)
"""How much better another variant must be for a verified ladder to turn to it; the higher makes fewer stages."""
MOST = 4
"""Samples of a verified ladder at most, in samples a variant has in the table."""


@dataclass(frozen=True)
class Scored:
    """A plan and what it comes to: worth [groups], asked and reached [stages, groups].

    Groups are prompts, or bins of them.
    """

    plan: Plan
    worth: Real
    asked: Real
    reached: Real


class Verdicts:
    """What a verifier makes of a table's samples: shares accepted and accepted rightly, [variants, prompts]."""

    def __init__(self, table: Table, verdicts: Sequence[Bools], wrong_value: float) -> None:
        drawn = list(table.drawn.values())
        passed = [v & (d.answers > 0) for v, d in zip(verdicts, drawn, strict=True)]
        self.draws = np.array([d.answers.shape[1] for d in drawn])
        self.accepted = np.array([p.sum(axis=1) for p in passed])
        rightly = np.array([(p & d.right).sum(axis=1) for p, d in zip(passed, drawn, strict=True)])
        share = rightly / np.maximum(self.accepted, 1)
        self.worth = share + wrong_value * (1 - share)
        """Of an accepted answer."""

    def score(self, plan: Plan) -> Scored:
        """A plan's worth: unbiased, from counts (C(n-a, k)/C(n, k) that k samples are all rejected)."""
        prompts = self.accepted.shape[1]
        left, worth = np.ones(prompts), np.zeros(prompts)
        used = [0] * len(self.draws)
        asked, reached = [], []
        for variant, samples, _ in plan:
            before = used[variant]
            used[variant] += samples
            a, n = self.accepted[variant], self.draws[variant]
            rates = [miss_at_k(a, n, k) for k in range(before, before + samples + 1)]
            start = np.maximum(rates[0], 1e-300)
            asked.append(left * np.sum(rates[:-1], axis=0) / start)
            reached.append(left)
            after = left * rates[-1] / start
            worth = worth + (left - after) * self.worth[variant]
            left = after
        return Scored(plan, worth, np.array(asked), np.array(reached))

    def greedy(self, members: Bools, sample: Real, prompt: Real, most: int, staying: float = 1.0) -> Plan:
        """The ladder for the prompts `members`. sample, prompt: cost of a sample, of a prompt, [variants, prompts]."""
        chance = (self.accepted[:, members] + 0.25) / (self.draws[:, None] + 1.0)
        worth = self.worth[:, members]
        sample, prompt = sample[:, members], prompt[:, members]
        alive = np.ones(chance.shape[1])
        used = np.zeros(len(chance), np.int64)
        steps: list[tuple[int, int]] = []
        while sum(count for _, count in steps) < most:
            best, chosen = 0.0, (0, 0)
            for count in BLOCKS:
                missed = (1 - chance) ** count
                gain = (alive * (1 - missed) * worth).sum(axis=1)
                cost = (alive * sample * (1 - missed) / chance).sum(axis=1)
                cost = cost + np.where(used > 0, 0.0, (alive * prompt).sum(axis=1))
                rate = np.where(used + count <= self.draws, gain / np.maximum(cost, 1e-12), 0.0)
                if steps:
                    rate[steps[-1][0]] *= staying
                if rate.max() > best * (1 + 1e-9):
                    best, chosen = float(rate.max()), (int(rate.argmax()), count)
            if best <= 0:
                break
            steps.append(chosen)
            alive = alive * (1 - chance[chosen[0]]) ** chosen[1]
            used[chosen[0]] += chosen[1]
        return tuple((variant, count, 1.0) for variant, count in steps)


def prefixes(plan: Plan, stages: int) -> Iterator[Plan]:
    """The beginnings of a plan, of COUNTS samples, stages of one variant in a row joined, up to `stages` of them."""
    for most in COUNTS:
        made: list[tuple[int, int, float]] = []
        left = most
        for variant, samples, stop in plan:
            take = min(samples, left)
            left -= take
            if take and made and made[-1][0] == variant:
                made[-1] = (variant, made[-1][1] + take, stop)
            elif take:
                made.append((variant, take, stop))
        if left == 0 and len(made) <= stages:
            yield tuple(made)


def voted(
    runs: Runs, votes: Sequence[float], firsts: Sequence[int], seconds: Sequence[int], share: Real
) -> Iterator[Scored]:
    """Votes of one variant, and of one (of `firsts`) handing on to another (of `seconds`), for every stop.

    share: of each prompt in a group's mean, [groups, prompts].
    """
    prompts = len(runs.table.prompts)

    def mean(values: Real) -> Real:
        return np.asarray(share @ values.reshape(-1, prompts).mean(axis=0))

    for one in range(len(votes)):
        width = min(runs.answers[one].shape[1], MOST_VOTES)
        mine = [part[one][:, :width] for part in (runs.answers, runs.right, runs.sure)]
        alone = grow(mine[0], mine[1], mine[2] * votes[one], np.full(width, votes[one]))
        for count in (c for c in COUNTS if c <= width):
            for stop in STOPS:
                at, _ = _end(alone.lead[:, :count], alone.answered[:, :count], stop)
                right = alone.right[np.arange(len(at)), at]
                if count == 1 and stop != NEVER:
                    continue
                yield Scored(
                    ((one, count, stop),),
                    mean(right.astype(float)),
                    mean(at + 1.0)[None],
                    np.ones((1, len(share))),
                )
        if one not in firsts:
            continue
        for count in FIRST_COUNTS:
            for two in (s for s in seconds if s != one):
                more = LAST_COUNTS[-1]
                vote = grow(
                    np.concatenate([runs.answers[one][:, :count], runs.answers[two][:, :more]], axis=1),
                    np.concatenate([runs.right[one][:, :count], runs.right[two][:, :more]], axis=1),
                    np.concatenate(
                        [runs.sure[one][:, :count] * votes[one], runs.sure[two][:, :more] * votes[two]], axis=1
                    ),
                    np.repeat([votes[one], votes[two]], [count, more]),
                    begin=count,
                )
                for first_stop in FIRST_STOPS:
                    at, settled = _end(alone.lead[:, :count], alone.answered[:, :count], first_stop)
                    if settled.all():
                        continue
                    early = settled & alone.right[np.arange(len(at)), at]
                    for last in LAST_COUNTS:
                        for stop in STOPS:
                            if last == 1 and stop != NEVER:
                                continue
                            part = slice(count, count + last)
                            then, _ = _end(vote.lead[:, part], vote.answered[:, part], stop)
                            late = ~settled & vote.right[np.arange(len(at)), count + then]
                            yield Scored(
                                ((one, count, first_stop), (two, last, stop)),
                                mean((early | late).astype(float)),
                                np.array([mean(at + 1.0), mean(np.where(settled, 0.0, then + 1.0))]),
                                np.array([np.ones(len(share)), mean((~settled).astype(float))]),
                            )


def _end(lead: Real, answered: Bools, stop: float) -> tuple[np.ndarray, Bools]:
    """(vote at which asking ends, whether the leader settled it) of each run."""
    done = (lead >= stop) & answered & (stop < NEVER)
    settled = done.any(axis=1)
    return np.where(settled, done.argmax(axis=1), lead.shape[1] - 1), np.asarray(settled)
