"""Views against NumPy: whatever they claim about storage must hold for real arrays."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgescale.lower.layout import View, channels_last, permutation_between, stored_shape, view

SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4).map(lambda sizes: (1, *sizes))


def array_of(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)


@st.composite
def changed_views(draw: st.DrawFn) -> tuple[View, np.ndarray, np.ndarray]:
    """(view, the ONNX value, its storage) after random Transpose and Reshape of a value stored in random order."""
    shape = draw(SHAPES)
    value = array_of(shape)
    axes = draw(st.permutations(range(len(shape))))
    storage = value.transpose(axes).reshape(-1)
    found = view(shape, axes)
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            order = draw(st.permutations(range(value.ndim)))
            value, found = value.transpose(order), found.transpose(order)
        else:
            total = value.size
            first = draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
            moved = found.reshape((1, first, total // first))
            if moved is not None:
                value, found = value.reshape(1, first, total // first), moved
    return found, value, storage


@given(case=changed_views())
def test_storage_is_what_the_view_says(case: tuple[View, np.ndarray, np.ndarray]) -> None:
    found, value, storage = case
    assert found.shape == value.shape
    np.testing.assert_array_equal(found.to_storage(value), storage)


@given(case=changed_views(), data=st.data())
def test_equal_orders_compare_equal(case: tuple[View, np.ndarray, np.ndarray], data: st.DataObject) -> None:
    found, value, storage = case
    axes = data.draw(st.permutations(range(value.ndim)))
    other = view(value.shape, axes)
    same = np.array_equal(value.transpose(axes).reshape(-1), storage)
    assert (other == found) == same
    if found.axes() is not None:
        np.testing.assert_array_equal(value.transpose(found.axes()).reshape(-1), storage)


@given(case=changed_views(), data=st.data())
def test_permutation_between_two_orders(case: tuple[View, np.ndarray, np.ndarray], data: st.DataObject) -> None:
    found, value, storage = case
    target = view(value.shape, data.draw(st.permutations(range(value.ndim))))
    moves = permutation_between(found, target)
    if moves is None:
        return
    shape, permutation = moves
    np.testing.assert_array_equal(storage.reshape(shape).transpose(permutation).reshape(-1), target.to_storage(value))
    assert permutation[0] == 0 and shape[0] == 1


def test_flatten_of_channels_last_keeps_its_bytes() -> None:
    flat = view((1, 3, 4, 5), channels_last(4)).reshape((1, 60))
    assert flat == View((1, 60), ((), (3, 20)), (1, 0))


def test_axes_of_one_do_not_matter() -> None:
    assert view((1, 1, 4, 5), (0, 1, 2, 3)) == view((1, 1, 4, 5), (0, 2, 3, 1))
    assert stored_shape((1, 3, 9), channels_last(3)) == (1, 1, 9, 3)


def test_factors_that_do_not_fit_together() -> None:
    assert view((1, 4, 6), (0, 2, 1)).reshape((1, 3, 8)) is None
    assert view((1, 4, 6), (0, 1, 2)).reshape((1, 3, 8)) is not None
