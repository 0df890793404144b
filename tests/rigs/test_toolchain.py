"""Finding compilers, their errors, the cache; and the memory functions of bare-metal images."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.core import files
from edgescale.core.errors import MissingDependencyError, RigError
from edgescale.core.files import firmware_root
from edgescale.core.target import load_target
from edgescale.rigs import cachedir, toolchain


@pytest.fixture
def no_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "zig_command", lambda: None)
    toolchain.zig_version.cache_clear()
    toolchain.host_compiler.cache_clear()


def test_without_zig_a_target_names_what_to_install(no_zig: None) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgescale\[mcu\]'"):
        toolchain.cross_compiler(load_target("cortex-m3"))


def test_without_zig_the_host_compiler_says_so(no_zig: None) -> None:
    try:
        found = toolchain.host_compiler()
    except MissingDependencyError:
        pytest.skip("this machine has no gcc, cc or clang")
    assert "ziglang is not installed" in found.description


@pytest.fixture(autouse=True)
def _forget_compilers() -> Iterator[None]:
    """Nothing remembered from, or left to, tests that hide a compiler."""
    yield
    toolchain.zig_version.cache_clear()
    toolchain.host_compiler.cache_clear()


def test_compiler_errors_and_timeouts(tmp_path: Path) -> None:
    python = toolchain.Compiler((sys.executable, "-c"), "a stand-in")
    noisy = "import sys; print('x.c:1: error: no such thing', file=sys.stderr); sys.exit(1)"
    with pytest.raises(RigError, match=r"(?s)job: a stand-in failed:.*no such thing"):
        python.run([noisy], "job", tmp_path)
    start = time.monotonic()
    with pytest.raises(RigError, match=r"did not finish within 0.5 s"):
        python.run(["import time; time.sleep(30)"], "job", tmp_path, timeout_s=0.5)
    assert time.monotonic() - start < 10
    with pytest.raises(RigError, match="cannot start"):
        toolchain.Compiler(("/nonexistent/compiler",), "nothing").run([], "job", tmp_path)


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGESCALE_CACHE", str(tmp_path / "own"))
    assert files.cache_root() == tmp_path / "own"
    monkeypatch.delenv("EDGESCALE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_root() == tmp_path / "xdg" / "edgescale"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_root() == tmp_path / ".cache" / "edgescale"


def test_cached_build_is_whole_or_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGESCALE_CACHE", str(tmp_path))
    calls: list[Path] = []

    def fail(out: Path) -> None:
        (out / "half").write_text("x")
        raise RigError("no")

    with pytest.raises(RigError):
        cachedir.cached_build("kind", "key", fail)
    assert not any(p.name == "half" for p in tmp_path.rglob("*"))

    def build(out: Path) -> None:
        calls.append(out)
        (out / "whole").write_text("x")

    first = cachedir.cached_build("kind", "key", build)
    assert (first / "whole").is_file()
    assert cachedir.cached_build("kind", "key", build) == first
    assert len(calls) == 1


@pytest.fixture(scope="module")
def memory_functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """firmware/boards/common/memory.c built for this machine under other names."""
    source = firmware_root() / "boards" / "common" / "memory.c"
    out = tmp_path_factory.mktemp("memory") / "memory.so"
    names = [f"-D{name}=board_{name}" for name in ("memcpy", "memmove", "memset", "memcmp")]
    toolchain.build_shared([source], out, ["-fno-builtin", "-Wall", "-Wextra", "-Werror", *names])
    return ctypes.CDLL(str(out))


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=64, max_size=64), st.integers(0, 24), st.integers(0, 24), st.integers(0, 40))
def test_memory_functions(memory_functions: ctypes.CDLL, data: bytes, to: int, source: int, count: int) -> None:
    """memmove on overlapping ranges, memcpy between buffers, memset and memcmp, against bytes."""
    expected = bytearray(data)
    expected[to : to + count] = data[source : source + count]
    buffer = (ctypes.c_char * 64).from_buffer_copy(data)
    base = ctypes.addressof(buffer)
    size = ctypes.c_size_t(count)
    memory_functions.board_memmove(ctypes.c_void_p(base + to), ctypes.c_void_p(base + source), size)
    assert buffer.raw == bytes(expected)

    other = (ctypes.c_char * 64)()
    end = ctypes.c_void_p(ctypes.addressof(other) + to)
    memory_functions.board_memcpy(end, ctypes.c_void_p(base + source), size)
    assert other.raw[to : to + count] == buffer.raw[source : source + count]
    assert other.raw[:to] == bytes(to)
    assert other.raw[to + count :] == bytes(64 - to - count)
    assert memory_functions.board_memcmp(end, ctypes.c_void_p(base + source), size) == 0

    memory_functions.board_memset(end, ctypes.c_int(0x1A5), size)  # only the low byte counts
    assert other.raw[to : to + count] == b"\xa5" * count
    assert other.raw[to + count :] == bytes(64 - to - count)


def test_importing_rigs_is_light() -> None:
    """Asking for names must not load an emulator or ONNX Runtime."""
    heavy = ("unicorn", "onnxruntime", "onnx", "capstone")
    code = f"import sys, edgescale.rigs; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
