"""The adaptive session on toy bundles: the right variant answers, cascades ask on, failures are survived."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.bundle import write_bundle
from edgescale.bundle.options import Answers, answers_of, build_policy, confidences
from edgescale.core.errors import RigError, UsageError
from edgescale.runtime import AdaptiveSession

SAMPLE = np.array([1, 2, 3, 4], np.float32)


@pytest.fixture
def session(bundle_path):
    with AdaptiveSession(bundle_path) as opened:
        opened.ready()
        yield opened


def gain(result, toys) -> float:
    return float(result.output[0] / (SAMPLE @ toys.WEIGHTS)[0])


def test_limits_choose_the_variant(session, toys):
    assert gain(session.run(SAMPLE), toys) == pytest.approx(3.0)
    memory = session.run(SAMPLE, memory=60_000)
    assert memory.entry == "medium-fp32@host" and memory.held
    assert session.run(SAMPLE, quality=0.84, cheapest=True).entry == "small-fp32@host"


def test_the_profile_is_corrected_by_what_calls_take(session):
    """The toys claim milliseconds and take microseconds: soon the largest meets a deadline of half a millisecond."""
    entries = [session.run(SAMPLE, deadline_ms=0.9).entry for _ in range(30)]
    assert entries[0] == "small-fp32@host"
    assert entries[-1] == "large-fp32@host"


def test_a_variant_that_fails_is_replaced_in_the_same_call(session, monkeypatch):
    infer = session.session.infer

    def broken(entry, x):
        if entry.startswith("large"):
            raise RigError("out of memory")
        return infer(entry, x)

    monkeypatch.setattr(session.session, "infer", broken)
    assert session.run(SAMPLE).entry == "medium-fp32@host"
    monkeypatch.setattr(session.session, "infer", lambda entry, x: broken("large", x))
    with pytest.raises(RigError, match="out of memory"):
        session.run(SAMPLE)


def test_a_bundle_without_quality_has_no_policy(toys, tmp_path):
    bare = toys.make_entry(tmp_path / "made", "net", {"latency": 1.0})
    path = write_bundle(tmp_path / "bundle", [bare], toys.context())
    with pytest.raises(UsageError, match="compile with --eval"):
        AdaptiveSession(path)


def make_answers(rng, accuracy: float, knows: float, n: int = 2000) -> Answers:
    """Answers that are right with `accuracy`; `knows` is how far confidence tells right from wrong."""
    correct = rng.random(n) < accuracy
    confidence = np.clip(rng.normal(0.7, 0.15, n) + knows * (correct - accuracy), 0.11, 1.0)
    return Answers(confidence.astype(np.float32), correct)


def policy_of(toys, tmp_path, small: Answers, large: Answers):
    entries = [
        toys.make_entry(tmp_path / "made", "large", {"accuracy": float(large.correct.mean()), "latency": 9.0}),
        toys.make_entry(tmp_path / "made", "small", {"accuracy": float(small.correct.mean()), "latency": 1.0}),
    ]
    path = write_bundle(tmp_path / "bundle", entries, toys.context(""))
    from edgescale.bundle import open_bundle

    records = open_bundle(path).manifest.entries
    return build_policy("host", "top1", records, {"large-fp32@host": large, "small-fp32@host": small})


def test_cascades_are_worth_what_a_count_on_the_samples_gives(toys, tmp_path):
    rng = np.random.default_rng(0)
    small, large = make_answers(rng, 0.85, 0.3), make_answers(rng, 0.93, 0.2)
    policy = policy_of(toys, tmp_path, small, large)
    cascades = [o for o in policy.options if len(o.steps) == 2]
    assert cascades
    for option in cascades:
        asked = small.confidence < option.confidence / 32768
        exact = np.where(asked, large.correct, small.correct).mean()
        assert option.quality[0] / 32768 == pytest.approx(exact, abs=0.005)
        assert option.mean_us == pytest.approx(1000 + asked.mean() * 9000, rel=0.02)
    names = [variant.name for variant in policy.variants]
    assert names == ["small-fp32@host", "large-fp32@host"]
    costs = [option.mean_us for option in policy.options]
    assert costs == sorted(costs)


def test_where_confidence_tells_nothing_no_cascade_beats_a_mix(toys, tmp_path):
    """Without knowledge a cascade is a random mix, which the mean budget makes anyway."""
    rng = np.random.default_rng(1)
    small, large = make_answers(rng, 0.85, 0.0), make_answers(rng, 0.93, 0.0)
    policy = policy_of(toys, tmp_path, small, large)
    for option in policy.options:
        if len(option.steps) == 2:
            share = (option.mean_us - 1000) / 9000
            assert option.quality[0] / 32768 <= 0.85 + share * 0.08 + 0.02


def test_confidences_of_scores_and_of_probabilities_agree():
    scores = np.random.default_rng(2).normal(0, 3, (50, 7))
    powers = np.exp(scores)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(confidences(scores), confidences(probabilities), rtol=1e-5)
    assert answers_of(scores.astype(np.float32), np.zeros(49, np.int64)) is None
    assert answers_of(scores[:, :1].astype(np.float32), np.zeros(50, np.int64)) is None
