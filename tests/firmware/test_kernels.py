"""C unit tests of the kernel headers, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FIRMWARE = HERE.parents[1] / "firmware"
INCLUDES = (f"-I{FIRMWARE / 'include' / 'edgescale'}", f"-I{FIRMWARE / 'kernels' / 'scalar'}")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Wcast-align", "-Werror")
HEADERS = sorted((FIRMWARE / "kernels" / "scalar").glob("*.h")) + sorted((FIRMWARE / "include").rglob("*.h"))


def zig() -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the ziglang package is not here")
    return [sys.executable, "-m", "ziglang", "cc"]


def compiler() -> list[str]:
    return ["gcc"] if shutil.which("gcc") else zig()


@pytest.mark.parametrize(
    "flags", [(), ("-DES_NO_SMULL", "-DES_NO_DIVIDE", "-DES_TILE_PIXELS=1")], ids=["plain", "armv6m"]
)
def test_c_unit_tests_under_sanitizers(tmp_path, flags):
    if compiler() != ["gcc"]:
        pytest.skip("needs gcc's sanitizers")
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    program = tmp_path / "test"
    command = ["gcc", "-std=c99", "-O1", *WARNINGS, *sanitizers, *flags, *INCLUDES]
    result = subprocess.run(
        [*command, str(HERE / "test_kernels.c"), "-o", str(program), "-lm"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    run = subprocess.run([str(program)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_every_header_stands_alone_without_a_warning(tmp_path, header):
    source = tmp_path / "one.c"
    source.write_text(f'#include "{header.name}"\nextern int nothing;\nint nothing;\n')
    for standard, language in (("-std=c99", "c"), ("-std=c++17", "c++")):
        command = [*compiler(), "-x", language, standard, *WARNINGS, *INCLUDES, "-fsyntax-only", str(source)]
        if language == "c++":
            command.remove("-Wpedantic")  # C99 habits such as compound types in unions
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("cpu", ["cortex_m0plus", "cortex_m4", "cortex_m33"])
def test_headers_compile_for_cores(tmp_path, cpu):
    source = tmp_path / "all.c"
    source.write_text("".join(f'#include "{path.name}"\n' for path in HEADERS) + "extern int nothing;\nint nothing;\n")
    command = [*zig(), "-target", "thumb-freestanding-eabi", f"-mcpu={cpu}", "-std=c99", "-Os", *WARNINGS, *INCLUDES]
    result = subprocess.run(
        [*command, "-c", str(source), "-o", str(tmp_path / "all.o")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
