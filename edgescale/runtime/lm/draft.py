"""Guesses of the next tokens from n-grams seen before: speculative decoding without a second model.

A guess never changes what is generated. Every token is drawn from the model's own distribution at its place with
the uniform number of that place, drafted or not; a draft only lets one pass compute several places, and what
follows the first token that was drawn otherwise is thrown away. So the text is the same for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgescale.core.errors import UsageError


@dataclass(frozen=True)
class Speculation:
    """longest: tokens drafted at most in one pass; ngrams: longest context looked up; start: drafted at first.

    A sequence drafts one more pair of tokens after a draft accepted whole and half as many after one that failed.
    confidence: a draft ends where its tokens, by the counts, are less likely than this to be accepted all.
    """

    longest: int = 12
    ngrams: int = 6
    start: int = 4
    confidence: float = 0.3

    def __post_init__(self) -> None:
        """Raises UsageError for a number below 1 or a start above `longest`."""
        if min(self.longest, self.ngrams, self.start) < 1 or self.start > self.longest:
            raise UsageError(f"speculation needs 1 <= start <= longest and ngrams >= 1, not {self}")
        if not 0 <= self.confidence < 1:
            raise UsageError(f"confidence must lie in [0, 1), not {self.confidence}")


class NgramDraft:
    """Counts of what followed each context of 1 to `order` tokens in the texts learnt; samples share one."""

    def __init__(self, order: int) -> None:
        self.order = order
        self._follow: dict[tuple[int, ...], dict[int, int]] = {}
        self._best: dict[tuple[int, ...], int] = {}
        self._seen: dict[tuple[int, ...], int] = {}

    def learn(self, tokens: Sequence[int], start: int = 0) -> None:
        """Count tokens[start:], each in its contexts (which may begin before `start`)."""
        for place in range(max(start, 1), len(tokens)):
            token = tokens[place]
            for length in range(1, min(self.order, place) + 1):
                context = tuple(tokens[place - length : place])
                counts = self._follow.setdefault(context, {})
                counts[token] = counts.get(token, 0) + 1
                self._seen[context] = self._seen.get(context, 0) + 1
                best = self._best.get(context)
                if best is None or counts[token] >= counts[best]:
                    self._best[context] = token

    def propose(self, tokens: Sequence[int], count: int, confidence: float = 0.0) -> list[int]:
        """Up to `count` tokens likely after `tokens`: what followed the longest known context most often.

        Of equally frequent ones the latest. Ends where no context of the last tokens is known, or where the product
        of the shares (k of n occurrences count as (k + 1/2) / (n + 1)) falls below `confidence`.
        """
        recent = tuple(tokens[-self.order :])
        guess: list[int] = []
        likely = 1.0
        while len(guess) < count:
            context = next((recent[-n:] for n in range(len(recent), 0, -1) if recent[-n:] in self._best), None)
            if context is None:
                break
            token = self._best[context]
            likely *= (self._follow[context][token] + 0.5) / (self._seen[context] + 1)
            if likely < confidence:
                break
            guess.append(token)
            recent = (*recent, token)[-self.order :]
        return guess


class DraftLength:
    """How many tokens one sequence drafts next."""

    def __init__(self, speculation: Speculation) -> None:
        self._longest = speculation.longest
        self.count = speculation.start

    def update(self, drafted: int, accepted: int) -> None:
        """Learn from one pass (nothing from one without a draft)."""
        if drafted and accepted == drafted:
            self.count = min(self._longest, self.count + 2)
        elif drafted:
            self.count = max(1, self.count // 2, accepted)
