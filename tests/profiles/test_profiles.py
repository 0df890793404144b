"""Every shipped profile: parses, is consistent, and builds with the instructions the part has."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from edgescale.core.errors import UsageError
from edgescale.core.target import Target, load_target, parse_target, profile_names
from edgescale.rigs import RIGS, get_rig, toolchain, toolchain_gcc

NAMES = profile_names()
LINUX = {"host": ("host", "edgescale_onnx"), "host-tvm": ("tvm", "edgescale_tvm")}
LINUX["host-litert"] = ("litert", "edgescale_tflite")
LINUX |= {f"ethos-{name}": ("vela", "edgescale_ethosu") for name in ("u55-128", "u65-256", "u85-256")}
SPAWNED = {"hexagon-sm8650": ("qnn", "edgescale_qnn"), "rockchip-rk3588": ("rknn", "edgescale_rknn")}
LINUX |= SPAWNED
LINUX["aarch64-linux"] = ("tvm-rpc://localhost:9090", "edgescale_tvm")
BOARDS = [name for name in NAMES if name not in LINUX]

# Name -> RAM bytes that are contiguous, flash bytes, MHz, flash wait states: from the parts' reference manuals.
PARTS = {
    "cortex-m0plus": (144 * 1024, 512 * 1024, 64, 2),  # RM0444
    "cortex-m3": (128 * 1024, 1024 * 1024, 120, 3),  # RM0033
    "cortex-m4-stm32l4r5": (640 * 1024, 2048 * 1024, 120, 5),  # RM0432
    "cortex-m7-stm32f746": (320 * 1024, 1024 * 1024, 216, 7),  # RM0385
    "cortex-m33-stm32u575": (768 * 1024, 2048 * 1024, 160, 4),  # RM0456
    "cortex-m55-an547": (512 * 1024, 512 * 1024, 32, 0),  # DAI 0547: DTCM and ITCM
    "esp32-c3": (384 * 1024, 4096 * 1024, 160, 0),  # TRM, system and memory; data sheet of the FH4
}
# Flash and RAM, where they are not an STM32's.
ORIGINS = {"cortex-m55-an547": (0x00000000, 0x20000000), "esp32-c3": (0x42000000, 0x3FC80000)}
QEMU = {"cortex-m55-an547": "qemu:mps3-an547", "esp32-c3": "qemu:virt-riscv32"}


def test_the_shipped_set() -> None:
    assert {*LINUX, *PARTS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_profile_is_consistent(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.title
    if name in LINUX:
        assert (target.rig, *target.backends) == LINUX[name]
        if name in SPAWNED and target.rig not in {entry.name for entry in entry_points(group="edgescale.rigs")}:
            pytest.skip(f"rig {target.rig} is not installed with its entry point: pip install -e '.[dev]' again")
        get_rig(target.rig)
    else:
        assert target.backends == ("edgescale_c",)
        assert target.rig in RIGS
        assert target.rig == QEMU.get(name, f"emulator:{target.core.cpu}")
        assert target.toolchain is not None
    regions = sorted(target.memory.values(), key=lambda r: r.origin)
    for one, two in itertools.pairwise(regions):
        assert one.origin + one.length <= two.origin, "memories must not overlap"
    if target.power is not None:
        assert "Derived" in target.power.origin


@pytest.mark.parametrize("name", BOARDS)
def test_memory_is_the_parts(name: str) -> None:
    target = load_target(name)
    ram, flash, megahertz, wait_states = PARTS[name]
    assert target.memory["ram"].length == ram
    assert target.memory["flash"].length == flash
    assert target.core.clock_hz == megahertz * 1_000_000
    assert target.memory["flash"].wait_states == wait_states
    flash_origin, ram_origin = ORIGINS.get(name, (0x08000000, 0x20000000))
    assert target.memory["flash"].origin == flash_origin
    assert target.memory["ram"].origin == ram_origin


def macros(target: Target, folder: Path) -> set[str]:
    compiler = toolchain.cross_compiler(target)
    (folder / "empty.c").write_text("")
    shown = compiler.run(["-E", "-dM", "empty.c"], "macros", folder)
    return {line.split()[1] for line in shown.splitlines() if line.startswith("#define")}


@pytest.mark.parametrize("name", BOARDS)
def test_the_compiler_uses_what_the_core_has(name: str, tmp_path: Path) -> None:
    """FPU instructions where the profile says there is an FPU; DSP on M4, M7, M33 and M55 only, MVE on M55."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs ziglang: pip install 'edgescale[mcu]'")
    target = load_target(name)
    check_features(target, macros(target, tmp_path))


@pytest.mark.parametrize("name", BOARDS)
def test_gcc_uses_what_the_core_has(name: str, tmp_path: Path) -> None:
    """`compiler = "gcc"` alone means the same core to the other compiler."""
    target = load_target(name)
    assert target.toolchain is not None
    chain = dataclasses.replace(target.toolchain, compiler="gcc")
    if hint := toolchain_gcc.missing(chain):
        pytest.skip(f"needs {hint}")
    check_features(target, macros(dataclasses.replace(target, toolchain=chain), tmp_path))


def check_features(target: Target, found: set[str]) -> None:
    cpu = target.core.cpu
    assert ("__ARM_FP" in found) == target.core.fpu
    assert ("__ARM_FEATURE_DSP" in found) == (cpu in ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"))
    assert ("__ARM_FEATURE_MVE" in found) == (cpu == "cortex-m55")
    assert ("__ARM_FEATURE_IDIV" in found) == (cpu not in ("cortex-m0plus", "rv32imc"))
    assert {"__riscv_mul", "__riscv_compressed"} <= found or cpu != "rv32imc"
    assert not {"__riscv_flen", "__riscv_atomic"} & found


def profile(**changes: str) -> bytes:
    text = Path(__file__).parents[2].joinpath("profiles", "cortex-m3.toml").read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return text.encode()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("wait_states = 3", "wait_cycles = 3", r"\[flash\]: unknown key\(s\) wait_cycles"),
        ("wait_states = 3", 'wait_states = "three"', "wait_states.* wrong type str"),
        ("length = 0x2_0000", "length = 0", "length must be above 0"),
        ("line_bytes = 16", "line_bytes = 12", "power of two"),
        ("line_bytes = 16\n", "", "a cache needs line_bytes"),
        ('flags = ["-O2"]', 'compiler = "tcc"', r"\[toolchain\]: unknown compiler 'tcc'; known: zig, gcc"),
        ("schema = 1", "schema = 9", "schema 9 is not supported"),
        ('cpu = "cortex-m3"\n', "", "missing key 'cpu'"),
    ],
)
def test_wrong_profiles_name_the_key(old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_target(profile(change=(old, new)), "mine.toml")  # type: ignore[arg-type]
