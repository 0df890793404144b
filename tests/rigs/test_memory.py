"""Memory figures, limits exact to the byte, and programs that leave their memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.errors import InfeasibleError, RigError, UsageError
from edgescale.core.measurement import Measurement
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs import get_rig
from edgescale.rigs.image import build_image

RUN_BODY = "    es_tiny_l000_conv();\n    es_tiny_l001_sum();\n"
UNALIGNED = '__asm volatile("ldr r0, [%0]" : : "l"(es_tiny_arena + 1) : "r0");'
FIRST_LAYER = "    int8_t *out = (int8_t *)es_tiny_arena;\n    for (int y"


@pytest.fixture
def measure(images: Dataset, emulator: None) -> Callable[..., Measurement]:
    def run(artifact: Artifact, target: Target, **options: Any) -> Measurement:
        return get_rig(target.rig).measure(artifact, target, images.head(2), **options)

    return run


def test_figures_come_from_the_image(
    tiny: Artifact, make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    target = make_target("cortex-m4")
    figures = measure(tiny, target).metrics
    image = build_image(tiny, target)
    sections = {s.name: s.size for s in image.elf.sections}
    assert figures["arena"].value == 211
    assert figures["flash"].value == sections[".text"] + sections[".rodata"] + sections.get(".data", 0)
    # The file's loadable bytes are the same, counted another way.
    assert figures["flash"].value == sum(len(data) for _, data in image.elf.segments)
    assert figures["ram"].value == sections[".bss"] + sections.get(".data", 0) + figures["stack"].value
    assert figures["weights"].value == 4 * 9 + 4 * 4 + 3


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4"])
def test_exactly_the_reported_memory_is_enough(
    core: str, tiny: Artifact, make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    target = make_target(core)
    figures = measure(tiny, target).metrics
    arena, stack = int(figures["arena"].value), int(figures["stack"].value)
    assert measure(tiny, target, arena_limit=arena, stack_limit=stack).metrics["stack"].value == stack
    with pytest.raises(RigError, match=rf"arena limit of {arena - 1:,} B is too small by 1 B.*layer 'classifier'"):
        measure(tiny, target, arena_limit=arena - 1)
    with pytest.raises(RigError, match=rf"arena limit of {arena - 4:,} B is too small by 4 B"):
        measure(tiny, target, arena_limit=arena - 4)
    with pytest.raises(RigError, match=rf"stack limit of {stack - 4:,} B is too small by 4 B"):
        measure(tiny, target, stack_limit=stack - 4)


def test_limits_are_checked(
    tiny: Artifact, make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    with pytest.raises(UsageError, match="arena_limit must be a whole number"):
        measure(tiny, make_target("cortex-m4"), arena_limit=-4)
    with pytest.raises(UsageError, match="no option speed"):
        measure(tiny, make_target("cortex-m4"), speed=3)


def test_flash_overflow_names_region_excess_and_culprit(
    variation: Callable[..., Artifact], make_target: Callable[..., Target], emulator: None
) -> None:
    big = variation(
        ("static const int32_t bias0[4]", "const int8_t ballast[5000] = {1};\nstatic const int32_t bias0[4]"),
        (
            "es_tiny_l000_conv();\n    es",
            "es_tiny_l000_conv();\n    *es_tiny_input() = ballast[es_tiny_arena[0]];\n    es",
        ),
    )
    small = make_target("cortex-m4", flash={"length": 4096})
    with pytest.raises(
        InfeasibleError, match=r"flash \(4,096 B\) overflows by [\d,]+ B; the largest part is ballast \(5,000 B\)"
    ):
        build_image(big, small)


def test_ram_overflow_names_the_arena(
    variation: Callable[..., Artifact], make_target: Callable[..., Target], emulator: None
) -> None:
    big = variation(("ARENA_BYTES 211", "ARENA_BYTES 9000"))
    with pytest.raises(InfeasibleError, match=r"ram \(8,192 B\) overflows by 808 B; the largest part is es_tiny_arena"):
        build_image(big, make_target("cortex-m4", ram={"length": 8192}))


def test_a_compiler_error_is_shown(
    variation: Callable[..., Artifact], make_target: Callable[..., Target], emulator: None
) -> None:
    broken = variation(("int32_t sum = bias0[o];", "int32_t sum = bias_of(o);"))
    with pytest.raises(RigError, match=r"(?s)tiny-w8a8 for cortex-m4.*bias_of") as caught:
        build_image(broken, make_target("cortex-m4"))
    assert len(str(caught.value).splitlines()) < 10


@pytest.mark.parametrize(
    ("core", "statement", "message"),
    [
        ("cortex-m4", "*(volatile int *)0x40000000 = 1;", r"[Ii]nvalid memory write.*PC 0x08.*layer 'features/conv'"),
        ("cortex-m4", "(void)*(volatile int *)0x10;", r"[Ii]nvalid memory read"),
        ("cortex-m4", "*(volatile int8_t *)weights0 = 1;", r"[Ww]rite to write-protected memory"),
        ("cortex-m4", '__asm volatile("udf #0");', r"PC 0x08.*layer 'features/conv'"),
        ("cortex-m0plus", UNALIGNED, r"unaligned 4-byte access to 0x20000001, a HardFault"),
    ],
)  # fmt: skip
def test_bad_accesses_are_located(
    core: str,
    statement: str,
    message: str,
    variation: Callable[..., Artifact],
    make_target: Callable[..., Target],
    measure: Callable[..., Measurement],
) -> None:
    bad = variation((FIRST_LAYER, FIRST_LAYER.replace("    for", f"    {statement}\n    for")))
    with pytest.raises(RigError, match=message):
        measure(bad, make_target(core))


def test_a_runaway_program_is_stopped(
    variation: Callable[..., Artifact], make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    endless = variation((RUN_BODY, '    for (;;) { __asm volatile("nop"); }\n'))
    with pytest.raises(RigError, match=r"did not end within 10,000 instructions.*es_tiny_run"):
        measure(endless, make_target("cortex-m4"), instruction_limit=10_000)


def test_stack_overflow_is_noticed(
    variation: Callable[..., Artifact], make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    """4 KiB of RAM, and a frame that fills it."""
    deep = variation(
        (RUN_BODY, "    volatile uint8_t frame[3900];\n    for (int i = 0; i < 3900; ++i) frame[i] = 1;\n")
    )
    with pytest.raises(RigError, match=r"stack overflows on cortex-m4.* leave 3,880 B"):
        measure(deep, make_target("cortex-m4", ram={"length": 4096}))


def test_energy_is_power_times_latency_or_unavailable(
    tiny: Artifact, make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    target = make_target("cortex-m4")
    assert target.power is not None
    measured = measure(tiny, target)
    latency_s = measured.metrics["latency"].value / 1e3
    assert measured.metrics["energy"].value == pytest.approx(latency_s * target.power.active_mw * 1e3)  # uJ
    without = measure(tiny, dataclasses.replace(target, power=None))
    assert "energy" not in without.metrics
    assert "no [power] table" in without.unavailable["energy"]


def test_environment_tells_how(
    tiny: Artifact, make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    measured = measure(tiny, make_target("cortex-m4"))
    assert measured.artifact_sha256 == tiny.sha256
    for key in ("compiler", "flags", "emulator", "image_sha256", "input_crc32", "cycle_table", "flash_model"):
        assert measured.environment[key]
    assert "unicorn 2" in measured.environment["emulator"]
    assert measured == measure(tiny, make_target("cortex-m4")), "emulation is repeatable"


def test_a_rig_refuses_another_core(tiny: Artifact, make_target: Callable[..., Target], emulator: None) -> None:
    with pytest.raises(UsageError, match=r"has a cortex-m3, the rig emulator:cortex-m4 emulates cortex-m4"):
        get_rig("emulator:cortex-m4").executor(tiny, make_target("cortex-m3"))
