"""GCC as the second compiler: its names for the cores, its images on the emulated cores, its linker's messages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.errors import InfeasibleError, MissingDependencyError, RigError, UsageError
from edgescale.core.target import Target, Toolchain, profile_names
from edgescale.core.variant import Artifact
from edgescale.rigs import get_rig, toolchain, toolchain_gcc
from edgescale.rigs.image import build_image

CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")


@pytest.mark.parametrize(
    ("triple", "mcpu", "flags"),
    [
        ("thumb-freestanding-eabi", "cortex_m0plus", "-mcpu=cortex-m0plus -mthumb -mfloat-abi=soft"),
        (
            "thumb-freestanding-eabihf",
            "cortex_m4+vfp4d16sp-soft_float",
            "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16",
        ),
        (
            "thumb-freestanding-eabi",
            "cortex_m4+vfp4d16sp-soft_float",
            "-mcpu=cortex-m4 -mthumb -mfloat-abi=softfp -mfpu=fpv4-sp-d16",
        ),
        (
            "thumb-freestanding-eabihf",
            "cortex_m7+fp_armv8d16-soft_float",
            "-mcpu=cortex-m7 -mthumb -mfloat-abi=hard -mfpu=fpv5-d16",
        ),
        ("thumb-freestanding-eabi", "cortex_m33-dsp", "-mcpu=cortex-m33+nodsp -mthumb -mfloat-abi=soft"),
        ("riscv32-freestanding-none", "generic_rv32+m+c", "-march=rv32imc -mabi=ilp32"),
        ("riscv32-freestanding-none", "generic_rv32+c+m+a+f", "-march=rv32imafc -mabi=ilp32f"),
    ],
)
def test_names(triple: str, mcpu: str, flags: str) -> None:
    assert " ".join(toolchain_gcc.machine_flags(Toolchain(triple, mcpu))[1]) == flags


@pytest.mark.parametrize(
    ("triple", "mcpu", "message"),
    [
        ("aarch64-linux-gnu", "cortex_a53", "no GCC is known for the triple 'aarch64-linux-gnu'"),
        ("thumb-freestanding-eabi", "cortex_m4+crypto", "feature '\\+crypto' of mcpu"),
        ("riscv32-freestanding-none", "sifive_e31", "generic_rv32"),
    ],
)
def test_what_has_no_counterpart_is_refused(triple: str, mcpu: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toolchain_gcc.machine_flags(Toolchain(triple, mcpu))


def test_without_gcc_the_package_is_named(
    make_target: Callable[..., Target],
    built_with: Callable[[Target, str], Target],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toolchain_gcc.shutil, "which", lambda name: None)
    toolchain_gcc.gcc_version.cache_clear()
    for core, package in (("cortex-m4", "gcc-arm-none-eabi"), ("rv32imc", "gcc-riscv64-unknown-elf")):
        with pytest.raises(MissingDependencyError, match=f"apt-get install {package}"):
            toolchain.cross_compiler(built_with(make_target(core), "gcc"))


def test_every_shipped_microcontroller_has_a_gcc(make_target: Callable[..., Target]) -> None:
    from edgescale.core.target import load_target

    for target in map(load_target, profile_names()):
        if "edgescale_c" in target.backends:
            assert toolchain_gcc.machine_flags(target.toolchain)


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
def test_gccs_code_on_unicorn_equals_numpy(
    core: str,
    tiny: Artifact,
    images: Dataset,
    reference: Callable[[np.ndarray], np.ndarray],
    make_target: Callable[..., Target],
    built_with: Callable[[Target, str], Target],
    need: Callable[..., None],
    emulator: None,
) -> None:
    target = built_with(make_target(core), "gcc")
    need(target.rig, "gcc", target)
    stored = np.random.default_rng(4).integers(-128, 128, (20, 8, 8, 1), np.int8)
    rig = get_rig(target.rig)
    np.testing.assert_array_equal(rig.raw_executor(tiny, target)(stored), reference(stored))
    measured = rig.measure(tiny, target, images.head(1))
    assert measured.environment["compiler"].startswith("arm-none-eabi-gcc ")
    assert f"-mcpu={core}" in measured.environment["compiler"]
    assert "cycles_unknown" not in measured.environment
    other = rig.measure(tiny, make_target(core), images.head(1))
    assert other.environment["image_sha256"] != measured.environment["image_sha256"]
    assert other.environment["output_crc32"] == measured.environment["output_crc32"]


@pytest.mark.parametrize("core", ["cortex-m4", "rv32imc"])
def test_gnu_linkers_messages(
    core: str,
    variation: Callable[..., Artifact],
    make_target: Callable[..., Target],
    built_with: Callable[[Target, str], Target],
    need: Callable[..., None],
) -> None:
    target = built_with(make_target(core, ram={"length": 8192}), "gcc")
    need(target.rig, "gcc", target)
    with pytest.raises(InfeasibleError, match=r"ram \(8,192 B\) overflows by 808 B; the largest part is es_tiny_arena"):
        build_image(variation(("ARENA_BYTES 211", "ARENA_BYTES 9000")), target)
    with pytest.raises(RigError, match=r"(?s)undefined reference to `nowhere'") as caught:
        build_image(variation(("    es_tiny_l000_conv();\n", "    extern void nowhere(void); nowhere();\n")), target)
    assert "collect2" not in str(caught.value)
