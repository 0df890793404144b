"""Cycle tables against sequences worked out by hand from the reference manuals' own examples."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.core.target import MemoryRegion
from edgescale.rigs.cycle_tables import TABLES
from edgescale.rigs.cycles import block_cost, tally
from edgescale.rigs.decode import GROUPS, decode, group_of
from edgescale.rigs.probe import RECORD

pytest.importorskip("capstone", reason="needs capstone: pip install 'edgescale[mcu]'")


def code(*words: int) -> bytes:
    """Thumb code from halfwords; a 32-bit instruction is given as its two halfwords in order."""
    return b"".join(word.to_bytes(2, "little") for word in words)


LDR_R0_R1 = 0x6808
LDR_R2_R3 = 0x681A
LDR_R2_R0 = 0x6802
LDR_R0_R1_R2 = 0x5888
STR_R0_R3_20 = 0x6158
STR_R1_R3_R2 = 0x5099
LDM_R0_3 = 0xC80E
PUSH_R4_R7_LR = 0xB5F0
POP_R4_R7_PC = 0xBDF0
MULS = 0x4348
SMULL = (0xFB82, 0x0103)
MLA = (0xFB01, 0x2003)
SMLAD = (0xFB21, 0x2003)
SDIV = (0xFB91, 0xF0F2)
BX_LR = 0x4770
B_BACK = 0xE7FE
BNE_BACK = 0xD1FD
BL = (0xF7FF, 0xFFFE)
VADD = (0xEE30, 0x0A20)
VFMA = (0xEEA0, 0x0A20)
ADDS_R0_R1 = 0x1840


@pytest.mark.parametrize("core", ["cortex-m3", "cortex-m4"])
@pytest.mark.parametrize(
    ("words", "cycles", "why"),
    [
        ((LDR_R0_R1,), 2, "a load alone"),
        ((LDR_R0_R1, LDR_R2_R3), 3, "TRM 3.3.2: normally three cycles total"),
        ((LDR_R0_R1, LDR_R2_R0), 4, "the second needs the first's result as its address"),
        ((LDR_R0_R1_R2, STR_R0_R3_20), 3, "TRM 3.3.2: LDR R0,[R1,R2]; STR R0,[R3,#20]"),
        ((LDR_R0_R1_R2, STR_R1_R3_R2), 3, "TRM 3.3.2: LDR R0,[R1,R2]; STR R1,[R3,R2]"),
        ((LDR_R0_R1, LDR_R2_R3, LDR_R0_R1_R2), 5, "the third's address needs R2: 2 + 1 + 2"),
        ((STR_R0_R3_20,), 1, "TRM 3.3.2: STR Rx,[Ry,#imm] is always one cycle"),
        ((LDM_R0_3,), 4, "1 + N"),
        ((PUSH_R4_R7_LR,), 6, "1 + N"),
    ],
)
def test_loads_and_stores(core: str, words: tuple[int, ...], cycles: int, why: str) -> None:
    assert block_cost(TABLES[core], decode(code(*words), 0)).cycles == cycles, why


@pytest.mark.parametrize(
    ("core", "words", "cycles", "taken"),
    [
        ("cortex-m3", MLA, 2, 0),
        ("cortex-m4", MLA, 1, 0),
        ("cortex-m4", SMULL, 1, 0),
        ("cortex-m3", SMULL, 4, 0),
        ("cortex-m4", SMLAD, 1, 0),
        ("cortex-m4", SDIV, 7, 0),
        ("cortex-m4", VADD, 1, 0),
        ("cortex-m4", VFMA, 3, 0),
        ("cortex-m4", (BNE_BACK,), 1, 2),
        ("cortex-m4", (BX_LR,), 1, 2),
        ("cortex-m4", (POP_R4_R7_PC,), 6, 2),  # 1 + N + P
        ("cortex-m0plus", (LDR_R0_R1,), 2, 0),
        ("cortex-m0plus", (MULS,), 1, 0),
        ("cortex-m0plus", (BNE_BACK,), 1, 1),  # 2 taken
        ("cortex-m0plus", BL, 1, 2),  # 3
        ("cortex-m0plus", (POP_R4_R7_PC,), 6, 2),  # 3 + N
        ("cortex-m0", (B_BACK,), 1, 2),  # 3 taken
        ("cortex-m0", BL, 1, 3),  # 4
        ("cortex-m0", (POP_R4_R7_PC,), 6, 3),  # 4 + N
        ("cortex-m0", (LDR_R0_R1, LDR_R2_R3), 4, 0),  # no pipelining
    ],
)
def test_single_costs(core: str, words: tuple[int, ...], cycles: int, taken: int) -> None:
    cost = block_cost(TABLES[core], decode(code(*words), 0))
    assert (cost.cycles, cost.taken) == (cycles, taken)
    assert not cost.unknown


def test_dual_issue_pairs_only_independent_instructions() -> None:
    table = TABLES["cortex-m7"]
    independent = [0x3001, 0x3101, 0x3201, 0x3301]  # ADDS R0..R3, #1
    chain = [0x3001] * 4
    # Flags are renamed, so only registers matter: two pairs against four in a row.
    assert block_cost(table, decode(code(*independent), 0)).cycles == 2
    assert block_cost(table, decode(code(*chain), 0)).cycles == 4
    # A loaded value is there two cycles later: LDR, wait, ADDS.
    assert block_cost(table, decode(code(LDR_R0_R1, ADDS_R0_R1), 0)).cycles == 3


def test_every_group_has_a_row_or_does_not_exist_on_the_core() -> None:
    armv6m = {"alu", "multiply", "load", "store", "load_multiple", "store_multiple", "branch", "branch_link"}
    for name, table in TABLES.items():
        assert set(table.costs) <= set(GROUPS), name
        assert armv6m <= set(table.costs), name
        assert all(cost.where for cost in table.costs.values()), "every figure names its source"
        assert table.document
    full = set(GROUPS) - {"unknown"}
    assert full - set(TABLES["cortex-m4"].costs) == set()
    assert full - set(TABLES["cortex-m7"].costs) == set()


def test_mnemonics_with_suffixes() -> None:
    assert group_of("ldrb.w") == "load"
    assert group_of("addseq") == "alu"
    assert group_of("bne") == "branch"
    assert group_of("bls") == "branch"
    assert group_of("bl") == "branch_link"
    assert group_of("vadd.f32") == "fp_alu"
    assert group_of("ldmia") == "load_multiple"
    assert group_of("muls") == "multiply"
    assert group_of("vpmax") == "unknown"


def test_unknown_instructions_are_counted_and_named() -> None:
    block = decode(code(LDR_R0_R1, 0xFFFF, 0xFFFF, LDR_R2_R3), 0)
    cost = block_cost(TABLES["cortex-m4"], block)
    assert cost.instructions == 3
    assert cost.unknown == ("?",)


def test_tally_adds_blocks_jumps_and_waits() -> None:
    """One block of two loads entered 10 times by layer 0, left 9 times by a jump; 4 late lines of 3 waits."""
    program = code(LDR_R0_R1, LDR_R2_R3, BNE_BACK)
    records = np.zeros(1, RECORD)
    records["address"], records["size"], records["layer"] = 0x100, 6, 1
    records["entries"], records["taken"], records["jump_misses"], records["data_misses"] = 10, 9, 3, 1
    flash = MemoryRegion("flash", 0, 4096, wait_states=3, line_bytes=8)
    result = tally(records, 2, TABLES["cortex-m4"], flash, lambda address, size: program)
    assert result.instructions.tolist() == [0, 30, 0]
    assert result.cycles.tolist() == [0, 10 * (3 + 1) + 9 * 2 + 4 * 3, 0]
    assert result.flash_stalls.tolist() == [0, 12, 0]
    # A refill takes 1 to 3 cycles, and flash need not make the core wait.
    assert result.bounds == (10 * (3 + 1) + 9 * 1, 10 * (3 + 1) + 9 * 3 + 4 * 3)
