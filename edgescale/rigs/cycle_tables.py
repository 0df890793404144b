"""What instructions cost on each Cortex-M, as data: cycles at zero wait states, with the source of each figure.

Cortex-M0, M0+, M3 and M4 figures are Arm's own. Arm publishes none for M7 and M33; their rows say what
they are taken from, and figures made with them are labelled approximate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """cycles + per_register * N registers, and `taken` more when it leaves the block by a jump.

    `latency` is when the result can be used, counted from issue, on cores that issue two at a time.
    """

    cycles: int
    where: str
    per_register: int = 0
    taken: int = 0
    latency: int = 1


@dataclass(frozen=True)
class CycleTable:
    """One core's costs. Groups are those of `decode.GROUPS`; a group without a row does not exist on the core."""

    core: str
    document: str
    costs: Mapping[str, Cost]
    assumptions: tuple[str, ...]
    approximate: bool = False
    wide_target: int = 0
    """Added to a taken branch whose target is a 32-bit instruction that straddles two words."""
    pipelined_loads: bool = False
    folded_it: bool = False
    dual_issue: bool = False
    refill: tuple[int, int] = (0, 0)
    """By how much the cost of a jump may be smaller and larger than `Cost.taken`, where the manual gives a range."""
    mispredict: int | None = None
    """Cycles lost per wrong guess of a branch predictor; None where a core has none."""


_T = "Table 3-1"  # every TRM cited here keeps its instruction timing in its Table 3-1


def _integer(mul: int, where: str) -> dict[str, Cost]:
    return {
        "alu": Cost(1, where),
        "multiply": Cost(mul, where),
        "nop": Cost(1, where),
    }


def _armv6m(document: str, branch: int, link: int, register: int, pop: int, special: int) -> dict[str, Cost]:
    """Both ARMv6-M cores: arguments are cycles beyond the untaken or linear cost."""
    where = f"{document} {_T}"
    return {
        **_integer(1, where),
        "load": Cost(2, where),
        "store": Cost(2, where),
        "store_register": Cost(2, where),
        "load_multiple": Cost(1, where, per_register=1),
        "store_multiple": Cost(1, where, per_register=1),
        "pop_pc": Cost(1, where, per_register=1, taken=pop),
        "branch": Cost(1, where, taken=branch),
        "branch_link": Cost(1, where, taken=link),
        "branch_register": Cost(1, where, taken=register),
        "branch_link_register": Cost(1, where, taken=register),
        "move_pc": Cost(1, where, taken=register),
        "system": Cost(special, where),
        "barrier": Cost(special, where),
    }


CORTEX_M0 = CycleTable(
    "cortex-m0",
    "Arm Cortex-M0 TRM, DDI 0432C, section 3.3",
    _armv6m("DDI 0432C", branch=2, link=3, register=2, pop=3, special=4),
    ("single-cycle multiplier (MULS 1; the 32-cycle option is not used by the parts profiled here)",),
)
CORTEX_M0PLUS = CycleTable(
    "cortex-m0plus",
    "Arm Cortex-M0+ TRM, DDI 0484C, section 3.3",
    _armv6m("DDI 0484C", branch=1, link=2, register=1, pop=2, special=3),
    ("single-cycle multiplier (MULS 1)", "loads and stores over AHB-Lite (2 cycles), none over the I/O port"),
)

_REFILL = 2
_REFILL_RANGE = (1, 1)
"""P is 1 to 3."""


def _armv7m(document: str, accumulate: int, long: int, long_accumulate: int) -> dict[str, Cost]:
    """The rows that Cortex-M3 and M4 share; arguments differ between them."""
    where = f"{document} {_T}"
    timing = f"{document} section 3.3.2, load/store timings"
    return {
        **_integer(1, where),
        "saturate": Cost(1, where),
        "multiply_accumulate": Cost(accumulate, where),
        "multiply_long": Cost(long, where),
        "multiply_accumulate_long": Cost(long_accumulate, where),
        "divide": Cost(7, f"{where}: 2 to 12 by operands, the middle taken"),
        "load": Cost(2, where),
        "load_dual": Cost(3, timing),
        "load_multiple": Cost(1, where, per_register=1),
        "load_pc": Cost(2, where, taken=_REFILL),
        "pop_pc": Cost(1, where, per_register=1, taken=_REFILL),
        "store": Cost(1, f"{timing}: STR Rx,[Ry,#imm] is always one cycle"),
        "store_register": Cost(2, timing),
        "store_dual": Cost(3, timing),
        "store_multiple": Cost(1, where, per_register=1),
        "branch": Cost(1, where, taken=_REFILL),
        "branch_link": Cost(1, where, taken=_REFILL),
        "branch_register": Cost(1, where, taken=_REFILL),
        "branch_link_register": Cost(1, where, taken=_REFILL),
        "compare_branch": Cost(1, where, taken=_REFILL),
        "table_branch": Cost(2, where, taken=_REFILL),
        "move_pc": Cost(1, where, taken=_REFILL),
        "it": Cost(1, where),
        "system": Cost(2, where),
        "barrier": Cost(1, where),
    }


_ARMV7M_ASSUMPTIONS = (
    "pipeline refill P = 2 (the TRM gives 1 to 3), 3 where the target is a 32-bit instruction across two words",
    "a load or a store after a load costs one cycle less unless it needs the loaded value as an address",
    "IT is folded (0 cycles) after a 16-bit instruction",
    "the write buffer never fills; data is aligned",
)

CORTEX_M3 = CycleTable(
    "cortex-m3",
    "Arm Cortex-M3 TRM r2p1, DDI 0337I, section 3.3",
    {
        **_armv7m("DDI 0337I", accumulate=2, long=4, long_accumulate=6),
    },
    (
        *_ARMV7M_ASSUMPTIONS,
        "SMULL and UMULL 4 (the TRM gives 3 to 5), SMLAL and UMLAL 6 (4 to 7), by operands",
    ),
    wide_target=1,
    pipelined_loads=True,
    folded_it=True,
    refill=_REFILL_RANGE,
)

_FPU = "DDI 0439B Table 7-1, FPU instruction set"
_M4_FPU: dict[str, Cost] = {
    "fp_alu": Cost(1, _FPU),
    "fp_compare": Cost(1, _FPU),
    "fp_convert": Cost(1, _FPU),
    "fp_multiply": Cost(1, _FPU),
    "fp_multiply_accumulate": Cost(3, _FPU),
    "fp_divide": Cost(14, _FPU),
    "fp_move": Cost(1, _FPU),
    "fp_load": Cost(1, _FPU, per_register=1),
    "fp_store": Cost(1, _FPU, per_register=1),
    "fp_load_multiple": Cost(1, _FPU, per_register=1),
    "fp_store_multiple": Cost(1, _FPU, per_register=1),
}
_M4_DSP = Cost(1, f"DDI 0439B {_T}")

CORTEX_M4 = CycleTable(
    "cortex-m4",
    "Arm Cortex-M4 TRM, DDI 0439B, sections 3.3 and 7.2",
    {
        **_armv7m("DDI 0439B", accumulate=1, long=1, long_accumulate=1),
        **_M4_FPU,
        "multiply_dsp": _M4_DSP,
    },
    (*_ARMV7M_ASSUMPTIONS, "the FPU's result hazards (1 cycle) are not counted"),
    wide_target=1,
    pipelined_loads=True,
    folded_it=True,
    refill=_REFILL_RANGE,
)

CORTEX_M33 = CycleTable(
    "cortex-m33",
    "Arm publishes no instruction timing for Cortex-M33 (TRM 100230): rows are those of Cortex-M4, DDI 0439B",
    CORTEX_M4.costs,
    (*CORTEX_M4.assumptions, "the core's limited dual issue of 16-bit pairs is not counted"),
    approximate=True,
    wide_target=1,
    pipelined_loads=True,
    folded_it=True,
    refill=_REFILL_RANGE,
)

_M7 = "approximation after published measurements on STM32H7 (quinapalus.com/cm7cycles.html)"


def _m7(cycles: int = 1, latency: int = 1, per_register: int = 0) -> Cost:
    return Cost(cycles, _M7, per_register=per_register, latency=latency)


CORTEX_M7 = CycleTable(
    "cortex-m7",
    "Arm publishes no instruction timing for Cortex-M7 (TRM DDI 0489): dual-issue approximation",
    {
        **{name: _m7() for name in ("alu", "nop", "it", "branch", "branch_link", "branch_register", "compare_branch")},
        **{name: _m7() for name in ("branch_link_register", "move_pc", "store", "store_register", "saturate")},
        **{name: _m7(latency=2) for name in ("multiply", "multiply_accumulate", "multiply_dsp", "multiply_long")},
        "multiply_accumulate_long": _m7(latency=2),
        "divide": _m7(cycles=8, latency=8),
        "load": _m7(latency=2),
        "load_pc": _m7(cycles=2),
        "load_dual": _m7(cycles=1, latency=2),
        "store_dual": _m7(cycles=1),
        "load_multiple": _m7(cycles=1, latency=2, per_register=1),
        "store_multiple": _m7(cycles=1, per_register=1),
        "pop_pc": _m7(cycles=1, per_register=1),
        "table_branch": _m7(cycles=4),
        "system": _m7(cycles=2),
        "barrier": _m7(cycles=4),
        **{name: _m7(latency=3) for name in ("fp_alu", "fp_compare", "fp_convert", "fp_multiply")},
        "fp_multiply_accumulate": _m7(latency=5),
        "fp_divide": _m7(cycles=14, latency=16),
        "fp_move": _m7(latency=1),
        "fp_load": _m7(latency=2),
        "fp_store": _m7(),
        "fp_load_multiple": _m7(cycles=1, latency=2, per_register=1),
        "fp_store_multiple": _m7(cycles=1, per_register=1),
    },
    (
        "two instructions a cycle in order; at most one load or store (two loads pair only from different DTCM banks, "
        "which weights in flash do not), one multiply, one floating-point and one branch of them",
        "multiple transfers, divisions and system instructions issue alone; LDM and STM 1 + N",
        "load-to-use 2 cycles, multiply-to-use 2 (1 into an accumulator); flags forward to a branch in the same cycle",
        "taken branches cost nothing when a two-bit counter per block guesses them, 6 cycles when it does not",
        "likely optimistic: published int8 results (MLPerf Tiny, H7A3 against L4R5) are 1.6 to 1.7 times fewer cycles "
        "than Cortex-M4's, this model gives about 2",
    ),
    approximate=True,
    dual_issue=True,
    mispredict=6,
)

TABLES: dict[str, CycleTable] = {
    t.core: t for t in (CORTEX_M0, CORTEX_M0PLUS, CORTEX_M3, CORTEX_M4, CORTEX_M7, CORTEX_M33)
}
