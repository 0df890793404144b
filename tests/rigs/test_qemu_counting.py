"""The plug-in's counts against loops counted by hand and against QEMU's own instruction counter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.errors import RigError
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs import get_rig, qemu_model, qemu_observe
from edgescale.rigs.qemu_boards import BOARDS
from edgescale.rigs.qemu_model import Limits, Loaded
from edgescale.rigs.qemu_plugin import interface_version

CORE_OF = {
    "microbit": "cortex-m0plus",
    "mps2-an385": "cortex-m3",
    "mps2-an386": "cortex-m4",
    "mps2-an500": "cortex-m7",
    "mps2-an505": "cortex-m33",
    "mps3-an547": "cortex-m55",
    "virt-riscv32": "rv32imc",
}
RUN_BODY = "    es_tiny_l000_conv();\n    es_tiny_l001_sum();\n"
LIMITS = Limits(None, None, 1_000_000_000)


def assembly(variation: Callable[..., Artifact], *lines: str) -> Artifact:
    """The tiny artifact with its run function replaced by instructions."""
    body = '    __asm volatile("' + "\\n\\t".join(lines) + '");\n'
    return variation(
        ("void es_tiny_run(void)\n{", "__attribute__((naked)) void es_tiny_run(void)\n{"), (RUN_BODY, body)
    )


ARM_LOOP = ("movs r0, #100", "1: subs r0, #1", "bne 1b", "bx lr")
RISCV_LOOP = ("li a0, 100", "1: addi a0, a0, -1", "bnez a0, 1b", "ret")
IT_BLOCK = ("cmp r0, r0", "ite eq", "moveq r1, #1", "movne r1, #2", "bx lr")
LOW_OVERHEAD_LOOP = ("push {r4, lr}", "movs r0, #10", "dls lr, r0", "1: adds r1, #1", "le lr, 1b", "pop {r4, pc}")

# Ten 32-bit elements, four a vector: three rounds, the last one predicated. Needs MVE enabled by the start-up code.
MVE_LOOP = ("push {r4, lr}", "movs r0, #10", "dlstp.32 lr, r0", "1: vadd.i32 q0, q0, q1", "letp lr, 1b", "pop {r4, pc}")


@pytest.mark.parametrize(
    ("board", "lines", "instructions"),
    [
        ("microbit", ARM_LOOP, 1 + 200 + 1),
        ("mps2-an386", ARM_LOOP, 1 + 200 + 1),
        ("mps3-an547", ARM_LOOP, 1 + 200 + 1),
        ("virt-riscv32", RISCV_LOOP, 1 + 200 + 1),
        ("mps2-an505", IT_BLOCK, 5),
        ("mps3-an547", IT_BLOCK, 5),
        ("mps3-an547", LOW_OVERHEAD_LOOP, 3 + 20 + 1),
        ("mps3-an547", MVE_LOOP, 3 + 6 + 1),
    ],
)
def test_programs_counted_by_hand(
    board: str,
    lines: tuple[str, ...],
    instructions: int,
    variation: Callable[..., Artifact],
    images: Dataset,
    make_target: Callable[..., Target],
    need: Callable[..., None],
) -> None:
    need(f"qemu:{board}")
    target = make_target(CORE_OF[board])
    measured = get_rig(f"qemu:{board}").measure(assembly(variation, *lines), target, images.head(2))
    assert measured.metrics["instructions"].value == instructions
    assert measured.metrics["instructions"].source == "emulated"


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS)
def test_counts_equal_qemus_own(
    board: str,
    tiny: Artifact,
    images: Dataset,
    make_target: Callable[..., Target],
    need: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    quantize_input: Callable[[np.ndarray], np.ndarray],
) -> None:
    """minstret or SysTick under -icount, what a QEMU without plug-ins offers, says the same for every run."""
    need(f"qemu:{board}")
    loaded = Loaded(tiny, make_target(CORE_OF[board]), BOARDS[board])
    stored = quantize_input(images.x)
    exact = qemu_observe.observe(loaded, stored, LIMITS)
    monkeypatch.setattr(qemu_model, "plugins_supported", lambda program: False)
    clocked = qemu_observe.observe(loaded, stored, LIMITS)
    assert exact.totals is not None
    assert clocked.totals is not None
    assert exact.layers is not None
    assert clocked.layers is None
    assert "plug-in" in exact.how
    assert "exact; layers unavailable" in clocked.how
    np.testing.assert_array_equal(exact.totals, clocked.totals)
    np.testing.assert_array_equal(exact.outputs, clocked.outputs)
    assert exact.stack == clocked.stack
    with pytest.raises(RigError, match="limits cannot be watched"):
        qemu_observe.observe(loaded, stored, Limits(200, None, LIMITS.instructions))
    with pytest.raises(RigError, match=r"more than the limit of 5"):
        qemu_observe.observe(loaded, stored, Limits(None, None, 5))


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [4_000_000, 60_000_000])
def test_long_runs_without_plug_ins_say_how_exact(
    rounds: int,
    variation: Callable[..., Artifact],
    images: Dataset,
    make_target: Callable[..., Target],
    need: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """8 and 120 million instructions: beyond SysTick's 24 bits at the finest resolution, then at the next."""
    need("qemu:mps2-an386")
    loop = (f"movw r0, #{rounds & 0xFFFF}", f"movt r0, #{rounds >> 16}", *ARM_LOOP[1:])
    program = assembly(variation, *loop)
    monkeypatch.setattr(qemu_model, "plugins_supported", lambda name: False)
    rig, limit = get_rig("qemu:mps2-an386"), 1_000_000_000
    measured = rig.measure(program, make_target("cortex-m4"), images.head(1), instruction_limit=limit)
    figure = measured.metrics["instructions"]
    within = 5 if rounds == 4_000_000 else 40
    assert f"within {within} instructions" in figure.note
    assert abs(figure.value - (2 * rounds + 3)) <= within
    assert all(not layer.metrics for layer in measured.layers)


def test_interface_versions() -> None:
    """QEMU's include/qemu/qemu-plugin.h: version 1 up to 8.2, a minimum of 2 from 9.0 on."""
    assert [interface_version(v) for v in ((4, 2), (7, 2), (8, 2), (9, 0), (10, 1))] == [1, 1, 1, 2, 2]
