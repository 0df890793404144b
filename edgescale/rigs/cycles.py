"""From counted blocks to instructions and modelled cycles.

Instructions are exact: every slot of a block counts once each time the block is entered. An instruction
in an IT block counts whether its condition holds or not (the core fetches and issues it either way).
Cycles are the table's costs at zero wait states, plus what the flash makes the core wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.target import MemoryRegion
from edgescale.rigs.cycle_tables import Cost, CycleTable
from edgescale.rigs.decode import Instruction, decode

_MULTIPLIES = ("multiply", "multiply_accumulate", "multiply_long", "multiply_accumulate_long", "multiply_dsp")
_ACCUMULATING = ("multiply_accumulate", "multiply_accumulate_long", "multiply_dsp")
_BRANCHES = ("branch", "branch_link", "branch_register", "branch_link_register", "compare_branch", "move_pc")
_LOADS = ("load", "load_dual", "fp_load")
_STORES = ("store", "store_register", "store_dual", "fp_store")
_SIMPLE = frozenset((*_MULTIPLIES, *_BRANCHES, *_LOADS, *_STORES, "alu", "nop", "saturate", "fp_move"))
_UNKNOWN = Cost(1, "not in the table: one cycle")


@dataclass(frozen=True)
class BlockCost:
    """One pass through a block: `taken` is added when it is left by a jump."""

    instructions: int
    cycles: int
    taken: int
    unknown: tuple[str, ...]
    """Mnemonics the table has no row for; each was counted as one cycle."""


def block_cost(table: CycleTable, block: list[Instruction]) -> BlockCost:
    """Cost of a straight run of instructions on a core, at zero wait states."""
    costs = [table.costs.get(i.group, _UNKNOWN) for i in block]
    unknown = tuple(i.mnemonic for i, c in zip(block, costs, strict=True) if c is _UNKNOWN)
    cycles = _dual_issue(block, costs) if table.dual_issue else _in_order(table, block, costs)
    taken = costs[-1].taken if costs else 0
    return BlockCost(len(block), cycles, taken, unknown)


def _in_order(table: CycleTable, block: list[Instruction], costs: list[Cost]) -> int:
    total = 0
    previous: Instruction | None = None
    for instruction, cost in zip(block, costs, strict=True):
        cycles = cost.cycles + cost.per_register * instruction.registers
        if previous is not None:
            if table.pipelined_loads and previous.group == "load" and _follows_load(instruction):
                # One cycle is removed, unless the address needs what was just loaded; never below one cycle.
                cycles -= cycles > 1 and not (previous.writes & instruction.address_reads)
            if table.folded_it and instruction.group == "it" and previous.size == 2:
                cycles = 0
        total += cycles
        previous = instruction
    return total


def _follows_load(instruction: Instruction) -> bool:
    return instruction.group in ("load", "store", "store_register")


def _dual_issue(block: list[Instruction], costs: list[Cost]) -> int:
    """In-order issue of up to two instructions a cycle; the cycle after the last one issued."""
    ready: dict[str, int] = {}
    producer: dict[str, Instruction] = {}
    now = 0
    slot: Instruction | None = None  # issued in cycle `now`
    full = False
    for instruction, cost in zip(block, costs, strict=True):
        earliest = now if slot is None else now + 1
        if slot is not None and not full and _pairs(slot, instruction):
            earliest = now
        for register in instruction.reads:
            available = ready.get(register, 0)
            source = producer.get(register)
            if source is not None and source.group in _MULTIPLIES and instruction.group in _ACCUMULATING:
                available -= 1  # forwarded into the accumulator
            if register == "cpsr" and instruction.group in _BRANCHES:
                available -= 1
            earliest = max(earliest, available)
        full = slot is not None and earliest == now
        now = earliest
        slot = instruction
        for register in instruction.writes:
            ready[register] = now + cost.latency
            producer[register] = instruction
        busy = cost.cycles + cost.per_register * instruction.registers - 1
        if busy > 0:
            now += busy
            full = True
    return now + 1 if block else 0


def _pairs(first: Instruction, second: Instruction) -> bool:
    """Whether the second may issue in the cycle of the first, dependences aside."""
    if first.group not in _SIMPLE or second.group not in _SIMPLE or first.group in _BRANCHES:
        return False
    if (first.writes & second.writes) - {"cpsr"}:
        return False
    kinds = (_MULTIPLIES, (*_LOADS, *_STORES), _BRANCHES, ("fp_move", "fp_load", "fp_store"))
    return not any(first.group in kind and second.group in kind for kind in kinds)


@dataclass(frozen=True)
class Tally:
    """Totals of one run: index 0 is code outside layers, k + 1 is layer k."""

    instructions: npt.NDArray[np.int64]
    cycles: npt.NDArray[np.int64]
    flash_stalls: npt.NDArray[np.int64]
    """Of the cycles, those spent waiting for flash."""
    unknown: tuple[str, ...]
    bounds: tuple[int, int]
    """Cycles of the whole run at the kindest and the harshest reading of what the manuals leave open: the pipeline
    refill (`CycleTable.refill`), and flash that never makes the core wait or does as modelled."""


def tally(
    records: npt.NDArray[np.void],
    layers: int,
    table: CycleTable,
    flash: MemoryRegion,
    code_at: Callable[[int, int], bytes],
) -> Tally:
    """Add up a probe's records (`probe.RECORD`) over `layers` layers.

    `code_at(address, size)` returns code bytes. Waits for flash, in cycles, w being its wait states: w for
    a line fetched after a jump or for a constant; for a line fetched in sequence, what prefetch does not hide
    behind the execution of the line before it. Lines in a cache cost nothing.
    """
    instructions = np.zeros(layers + 1, np.int64)
    cycles = np.zeros(layers + 1, np.int64)
    stalls = np.zeros(layers + 1, np.int64)
    unknown: set[str] = set()
    jumps = 0
    costs: dict[tuple[int, int], BlockCost] = {}
    for record in records:
        key = (int(record["address"]), int(record["size"]))
        if key not in costs:
            costs[key] = block_cost(table, decode(code_at(*key), key[0]))
            unknown.update(costs[key].unknown)
        cost = costs[key]
        layer, entries, taken = int(record["layer"]), int(record["entries"]), int(record["taken"])
        wait = flash.wait_states * (int(record["jump_misses"]) + int(record["data_misses"]))
        # Prefetch starts when a line arrives; executing that line takes this block's cycles per line of code.
        hidden = cost.cycles * max(flash.line_bytes, 4) / key[1]
        wait += round(int(record["stream_misses"]) * max(0.0, flash.wait_states + 1 - hidden))
        spent = entries * cost.cycles + wait
        if table.mispredict is None:
            jumps += taken if cost.taken else 0
            spent += taken * cost.taken + table.wide_target * int(record["wide_unaligned"])
        else:
            spent += table.mispredict * int(record["mispredicted"])
        instructions[layer] += entries * cost.instructions
        cycles[layer] += spent
        stalls[layer] += wait
    total, waits = int(cycles.sum()), int(stalls.sum())
    bounds = total - waits - table.refill[0] * jumps, total + table.refill[1] * jumps
    return Tally(instructions, cycles, stalls, tuple(sorted(unknown)), bounds)
