"""What a measuring run on a QEMU board shows: instructions, stack, and limits that were exceeded.

With the plug-in, counts are exact and per layer. A QEMU built without plug-ins still knows how much virtual
time passes when every instruction takes the same (-icount): RISC-V cores then count instructions exactly,
Cortex-M ones show it on SysTick, whose 24 bits and period bound range and resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import RigError
from edgescale.rigs.qemu_boards import Board
from edgescale.rigs.qemu_model import Limits, Loaded
from edgescale.rigs.qemu_plugin import Observed

# Virtual time of an instruction, 2^n ns, finest first: at 128 ns SysTick resolves single instructions on every board.
_SHIFTS = (7, 3, 0)
_OVERFLOWED = 0xFFFFFFFF

_EXACT = "every instruction of an executed block, in IT blocks whether or not its condition holds"


@dataclass(frozen=True)
class Observation:
    """Outputs, stored; deepest stack in bytes; instructions of each run, and of the worst run's layers.

    `totals` is None where nothing counts, `layers` (entry 0 outside layers) where only totals do; `how` says why.
    """

    outputs: npt.NDArray[np.generic]
    stack: int
    totals: npt.NDArray[np.uint64] | None
    layers: npt.NDArray[np.uint64] | None
    how: str


def observe(loaded: Loaded, stored: npt.NDArray[np.generic], limits: Limits) -> Observation:
    """Run stored samples within limits. Raises RigError where one is exceeded or cannot be watched."""
    if loaded.plugged:
        outputs, seen = loaded.run(stored, limits)
        if seen.observed is None:
            raise RigError("QEMU ran without its plug-in")
        return Observation(
            outputs, _stack(loaded, seen.untouched), *_counts(loaded, seen.observed, limits, len(stored))
        )
    if limits.arena is not None or limits.stack is not None:
        raise RigError(f"{loaded.board.program} loads no plug-ins, so arena and stack limits cannot be watched")
    return _by_clock(loaded, stored, limits)


def _stack(loaded: Loaded, untouched: npt.NDArray[np.uint32]) -> int:
    return max(loaded.stack_used(int(part)) for part in untouched)


def _counts(
    loaded: Loaded, observed: Observed, limits: Limits, runs: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], str]:
    for guarded in observed.guarded:
        loaded.refuse_guarded(guarded, limits)
    totals = observed.counts.sum(axis=1)
    if len(totals) != runs:
        raise RigError(f"QEMU's plug-in counted {len(totals)} runs of {runs}")
    return totals, observed.counts[int(np.argmax(totals))], f"QEMU plug-in: {_EXACT}"


def _by_clock(loaded: Loaded, stored: npt.NDArray[np.generic], limits: Limits) -> Observation:
    # minstret advances by the virtual time of an instruction: by one with shift 0.
    for shift in _SHIFTS if loaded.board.systick_hz else (0,):
        outputs, seen = loaded.run(stored, limits, icount=shift)
        if not np.any(seen.clock == _OVERFLOWED):
            break
    stack = _stack(loaded, seen.untouched)
    if np.any(seen.clock == _OVERFLOWED):
        how = f"{loaded.board.program} loads no plug-ins, and the run is too long for the core's SysTick"
        return Observation(outputs, stack, None, None, how)
    totals, how = clock_to_instructions(seen.clock, loaded.board, shift)
    if (most := int(totals.max())) > limits.instructions:
        raise RigError(f"the program took {most:,} instructions, more than the limit of {limits.instructions:,}")
    return Observation(outputs, stack, totals, None, how)


def clock_to_instructions(
    clock: npt.NDArray[np.uint32], board: Board, shift: int
) -> tuple[npt.NDArray[np.uint64], str]:
    """Instructions of runs from the harness's clock under `-icount shift=<shift>`, and how well they are known.

    The clock is that of a run less that of an empty function, which is one instruction itself.
    """
    if not board.systick_hz:
        return clock.astype(np.uint64) + 1, "no plug-ins: minstret under -icount, exact; layers unavailable"
    tick_ns, instruction_ns = 1e9 / board.systick_hz, 2**shift
    counts = np.rint(clock * (tick_ns / instruction_ns)).astype(np.uint64) + 1
    # Both readings are cut to whole ticks, so their difference is off by less than one.
    error = math.floor(tick_ns / instruction_ns + 0.5)
    known = f"within {error} instructions" if error else "exact"
    return counts, f"no plug-ins: SysTick under -icount, {known}; layers unavailable"
