"""Inputs of models with several inputs, integers, or no batch axis."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.bundle.manifest import TensorRecord
from edgescale.core.errors import UsageError
from edgescale.runtime.inputs import read_inputs


def spec(name: str, *shape: int, dtype: str = "float32") -> TensorRecord:
    return TensorRecord(name=name, shape=shape, dtype=dtype)


def test_integers_must_fit() -> None:
    int8 = [spec("x", 1, 3, dtype="int8")]
    feed = read_inputs([-128, 0, 127], int8)
    assert feed.arrays["x"].dtype == np.int8 and feed.sample(0)["x"].tolist() == [[-128, 0, 127]]
    with pytest.raises(UsageError, match="from 0 to 200; int8 takes -128 to 127"):
        read_inputs(np.array([0, 1, 200], np.uint8), int8)
    with pytest.raises(UsageError, match="float64; the model takes int8"):
        read_inputs([0.5, 1, 2], int8)
    with pytest.raises(UsageError, match="from -1 to 2; uint8"):
        read_inputs([-1, 1, 2], [spec("x", 1, 3, dtype="uint8")])
    with pytest.raises(UsageError, match="the model takes bool"):
        read_inputs([0, 1, 1], [spec("x", 1, 3, dtype="bool")])


def test_several_inputs() -> None:
    specs = [spec("a", 1, 2), spec("b", 1, 3, 3)]
    feed = read_inputs({"a": np.zeros((4, 2)), "b": np.ones((4, 3, 3))}, specs)
    assert (feed.count, feed.batched) == (4, True)
    assert {name: array.shape for name, array in feed.sample(3).items()} == {"a": (1, 2), "b": (1, 3, 3)}
    with pytest.raises(UsageError, match="2 inputs: give a dict with a, b"):
        read_inputs(np.zeros(2), specs)
    with pytest.raises(UsageError, match="lacks b"):
        read_inputs({"a": np.zeros(2)}, specs)
    with pytest.raises(UsageError, match=r"different numbers of samples \(a: 4, b: one\)"):
        read_inputs({"a": np.zeros((4, 2)), "b": np.ones((3, 3))}, specs)


def test_inputs_without_a_batch_axis() -> None:
    feed = read_inputs(np.zeros(5), [spec("x", 5)])
    assert feed.count == 1 and feed.sample(0)["x"].shape == (5,)
    with pytest.raises(UsageError, match=r"shape \(6,\); the model takes \(5,\)"):
        read_inputs(np.zeros(6), [spec("x", 5)])
    mixed = read_inputs({"x": np.zeros((3, 2)), "state": np.ones((4, 4))}, [spec("x", 1, 2), spec("state", 4, 4)])
    assert mixed.count == 3
    assert {name: array.shape for name, array in mixed.sample(2).items()} == {"x": (1, 2), "state": (4, 4)}


def test_scalars() -> None:
    assert read_inputs(3.0, [spec("x", 1)]).sample(0)["x"].tolist() == [3.0]
    assert read_inputs(3.0, [spec("x")]).sample(0)["x"].shape == ()
