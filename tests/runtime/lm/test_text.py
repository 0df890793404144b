"""Sampling filters, tokenizers, streams with stop sequences, drafts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.core.errors import MissingDependencyError, UsageError
from edgescale.runtime.lm import (
    ByteTokenizer,
    CharacterTokenizer,
    LanguageModel,
    NgramDraft,
    Options,
    Sampling,
    Speculation,
    load_tokenizer,
)
from edgescale.runtime.lm.sampling import distribution, draw, uniforms
from edgescale.runtime.lm.sequence import TextStream

LOGITS = st.lists(st.floats(-6, 6), min_size=2, max_size=12, unique=True)


@given(LOGITS, st.floats(0.1, 3), st.integers(0, 12), st.floats(0.05, 1), st.floats(0, 1))
def test_filters_by_sorting(logits: list[float], heat: float, top_k: int, top_p: float, min_p: float) -> None:
    got = distribution(logits, Sampling(heat, top_k, top_p, min_p))
    weights = {i: np.exp((value - max(logits)) / heat) for i, value in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: -weights[i])
    if len({*weights.values()}) < len(weights):
        return  # equal after exp: which of them a filter keeps is not told
    if top_k:
        ranked = ranked[:top_k]
    total, kept, held = sum(weights[i] for i in ranked), [], 0.0
    for i in ranked:
        if held >= top_p - 1e-12 and top_p < 1:
            if abs(held - top_p) < 1e-9:
                return  # on the edge
            break
        kept.append(i)
        held += weights[i] / total
    kept = [i for i in kept if weights[i] >= min_p * weights[kept[0]]]
    total = sum(weights[i] for i in kept)
    np.testing.assert_allclose(got, [weights[i] / total if i in kept else 0 for i in range(len(logits))], atol=1e-9)


def test_greedy_takes_the_first_of_equals() -> None:
    assert list(distribution([1.0, 3.0, 3.0], Sampling(temperature=0))) == [0, 1, 0]


def test_draws_follow_the_probabilities() -> None:
    share = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    assert [draw(share, u) for u in (0.0, 0.2499, 0.25, 0.9999999999999999)] == [1, 1, 3, 3]
    assert Counter(draw(share, u) for u in np.arange(1000) / 1000) == {1: 250, 3: 750}


def test_random_numbers_of_samples_are_apart_and_prefixes_agree() -> None:
    assert list(uniforms(3, 7, 5)) == list(uniforms(3, 7, 50))[:5]
    assert len({float(uniforms(seed, sample, 1)[0]) for seed in range(20) for sample in range(20)}) == 400
    with pytest.raises(UsageError, match="negative"):
        uniforms(-1, 0, 1)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"temperature": -1}, "temperature"), ({"top_k": -1}, "top_k"), ({"top_p": 0}, "top_p"), ({"min_p": 2}, "min_p")],
)
def test_sampling_out_of_range(wrong: dict[str, float], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_vocabularies_from_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"format": "edgescale-characters", "tokens": ["\n", "a", "b"], "end": 0}))
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("abba") == [1, 2, 2, 1] and tokenizer.decode([2, 1]) == "ba" and tokenizer.ends == {0}
    with pytest.raises(UsageError, match="'c' at place 1"):
        tokenizer.encode("ac")
    path.write_text(json.dumps({"format": "edgescale-bytes", "end": 256}))
    assert load_tokenizer(path).encode("é") == [0xC3, 0xA9]
    for content, word in [("{", "not a tokenizer"), ('{"format": "x"}', "unknown format"), ("[]", "no JSON object")]:
        path.write_text(content)
        with pytest.raises(UsageError, match=word):
            load_tokenizer(path)
    with pytest.raises(UsageError, match="does not exist"):
        load_tokenizer(tmp_path / "other.json")
    with pytest.raises(UsageError, match="distinct"):
        CharacterTokenizer(["a", "a"], 0)


def test_files_of_the_tokenizers_package(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<eos>": 3}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]], "unk_token": None}
    added = {"id": 3, "content": "<eos>", "single_word": False, "lstrip": False, "rstrip": False}
    path.write_text(
        json.dumps(
            {"version": "1.0", "model": model, "added_tokens": [{**added, "normalized": False, "special": True}]}
        )
    )
    try:
        tokenizer = load_tokenizer(path)
    except MissingDependencyError as missing:
        assert "edgescale[lm]" in str(missing)
        return
    assert tokenizer.encode("abb") == [2, 1] and tokenizer.ends == {3}


@settings(max_examples=200)
@given(st.text("ab€", max_size=30), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_streams_give_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    stream, given_out, stopped, read = TextStream(ByteTokenizer(256), stops), "", False, b""
    for byte in text.encode():
        read += bytes([byte])
        piece, stopped = stream.push(byte)
        given_out += piece
        if stopped:
            break
    if not stopped:
        given_out += stream.finish()
    # The stop that is complete first; of those complete at once, the one that begins first.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    cut = min((text.find(s) for s in stops if s in text and text.find(s) + len(s) == min(ends)), default=len(text))
    assert stopped == bool(ends)
    assert given_out == stream.text == text[:cut]


def test_streaming_and_stop_sequences_through_a_model(flat_model: Path) -> None:
    model = LanguageModel(flat_model)
    plain = model.generate("12+34=", 3, Options(max_tokens=30, seed=4))
    stop = plain[1].text[3:5]
    heard: list[tuple[int, str]] = []
    options = Options(max_tokens=30, seed=4, stop=(stop,))
    done = model.generate("12+34=", 3, options, lambda chunk: heard.append((chunk.sample, chunk.text)))
    for before, after in zip(plain, done, strict=True):
        assert after.text == before.text.split(stop)[0]
        assert "".join(text for sample, text in heard if sample == after.sample) == after.text
        assert (after.reason == "stop") == (stop in before.text)
    chunks = list(model.start("12+34=", 3, options))
    assert [c.completion for c in chunks if c.completion is not None and c.sample == 1] == [done[1]]
    with pytest.raises(UsageError, match="empty"):
        Options(stop=("",))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 6))
def test_drafts_by_counting(tokens: list[int], order: int, count: int) -> None:
    drafts = NgramDraft(order)
    drafts.learn(tokens[:10])
    drafts.learn(tokens, min(10, len(tokens)))
    recent, expected = list(tokens), []
    for _ in range(count):
        for length in range(min(order, len(recent)), 0, -1):
            followers = [
                tokens[i + length]
                for i in range(len(tokens) - length)
                if tokens[i : i + length] == recent[len(recent) - length :]
            ]
            if followers:
                counts = Counter(followers)
                most = max(counts.values())
                break
        else:
            break
        guess = drafts.propose(tokens, len(expected) + 1)[-1]
        assert counts[guess] == most
        expected.append(guess)
        recent.append(guess)
    assert drafts.propose(tokens, count) == expected


def test_a_draft_ends_where_it_becomes_unlikely() -> None:
    drafts = NgramDraft(1)
    drafts.learn([0, 1] * 4 + [0, 2] + [0, 1])  # after 0 five times 1 and once 2; after 1 four times 0
    assert drafts.propose([0], 3, confidence=0.0) == [1, 0, 1]
    assert drafts.propose([0], 3, confidence=5.5 / 7 + 0.01) == []
    assert drafts.propose([0], 3, confidence=5.5 / 7 - 0.01) == [1]
    with pytest.raises(UsageError, match="confidence"):
        Speculation(confidence=1.0)


def test_wrong_options_are_named(flat_model: Path) -> None:
    with pytest.raises(UsageError, match="start"):
        Speculation(longest=2, start=3)
    with pytest.raises(UsageError, match="max_tokens"):
        Options(max_tokens=0)
    with pytest.raises(UsageError, match="samples"):
        LanguageModel(flat_model).generate("1+", 0)
    with pytest.raises(UsageError, match="speculation is not set"):
        LanguageModel(flat_model).start("1+", 1, Options(), NgramDraft(2))
