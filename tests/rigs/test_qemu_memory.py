"""On QEMU boards: limits exact to the byte, the part's memories not the board's, traps located, runaways ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.errors import InfeasibleError, MissingDependencyError, RigError, UsageError
from edgescale.core.measurement import Measurement
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs import get_rig, qemu_model, qemu_run

RUN_BODY = "    es_tiny_l000_conv();\n    es_tiny_l001_sum();\n"
FIRST_LAYER = "    int8_t *out = (int8_t *)es_tiny_arena;\n    for (int y"
BOARD_OF = {
    "cortex-m0plus": "microbit",
    "cortex-m3": "mps2-an385",
    "cortex-m4": "mps2-an386",
    "cortex-m55": "mps3-an547",
    "rv32imc": "virt-riscv32",
}
UNALIGNED = '__asm volatile("ldr r0, [%0]" : : "l"(es_tiny_arena + 1) : "r0");'
MVE_FREE_TRAP = '__asm volatile("udf #0");'


@pytest.fixture
def measure(images: Dataset, need: Callable[..., None]) -> Callable[..., Measurement]:
    def run(artifact: Artifact, target: Target, **options: Any) -> Measurement:
        rig = f"qemu:{BOARD_OF[target.core.cpu]}"
        need(rig)
        return get_rig(rig).measure(artifact, target, images.head(2), **options)

    return run


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", "cortex-m55", "rv32imc"])
def test_exactly_the_reported_memory_is_enough(
    core: str, tiny: Artifact, make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    target = make_target(core)
    figures = measure(tiny, target).metrics
    arena, stack = int(figures["arena"].value), int(figures["stack"].value)
    assert arena == 211
    assert measure(tiny, target, arena_limit=arena, stack_limit=stack).metrics["stack"].value == stack
    with pytest.raises(RigError, match=rf"arena limit of {arena - 1:,} B is too small by 1 B.*layer 'classifier'"):
        measure(tiny, target, arena_limit=arena - 1)
    with pytest.raises(RigError, match=rf"arena limit of {arena - 4:,} B is too small by 4 B"):
        measure(tiny, target, arena_limit=arena - 4)
    with pytest.raises(RigError, match=rf"stack limit of {stack - 4:,} B is too small by [1-4] B"):
        measure(tiny, target, stack_limit=stack - 4)


@pytest.mark.parametrize(
    ("core", "statement", "message"),
    [
        ("cortex-m4", "*(volatile int *)0x40000000 = 1;", r"memory write at 0x40000000: the part has no memory there"),
        ("cortex-m4", "(void)*(volatile int *)0x200A0000;", r"memory read at 0x200A0000.*PC 0x.*layer 'features/conv'"),
        ("cortex-m4", "*(volatile int8_t *)weights0 = 1;", r"Write to write-protected memory.*layer 'features/conv'"),
        ("cortex-m4", MVE_FREE_TRAP, r"undefined instruction.*PC 0x.*\(es_tiny_l000_conv\), layer 'features/conv'"),
        ("cortex-m55", MVE_FREE_TRAP, r"undefined instruction.*layer 'features/conv'"),
        ("cortex-m0plus", UNALIGNED, r"HardFault at PC 0x.*layer 'features/conv'"),
        ("rv32imc", '__asm volatile("unimp");', r"illegal instruction.*layer 'features/conv'"),
        ("rv32imc", '__asm volatile(".word 0x00c5a02f");', r"illegal instruction"),  # amoadd.w: not in RV32IMC
        ("rv32imc", "*(volatile int8_t *)weights0 = 1;", r"Write to write-protected memory.*layer 'features/conv'"),
    ],
)  # fmt: skip
def test_bad_programs_are_located(
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


@pytest.mark.parametrize(
    ("core", "message"),
    [("cortex-m4", r"HardFault \(bus error\) at 0x50000000.*layer"), ("rv32imc", r"load access fault at 0x08000000")],
)
def test_traps_without_a_watch_name_the_address(
    core: str,
    message: str,
    variation: Callable[..., Artifact],
    make_target: Callable[..., Target],
    need: Callable[..., None],
) -> None:
    """Executors watch nothing; what the core traps on is still told."""
    need(rig := f"qemu:{BOARD_OF[core]}")
    address = "0x50000000" if core == "cortex-m4" else "0x08000000"
    statement = f"(void)*(volatile int *)({address});"
    bad = variation((FIRST_LAYER, FIRST_LAYER.replace("    for", f"    {statement}\n    for")))
    with pytest.raises(RigError, match=message):
        get_rig(rig).raw_executor(bad, make_target(core))(np.zeros((1, 8, 8, 1), np.int8))


@pytest.mark.parametrize("core", ["cortex-m4", "rv32imc"])
def test_a_runaway_program_is_stopped(
    core: str,
    variation: Callable[..., Artifact],
    make_target: Callable[..., Target],
    measure: Callable[..., Measurement],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless = variation((RUN_BODY, '    for (;;) { __asm volatile("nop"); }\n'))
    with pytest.raises(RigError, match=r"did not end within 10,000 instructions.*es_tiny_run"):
        measure(endless, make_target(core), instruction_limit=10_000)
    monkeypatch.setattr(qemu_model, "plugins_supported", lambda program: False)
    monkeypatch.setattr(qemu_model, "TIMEOUT_S", 0.5)
    with pytest.raises(RigError, match=r"did not finish within 0.5 s"):
        measure(endless, make_target(core))


def test_stack_overflow_is_noticed(
    variation: Callable[..., Artifact], make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    deep = variation(
        (RUN_BODY, "    volatile uint8_t frame[3900];\n    for (int i = 0; i < 3900; ++i) frame[i] = 1;\n")
    )
    with pytest.raises(RigError, match=r"stack overflows on cortex-m4.* leave 3,880 B"):
        measure(deep, make_target("cortex-m4", ram={"length": 4096}))


def test_what_does_not_fit(
    variation: Callable[..., Artifact], make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    """The part's limits hold on a larger board; a board smaller than the part is told apart from them."""
    big = variation(("ARENA_BYTES 211", "ARENA_BYTES 20000"))
    with pytest.raises(
        InfeasibleError, match=r"ram \(8,192 B\) overflows by [\d,]+ B; the largest part is es_tiny_arena"
    ):
        measure(big, make_target("rv32imc", ram={"length": 8192}))
    with pytest.raises(RigError, match=r"fits the part, but not QEMU's board microbit.*ram \(15,360 B\) overflows"):
        measure(big, make_target("cortex-m0plus"))


def test_state_stays_between_samples_of_one_call(
    variation: Callable[..., Artifact], make_target: Callable[..., Target], need: Callable[..., None]
) -> None:
    """Static data keeps its value from sample to sample, as on a device, and starts from its initial value."""
    need("qemu:mps2-an386")
    counting = variation(
        ("static ES_NOINLINE int8_t saturate", "static int8_t calls = 40;\nstatic ES_NOINLINE int8_t saturate"),
        (RUN_BODY, "    ((int8_t *)es_tiny_arena)[208] = ++calls;\n"),
    )
    executor = get_rig("qemu:mps2-an386").raw_executor(counting, make_target("cortex-m4"))
    for _again in range(2):
        assert executor(np.zeros((3, 8, 8, 1), np.int8))[:, 0].tolist() == [41, 42, 43]


@pytest.mark.parametrize("rig", ["emulator:cortex-m4", "qemu:mps2-an386", "qemu:virt-riscv32"])
def test_a_model_with_state_continues_its_stream(
    rig: str, variation: Callable[..., Artifact], make_target: Callable[..., Target], need: Callable[..., None]
) -> None:
    """Reset once before the first sample of an executor; later calls continue, another executor starts anew."""
    need(rig)
    counting = variation(
        (
            "void es_tiny_run(void)\n{",
            "void es_tiny_reset(void) { es_tiny_arena[0] = 40; }\n\nvoid es_tiny_run(void)\n{",
        ),
        (RUN_BODY, "    es_tiny_arena[208] = ++es_tiny_arena[0];\n"),
        ('"header":', '"reset": "es_tiny_reset", "header":'),
    )
    target = make_target("rv32imc" if "riscv" in rig else "cortex-m4")
    samples = np.zeros((3, 8, 8, 1), np.int8)
    executor = get_rig(rig).raw_executor(counting, target)
    assert executor(samples)[:, 0].tolist() == [41, 42, 43]
    assert executor(samples)[:, 0].tolist() == [44, 45, 46]
    assert get_rig(rig).raw_executor(counting, target)(samples)[:, 0].tolist() == [41, 42, 43]


def test_environment_and_options(
    tiny: Artifact, make_target: Callable[..., Target], measure: Callable[..., Measurement]
) -> None:
    target = make_target("cortex-m55")
    measured = measure(tiny, target)
    assert measured == measure(tiny, target), "emulation is repeatable"
    assert measured.environment["emulator"].startswith("QEMU ")
    assert "emulator:" not in measured.unavailable["latency"]
    assert "emulator:cortex-m4 has a cycle model" in measure(tiny, make_target("cortex-m4")).unavailable["latency"]
    assert set(measured.unavailable) == {"latency", "cycles", "energy"}
    with pytest.raises(UsageError, match="no option speed"):
        measure(tiny, target, speed=3)
    with pytest.raises(UsageError, match=r"has a cortex-m55, the rig qemu:mps2-an386 emulates cortex-m4"):
        get_rig("qemu:mps2-an386").executor(tiny, target)


def test_without_qemu_the_package_is_named(
    tiny: Artifact, make_target: Callable[..., Target], monkeypatch: pytest.MonkeyPatch, emulator: None
) -> None:
    monkeypatch.setattr(qemu_run.shutil, "which", lambda name: None)
    qemu_run.qemu_version.cache_clear()
    qemu_run.plugins_supported.cache_clear()
    for name, package in (("qemu:mps3-an547", "qemu-system-arm"), ("qemu:virt-riscv32", "qemu-system-misc")):
        assert get_rig(name).missing() == f"apt-get install {package}"
    with pytest.raises(MissingDependencyError, match="apt-get install qemu-system-arm"):
        get_rig("qemu:mps3-an547").raw_executor(tiny, make_target("cortex-m55"))(np.zeros((1, 8, 8, 1), np.int8))
