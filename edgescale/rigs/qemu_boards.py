"""QEMU's boards as data: which core each has, and where its memories lie.

The part's flash and RAM are placed at `flash` and `ram`, cut to the part's lengths; the harness lies in
memory the part does not have. Memory maps: QEMU's sources and Arm's application notes named by the boards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgescale.core.errors import UsageError
from edgescale.core.target import MemoryRegion, Target
from edgescale.rigs.image import region

ARM, RISCV = "qemu-system-arm", "qemu-system-riscv32"
INSTALL = {ARM: "apt-get install qemu-system-arm", RISCV: "apt-get install qemu-system-misc"}


@dataclass(frozen=True)
class Board:
    """A machine of QEMU. `cpus` are the profiles' cores it executes exactly; memories as (origin, length).

    `systick_hz` is the clock of the core's SysTick; 0 where the core counts instructions itself (minstret).
    """

    name: str
    program: str
    machine: tuple[str, ...]
    cpus: tuple[str, ...]
    flash: tuple[int, int]
    ram: tuple[int, int]
    harness_code: tuple[int, int]
    harness_ram: tuple[int, int]
    systick_hz: int
    assembly: str = "harness_cortex_m.S"

    def place(self, target: Target) -> Target:
        """The target with its memories where the board has memory, never longer than the part's or the board's.

        Raises UsageError where the board has another core.
        """
        if target.core.cpu not in self.cpus:
            raise UsageError(
                f"target {target.name} has a {target.core.cpu}, the rig qemu:{self.name} emulates {self.cpus[0]}"
            )
        placed = {}
        for name, (origin, length) in (("flash", self.flash), ("ram", self.ram)):
            part = region(target, name)
            placed[name] = replace(part, origin=origin, length=min(part.length, length))
        return replace(target, memory={**target.memory, **placed})

    def harness_memory(self) -> tuple[MemoryRegion, MemoryRegion]:
        """Where the harness's code and its data and stack go."""
        return MemoryRegion("harness", *self.harness_code), MemoryRegion("harness_ram", *self.harness_ram)


def _mps2(name: str, cpu: str) -> Board:
    """AN385, AN386 and AN500: 4 MiB SSRAM each for code at 0 and for data at 0x20000000."""
    return Board(
        name,
        ARM,
        ("-M", name),
        (cpu,),
        (0x0000_0000, 0x30_0000),
        (0x2000_0000, 0x40_0000),
        (0x0030_0000, 0x8_0000),
        (0x0038_0000, 0x8_0000),
        25_000_000,
    )


_ALL = (
    # nRF51822: 256 KiB of flash and 16 KiB of RAM, the ends of which the harness needs.
    Board(
        "microbit",
        ARM,
        ("-M", "microbit"),
        ("cortex-m0", "cortex-m0plus"),
        (0x0000_0000, 0x3_F000),
        (0x2000_0000, 0x3C00),
        (0x0003_F000, 0x1000),
        (0x2000_3C00, 0x400),
        16_000_000,
    ),
    _mps2("mps2-an385", "cortex-m3"),
    _mps2("mps2-an386", "cortex-m4"),
    _mps2("mps2-an500", "cortex-m7"),
    # The core starts in secure state: memories at their secure aliases.
    Board(
        "mps2-an505",
        ARM,
        ("-M", "mps2-an505"),
        ("cortex-m33",),
        (0x1000_0000, 0x30_0000),
        (0x3800_0000, 0x40_0000),
        (0x1030_0000, 0x8_0000),
        (0x1038_0000, 0x8_0000),
        20_000_000,
    ),
    # ITCM and DTCM for the part, SRAM for the harness.
    Board(
        "mps3-an547",
        ARM,
        ("-M", "mps3-an547"),
        ("cortex-m55",),
        (0x0000_0000, 0x8_0000),
        (0x2000_0000, 0x8_0000),
        (0x1100_0000, 0x8_0000),
        (0x1108_0000, 0x8_0000),
        32_000_000,
    ),
    # An RV32IMC core: what QEMU's rv32 has beyond that is switched off, so that using it is a fault.
    Board(
        "virt-riscv32",
        RISCV,
        ("-M", "virt", "-cpu", "rv32,a=false,f=false,d=false", "-bios", "none"),
        ("rv32imc",),
        (0x8000_0000, 0x200_0000),
        (0x8200_0000, 0x200_0000),
        (0x8400_0000, 0x10_0000),
        (0x8410_0000, 0x10_0000),
        0,
        "harness_riscv32.S",
    ),
)
BOARDS = {board.name: board for board in _ALL}
