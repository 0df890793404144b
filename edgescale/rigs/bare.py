"""Functions of our own C, outside any model's image, run on an emulated core and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgescale.core.errors import MissingDependencyError, RigError
from edgescale.core.target import Target
from edgescale.rigs.elf import read_elf
from edgescale.rigs.image import region
from edgescale.rigs.machine import CORES
from edgescale.rigs.toolchain import INSTALL_HINT, cross_compiler

LIMIT = 10_000_000
_MAPPED = 1 << 20
_RETURN = 0x1000

# What a compiler may call for assignments of structures.
_SUPPORT = """
typedef unsigned int size_type;
void *memcpy(void *to, const void *from, size_type count)
{
    unsigned char *t = to;
    const unsigned char *f = from;
    while (count--)
        *t++ = *f++;
    return to;
}
void *memset(void *to, int value, size_type count)
{
    unsigned char *t = to;
    while (count--)
        *t++ = (unsigned char)value;
    return to;
}
"""

_SCRIPT = """
SECTIONS {{
  . = {flash:#x};
  .text : {{ *(.text .text.* .rodata .rodata.*) }}
  . = {ram:#x};
  .data : {{ *(.data .data.*) }}
  .bss : {{ *(.bss .bss.* COMMON) }}
  /DISCARD/ : {{ *(.ARM.exidx* .ARM.attributes) }}
}}
"""


@dataclass(frozen=True)
class Counted:
    """calls: function -> (instructions executed, value returned), in the order asked. code: bytes of code and
    constants of each source file by its name.
    """

    calls: Mapping[str, tuple[int, int]]
    code: Mapping[str, int]


def count_calls(sources: Sequence[Path], functions: Sequence[str], target: Target) -> Counted:
    """Build `sources` for an Arm target, call `functions` (no arguments) one after another in one memory.

    Each source's folder is on the include path. Raises RigError where it does not build or faults.
    """
    try:
        import unicorn
        import unicorn.arm_const as arm
    except ImportError:
        raise MissingDependencyError("unicorn", INSTALL_HINT) from None
    core = target.rig.removeprefix("emulator:")
    if core not in CORES:
        raise RigError(f"{target.name} has rig {target.rig}; functions are counted on {', '.join(CORES)}")
    with TemporaryDirectory() as name:
        image = read_elf(_link(sources, functions, target, Path(name)))
        code = {
            path.stem: read_elf(Path(name, f"{path.stem}.o")).total(loaded=True, writable=False) for path in sources
        }
    flash, ram = region(target, "flash"), region(target, "ram")
    machine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
    machine.ctl_set_cpu_model(getattr(arm, f"UC_CPU_ARM_{CORES[core]}"))
    for origin in (flash.origin, ram.origin):
        machine.mem_map(origin, _MAPPED)
    machine.mem_map(0, 1 << 14)
    for address, content in image.segments:
        machine.mem_write(address, content)
    executed = [0]

    def step(uc: object, address: int, size: int, data: object) -> None:
        executed[0] += 1

    machine.hook_add(unicorn.UC_HOOK_CODE, step)
    calls = {}
    for function in functions:
        executed[0] = 0
        machine.reg_write(arm.UC_ARM_REG_SP, ram.origin + _MAPPED - 64)
        machine.reg_write(arm.UC_ARM_REG_LR, _RETURN | 1)
        try:
            machine.emu_start(image.address(function) | 1, _RETURN, count=LIMIT)
        except unicorn.UcError as error:
            raise RigError(f"{function} on {target.name}: {error}") from None
        calls[function] = (executed[0], int(machine.reg_read(arm.UC_ARM_REG_R0)))
    return Counted(calls, code)


def _link(sources: Sequence[Path], functions: Sequence[str], target: Target, folder: Path) -> Path:
    compiler = cross_compiler(target)
    support = folder / "support.c"
    support.write_text(_SUPPORT)
    includes = sorted({f"-I{path.parent.resolve()}" for path in sources})
    objects = []
    for path in (*sources, support):
        objects.append(f"{path.stem}.o")
        extra = ["-fno-builtin"] if path == support else []
        compiler.run(["-c", *includes, *extra, str(path.resolve()), "-o", objects[-1]], path.name, folder)
    flash, ram = region(target, "flash"), region(target, "ram")
    (folder / "bare.ld").write_text(_SCRIPT.format(flash=flash.origin, ram=ram.origin))
    keep = [f"-Wl,-u,{function}" for function in functions]
    where = ["-Wl,-T,bare.ld", f"-Wl,-e,{functions[0]}"]
    link = ["-O2", "-nostdlib", *where, *keep, *objects, *compiler.libraries, "-o", "bare.elf"]
    compiler.run(link, "bare image", folder)
    return folder / "bare.elf"
