"""Particle filtering: what it conditions on, and what it leaves alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import lm_nets
import numpy as np
import pytest

from edgescale.core.errors import UsageError
from edgescale.runtime.lm import LanguageModel, Options, Sampling, particle_filter
from edgescale.runtime.lm.sampling import distribution

WEIGHTS = lm_nets.random_weights()
PROMPT = "12+34="
OPTIONS = Options(max_tokens=2, sampling=Sampling(top_k=3))


def test_equal_scores_leave_the_samples_alone(flat_model: Path) -> None:
    model = LanguageModel(flat_model)
    options = replace(OPTIONS, max_tokens=20)
    got = particle_filter(model.start(PROMPT, 5, options), 5, lambda text: 1.0, block=3)
    assert [c.tokens for c in got] == [c.tokens for c in model.generate(PROMPT, 5, options)]


def test_particles_follow_the_weighted_distribution(flat_model: Path) -> None:
    """After one step weighed by a score, second tokens are those of the tilted distribution, exactly enumerated."""
    model = LanguageModel(flat_model)
    model.tokenizer.ends = frozenset()  # type: ignore[misc]
    ids = model.tokenizer.encode(PROMPT)
    options = replace(OPTIONS, max_tokens=3)

    def favour(text: str) -> float:
        return 1.0 + 20.0 * (ord(text[1]) % 2)

    exact: Counter[tuple[int, int]] = Counter()
    for a in np.flatnonzero(first := distribution(lm_nets.logits(WEIGHTS, ids)[-1], options.sampling)):
        second = distribution(lm_nets.logits(WEIGHTS, [*ids, int(a)])[-1], options.sampling)
        for b in np.flatnonzero(second):
            text = model.tokenizer.decode([int(a), int(b)])
            exact[int(a), int(b)] = first[a] * second[b] * favour(text)
    total = exact.total()
    count = 3000
    got = particle_filter(model.start(PROMPT, count, options), count, favour, block=1, threshold=1.0)
    seen = Counter(c.tokens[:2] for c in got)
    assert set(seen) <= set(exact)
    for pair, weight in exact.items():
        share = weight / total
        assert seen[pair] / count == pytest.approx(share, abs=5 * (share / count) ** 0.5 + 0.005)
    assert all(len(c.tokens) == 3 for c in got)


def test_ended_particles_can_be_parents(flat_model: Path) -> None:
    model = LanguageModel(flat_model)
    options = replace(OPTIONS, max_tokens=40, sampling=Sampling())
    got = particle_filter(model.start(PROMPT, 8, options), 8, lambda text: 1.0 / (1 + len(text)) ** 2, block=2)
    assert len(got) == 8 and all(c.reason in ("end", "length") for c in got)
    mean = np.mean([len(c.tokens) for c in model.generate(PROMPT, 8, options)])
    assert np.mean([len(c.tokens) for c in got]) < mean


def test_wrong_scores_are_named(flat_model: Path) -> None:
    model = LanguageModel(flat_model)
    with pytest.raises(UsageError, match="score"):
        particle_filter(model.start(PROMPT, 2, OPTIONS), 2, lambda text: -1.0, block=1)
    with pytest.raises(UsageError, match="block"):
        particle_filter(model.start(PROMPT, 2, OPTIONS), 2, lambda text: 1.0, block=0)
