"""Instruction counts against unicorn's per-instruction hook and against loops counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.measurement import Measurement
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs import get_rig
from edgescale.rigs.image import build_image

CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
NO_WAIT = {"wait_states": 0, "line_bytes": 0, "instruction_cache": 0, "data_cache": 0}
RUN_BODY = "    es_tiny_l000_conv();\n    es_tiny_l001_sum();\n"


def measure(artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
    return get_rig(target.rig).measure(artifact, target, samples, **options)


def count_by_hook(artifact: Artifact, target: Target, stored: np.ndarray[Any, Any]) -> tuple[int, list[int]]:
    """Run the image in a plain unicorn with a hook on every instruction: (total, per layer).

    The hook does not see instructions of an IT block whose condition fails; they are added from the IT.
    """
    import unicorn
    import unicorn.arm_const as arm

    elf = build_image(artifact, target).elf
    model = {"cortex-m0plus": "M0", "cortex-m3": "M3", "cortex-m4": "M4", "cortex-m7": "M7", "cortex-m33": "M33"}
    engine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
    engine.ctl_set_cpu_model(getattr(arm, f"UC_CPU_ARM_CORTEX_{model[target.core.cpu]}"))
    for region in target.memory.values():
        engine.mem_map(region.origin, region.length)
    engine.mem_map(0xE000E000, 4096)
    for address, data in elf.segments:
        engine.mem_write(address, data)
    run = elf.address("es_tiny_run")
    vectors = np.frombuffer(bytes(engine.mem_read(target.memory["flash"].origin, 8)), "<u4")
    engine.reg_write(arm.UC_ARM_REG_SP, int(vectors[0]))
    engine.emu_start(int(vectors[1]) | 1, run)
    engine.mem_write(elf.address("es_tiny_arena") + 144, stored.tobytes())
    until = engine.reg_read(arm.UC_ARM_REG_LR) & ~1
    layers = [elf.find(layer["symbol"]) for layer in artifact.meta["layers"]]
    outside = elf.find("es_tiny_run")
    counts, current = [0] * (len(layers) + 1), 0
    slots: set[int] = set()  # addresses in the IT block that runs, counted when it began

    def halfword(address: int) -> int:
        return int.from_bytes(bytes(engine.mem_read(address, 2)), "little")

    def hook(_engine: Any, address: int, _size: int, _data: Any) -> None:
        nonlocal current
        for number, symbol in enumerate([outside, *layers]):
            if symbol is not None and symbol.address <= address < symbol.end:
                current = number
        if address in slots:
            slots.discard(address)
            return
        slots.clear()
        counts[current] += 1
        code = halfword(address)
        if code & 0xFF00 == 0xBF00 and code & 0xF:  # IT: the hook skips slots whose condition fails
            number_of_slots = 4 - ((code & -code).bit_length() - 1)
            counts[current] += number_of_slots
            place = address + 2
            for _ in range(number_of_slots):
                slots.add(place)
                place += 4 if halfword(place) >= 0xE800 else 2

    engine.hook_add(unicorn.UC_HOOK_CODE, hook)
    engine.emu_start(run | 1, until)
    return sum(counts), counts[1:]


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
def test_counts_equal_the_per_instruction_hook(
    core: str,
    tiny: Artifact,
    images: Dataset,
    quantize_input: Callable[..., Any],
    make_target: Callable[..., Target],
    emulator: None,
) -> None:
    target = make_target(core)
    total, layers = count_by_hook(tiny, target, quantize_input(images.x)[0])
    measured = measure(tiny, target, images.head(1))
    assert measured.metrics["instructions"].value == total
    assert measured.metrics["instructions"].source == "emulated"
    assert [layer.metrics["instructions"].value for layer in measured.layers] == layers
    assert [layer.name for layer in measured.layers] == ["features/conv", "classifier"]


def assembly(variation: Callable[..., Artifact], text: str) -> Artifact:
    """The tiny artifact with its run function replaced by instructions."""
    body = '    __asm volatile("' + "\\n\\t".join(line.strip() for line in text.strip().splitlines()) + '");\n'
    return variation(
        ("void es_tiny_run(void)\n{", "__attribute__((naked)) void es_tiny_run(void)\n{"), (RUN_BODY, body)
    )


LOOP = """
    movs r0, #100
    1: subs r0, #1
    bne 1b
    bx lr
"""


@pytest.mark.parametrize(
    ("core", "cycles"),
    [
        # MOVS 1, 100 x SUBS 1, 99 taken BNE and one untaken, BX. M0+: taken 2, BX 2. M4 and M3: 1 + P, P = 2.
        ("cortex-m0plus", 1 + 100 + 99 * 2 + 1 + 2),
        ("cortex-m3", 1 + 100 + 99 * 3 + 1 + 3),
        ("cortex-m4", 1 + 100 + 99 * 3 + 1 + 3),
    ],
)
def test_a_loop_counted_by_hand(
    core: str,
    cycles: int,
    variation: Callable[..., Artifact],
    images: Dataset,
    make_target: Callable[..., Target],
    emulator: None,
) -> None:
    figures = measure(assembly(variation, LOOP), make_target(core, flash=NO_WAIT), images.head(1)).metrics
    assert figures["instructions"].value == 1 + 200 + 1
    assert figures["cycles"].value == cycles
    assert figures["latency"].value == pytest.approx(cycles / make_target(core).core.clock_hz * 1e3)
    assert figures["latency"].source == figures["cycles"].source == "modelled"


def test_conditional_instructions_count_as_slots(
    variation: Callable[..., Artifact], images: Dataset, make_target: Callable[..., Target], emulator: None
) -> None:
    """CMP, ITE, MOVEQ, MOVNE, BX: five, though one MOV does nothing. ITE folds after 16-bit CMP: 1+0+1+1+(1+2)."""
    program = assembly(variation, "cmp r0, r0\nite eq\nmoveq r1, #1\nmovne r1, #2\nbx lr")
    figures = measure(program, make_target("cortex-m4", flash=NO_WAIT), images.head(1)).metrics
    assert figures["instructions"].value == 5
    assert figures["cycles"].value == 6


@pytest.mark.parametrize("core", ["cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33"])
def test_a_constant_read_in_an_it_block_does_not_change_the_program(
    core: str,
    variation: Callable[..., Artifact],
    images: Dataset,
    make_target: Callable[..., Target],
    emulator: None,
) -> None:
    """LDREQ from flash, then EQ no longer holds: what follows in the next block runs whatever the IT block said.

    The loop below counts r3 up ten times; were it skipped, the program would not end.
    """
    lines = ("movs r3, #0", "ldr r2, =0x08000000", "1: cmp r0, r0", "it eq", "ldreq r1, [r2]", "cmp r3, #200", "b 2f")
    more = ("2: adds r3, #1", "cmp r3, #10", "bne 1b", "bx lr", ".ltorg")
    program = assembly(variation, "\n".join((*lines, *more)))
    figures = measure(program, make_target(core), images.head(1), instruction_limit=10_000).metrics
    assert figures["instructions"].value == 2 + 10 * 8 + 1


def test_flash_wait_states_slow_jumps_and_constants(
    variation: Callable[..., Artifact], images: Dataset, make_target: Callable[..., Target], emulator: None
) -> None:
    """Uncached flash, one line: every taken branch back to another line waits; with a cache only the first does."""
    far = "movs r0, #50\n1: subs r0, #1\n" + "nop\n" * 20 + "cmp r0, #0\nbne 1b\nbx lr"
    program = assembly(variation, far)
    base = {"wait_states": 5, "line_bytes": 16}
    none = measure(program, make_target("cortex-m4", flash={**NO_WAIT}), images.head(1)).metrics["cycles"].value
    bare = (
        measure(
            program, make_target("cortex-m4", flash={**base, "instruction_cache": 0, "data_cache": 0}), images.head(1)
        )
        .metrics["cycles"]
        .value
    )
    cached = (
        measure(
            program,
            make_target("cortex-m4", flash={**base, "instruction_cache": 1024, "data_cache": 0}),
            images.head(1),
        )
        .metrics["cycles"]
        .value
    )
    assert bare >= none + 49 * 5
    assert none < cached <= none + 5 * 5


def test_constants_in_flash_wait(
    variation: Callable[..., Artifact], images: Dataset, make_target: Callable[..., Target], emulator: None
) -> None:
    """Reading 16 words of flash, each in its own 4-byte line: 16 more waits than reading RAM."""
    walk = "ldr r0, =0x{base:08x}\nmovs r1, #16\n1: ldr r2, [r0]\nadds r0, #4\nsubs r1, #1\nbne 1b\nbx lr\n.ltorg"
    flash = {"wait_states": 3, "line_bytes": 4, "instruction_cache": 4096, "data_cache": 0}
    target = make_target("cortex-m4", flash=flash)
    cycles = {}
    for name, base in (("flash", 0x08001000), ("ram", 0x20001000)):
        program = assembly(variation, walk.format(base=base))
        cycles[name] = measure(program, target, images.head(1)).metrics["cycles"].value
    assert cycles["flash"] - cycles["ram"] == 16 * 3
