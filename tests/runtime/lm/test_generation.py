"""Generated text against one that is computed whole, without a cache, for every token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lm_nets
import numpy as np
import pytest

from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.runtime.lm import LanguageModel, NgramDraft, Options, Sampling, Speculation
from edgescale.runtime.lm.sampling import distribution, draw, uniforms

WEIGHTS = lm_nets.random_weights()
PROMPT = "12+34="
GREEDY = Options(max_tokens=40, sampling=Sampling(temperature=0))
OPEN = Options(max_tokens=40, seed=5)


def recomputed(model: LanguageModel, sample: int, options: Options) -> tuple[int, ...]:
    """The tokens of one sample from the float64 oracle, the text computed whole for every token."""
    ids = model.tokenizer.encode(PROMPT)
    numbers = uniforms(options.seed, sample, options.max_tokens)
    generated: list[int] = []
    while len(generated) < options.max_tokens and not set(generated) & model.tokenizer.ends:
        share = distribution(lm_nets.logits(WEIGHTS, ids + generated)[-1], options.sampling)
        generated.append(draw(share, numbers[len(generated)]))
    return tuple(generated)


@pytest.mark.parametrize("options", [GREEDY, OPEN, replace(OPEN, sampling=Sampling(0.7, top_k=5, top_p=0.9))])
def test_cached_generation_is_the_recomputed_one(flat_model: Path, options: Options) -> None:
    model = LanguageModel(flat_model)
    done = model.generate(PROMPT, 4, options)
    assert [completion.tokens for completion in done] == [recomputed(model, i, options) for i in range(4)]
    assert [completion.sample for completion in done] == [0, 1, 2, 3]


def test_a_model_without_cache_says_so_and_gives_the_same(flat_model: Path, uncached_model: Path) -> None:
    slow, fast = LanguageModel(uncached_model), LanguageModel(flat_model)
    assert "WARNING" in slow.describe() and "WARNING" not in fast.describe()
    assert slow.generate(PROMPT, 3, OPEN)[2].tokens == fast.generate(PROMPT, 3, OPEN)[2].tokens
    speculative = replace(OPEN, speculation=Speculation())
    assert slow.generate(PROMPT, 3, speculative)[2].tokens == fast.generate(PROMPT, 3, OPEN)[2].tokens
    with pytest.raises(UsageError, match="no key/value cache"):
        slow.generate(PROMPT, 1, replace(OPEN, cache="int8"))


@pytest.mark.parametrize("batch", [1, 3, 0])
@pytest.mark.parametrize("speculation", [None, Speculation(), Speculation(3, 1, 1, confidence=0)])
def test_text_depends_on_seed_and_sample_alone(flat_model: Path, batch: int, speculation: Speculation | None) -> None:
    model = LanguageModel(flat_model)
    plain = model.generate(PROMPT, 7, OPEN)
    other = model.generate(PROMPT, 7, replace(OPEN, batch=batch, speculation=speculation))
    assert [c.tokens for c in other] == [c.tokens for c in plain]
    assert [c.text for c in other] == [c.text for c in plain]
    np.testing.assert_allclose([c.log_probability for c in other], [c.log_probability for c in plain], rtol=1e-4)
    assert len({c.tokens for c in plain}) == 7
    assert model.generate(PROMPT, 7, replace(OPEN, seed=6))[0].tokens != plain[0].tokens


def test_samples_are_computed_as_they_are_read(flat_model: Path) -> None:
    model = LanguageModel(flat_model)
    generation = model.start(PROMPT, None, OPEN)
    reader = generation.completions()
    first = [next(reader) for _ in range(3)]
    assert generation.usage.generated_tokens == sum(len(c.tokens) for c in first)
    assert generation.usage.prompt_tokens == len(PROMPT)
    assert [c.tokens for c in first] == [c.tokens for c in model.generate(PROMPT, 3, OPEN)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculation_changes_the_passes_and_not_the_text(tmp_path: Path, temperature: float) -> None:
    weights = lm_nets.random_weights(3, gain=4.0)  # peaked: greedy text runs into a loop
    model = LanguageModel(lm_nets.write(tmp_path / "peaked.onnx", weights))
    model.tokenizer.ends = frozenset()  # type: ignore[misc]  # so that there is text enough to repeat
    options = Options(max_tokens=100, sampling=Sampling(temperature))
    plain = model.start(PROMPT, 6, options)
    texts = [c.tokens for c in sorted(plain.completions(), key=lambda c: c.sample)]
    speculative = model.start(PROMPT, 6, replace(options, speculation=Speculation()))
    assert [c.tokens for c in sorted(speculative.completions(), key=lambda c: c.sample)] == texts
    used = speculative.usage
    assert 0 < used.accepted_tokens <= used.drafted_tokens
    assert used.passes <= plain.usage.passes
    assert used.generated_tokens == plain.usage.generated_tokens


def test_speculation_leaves_the_distribution(flat_model: Path) -> None:
    """Chi-square of the first three tokens after a forced draft against exact probabilities."""
    model = LanguageModel(flat_model)
    sampling = Sampling(temperature=1.0, top_k=3)
    options = Options(
        max_tokens=3, sampling=sampling, speculation=Speculation(longest=2, ngrams=2, start=2, confidence=0)
    )
    ids = model.tokenizer.encode(PROMPT)
    exact: dict[tuple[int, ...], float] = {}

    def walk(generated: tuple[int, ...], probability: float) -> None:
        if len(generated) == 3 or set(generated) & model.tokenizer.ends:
            exact[generated] = probability
            return
        share = distribution(lm_nets.logits(WEIGHTS, ids + list(generated))[-1], sampling)
        for token in np.flatnonzero(share):
            walk((*generated, int(token)), probability * float(share[token]))

    walk((), 1.0)
    drafts = NgramDraft(2)
    for text in list(exact)[::4]:
        drafts.learn([*ids, *text])
    count = 4000
    generation = model.start(PROMPT, count, options, drafts)
    observed = dict.fromkeys(exact, 0)
    for completion in generation.completions():
        observed[completion.tokens] += 1
    assert generation.usage.accepted_tokens > count / 10
    assert generation.usage.accepted_tokens < generation.usage.drafted_tokens
    from scipy.stats import chi2

    statistic = sum((observed[t] - count * p) ** 2 / (count * p) for t, p in exact.items())
    assert chi2.sf(statistic, len(exact) - 1) > 1e-3


def test_log_probability_is_the_models_own(flat_model: Path) -> None:
    model = LanguageModel(flat_model)
    done = model.generate(PROMPT, 1, replace(OPEN, sampling=Sampling(0.5, top_k=4)))[0]
    ids = model.tokenizer.encode(PROMPT)
    scores = lm_nets.logits(WEIGHTS, ids + list(done.tokens))
    share = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = sum(np.log(share[len(ids) - 1 + i, token]) for i, token in enumerate(done.tokens))
    assert done.log_probability == pytest.approx(expected, rel=1e-4)


def test_the_context_bounds_a_text(flat_model: Path) -> None:
    model = LanguageModel(flat_model)
    endless = Options(max_tokens=1000, sampling=Sampling(temperature=0), speculation=Speculation())
    model.tokenizer.ends = frozenset()  # type: ignore[misc]
    done = model.generate(PROMPT, 1, endless)[0]
    assert done.reason == "length" and len(PROMPT) + len(done.tokens) == 144
    with pytest.raises(UsageError, match="takes 144"):
        model.generate("1" * 144)
    with pytest.raises(UsageError, match="no token"):
        model.generate("")


def test_usage_counts_tokens_bytes_and_energy(flat_model: Path) -> None:
    class Power:
        active_mw, origin = 250.0, "data sheet"

    model = LanguageModel(flat_model, power=Power())
    generation = model.start(PROMPT, 2, Options(max_tokens=3, sampling=Sampling(temperature=0), seed=1))
    lengths = [len(c.tokens) for c in generation.completions()]
    used = generation.usage
    assert lengths == [3, 3]
    place = 2 * lm_nets.SHAPE.layers * lm_nets.SHAPE.width * 4
    assert used.passes == 3 and used.weight_bytes == 3 * flat_model.stat().st_size
    assert used.computed_tokens == 6 + 2 + 2
    assert used.cache_bytes == place * (2 * 6 + 2 * 7) and used.cache_peak_bytes == place * 2 * 8
    assert used.energy is not None and used.energy.source == "modelled"
    assert used.energy.value == pytest.approx(used.seconds * 250 * 1e3)
    assert LanguageModel(flat_model).start(PROMPT).usage.energy is None


def test_a_classifier_is_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="input_ids"):
        LanguageModel(lm_nets.ROOT / "examples" / "fashion" / "fashion_small.onnx", tmp_path / "none.json")
