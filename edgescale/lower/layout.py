"""How the elements of an ONNX value lie in a stored tensor.

A stored tensor is channels-last while ONNX is channels-first, so every value carries a `View`: its
ONNX shape, each axis split into factors, and the order in which those factors are stored. Reshape,
Flatten, Squeeze, Unsqueeze and Transpose then only rewrite the view; bytes move when, and only when,
a layer needs another order. Example: [1, C, H, W] stored as [1, H, W, C] and flattened to [1, C*H*W]
has the factors ((), (C, H, W)) stored in the order (1, 2, 0); a following fully connected layer
permutes the columns of its weights by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgescale.lower.program import Array

Shape = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """Order of an ONNX value's elements in storage, in canonical form: equal orders compare equal.

    shape: ONNX shape. factors: per axis its factors above 1, outermost first; their product is the
    axis. order: indices into all factors (counted through the axes) from outermost to innermost in
    storage. Build it with `view`, `View.reshape` and `View.transpose`, which keep it canonical.
    """

    shape: Shape
    factors: tuple[Shape, ...]
    order: Shape

    @property
    def sizes(self) -> Shape:
        """All factors in ONNX (row-major) order."""
        return tuple(size for axis in self.factors for size in axis)

    def transpose(self, permutation: Sequence[int]) -> View:
        """View of the value after ONNX Transpose; storage is unchanged."""
        starts = np.cumsum([0, *(len(axis) for axis in self.factors)])
        renumbered: dict[int, int] = {}
        for axis in permutation:
            for index in range(starts[axis], starts[axis + 1]):
                renumbered[index] = len(renumbered)
        shape = tuple(self.shape[axis] for axis in permutation)
        factors = tuple(self.factors[axis] for axis in permutation)
        return _canonical(shape, factors, tuple(renumbered[index] for index in self.order))

    def reshape(self, shape: Shape) -> View | None:
        """View of the value after ONNX Reshape; None where the factors of both shapes do not fit together."""
        if math.prod(shape) != math.prod(self.shape):
            return None
        # Neighbours in storage count as one factor even where they come from two axes.
        flat = _canonical((math.prod(shape),), (self.sizes,), self.order)
        refined = flat.refine(_boundaries(shape))
        if refined is None:
            return None
        sizes, order = refined
        factors, position = [], 0
        for size in shape:
            taken: list[int] = []
            while math.prod(taken) < size:
                taken.append(sizes[position])
                position += 1
            factors.append(tuple(taken))
        return _canonical(shape, tuple(factors), order)

    def refine(self, boundaries: set[int]) -> tuple[Shape, Shape] | None:
        """Split factors so that every prefix product in `boundaries` is one of theirs: (sizes, storage order)."""
        points = sorted(_boundaries(self.sizes) | boundaries)
        sizes = []
        for before, after in zip([1, *points], points, strict=False):
            if after % before:
                return None
            sizes.append(after // before)
        pieces: list[list[int]] = []
        position = 0
        for size in self.sizes:
            indices: list[int] = []
            while math.prod(sizes[i] for i in indices) < size:
                indices.append(position)
                position += 1
            pieces.append(indices)
        return tuple(sizes), tuple(piece for index in self.order for piece in pieces[index])

    @property
    def boundaries(self) -> set[int]:
        """Prefix products of the factors in ONNX order."""
        return _boundaries(self.sizes)

    def axes_of_factors(self) -> tuple[int, ...]:
        """For every factor in ONNX order, the axis it belongs to."""
        return tuple(axis for axis, sizes in enumerate(self.factors) for _ in sizes)

    def axes(self) -> tuple[int, ...] | None:
        """Permutation with stored = value.transpose(axes), up to reshaping; None where an axis is split."""
        if any(len(sizes) > 1 for sizes in self.factors):
            return None
        rank = len(self.shape)
        for candidate in (tuple(range(rank)), channels_last(rank)):
            if view(self.shape, candidate) == self:
                return candidate
        owners = self.axes_of_factors()
        stored = [owners[index] for index in self.order]
        return tuple([axis for axis in range(rank) if self.shape[axis] == 1] + stored)

    def to_storage(self, value: Array) -> Array:
        """The elements of a constant of this shape as a flat array in storage order."""
        return value.reshape(self.sizes).transpose(self.order).reshape(-1)


def view(shape: Shape, axes: Sequence[int]) -> View:
    """View of a value stored as value.transpose(axes)."""
    factors = tuple((size,) if size > 1 else () for size in shape)
    number = {axis: index for index, axis in enumerate(a for a, size in enumerate(shape) if size > 1)}
    return _canonical(shape, factors, tuple(number[axis] for axis in axes if shape[axis] > 1))


def channels_last(rank: int) -> tuple[int, ...]:
    """Axes that move ONNX axis 1 to the end: (0, 2, 3, 1) for rank 4; the identity below rank 3."""
    return (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))


def stored_shape(shape: Shape, axes: Sequence[int]) -> Shape:
    """Stored shape of a value kept as value.transpose(axes): rank 3 gets a height of 1, as 1-D convolutions expect."""
    moved = tuple(shape[axis] for axis in axes)
    return (1, 1, *moved[1:]) if len(moved) == 3 else moved


def permutation_between(source: View, target: View) -> tuple[Shape, Shape] | None:
    """(input shape, permutation) of the Transpose that turns `source` storage into `target` storage.

    Neighbouring axes that stay together are merged; a batch axis of 1 leads. None where the factors of
    the two views do not fit together.
    """
    left, right = source.refine(target.boundaries), target.refine(source.boundaries)
    if left is None or right is None or left[0] != right[0]:
        return None
    sizes, order = left
    position = {factor: index for index, factor in enumerate(order)}
    moves = [position[factor] for factor in right[1]]
    groups: list[list[int]] = []
    for move in moves:
        if groups and groups[-1][-1] + 1 == move:
            groups[-1].append(move)
        else:
            groups.append([move])
    ranked = sorted(groups)
    shape = tuple(math.prod(sizes[order[index]] for index in group) for group in ranked)
    return (1, *shape), (0, *(ranked.index(group) + 1 for group in groups))


def _boundaries(sizes: Sequence[int]) -> set[int]:
    products, product = set(), 1
    for size in sizes:
        product *= size
        if product > 1:
            products.add(product)
    return products


def _canonical(shape: Shape, factors: tuple[Shape, ...], order: Shape) -> View:
    """Merge factors that are neighbours both in an axis and in storage."""
    position = {factor: index for index, factor in enumerate(order)}
    merged: list[Shape] = []
    first_of: dict[int, int] = {}
    number, count = 0, 0
    for axis in factors:
        sizes: list[int] = []
        for offset, size in enumerate(axis):
            index = number + offset
            if offset and position[index] == position[index - 1] + 1:
                sizes[-1] *= size
            else:
                sizes.append(size)
                first_of[index] = count
                count += 1
        number += len(axis)
        merged.append(tuple(sizes))
    return View(shape, tuple(merged), tuple(first_of[index] for index in order if index in first_of))
