"""Generating: the prompt once, then passes over the live samples until each has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from time import perf_counter

import numpy as np

from edgescale.core.errors import UsageError
from edgescale.runtime.lm.cache import KeyValueCache
from edgescale.runtime.lm.decoder import Array, Decoder
from edgescale.runtime.lm.draft import DraftLength, NgramDraft
from edgescale.runtime.lm.sampling import distribution, draw
from edgescale.runtime.lm.sequence import Completion, Options, Sample
from edgescale.runtime.lm.tokenizer import Tokenizer
from edgescale.runtime.lm.usage import Usage

_SPARSE = 0.75
"""Share of valid places below which the cache is packed."""


@dataclass(frozen=True)
class Chunk:
    """New text of one sample; `completion` once it has ended (its last text may be empty)."""

    sample: int
    text: str
    completion: Completion | None = None


class Group:
    """Samples computed side by side, from the cache of the prompt on."""

    def __init__(
        self, decoder: Decoder, samples: Sequence[Sample], cache: KeyValueCache, options: Options, usage: Usage,
        drafts: NgramDraft | None,
    ) -> None:  # fmt: skip
        """`cache` holds one row, the prompt's."""
        self.samples = list(samples)
        self.live = list(samples)
        self._decoder, self._options, self._usage, self._drafts = decoder, options, usage, drafts
        self._cache = cache.rows([0] * len(self.live))
        speculation = options.speculation
        self._lengths = {s.number: DraftLength(speculation) for s in samples} if speculation else {}
        self._confidence = speculation.confidence if speculation else 0.0
        self._limit = decoder.context or 2**62

    def first(self, logits: Array) -> list[Chunk]:
        """Draw the first token of every sample from the prompt's last logits [vocabulary]."""
        start = perf_counter()
        chunks = [self._take(sample, logits) for sample in self.live]
        self._settle()
        self._usage.seconds += perf_counter() - start
        return chunks

    def step(self) -> list[Chunk]:
        """One pass of the model over the live samples."""
        start = perf_counter()
        drafts = [self._draft(sample) for sample in self.live]
        new = 1 + max(map(len, drafts))
        ids = np.zeros((len(self.live), new), np.int64)
        real = np.zeros(ids.shape, bool)
        for row, (sample, draft) in enumerate(zip(self.live, drafts, strict=True)):
            ids[row, : 1 + len(draft)] = [sample.tokens[-1], *draft]
            real[row, : 1 + len(draft)] = True
        first = np.array([[len(sample.tokens) - 1] for sample in self.live])
        positions = np.minimum(first + np.arange(new), self._limit - 1)
        usage = self._usage
        usage.cache_bytes += self._cache.bytes
        logits = self._decoder.forward(self._cache, ids, real, positions)
        usage.passes += 1
        usage.computed_tokens += ids.size
        usage.weight_bytes += self._decoder.file_bytes
        usage.cache_peak_bytes = max(usage.cache_peak_bytes, self._cache.bytes)
        chunks = []
        for row, (sample, draft) in enumerate(zip(self.live, drafts, strict=True)):
            accepted = 0
            text = self._take(sample, logits[row, 0]).text
            while accepted < len(draft) and sample.reason is None and sample.tokens[-1] == draft[accepted]:
                accepted += 1
                text += self._take(sample, logits[row, accepted]).text
            self._cache.valid[row, self._cache.places - new + 1 + accepted :] = False
            self._learn(sample, len(draft), accepted)
            chunks.append(Chunk(sample.number, text, sample.completion() if sample.reason else None))
        self._settle()
        usage.seconds += perf_counter() - start
        return chunks

    def _draft(self, sample: Sample) -> list[int]:
        if self._drafts is None:
            return []
        left = self._options.max_tokens - len(sample.generated) - 1
        room = self._limit - len(sample.tokens) - 1
        count = max(0, min(self._lengths[sample.number].count, left, room))
        return self._drafts.propose(sample.tokens, count, self._confidence)

    def _take(self, sample: Sample, logits: Array) -> Chunk:
        token = draw(distribution(logits, self._options.sampling), sample.uniform)
        text = sample.push(token, logits, self._limit)
        self._usage.generated_tokens += 1
        return Chunk(sample.number, text, sample.completion() if sample.reason else None)

    def _learn(self, sample: Sample, drafted: int, accepted: int) -> None:
        if self._drafts is not None:
            self._drafts.learn(sample.tokens, len(sample.tokens) - accepted - 1)
            self._lengths[sample.number].update(drafted, accepted)
            self._usage.drafted_tokens += drafted
            self._usage.accepted_tokens += accepted

    def _settle(self) -> None:
        """Drop ended samples and places that no sample needs."""
        stay = [row for row, sample in enumerate(self.live) if sample.reason is None]
        if len(stay) < len(self.live):
            self.live = [self.live[row] for row in stay]
            self._cache = self._cache.rows(stay)
        if not self.live:
            return
        everything = np.ones(self._cache.valid.shape, bool)
        if self._options.eviction is not None:
            self._cache.keep(self._options.eviction.keep(self._cache))
        elif not self._decoder.has_positions or self._cache.valid.mean() < _SPARSE:
            self._cache.keep(everything)

    def resample(self, parents: Sequence[int]) -> None:
        """Sample i goes on from a copy of sample parents[i], with random numbers of its own (see `particles`)."""
        rows = {id(sample): row for row, sample in enumerate(self.live)}
        chosen = [self.samples[parent] for parent in parents]
        own = [sample.number for sample in self.samples]
        self.samples = [sample.fork(number) for sample, number in zip(chosen, own, strict=True)]
        going = [index for index, sample in enumerate(self.samples) if sample.reason is None]
        self._cache = self._cache.rows([rows[id(chosen[index])] for index in going])
        self.live = [self.samples[index] for index in going]


class Generation:
    """A generation under way; iterate it once, over chunks or over completions. Nothing runs ahead of the reader."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, prompt: Sequence[int], samples: int | None, options: Options,
        usage: Usage, drafts: NgramDraft | None,
    ) -> None:  # fmt: skip
        """`samples`: how many, or None for as many as are read (then `options.batch` at a time, by default 1)."""
        self.usage = usage
        self._decoder, self._tokenizer, self._options, self._drafts = decoder, tokenizer, options, drafts
        self._prompt, self._count = tuple(prompt), samples
        _check(decoder, self._prompt, samples, options)
        self._chunks = self._run()

    def __iter__(self) -> Iterator[Chunk]:
        """Text as it becomes certain, samples interleaved within a batch."""
        return self._chunks

    def completions(self, on_chunk: Callable[[Chunk], object] | None = None) -> Iterator[Completion]:
        """Samples as they end; `on_chunk` is called with all text on the way."""
        for chunk in self._chunks:
            if on_chunk is not None:
                on_chunk(chunk)
            if chunk.completion is not None:
                yield chunk.completion

    def prefill(self) -> tuple[KeyValueCache, Array]:
        """Compute the prompt: its cache (one row) and its last logits [vocabulary]."""
        start = perf_counter()
        cache = self._decoder.new_cache(1, self._options.cache)
        ids = np.array([self._prompt], np.int64)
        logits = self._decoder.forward(cache, ids, np.ones(ids.shape, bool), np.arange(ids.shape[1])[None])
        usage = self.usage
        usage.prompt_tokens += ids.size
        usage.computed_tokens += ids.size
        usage.passes += 1
        usage.weight_bytes += self._decoder.file_bytes
        usage.cache_peak_bytes = max(usage.cache_peak_bytes, cache.bytes)
        if self._options.eviction is not None:
            cache.keep(self._options.eviction.keep(cache))
        if self._drafts is not None:
            self._drafts.learn(self._prompt)
        usage.seconds += perf_counter() - start
        return cache, logits[0, -1]

    def group(self, numbers: Sequence[int], cache: KeyValueCache) -> Group:
        """Samples `numbers` behind the prompt's `cache`."""
        samples = [Sample(number, self._prompt, self._options, self._tokenizer) for number in numbers]
        return Group(self._decoder, samples, cache, self._options, self.usage, self._drafts)

    def _run(self) -> Iterator[Chunk]:
        cache, logits = self.prefill()
        size = self._options.batch or self._count or 1
        if self._drafts is not None and not self._decoder.has_positions:
            size = 1  # without position_ids a batch must keep step, and drafts of different length break it
        numbers = iter(count() if self._count is None else range(self._count))
        while batch := list(islice(numbers, size)):
            group = self.group(batch, cache)
            yield from group.first(logits)
            while group.live:
                yield from group.step()


def _check(decoder: Decoder, prompt: Sequence[int], samples: int | None, options: Options) -> None:
    if not prompt:
        raise UsageError("the prompt holds no token")
    if samples is not None and samples < 1:
        raise UsageError(f"the number of samples must be at least 1, not {samples}")
    if decoder.context is not None and len(prompt) >= decoder.context:
        raise UsageError(f"the prompt has {len(prompt)} tokens; {decoder.name} takes {decoder.context} in all")
    if not decoder.cached and (options.eviction is not None or options.cache != "float"):
        raise UsageError(f"{decoder.name} has no key/value cache: eviction and an int8 cache do not apply")
    if options.eviction is not None and not decoder.has_positions:
        raise UsageError(f"{decoder.name} takes no position_ids: places of its cache cannot be evicted")
