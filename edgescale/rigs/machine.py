"""One emulated microcontroller with an image in its flash: boot, run, faults, memory limits."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import MissingDependencyError, RigError, UsageError
from edgescale.core.target import MemoryRegion
from edgescale.rigs.codemap import CodeMap
from edgescale.rigs.figures import over_limit, stack_overflow
from edgescale.rigs.image import Image, region
from edgescale.rigs.probe import KEEP_LAYER, STOP_ALIGNMENT, STOP_LIMIT, Probe, Violation
from edgescale.rigs.toolchain import INSTALL_HINT

# Our core name -> unicorn's model. An M0+ executes the same ARMv6-M instructions as an M0.
CORES = {
    "cortex-m0": "CORTEX_M0",
    "cortex-m0plus": "CORTEX_M0",
    "cortex-m3": "CORTEX_M3",
    "cortex-m4": "CORTEX_M4",
    "cortex-m7": "CORTEX_M7",
    "cortex-m33": "CORTEX_M33",
}
PAINT = 0xA5A5A5A5
_PAGE = 4096
_SYSTEM_CONTROL_SPACE = 0xE000E000
_ARMV6M = ("cortex-m0", "cortex-m0plus")


@dataclass(frozen=True)
class MemoryLimits:
    """Bytes of arena and stack a run may touch; None: as many as the image and the part have."""

    arena: int | None = None
    stack: int | None = None


class Machine:
    """A core of `cpu` with an image loaded. Not thread-safe; one per executor.

    `layers` names the artifact's layers with their function symbols, for attribution and messages.
    `limits`, where given, make it watch memory: those limits, and alignment on ARMv6-M. Watching every
    access is slow (about 20 million instructions a second), so it is for measuring, not for many samples.
    """

    def __init__(
        self, image: Image, cpu: str, symbol: str, layers: list[dict[str, Any]], limits: MemoryLimits | None = None
    ) -> None:
        try:
            import unicorn
            import unicorn.arm_const as arm
        except ImportError:
            raise MissingDependencyError("unicorn", INSTALL_HINT) from None
        if cpu not in CORES:
            raise UsageError(f"the emulator has no core {cpu!r}; known: {', '.join(CORES)}")
        self._uc, self._arm, self._error = unicorn, arm, unicorn.UcError
        self.image = image
        self.cpu = cpu
        self._map = CodeMap(image.elf, f"es_{symbol}_run", layers)
        self._flash, self._ram = region(image.target, "flash"), region(image.target, "ram")
        self._run_address = image.elf.address(f"es_{symbol}_run")
        self.stack_top = image.elf.address("es_board_stack_top")
        self.stack_limit = image.elf.address("es_board_stack_limit")
        self._arena = image.elf.find(f"es_{symbol}_arena")
        self._engine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self._engine.ctl_set_cpu_model(getattr(arm, f"UC_CPU_ARM_{CORES[cpu]}"))
        self._map_memory()
        self.probe = self._attach_probe(watch=limits is not None)
        self._boot()
        self._limits = limits or MemoryLimits()
        self._guard(self._limits)

    def _map_memory(self) -> None:
        unicorn, flash, ram = self._uc, self._flash, self._ram
        self._engine.mem_map(flash.origin, _pages(flash), unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        for address, data in self.image.elf.segments:
            self._engine.mem_write(address, data)
        # RAM is this buffer itself, so inputs, outputs and the stack's paint are plain array accesses.
        self._buffer = mmap.mmap(-1, _pages(ram))
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(self._buffer, np.uint8)
        self._engine.mem_map_ptr(
            ram.origin, _pages(ram), unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE, self._bytes.ctypes.data
        )
        self._engine.mem_map(_SYSTEM_CONTROL_SPACE, _PAGE)

    def _attach_probe(self, *, watch: bool) -> Probe:
        code = [s for s in self.image.elf.sections if s.executable]
        begin, end = min(s.address for s in code), max(s.address + s.size for s in code)
        layer_of = np.full((end - begin + 1) // 2, KEEP_LAYER, np.uint16)
        for first, last, number in self._map.ranges():
            layer_of[(first - begin) // 2 : (last - begin + 1) // 2] = number
        text = bytes(self._engine.mem_read(begin, end - begin))
        self.code_begin, self.code = begin, text
        probe = Probe(begin, text, layer_of, self._flash)
        probe.attach(self._engine, check_alignment=watch and self.cpu in _ARMV6M, memory=(self._flash, self._ram))
        for part in (self._flash, self._ram):
            probe.guard(f"memory beyond {part.name}", part.origin + part.length, part.origin + _pages(part))
        return probe

    def _boot(self) -> None:
        """From reset through start-up to the first instruction of the run function, as the part would."""
        vector = np.frombuffer(bytes(self._engine.mem_read(self._flash.origin, 8)), "<u4")
        self._engine.reg_write(self._arm.UC_ARM_REG_SP, int(vector[0]))
        self._execute(int(vector[1]), self._run_address, instruction_limit=16 * self._ram.length + 10_000)
        self._return_address = int(self._engine.reg_read(self._arm.UC_ARM_REG_LR)) & ~1
        self._entry_stack = int(self._engine.reg_read(self._arm.UC_ARM_REG_SP))
        self._context = self._engine.context_save()

    def _guard(self, limits: MemoryLimits) -> None:
        if limits.arena is not None:
            if self._arena is None:
                raise RigError("the image has no arena symbol, so its use cannot be limited")
            self.probe.guard("arena", self._arena.address + limits.arena, self._arena.end)
        if limits.stack is not None:
            self.probe.guard("stack", self.stack_limit, self.stack_top - limits.stack)

    def call(self, name: str, instruction_limit: int = 10_000) -> int:
        """Call a parameterless function; what it returns in r0, such as an accessor's pointer."""
        self._engine.context_restore(self._context)
        self._engine.reg_write(self._arm.UC_ARM_REG_LR, self._return_address | 1)
        self._execute(self.image.elf.address(name) | 1, self._return_address, instruction_limit)
        return int(self._engine.reg_read(self._arm.UC_ARM_REG_R0))

    def memory(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """RAM [address, address + size) as a writable view. Raises RigError where it is not RAM."""
        start = address - self._ram.origin
        if start < 0 or start + size > self._ram.length:
            raise RigError(f"address 0x{address:08X} ({size} bytes) is not in the RAM of {self.image.target.name}")
        return self._bytes[start : start + size]

    def run(self, instruction_limit: int) -> None:
        """One inference: the model's run function from its first instruction to its return.

        Raises RigError for a fault, an access outside memory or beyond a limit, or a runaway program.
        """
        self._engine.context_restore(self._context)
        self._execute(self._run_address | 1, self._return_address, instruction_limit)
        self.probe.end()
        if violations := self.probe.violations():
            raise RigError(self._describe(violations[0]))

    def paint_stack(self) -> None:
        """Fill everything below the run function's stack pointer with the pattern `stack_used` looks for."""
        size = self._entry_stack - self.stack_limit
        self.memory(self.stack_limit, size).view(np.uint32)[:] = PAINT

    def stack_used(self) -> int:
        """Bytes from the top of the stack to its deepest overwritten word since `paint_stack`.

        Raises RigError where nothing of the paint is left: the stack has run into .bss.
        """
        size = self._entry_stack - self.stack_limit
        words = self.memory(self.stack_limit, size).view(np.uint32)
        changed = np.flatnonzero(words != PAINT)
        if changed.size and changed[0] == 0:
            raise RigError(stack_overflow(self.image.target, self.stack_top - self.stack_limit))
        deepest = int(changed[0]) * 4 if changed.size else size
        return self.stack_top - self.stack_limit - deepest

    def _execute(self, begin: int, until: int, instruction_limit: int) -> None:
        self.probe.begin(instruction_limit)
        try:
            self._engine.emu_start(begin | 1, until)
        except self._error as error:
            counter = int(self._engine.reg_read(self._arm.UC_ARM_REG_PC))
            raise RigError(f"{error} at {self._map.location(counter)} on the emulated {self.cpu}") from None
        if reason := self.probe.stop_reason:
            counter = int(self._engine.reg_read(self._arm.UC_ARM_REG_PC))
            if reason == STOP_LIMIT:
                what = f"did not end within {instruction_limit:,} instructions; it was"
            elif reason == STOP_ALIGNMENT:
                address, size = self.probe.fault
                what = f"made an unaligned {size}-byte access to 0x{address:08X}, a HardFault on ARMv6-M,"
            else:
                what = f"has more than {2**15:,} blocks, too many to count;"
            raise RigError(f"the program {what} at {self._map.location(counter)} on the emulated {self.cpu}")

    def _describe(self, violation: Violation) -> str:
        where = self._map.location(max(violation.before - 2, 0), violation.layer)
        if violation.name == "arena" and self._arena is not None and self._limits.arena is not None:
            over = violation.high - self._arena.address - self._limits.arena
            return over_limit("arena", self._limits.arena, over, where)
        if violation.name == "stack" and self._limits.stack is not None:
            over = self.stack_top - self._limits.stack - violation.low
            return over_limit("stack", self._limits.stack, over, where)
        return f"access to 0x{violation.low:08X}, {violation.name}, near {where}"


def _pages(part: MemoryRegion) -> int:
    return -(-part.length // _PAGE) * _PAGE
