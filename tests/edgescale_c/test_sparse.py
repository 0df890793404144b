"""Tables of the kernels that skip zeros say what the weights say, and layers that gain nothing are told so."""

from __future__ import annotations

import numpy as np
import pytest
from edgescale_c import dsp_choice, sparse
from edgescale_c.pack import OutOfDomainError

from edgescale.lower.program import Conv2D, FullyConnected, Port, Program, Requant, Tensor


def decode_blocks(words: np.ndarray, outputs: int, taps: int) -> np.ndarray:
    """The weights that es_gemm_sparse_s8.h reads from its table."""
    count = int(words[0])
    blocks = words[1 : 1 + count].astype("<u4").view(np.int8).reshape(-1, 4)
    places = words[1 + count :].astype("<u4").view(np.uint8)
    rows = np.zeros((outputs, -(-taps // 4), 4), np.int8)
    at = block = 0
    for channel in range(outputs):
        live, at, quad = int(places[at]), at + 1, 0
        for _ in range(live):
            quad += int(places[at])
            rows[channel, quad] = blocks[block]
            at, block, quad = at + 1, block + 1, quad + 1
    assert block == count
    return rows.reshape(outputs, -1)[:, :taps]


def decode_entries(entries: sparse.Entries, taps: int) -> np.ndarray:
    """The weights that es_dense_sparse_s8.h reads."""
    pairs = entries.words.astype("<u4").view(np.uint8).reshape(-1, 2)
    rows, first = np.zeros((len(entries.counts), taps), np.int8), 0
    for row, count in zip(rows, entries.counts, strict=True):
        place = 0
        for step, weight in pairs[first : first + 2 * int(count)]:
            place += int(step)
            row[place] += np.uint8(weight).view(np.int8)
        first += 2 * int(count)
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_tables_hold_the_weights(seed):
    rng = np.random.default_rng(seed)
    outputs, taps = int(rng.integers(1, 9)), int(rng.integers(1, 900))
    rows = rng.integers(-128, 128, (outputs, taps)).astype(np.int8) * (rng.random((outputs, taps)) < rng.random() * 0.3)
    rows = rows.astype(np.int8)
    np.testing.assert_array_equal(decode_blocks(sparse.block_words(rows), outputs, taps), rows)
    np.testing.assert_array_equal(decode_entries(sparse.entry_words(rows), taps), rows)


def test_far_places():
    rows = np.zeros((2, 2000), np.int8)
    rows[0, [0, 1999]] = -128, 5
    np.testing.assert_array_equal(decode_entries(sparse.entry_words(rows), 2000), rows)
    with pytest.raises(OutOfDomainError, match="255"):
        sparse.block_words(rows)


def chosen(weights: np.ndarray, *, convolution: bool):
    """The choice for a layer of these weights [O, taps]."""
    outputs, taps = weights.shape
    bias, scaling = (
        np.zeros(outputs, np.int32),
        Requant(np.full(1, 2**30, np.int32), np.full(1, -8, np.int32), "double"),
    )
    side = 3 if convolution else 1
    x, y = (Tensor(name, (1, side, side, c), "int8", 0.05, 0) for name, c in (("x", taps), ("y", outputs)))
    if convolution:
        shaped = weights[:, None, None].astype(np.int8)
        layer = Conv2D("c", ("x",), "y", shaped, bias, (1, 1), (1, 1), (0,) * 4, 1, scaling, (-128, 127))
    else:
        layer = FullyConnected("f", ("x",), "y", weights.astype(np.int8), bias, scaling, (-128, 127))
    ports = [Port(t.name, t.name, t.shape, tuple(range(len(t.shape)))) for t in (x, y)]
    return dsp_choice.choose(Program("p", {"x": x, "y": y}, (ports[0],), (ports[1],), (layer,)), layer)


def test_two_of_four_is_declined_and_says_by_how_much():
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 100, (64, 64))
    weights.reshape(64, 16, 4)[..., ::2] = 0
    found = chosen(weights, convolution=True)
    assert "sparse" not in found.name
    assert found.reason.startswith("50% of the weights are zero; skipping blocks of four would take")
    assert found.reason.endswith("% more instructions")


def test_blocks_and_single_weights_are_skipped_where_it_pays():
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 100, (64, 64))
    blocks = weights * np.repeat(rng.random((64, 16)) < 0.25, 4, axis=1)
    assert chosen(blocks, convolution=True).name == sparse.BLOCKS
    assert chosen(weights * (rng.random((64, 64)) < 0.1), convolution=False).name == sparse.ENTRIES
    assert "sparse" not in chosen(weights, convolution=True).name + chosen(weights, convolution=False).name
