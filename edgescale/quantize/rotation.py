"""Rotation of a layer's input by blocks of a Hadamard matrix: outliers spread over a block before rounding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]

LARGEST = 128
"""Channels mixed at most; the rotation costs as many products a value as a block has channels."""
_SEED = 1


def hadamard(size: int) -> Real:
    """Sylvester's Hadamard matrix of a power of two, scaled to be orthogonal, [size, size]."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"Sylvester's construction makes powers of two, not {size}")
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size))


def rotation_block(terms: int) -> Real:
    """The orthogonal matrix [b, b] that rotates each b channels: seeded signs times Hadamard.

    b is the largest power of two that divides `terms`, at most LARGEST. The signs keep a constant input from
    gathering in one channel.
    """
    size = min(terms & -terms, LARGEST)
    signs = np.random.default_rng(_SEED).choice([-1.0, 1.0], size)
    return np.asarray(signs[:, None] * hadamard(size))


def apply_blocks(matrix: Real, block: Real) -> Real:
    """matrix [rows, terms] times the block-diagonal matrix of `block`, [rows, terms]."""
    size = len(block)
    return np.asarray((matrix.reshape(len(matrix), -1, size) @ block).reshape(matrix.shape))


def whole(block: Real, terms: int) -> Real:
    """The block-diagonal matrix itself, [terms, terms]."""
    return np.asarray(np.kron(np.eye(terms // len(block)), block))
