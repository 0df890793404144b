"""Sequential asking: which variant a ladder asks next, given the answers so far, and when they settle it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from edgescale.control.generators import NEVER, Ladder
from edgescale.runtime.samples import NOTHING, lead_probability


class Poll:
    """One prompt on its way along a ladder: `add` each answer of variant `variant` until that is None.

    majority: every answer is a vote, of its variant's weight times the sample's; the leader settles it once it leads
    with probability `stop`, votes counted in units of the variant being asked. verified: the first accepted answer
    settles it.
    """

    def __init__(self, ladder: Ladder, votes: Sequence[float]) -> None:
        """votes: weight of a vote of each variant."""
        self.ladder = ladder
        self.stage = 0
        self.asked = [0] * len(ladder.stages)
        self.settled = False
        self._votes = votes
        self._totals: dict[Hashable, float] = {}

    @property
    def variant(self) -> int | None:
        """The variant to ask for one more completion; None where no more is wanted."""
        return None if self.settled or self.stage == len(self.asked) else self.ladder.stages[self.stage].variant

    def add(self, answer: Hashable, accepted: bool = True, sure: float = 1.0) -> None:
        """One answer of `variant`.

        accepted: by the verifier, in a ladder of rule "verified". sure: weight of the sample, the (geometric) mean
        probability that the model gave its tokens.
        """
        stage = self.ladder.stages[self.stage]
        vote = self._votes[stage.variant]
        verified = self.ladder.rule == "verified"
        if answer not in NOTHING and (accepted or not verified):
            self._totals[answer] = self._totals.get(answer, 0.0) + sure * vote
            self.settled = verified
        if not verified and self._totals:
            self.settled = stage.stop < NEVER and self.lead(vote) >= stage.stop
        self.asked[self.stage] += 1
        if self.asked[self.stage] == stage.samples:
            self.stage += 1

    def lead(self, vote: float) -> float:
        """Probability that the leading answer leads, its votes and the runner-up's counted in units of `vote`.

        Votes are no whole numbers; between those the probability is taken as linear in each.
        """
        a, b = (total / vote for total in [*sorted(self._totals.values(), reverse=True), 0.0][:2])
        i, j = int(a), int(b)
        x, y = a - i, b - j
        below = lead_probability(i, j) * (1 - y) + lead_probability(i, j + 1) * y
        above = lead_probability(i + 1, j) * (1 - y) + lead_probability(i + 1, j + 1) * y
        return below * (1 - x) + above * x

    @property
    def leader(self) -> Hashable:
        """The answer with the largest weight (ties: that given first); None before any. Verified: the accepted one."""
        return max(self._totals, key=lambda answer: self._totals[answer], default=None)

    @property
    def share(self) -> float:
        """The leader's share of the weight of all votes."""
        whole = sum(self._totals.values())
        return self._totals[self.leader] / whole if whole else 0.0
