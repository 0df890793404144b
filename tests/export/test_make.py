"""Layout make: its library and example on this machine, its image on emulated boards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgescale.export.cores import CORTEX_M
from edgescale.export.layouts import LAYOUTS


def _write(files: dict[str, bytes], folder: Path) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def _feed(folder: Path, x: np.ndarray) -> None:
    (folder / "build").mkdir(exist_ok=True)
    (folder / "build" / "input.bin").write_bytes(np.ascontiguousarray(x.transpose(0, 2, 3, 1), np.float32).tobytes())


def _outputs(folder: Path) -> np.ndarray:
    return np.frombuffer((folder / "build" / "output.bin").read_bytes(), np.float32).reshape(-1, 10)


@pytest.fixture(scope="module")
def folder(made, edgescale_once: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("make") / "net"
    edgescale_once("export", made.bundle, "-v", "fashion_small-w8a8", "--layout", "make", "--out", out)
    _feed(out, made.x)
    return out


def test_the_example_answers_as_the_emulated_core_bit_for_bit(folder, made, need, sh, strict: str) -> None:
    need("make", "gcc")
    sh("make", "example", f"CFLAGS={strict}", cwd=folder)
    sh("./host/example", cwd=folder / "build")
    assert np.array_equal(_outputs(folder), made.answers["fashion_small-w8a8"])


def test_a_sample_cut_short_is_an_error(folder, made, need, sh, tmp_path: Path) -> None:
    need("make", "gcc")
    sh("make", "example", cwd=folder)
    for size, code in ((784 * 4, 0), (784 * 4 + 2, 3), (785 * 4, 3), (0, 0)):
        (tmp_path / "input.bin").write_bytes(bytes(size))
        sh(folder / "build" / "host" / "example", cwd=tmp_path, code=code)
        assert (tmp_path / "output.bin").stat().st_size == size // (784 * 4) * 40
    (tmp_path / "input.bin").unlink()
    assert "input.bin" in sh(folder / "build" / "host" / "example", cwd=tmp_path, code=2)


def test_size_shows_the_arena(folder, made, need, sh) -> None:
    need("make", "gcc")
    from edgescale.bundle import open_bundle

    entry = open_bundle(made.bundle).entry("fashion_small-w8a8@cortex-m4-stm32l4r5")
    row = sh("make", "-s", "size", cwd=folder).splitlines()[-1].split()
    assert int(row[2]) == entry.figures["arena"].value  # bss
    assert int(row[0]) > entry.figures["weights"].value  # text


def test_other_flags_mean_another_build(folder, need, sh) -> None:
    need("make", "gcc")
    sh("make", "OPTIMIZE=-Os", cwd=folder)
    assert "gcc" not in sh("make", "OPTIMIZE=-Os", cwd=folder)
    section = "CFLAGS=-DES_ARENA_SECTION_NAME='\".bss.fast\"'"
    assert "-c es_fashion_small_w8a8.c" in sh("make", "OPTIMIZE=-Os", section, cwd=folder)
    assert ".bss.fast" in sh("readelf", "-SW", "build/host/es_fashion_small_w8a8.o", cwd=folder)


def test_the_image_is_linked_for_the_boards_own_memories(folder, need, sh, strict: str) -> None:
    need("make", "arm-none-eabi-gcc")
    sh("make", "image", f"CFLAGS={strict}", cwd=folder)
    symbols = {
        row.split()[2]: int(row.split()[0], 16)
        for row in sh("arm-none-eabi-nm", "build/example.elf", cwd=folder).splitlines()
        if len(row.split()) == 3
    }
    assert 0x0800_0000 <= symbols["Reset_Handler"] < 0x0820_0000
    assert symbols["es_board_stack_top"] == 0x200A_0000
    assert symbols["es_fashion_small_w8a8_arena"] % 8 == 0
    assert symbols["es_board_data_start"] == symbols["es_board_data_end"]  # constants stay in flash
    assert not {"malloc", "memcpy_s", "printf"} & symbols.keys()


@pytest.mark.parametrize("cpu", CORTEX_M)
def test_the_image_answers_alike_on_every_core(cpu: str, source, made, need, sh, tmp_path: Path) -> None:
    need("make", "arm-none-eabi-gcc", "qemu-system-arm")
    folder = _write(LAYOUTS["make"](dataclasses.replace(source, cpu=cpu, target=None)), tmp_path)
    _feed(folder, made.x[:2])
    sh("make", "qemu", cwd=folder, timeout=60)
    assert np.array_equal(_outputs(folder), made.answers["fashion_small-w8a8"][:2])
    assert not (folder / "board" / "link.ld").exists()
    assert "LINKER_SCRIPT=" in sh("make", "image", cwd=folder, code=2)


def test_missing_input_is_told_by_the_core(folder, need, sh, tmp_path: Path) -> None:
    need("make", "arm-none-eabi-gcc", "qemu-system-arm")
    (folder / "build" / "input.bin").rename(tmp_path / "input.bin")
    try:
        assert "input.bin: cannot be opened" in sh("make", "qemu", cwd=folder, code=2, timeout=60)
    finally:
        (tmp_path / "input.bin").rename(folder / "build" / "input.bin")


def test_a_core_without_board_support_still_has_library_and_example(source, made, need, sh, tmp_path: Path) -> None:
    need("make", "gcc")
    folder = _write(LAYOUTS["make"](dataclasses.replace(source, cpu="riscv32", target=None)), tmp_path)
    assert not (folder / "board").exists()
    _feed(folder, made.x)
    sh("make", "example", cwd=folder)
    sh("./host/example", cwd=folder / "build")
    assert np.array_equal(_outputs(folder), made.answers["fashion_small-w8a8"])
