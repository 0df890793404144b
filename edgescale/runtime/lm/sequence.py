"""One sample while it grows: its tokens, its random numbers, its text with stop sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgescale.core.errors import UsageError
from edgescale.runtime.lm.cache import Precision
from edgescale.runtime.lm.draft import Speculation
from edgescale.runtime.lm.eviction import Eviction
from edgescale.runtime.lm.sampling import Real, Sampling, uniforms
from edgescale.runtime.lm.tokenizer import Tokenizer

Reason = Literal["end", "stop", "length"]
_PARTIAL = "\ufffd"


@dataclass(frozen=True)
class Options:
    """How to generate. max_tokens: of one completion, its end token included. stop: texts that end a completion, not
    part of it. batch: samples computed side by side (0: all). cache: how keys and values are held."""

    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: tuple[str, ...] = ()
    batch: int = 0
    cache: Precision = "float"
    eviction: Eviction | None = None
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of range."""
        if self.max_tokens < 1 or self.batch < 0:
            raise UsageError(f"max_tokens must be above 0 and batch not negative: {self.max_tokens}, {self.batch}")
        if isinstance(self.stop, str) or any(not text for text in self.stop):
            raise UsageError("stop is a tuple of texts, none of them empty")


@dataclass(frozen=True)
class Completion:
    """A finished sample.

    tokens: all generated, end token included. reason: "end" (end token), "stop" (stop sequence) or "length".
    log_probability: of its tokens under the model itself (temperature 1, no filter), natural logarithm.
    """

    sample: int
    text: str
    tokens: tuple[int, ...]
    reason: Reason
    log_probability: float


class TextStream:
    """Text of a growing list of tokens, given out as soon as no later token can take it back."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._done = 0  # ids whose text has been taken
        self._from = 0  # ids before this one give no context to the next
        self._held = ""
        self.text = ""
        """All text given out."""

    def push(self, token: int) -> tuple[str, bool]:
        """The text that is certain after one more token, and whether a stop sequence ended it."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._from : self._done])
        now = self._tokenizer.decode(self._ids[self._from :])
        if now.endswith(_PARTIAL):
            return "", False
        self._held += now[len(before) :]
        self._from, self._done = self._done, len(self._ids)
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._give(min(found)), True
        return self._give(len(self._held) - self._open()), False

    def finish(self) -> str:
        """What was held back, once no token follows."""
        before = self._tokenizer.decode(self._ids[self._from : self._done])
        self._held += self._tokenizer.decode(self._ids[self._from :])[len(before) :]
        self._done = self._from = len(self._ids)
        return self._give(len(self._held))

    def _open(self) -> int:
        """Characters at the end that may begin a stop sequence."""
        return max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)

    def _give(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        self.text += given
        return given

    def copy(self) -> TextStream:
        """An independent stream that has seen the same."""
        other = TextStream(self._tokenizer, self._stops)
        other._ids, other._done, other._from = list(self._ids), self._done, self._from
        other._held, other.text = self._held, self.text
        return other


class Sample:
    """One sample in the making."""

    def __init__(self, number: int, prompt: Sequence[int], options: Options, tokenizer: Tokenizer) -> None:
        self.number = number
        self.tokens = list(prompt)
        self.stream = TextStream(tokenizer, options.stop)
        self.reason: Reason | None = None
        self.log_probability = 0.0
        self._prompt = len(prompt)
        self._options = options
        self._ends = tokenizer.ends
        self._uniforms = uniforms(options.seed, number, options.max_tokens)

    @property
    def generated(self) -> list[int]:
        """Tokens after the prompt."""
        return self.tokens[self._prompt :]

    @property
    def uniform(self) -> float:
        """The random number of the next token."""
        return float(self._uniforms[len(self.tokens) - self._prompt])

    def push(self, token: int, logits: Real, limit: int) -> str:
        """Take a drawn token; the text that has become certain. `limit`: tokens the model can hold, prompt included."""
        shifted = logits.astype(np.float64) - float(logits.max())
        self.log_probability += float(shifted[token] - np.log(np.exp(shifted).sum()))
        self.tokens.append(token)
        if token in self._ends:
            self.reason = "end"
            return self.stream.finish()
        text, stopped = self.stream.push(token)
        if stopped:
            self.reason = "stop"
        elif len(self.tokens) - self._prompt == self._options.max_tokens or len(self.tokens) >= limit:
            self.reason = "length"
            text += self.stream.finish()
        return text

    def fork(self, number: int) -> Sample:
        """A copy that goes on with the random numbers of sample `number`."""
        other = Sample.__new__(Sample)
        other.__dict__.update(self.__dict__)
        other.number, other.tokens, other.stream = number, list(self.tokens), self.stream.copy()
        other._uniforms = uniforms(self._options.seed, number, self._options.max_tokens)
        return other

    def completion(self) -> Completion:
        """The finished sample ("length" where it was cut short)."""
        return Completion(
            self.number, self.stream.text, tuple(self.generated), self.reason or "length", self.log_probability
        )
