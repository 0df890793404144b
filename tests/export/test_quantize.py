"""es_quantize.h against NumPy's rounding: what the application stores is what the rigs store."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.rigs.ports import from_stored, to_stored

SOURCE = """
#include "edgescale/es_quantize.h"
void quantize(const float *x, int8_t *q, int n, float scale, int32_t zero);
void quantize(const float *x, int8_t *q, int n, float scale, int32_t zero)
{ for (int i = 0; i < n; i++) q[i] = es_real_to_s8(x[i], scale, zero); }
void dequantize(const int8_t *q, float *x, int n, float scale, int32_t zero);
void dequantize(const int8_t *q, float *x, int n, float scale, int32_t zero)
{ for (int i = 0; i < n; i++) x[i] = es_s8_to_real(q[i], scale, zero); }
void quantize16(const float *x, int16_t *q, int n, float scale);
void quantize16(const float *x, int16_t *q, int n, float scale)
{ for (int i = 0; i < n; i++) q[i] = es_real_to_s16(x[i], scale, 0); }
void dequantize16(const int16_t *q, float *x, int n, float scale);
void dequantize16(const int16_t *q, float *x, int n, float scale)
{ for (int i = 0; i < n; i++) x[i] = es_s16_to_real(q[i], scale, 0); }
"""


@pytest.fixture(scope="module")
def library(repository: Path, need, sh, strict: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    need("gcc")
    folder = tmp_path_factory.mktemp("quantize")
    (folder / "q.c").write_text("#include <math.h>\n" + SOURCE)
    flags = ["-std=c99", "-O2", *strict.split(), "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    sh("gcc", *flags, "-shared", "-fPIC", f"-I{repository / 'firmware' / 'include'}", "q.c", "-o", "q.so", cwd=folder)
    return ctypes.CDLL(str(folder / "q.so"))


def _port(scale: float, zero: int, n: int, dtype: str = "int8") -> dict:
    shape = [1, n]
    return {"name": "x", "dtype": dtype, "scale": scale, "zero_point": zero, "shape": shape, "axes": [0, 1],
            "stored_shape": shape}  # fmt: skip


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


floats = st.floats(width=32, allow_nan=False, allow_infinity=True)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scale=st.floats(2.0**-20, 2.0**10, width=32),
    zero=st.integers(-128, 127),
    halves=st.lists(st.integers(-600, 600), min_size=1, max_size=40),
    others=st.lists(floats, max_size=20),
)
def test_storing_and_reading_as_the_rigs_do(library, scale: float, zero: int, halves: list[int], others) -> None:
    ties = np.array(halves, np.float32) * np.float32(0.5) * np.float32(scale)  # exactly between two integers
    near = np.concatenate([np.nextafter(ties, np.float32(-np.inf)), np.nextafter(ties, np.float32(np.inf))])
    x = np.ascontiguousarray(np.concatenate([ties, near, np.array(others, np.float32)]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = to_stored(_port(scale, zero, len(x)), x[None])[0]
    q = np.empty(len(x), np.int8)
    library.quantize(_pointer(x), _pointer(q), len(x), ctypes.c_float(scale), zero)
    assert np.array_equal(q, expected)
    every = np.arange(-128, 128).astype(np.int8)
    real = np.empty(256, np.float32)
    library.dequantize(_pointer(every), _pointer(real), 256, ctypes.c_float(scale), zero)
    assert np.array_equal(real, from_stored(_port(scale, zero, 256), every[None])[0])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scale=st.floats(2.0**-20, 2.0**10, width=32), halves=st.lists(st.integers(-70000, 70000), min_size=1))
def test_int16(library, scale: float, halves: list[int]) -> None:
    x = np.array(halves, np.float32) * np.float32(0.5) * np.float32(scale)
    q = np.empty(len(x), np.int16)
    library.quantize16(_pointer(x), _pointer(q), len(x), ctypes.c_float(scale))
    assert np.array_equal(q, to_stored(_port(scale, 0, len(x), "int16"), x[None])[0])
    real = np.empty(len(x), np.float32)
    library.dequantize16(_pointer(q), _pointer(real), len(x), ctypes.c_float(scale))
    assert np.array_equal(real, from_stored(_port(scale, 0, len(x), "int16"), q[None])[0])


def test_not_a_number_saturates_low(library) -> None:
    x, q = np.array([np.nan], np.float32), np.empty(1, np.int8)
    library.quantize(_pointer(x), _pointer(q), 1, ctypes.c_float(0.1), 5)
    assert q[0] == -128


def test_it_is_cxx_as_well(repository: Path, need, sh, strict: str, tmp_path: Path) -> None:
    need("g++")
    (tmp_path / "q.cpp").write_text(SOURCE)
    include = f"-I{repository / 'firmware' / 'include'}"
    sh("g++", "-std=c++11", *strict.split(), include, "-c", "q.cpp", "-o", "q.o", cwd=tmp_path)
