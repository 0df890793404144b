"""Metrics against brute force."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgescale.core.errors import UsageError
from edgescale.frontend import METRICS, load_metric


@pytest.fixture
def random():
    return np.random.default_rng(5)


def test_flags():
    assert [m for m in METRICS if not load_metric(m).higher_is_better] == ["mse"]
    assert [m for m in METRICS if not load_metric(m).needs_labels] == ["cosine"]


@pytest.mark.parametrize("k", [1, 5])
def test_top(random, k):
    outputs = random.normal(size=(200, 8)).astype(np.float32)
    labels = random.integers(0, 8, 200)
    right = sum(
        label in sorted(range(8), key=lambda c: -row[c])[:k] for row, label in zip(outputs, labels, strict=True)
    )
    metric = load_metric(f"top{k}")
    assert metric(outputs, labels) == pytest.approx(right / 200)
    assert metric(outputs, labels[:, None].astype(np.float32)) == pytest.approx(right / 200)
    assert metric(outputs[:, :, None, None], np.eye(8)[labels]) == pytest.approx(right / 200)


def test_ties_go_to_the_lower_index():
    assert load_metric("top1")(np.zeros((3, 4), np.float32), np.array([0, 0, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([1, 2, 4]), "range from 1 to 4.*classes 0 to 3"),
        (np.array([-1, 0, 1]), "range from -1"),
        (np.array([0.5, 0, 1]), "whole numbers"),
        (np.zeros((3, 2)), "one class index"),
        (np.array([0, 1]), "2 labels for 3 outputs"),
        (None, "needs labels"),
    ],
)
def test_bad_labels(labels, words):
    with pytest.raises(UsageError, match=words):
        load_metric("top1")(np.zeros((3, 4), np.float32), labels)


def test_top_needs_classes():
    with pytest.raises(UsageError, match="one output a class"):
        load_metric("top1")(np.zeros((3, 1), np.float32), np.zeros(3))
    with pytest.raises(UsageError, match="use top1"):
        load_metric("top5")(np.zeros((3, 5), np.float32), np.zeros(3))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(rows):
    scores, labels = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows])
    if labels.all() or not labels.any():
        with pytest.raises(UsageError, match="both classes"):
            load_metric("auc")(scores, labels)
        return
    pairs = list(itertools.product(scores[labels], scores[~labels]))
    share = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    assert load_metric("auc")(scores, labels) == pytest.approx(share)
    assert load_metric("auc")(np.stack([-scores, scores], axis=1), labels.astype(int)) == pytest.approx(share)


def test_auc_refuses_reconstructions():
    with pytest.raises(UsageError, match="reconstruction"):
        load_metric("auc")(np.zeros((4, 640)), np.array([0, 1, 0, 1]))


def test_mse(random):
    outputs, labels = random.normal(size=(5, 3)), random.normal(size=(5, 3, 1))
    assert load_metric("mse")(outputs, labels) == pytest.approx(np.square(outputs - labels[..., 0]).mean())
    with pytest.raises(UsageError, match="must agree"):
        load_metric("mse")(outputs, labels[:, :2])


def test_cosine(random):
    outputs, reference = random.normal(size=(6, 2, 3)), random.normal(size=(6, 2, 3))
    outputs[0] = reference[0] = 0
    outputs[1] = 0
    expected = [1.0, 0.0] + [
        float(a.ravel() @ b.ravel() / np.sqrt((a**2).sum() * (b**2).sum()))
        for a, b in zip(outputs[2:], reference[2:], strict=True)
    ]
    assert load_metric("cosine")(outputs, None, reference) == pytest.approx(np.mean(expected))
    assert load_metric("cosine")(reference, None, reference) == pytest.approx(1.0)
    with pytest.raises(UsageError, match="missing"):
        load_metric("cosine")(outputs)
    with pytest.raises(UsageError, match="float model"):
        load_metric("cosine")(outputs, None, reference[:, :1])


def test_own_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_metric_module.py").write_text(
        "import numpy as np\n"
        "def error(outputs, labels, reference):\n    return np.abs(outputs - labels).mean()\n"
        "error.higher_is_better = False\n"
        "def free(outputs, labels, reference):\n    return len(outputs)\n"
        "free.needs_labels = False\n"
        "def broken(outputs, labels, reference):\n    return outputs['x']\n"
        "def nan(outputs, labels, reference):\n    return float('nan')\n"
    )
    metric = load_metric("my_metric_module:error")
    assert (metric.higher_is_better, metric.needs_labels) == (False, True)
    assert metric(np.ones((2, 1)), np.zeros((2, 1))) == 1.0
    assert load_metric("my_metric_module:free")(np.ones((3, 1))) == 3.0
    for name, words in (("broken", "raised"), ("nan", "no finite number")):
        with pytest.raises(UsageError, match=words):
            load_metric(f"my_metric_module:{name}")(np.ones((2, 1)), np.zeros(2))
    with pytest.raises(UsageError, match="no function"):
        load_metric("my_metric_module:absent")
    sys.modules.pop("my_metric_module")


@pytest.mark.parametrize("spec", ["top2", "", "accuracy", "my.py"])
def test_unknown(spec):
    with pytest.raises(UsageError, match="unknown metric"):
        load_metric(spec)
