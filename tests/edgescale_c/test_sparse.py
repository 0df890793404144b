"""Tables of the kernels that skip zeros say what the weights say, and layers that gain nothing are told so."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from edgescale_c import dsp_choice, sparse
from edgescale_c import sparse_tables as tables
from edgescale_c.arrange import arrange
from edgescale_c.pack import OutOfDomainError
from edgescale_c.sparse_tables import Channels
from edgescale_c.staging import Flash

from edgescale.core.memory import Memory
from edgescale.lower.program import Conv2D, FullyConnected, Pool2D, Port, Program, Requant, Tensor


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def weights_of(word: int) -> list[int]:
    return [signed(word >> 8 * i & 0xFF, 8) for i in range(4)]


def decode_stream(words: np.ndarray, outputs: int, taps: int, read_channel) -> tuple[np.ndarray, int]:
    """The weights that es_gemm_sparse_s8.h reads, and where the stream ends. `read_channel(at, row)` fills a channel
    and returns where its head and the next channel are."""
    rows = np.zeros((outputs, -(-taps // 4) * 4), np.int8)
    head, at = int(words[0]), 1
    for row in rows:
        kind = head >> 8 & 3
        assert kind in (0, 1, 3)
        if kind == 3:
            head, at = int(words[at]), at + 1
        else:
            head_at, at = read_channel(at, row)
            head = int(words[head_at])
    assert head >> 8 & 3 == 2
    return rows[:, :taps], at


def decode_blocks(words: np.ndarray, outputs: int, taps: int) -> np.ndarray:
    length = int(words[0]) >> 10
    places = iter(words[1 + length :].astype("<u4").view(np.uint8))
    position = 0

    def channel(at: int, row: np.ndarray) -> tuple[int, int]:
        nonlocal position
        head = int(words[at + 2])
        others = head >> 23
        position += signed(head >> 10 & 0x1FFF, 13)
        for index, word in enumerate([words[at + 1], *words[at + 3 : at + 3 + others]]):
            position += int(next(places)) if index else 0
            row[4 * position : 4 * position + 4] = weights_of(int(word))
            position += 1
        return at + 2, at + 3 + others + 2

    rows, end = decode_stream(words, outputs, taps, channel)
    assert end == 1 + length
    return rows


def decode_pairs(words: np.ndarray, outputs: int, taps: int) -> np.ndarray:
    pairs = [(0, 2), (1, 3), (0, 1), (2, 3), (0, 3), (1, 2)]

    def channel(at: int, row: np.ndarray) -> tuple[int, int]:
        head = int(words[at + 3])
        weights, steps, later = int(words[at + 1]), int(words[at + 2]), at + 4
        place, first = 0, 2 * (head >> 10 & 1)
        for _ in range((head >> 11) + 1):
            for i in range(first, 4):
                if i == 2 and not first:
                    weights, later = int(words[later]), later + 1
                step = steps >> 8 * i & 0xFF
                assert step % 16 == 0
                place += step // 16
                four = weights_of(weights)
                for tap, value in zip(pairs[place % 6], four[i % 2 :: 2], strict=True):
                    if value:
                        row[place // 6 * 4 + tap] += value
            weights, steps, later, first = int(words[later]), int(words[later + 1]), later + 2, 0
        return at + 3, later

    rows, end = decode_stream(words, outputs, taps, channel)
    assert end == len(words)
    return rows


def decode_entries(entries: tables.Entries, taps: int, packed: bool) -> np.ndarray:
    """The weights that es_dense_sparse_s8.h reads."""
    words = iter(entries.words.astype("<u4"))
    rows = np.zeros((len(entries.counts), taps), np.int8)

    def four(steps: list[int]) -> list[tuple[int, int]]:
        return list(zip(steps, weights_of(int(next(words))), strict=True))

    def steps_of(word: int) -> list[int]:
        return [word >> 8 * i & 0xFF for i in range(4)]

    for row, count in zip(rows, entries.counts, strict=True):
        found: list[tuple[int, int]] = []
        for _ in range(count >> 2):
            steps = steps_of(int(next(words)))
            if packed:
                found += four([step & 15 for step in steps]) + four([step >> 4 for step in steps])
            else:
                found += four(steps)
        if count & 2:
            assert packed
            found += four(steps_of(int(next(words))))
        if count & 1:
            step, weight, other_step, other = (byte & 0xFF for byte in weights_of(int(next(words))))
            found += [(step, signed(weight, 8)), (other_step, signed(other, 8))]
        place = 0
        for step, weight in found:
            place += step
            row[place] += weight
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_tables_hold_the_weights(seed):
    rng = np.random.default_rng(seed)
    outputs, taps = int(rng.integers(1, 9)), int(rng.integers(1, 900))
    rows = rng.integers(-128, 128, (outputs, taps)).astype(np.int8) * (rng.random((outputs, taps)) < rng.random() * 0.3)
    rows = rows.astype(np.int8)
    channels = Channels(np.zeros(outputs, np.int64), np.full(outputs, 2**30), np.full(outputs, 7), 1)
    np.testing.assert_array_equal(decode_blocks(tables.block_stream(rows, channels), outputs, taps), rows)
    np.testing.assert_array_equal(decode_pairs(tables.pair_stream(rows, channels), outputs, taps), rows)
    for packed in (False, True):
        np.testing.assert_array_equal(decode_entries(tables.entry_words(rows, packed), taps, packed), rows)


def test_far_places():
    rows = np.zeros((2, 2000), np.int8)
    rows[0, [0, 1999]] = -128, 5
    channels = Channels(np.zeros(2, np.int64), np.full(2, 2**30), np.full(2, 7), 1)
    for packed in (False, True):
        np.testing.assert_array_equal(decode_entries(tables.entry_words(rows, packed), 2000, packed), rows)
    np.testing.assert_array_equal(decode_pairs(tables.pair_stream(rows, channels), 2, 2000), rows)
    with pytest.raises(OutOfDomainError, match="255"):
        tables.block_stream(rows, channels)


def chosen(weights: np.ndarray, *, convolution: bool, memory: Memory = "balanced"):
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
    return dsp_choice.choose(Program("p", {"x": x, "y": y}, (ports[0],), (ports[1],), (layer,)), layer, memory)


def two_of_four(outputs: int, taps: int) -> np.ndarray:
    weights = np.random.default_rng(0).integers(1, 100, (outputs, taps))
    weights.reshape(outputs, -1, 4)[..., ::2] = 0
    return weights


def test_two_of_four_goes_by_pairs_and_says_what_that_saves():
    found = chosen(two_of_four(64, 64), convolution=True)
    assert found.name == sparse.PAIRS
    assert re.fullmatch(
        r"skipping pairs takes \d+% fewer instructions \([\d,]+ fewer\) and [\d,]+ B fewer", found.exploits
    )


def test_layers_that_would_lose_are_told_by_how_much():
    # Two outputs do not earn back what all pairs of the columns cost, and no block is without weights.
    few = chosen(two_of_four(2, 64), convolution=True)
    assert few.name == "conv2d_s8_dsp_4x2"
    more = r"nothing: skipping blocks of four would take \d+% more instructions \([\d,]+ more\) and [\d,]+ B \w+"
    assert re.fullmatch(more, few.exploits)
    product = chosen(two_of_four(64, 64), convolution=False)
    assert "sparse" not in product.name
    assert product.exploits.startswith("nothing: skipping single weights would take")


def test_layers_without_the_room_are_told_so():
    found = chosen(two_of_four(40, 2048), convolution=True)
    assert "sparse" not in found.name
    assert found.exploits.endswith("but needs 49,152 B of scratch, 18,792 B are granted")


def test_blocks_and_single_weights_are_skipped_where_it_pays():
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 100, (64, 64))
    blocks = weights * np.repeat(rng.random((64, 16)) < 0.25, 4, axis=1)
    assert chosen(blocks, convolution=True).name == sparse.BLOCKS
    assert chosen(weights * (rng.random((64, 64)) < 0.1), convolution=False).name == sparse.ENTRIES
    for convolution in (True, False):
        dense = chosen(weights, convolution=convolution)
        assert "sparse" not in dense.name
        assert not dense.exploits


def test_pairs_are_counted_without_making_them():
    rng = np.random.default_rng(1)
    for share in (0.0, 0.01, 0.2, 0.5, 1.0):
        rows = rng.integers(1, 100, (5, 300)) * (rng.random((5, 300)) < share)
        made = [tables._pair_entries(quads) for quads in tables.quads_of(rows)]
        assert list(tables.pair_counts(rows)) == [len(entries) for entries in made]
        for packed, most in ((False, 255), (True, 15)):
            single = [tables._entries(row, most) for row in rows]
            assert list(tables.entry_counts(rows, packed)) == [len(entries) for entries in single]


def test_flash_is_packed_where_it_counts():
    weights = np.random.default_rng(0).integers(1, 100, (64, 256))
    weights[np.random.default_rng(1).random(weights.shape) < 0.75] = 0
    plain, packed = (chosen(weights, convolution=False, memory=memory) for memory in ("balanced", "packed"))
    assert plain.name == "fully_connected_s8_dsp_1x8"
    assert packed.name == sparse.PACKED
    assert re.search(r"takes \d+% more instructions \([\d,]+ more\) and [\d,]+ B fewer$", packed.exploits)
    words = tables.entry_words(weights, packed=True)
    assert plain.packing == packed.packing
    assert plain.packing.nbytes == weights.size - words.words.nbytes - words.counts.nbytes
    assert plain.packing.instructions > 0


def test_packing_has_a_limit():
    # Half of the weights left: packed they would take more than twice the instructions.
    weights = np.random.default_rng(0).integers(1, 100, (64, 256)) * (np.arange(256) % 2)
    assert chosen(weights, convolution=False, memory="packed").name == "fully_connected_s8_dsp_1x8"


def test_the_least_ram_has_no_room_for_pairs():
    assert chosen(two_of_four(64, 64), convolution=True, memory="packed").name == sparse.PAIRS
    found = chosen(two_of_four(64, 64), convolution=True, memory="smallest")
    assert "sparse" not in found.name
    assert "B of scratch" in found.exploits


def test_scratch_is_granted_where_the_arena_has_it_to_spare():
    weights = two_of_four(32, 288).reshape(32, 3, 3, 32).astype(np.int8)
    scaling = Requant(np.full(1, 2**30, np.int32), np.full(1, -8, np.int32), "double")
    layer = Conv2D("c", ("m",), "y", weights, np.zeros(32, np.int32), (1, 1), (1, 1), (1,) * 4, 1, scaling, (-128, 127))

    def with_dense(program: Program) -> Program:
        full = replace(layer, weights=np.ones_like(weights))
        return replace(program, layers=(program.layers[0], full))

    def kernels(side: int, memory: Memory = "balanced", flash: Flash | None = None) -> list[str]:
        """Of a net whose first layer reads `side` x `side` pixels and pools them to 4 x 4."""
        x, m, y = (Tensor(n, (1, s, s, 32), "int8", 0.05, 0) for n, s in (("x", side), ("m", 4), ("y", 4)))
        window = (side // 4, side // 4)
        pool = Pool2D("p", ("x",), "m", "max", window, window, (0,) * 4, False, None, (-128, 127))
        ports = [Port(t.name, t.name, t.shape, tuple(range(4))) for t in (x, y)]
        program = Program("p", {"x": x, "m": m, "y": y}, (ports[0],), (ports[1],), (pool, layer))
        found = arrange(program, "dsp", memory, flash=flash)
        assert (
            memory == "fastest"
            or found.plan.arena_bytes == arrange(with_dense(program), "dsp", "balanced").plan.arena_bytes
        )
        return [choice.name for choice in found.choices]

    assert kernels(16)[1] == sparse.PAIRS
    assert kernels(4)[1] == "conv2d_s8_dsp_4x2"
    flash = Flash(wait_states=4, line_bytes=16, data_cache=256, ram=32768)
    assert kernels(4, "fastest", flash)[1] == sparse.PAIRS
    assert kernels(4, "fastest", replace(flash, ram=8192))[1] == "conv2d_s8_dsp_4x2"
