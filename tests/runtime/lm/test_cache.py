"""Rounded and shortened caches against attention written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lm_nets
import numpy as np
import onnx
import pytest

from edgescale.core.errors import UsageError
from edgescale.runtime.lm import Decoder, DelayedEviction, LanguageModel, Options, Sampling, SlidingWindow, Speculation
from edgescale.runtime.lm.cache import CacheShape, KeyValueCache

WEIGHTS = lm_nets.random_weights()
IDS = np.random.default_rng(1).integers(1, 19, 24)


def stepped(decoder: Decoder, cache: KeyValueCache, eviction: object = None) -> np.ndarray:
    rows = []
    for place, token in enumerate(IDS):
        one = np.array([[token]])
        rows.append(decoder.forward(cache, one, np.ones((1, 1), bool), np.array([[place]]))[0, 0])
        if eviction is not None:
            cache.keep(eviction.keep(cache))  # type: ignore[attr-defined]
    return np.array(rows)


def test_int8_holds_a_quarter_and_stays_close(flat_model: Path) -> None:
    decoder = Decoder(flat_model)
    whole, rounded = decoder.new_cache(1), decoder.new_cache(1, "int8")
    exact = lm_nets.logits(WEIGHTS, list(IDS))
    np.testing.assert_allclose(stepped(decoder, whole), exact, atol=1e-4)
    near = stepped(decoder, rounded)
    assert 1e-6 < np.abs(near - exact).max() < 0.1 * np.abs(exact).max()
    heads = lm_nets.SHAPE.head_width
    assert rounded.bytes / whole.bytes == pytest.approx((heads + 4) / (4 * heads))
    for part, real in zip(rounded.parts(), whole.parts(), strict=True):
        assert np.abs(part - real)[:, :, :1].max() <= np.abs(real).max() / 127  # the first place saw no rounded one


@pytest.mark.parametrize(("window", "sinks"), [(5, 2), (1, 0), (8, 4), (100, 4)])
def test_a_window_is_attention_under_its_mask(flat_model: Path, window: int, sinks: int) -> None:
    decoder, cache = Decoder(flat_model), None
    cache = decoder.new_cache(1)
    place = np.arange(len(IDS))
    # A token sees what the token before it left in the cache, and itself.
    kept = (place[None] < sinks) | (place[None] > place[:, None] - 1 - window)
    seen = (kept & (place[None] <= place[:, None])) | np.eye(len(IDS), dtype=bool)
    exact = lm_nets.logits(WEIGHTS, list(IDS), seen=seen)
    np.testing.assert_allclose(stepped(decoder, cache, SlidingWindow(window, sinks)), exact, atol=1e-4)
    assert cache.places == min(len(IDS), window + sinks)


def test_delayed_eviction_keeps_the_shortest_keys(flat_model: Path) -> None:
    decoder = Decoder(flat_model)
    rule = DelayedEviction(budget=6, delay=4, sinks=2)
    cache = decoder.new_cache(1)
    stepped(decoder, cache, rule)
    assert cache.valid.sum() == 10
    assert {0, 1, 20, 21, 22, 23} <= set(cache.positions[0])
    once = decoder.new_cache(1)
    decoder.forward(once, IDS[None], np.ones((1, 24), bool), np.arange(24)[None])
    norms = np.mean([np.linalg.norm(part[0], axis=2).mean(axis=0) for part in once.parts()[::2]], axis=0)
    shortest = set(2 + np.argsort(norms[2:20])[:4])
    assert set(np.flatnonzero(rule.keep(once)[0])) == {0, 1, 20, 21, 22, 23} | shortest


def test_eviction_bounds_memory_in_a_batch_with_drafts(flat_model: Path) -> None:
    model = LanguageModel(flat_model)
    model.tokenizer.ends = frozenset()  # type: ignore[misc]
    options = Options(max_tokens=90, eviction=SlidingWindow(12, 2), seed=2)
    plain = model.start("12+34=", 3, options)
    texts = sorted(c.tokens for c in plain.completions())
    place = 2 * lm_nets.SHAPE.layers * lm_nets.SHAPE.width * 4
    assert plain.usage.cache_peak_bytes == 3 * 15 * place
    assert texts == sorted(c.tokens for c in model.start("12+34=", 3, replace(options, batch=1)).completions())
    small = model.start("12+34=", 3, replace(options, cache="int8", speculation=Speculation()))
    assert all(len(c.tokens) == 90 for c in small.completions())


def test_a_graph_of_batch_1_computes_rows_in_turn(flat_model: Path, tmp_path: Path) -> None:
    proto = onnx.load(flat_model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, tmp_path / "one.onnx")
    one, many = LanguageModel(tmp_path / "one.onnx", flat_model.with_name("tokenizer.json")), LanguageModel(flat_model)
    assert "batch fixed at 1" in one.describe()
    options = Options(max_tokens=20, speculation=Speculation())
    assert [c.tokens for c in one.generate("12+34=", 4, options)] == [
        c.tokens for c in many.generate("12+34=", 4, options)
    ]


def test_rows_and_gaps_against_lists() -> None:
    rng = np.random.default_rng(0)
    cache = KeyValueCache([CacheShape(2, 3, np.float32)] * 2, 3)
    parts = [rng.normal(size=(3, 2, 7, 3)).astype(np.float32) for _ in range(2)]
    ids = rng.integers(0, 9, (3, 7))
    valid = rng.random((3, 7)) < 0.7
    cache.append(parts, ids, valid, np.arange(7)[None].repeat(3, axis=0))
    keep = rng.random((3, 7)) < 0.7
    other = cache.rows([2, 0, 2])
    other.keep(keep)
    for row, source in enumerate([2, 0, 2]):
        stay = [place for place in range(7) if valid[source, place] and keep[row, place]]
        at = np.flatnonzero(other.valid[row])
        assert list(at) == list(range(other.places - len(stay), other.places))
        assert list(other.positions[row, at]) == stay
        assert list(other.ids[row, at]) == [ids[source, place] for place in stay]
        for held, part in zip(other.parts(), parts, strict=True):
            np.testing.assert_array_equal(held[row][:, at], part[source][:, stay])


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(UsageError, match="window"):
        SlidingWindow(0)
    with pytest.raises(UsageError, match="sinks"):
        DelayedEviction(budget=3, sinks=4)
    with pytest.raises(UsageError, match="int4"):
        KeyValueCache((), 1, "int4")  # type: ignore[arg-type]
    assert Sampling().temperature == 1
