"""The requantization of the dsp kernels equals the reference's over its whole domain, and their constants are right."""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest
from edgescale_c import pack
from edgescale_c.requant import tables
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.core.files import firmware_root
from edgescale.lower.fixedpoint import apply_requant
from edgescale.lower.program import Requant

SOURCE = r"""
#include "es_scale_s8.h"
#include "es_requant.h"
typedef int32_t i32;
void scale(const i32 *acc, int8_t *out, i32 count, i32 multiplier, i32 shift, i32 zero, i32 single);
i32 differing(i32 multiplier, i32 shift, i32 zero, i32 single, i32 first, i32 last, i32 step);
void scale(const i32 *acc, int8_t *out, i32 count, i32 multiplier, i32 shift, i32 zero, i32 single)
{
    for (i32 i = 0; i < count; i++)
        out[i] = (int8_t)es_scale(acc[i], multiplier, shift, 2 * zero + 1, single);
}
i32 differing(i32 multiplier, i32 shift, i32 zero, i32 single, i32 first, i32 last, i32 step)
{
    i32 found = 0;
    for (int64_t i = first; i <= last; i += step) {
        const i32 acc = (i32)i;
        const i32 v = single ? es_requant_single(acc, multiplier, -shift - 2)
                             : es_requant_double(acc, multiplier, -shift - 1);
        const i32 wanted = es_clamp_s32(es_clamp_s32(v, -1000, 1000) + zero, -128, 127);
        found += es_scale(acc, multiplier, shift, 2 * zero + 1, single) != wanted;
    }
    return found;
}
"""


@pytest.fixture(scope="module")
def library(shared_harness):
    folder = shared_harness.new_folder()
    (folder / "scale.c").write_text(SOURCE)
    root = firmware_root()
    includes = [f"-I{root / 'include' / 'edgescale'}", f"-I{root / 'kernels' / 'dsp'}"]
    command = [*shared_harness.gcc(), *shared_harness.warnings, *includes, "-O2", "-shared", "-fPIC"]
    command += ["-fsanitize=undefined", "-fno-sanitize-recover=all"] if shared_harness.gcc() == ["gcc"] else []
    subprocess.run([*command, "scale.c", "-o", "scale.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "scale.so"))


@pytest.mark.parametrize("single", [0, 1])
def test_equal_over_the_domain(library, single):
    """Every accumulator of 17 bits, and a grid over all 31, for every shift, with the extreme multipliers."""
    rng = np.random.default_rng(4)
    for shift in range(23):
        for multiplier in (2**30, 2**31 - 1, int(rng.integers(2**30, 2**31)), 0):
            zero = int(rng.integers(-128, 128))
            small = library.differing(multiplier, shift, zero, single, -(2**16), 2**16, 1)
            large = library.differing(multiplier, shift, zero, single, -(2**30) + 1, 2**30 - 1, 9_973)
            assert small == large == 0, (multiplier, shift, zero)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2**30, 2**31 - 1),
    st.integers(0, 22),
    st.integers(-128, 127),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_equal_around_every_rounding_boundary(library, multiplier, shift, zero, single, seed):
    """Accumulators next to those where the exact quotient is a half, against the NumPy reference."""
    right = shift + 2 if single else shift + 1
    scaling = Requant(np.array([multiplier], np.int32), np.array([-right], np.int32), "single" if single else "double")
    halves = np.random.default_rng(seed).integers(-140, 140, 200) + 0.5
    acc = np.rint(halves * 2.0 ** (31 + right) / multiplier)[:, None] + np.arange(-2, 3)
    acc = np.ascontiguousarray(acc[np.abs(acc) < 2**30].astype(np.int32))
    out = np.zeros(acc.size, np.int8)
    library.scale(
        acc.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), acc.size, multiplier, shift, zero,
        int(single),
    )  # fmt: skip
    wanted = np.clip(apply_requant(acc.astype(np.int64)[:, None], scaling)[:, 0] + zero, -128, 127)
    np.testing.assert_array_equal(out, wanted)


def test_shifts_beyond_the_kernels_become_zero():
    """A scale too small for any output keeps the layer in the domain, and means the same."""
    scaling = Requant(np.array([2**30, 2**30 + 5], np.int32), np.array([-9, -28], np.int32))
    bounds = np.array([2**20, 2**22])
    made = pack.scales(scaling, tables(scaling, 2**22, "here"), bounds)
    np.testing.assert_array_equal(made.pairs, [[2**30, 0, 8 | 22 << 8]])
    assert not apply_requant(np.array([[0, 2**22]]), scaling)[0, 1]


@pytest.mark.parametrize(
    ("shift", "rounding", "bound", "reason"),
    [
        (0, "double", 2**20, "shift 0"),
        (-1, "single", 2**20, "shift -1"),
        (-9, "double", 2**30, "2\\^30"),
        (-27, "double", 2**28, "shift -27"),
    ],
)
def test_what_lies_outside_is_refused(shift, rounding, bound, reason):
    scaling = Requant(np.array([2**30], np.int32), np.array([shift], np.int32), rounding)
    with pytest.raises(pack.OutOfDomainError, match=reason):
        pack.scales(scaling, tables(scaling, bound, "here"), np.array([bound]))


def test_weights_share_halves_exactly():
    """From the packed words alone, both channels' products come out: the arithmetic the kernels do."""
    rng = np.random.default_rng(8)
    rows = rng.integers(-127, 128, (6, 8)).astype(np.int8)
    x = rng.integers(-128, 128, 8)
    words = pack.gemm_weights(rows)
    order = [0, 2, 1, 3, 4, 6, 5, 7]
    low, high = ((words >> s).astype(np.uint16).view(np.int16).astype(np.int64) for s in (0, 16))
    both = low @ x[order[0::2]] + high @ x[order[1::2]]
    even = sum(
        (part & 0xFF).astype(np.uint8).view(np.int8).astype(np.int64) @ x[order[i::2]]
        for i, part in ((0, low), (1, high))
    )
    np.testing.assert_array_equal(even, rows[0::2].astype(int) @ x)
    np.testing.assert_array_equal((both - even) >> 8, rows[1::2].astype(int) @ x)
    # -128 in the odd channel needs a tap that is not negative beside it.
    rows[0, 0], rows[1, 0] = 3, -128
    pack.check_pairs(rows, np.full(6, 2**20))
    rows[0, 0] = -3
    with pytest.raises(pack.OutOfDomainError, match="-128"):
        pack.check_pairs(rows, np.full(6, 2**20))
    with pytest.raises(pack.OutOfDomainError, match="2\\^23"):
        pack.check_pairs(rows[:1], np.array([1, 2**23]))
