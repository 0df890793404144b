"""Building the bare-metal image of a C artifact within its target's own memory limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgescale.core.errors import InfeasibleError, RigError, UsageError
from edgescale.core.files import firmware_root, sha256_file, sha256_tree, write_whole
from edgescale.core.target import MemoryRegion, Target
from edgescale.core.variant import Artifact
from edgescale.rigs.cachedir import cached_build
from edgescale.rigs.elf import Elf, Symbol, largest_objects, read_elf
from edgescale.rigs.toolchain import Compiler, CompilerError, cross_compiler

_IMAGE = "image.elf"
# Triple's architecture -> folder of firmware/boards and its start-up file.
_BOARDS = {"thumb": ("cortex_m", "startup.c"), "riscv32": ("riscv32", "startup.S")}
# LLVM's linker, then GNU's.
_OVERFLOW = re.compile(
    r"section '[^']*' will not fit in region '(\w+)': overflowed by (\d+) bytes"
    r"|region `(\w+)' overflowed by (\d+) bytes"
)


@dataclass(frozen=True)
class Harness:
    """What drives the model in place of main's own call, in memories outside the part's.

    `entry` is the function main calls; `sources` are compiled with `defines` and their code and data
    placed in `code` and `ram`, away from the image.
    """

    entry: str
    sources: tuple[Path, ...]
    defines: tuple[str, ...]
    code: MemoryRegion
    ram: MemoryRegion


@dataclass(frozen=True)
class Image:
    """A linked image, and what it was built with."""

    path: Path
    target: Target
    compiler: str
    flags: tuple[str, ...]

    @cached_property
    def elf(self) -> Elf:
        """The decoded file."""
        return read_elf(self.path)

    @cached_property
    def sha256(self) -> str:
        """Hash of the image file."""
        return sha256_file(self.path)

    @property
    def flash_bytes(self) -> int:
        """Code, constants and the initial values of .data: all that has to be programmed."""
        return self.elf.total(loaded=True)

    @property
    def static_ram_bytes(self) -> int:
        """.data and .bss, the arena included, without the stack."""
        return self.elf.total(writable=True)

    def layer_symbols(self, names: list[str]) -> list[Symbol | None]:
        """The function of each layer; None where the compiler left none (inlined, or a layer without code)."""
        functions = {s.name: s for s in self.elf.symbols if s.kind == "STT_FUNC"}
        return [functions.get(name) for name in names]


def region(target: Target, name: str) -> MemoryRegion:
    """A memory region of the target; raises UsageError where the profile lacks it."""
    if name not in target.memory:
        raise UsageError(f"target {target.name} has no [memory.{name}] table, which an image needs")
    return target.memory[name]


def build_image(artifact: Artifact, target: Target, harness: Harness | None = None) -> Image:
    """Compile and link a C artifact with an application that only runs it, or runs it under a harness.

    Built once per content (cache folder). Raises InfeasibleError naming the memory that overflows, the
    bytes over and the largest contributor; RigError where the compiler refuses the code.
    """
    if artifact.kind != "c":
        raise RigError(f"{target.name} runs C artifacts, not {artifact.kind!r} ({artifact.variant})")
    compiler = cross_compiler(target)
    boards = firmware_root() / "boards"
    folder, startup = _board(target)
    script = _linker_script(boards / folder / "link.ld.in", target, harness)
    run = harness.entry if harness else f"es_{artifact.meta['symbol']}_run"
    sources: list[tuple[Path, tuple[str, ...]]] = [
        (boards / folder / startup, ()),
        (boards / "common" / "memory.c", ("-fno-builtin",)),
        (boards / "common" / "main.c", (f"-DES_BOARD_RUN={run}",)),
    ]
    if harness:
        sources += [(path, ("-fno-builtin", *harness.defines)) for path in harness.sources]
    recipe = sha256_file(Path(__file__))  # how this file compiles and links is part of what an image is
    contents = [f"{sha256_tree(path.parent)} {path.name} {' '.join(flags)}" for path, flags in sources]
    parts = [artifact.sha256, script, recipe, compiler.description, *compiler.flags, *contents]
    what = f"{artifact.variant} for {target.name}"
    built = cached_build(
        "images", "\n".join(parts), lambda out: _build(artifact, target, compiler, sources, script, out, what)
    )
    return Image(built / _IMAGE, target, compiler.description, compiler.flags)


def _board(target: Target) -> tuple[str, str]:
    triple = target.toolchain.triple if target.toolchain else ""
    if (architecture := triple.split("-")[0]) not in _BOARDS:
        raise UsageError(f"target {target.name}: no start-up code for {triple!r}; known: {', '.join(_BOARDS)}")
    return _BOARDS[architecture]


def _linker_script(template: Path, target: Target, harness: Harness | None) -> str:
    flash, ram = region(target, "flash"), region(target, "ram")
    text = template.read_text()
    memory, sections = "", ""
    if harness:
        for name, part in (("CODE", harness.code), ("RAM", harness.ram)):
            memory += f"  HARNESS_{name} (rwx) : ORIGIN = {part.origin:#x}, LENGTH = {part.length:#x}\n"
        sections = (
            "  .harness : { *harness*.o(.text .text.* .rodata .rodata.* .srodata .srodata.*) } > HARNESS_CODE\n"
            "  .harness_ram (NOLOAD) : { *harness*.o(.data .data.* .sdata .sdata.* .bss .bss.* .sbss .sbss.* COMMON) }"
            " > HARNESS_RAM\n\n"
        )
    text = text.replace("@HARNESS_MEMORY@", memory).replace("@HARNESS_SECTIONS@", sections)
    for name, value in (
        ("FLASH_ORIGIN", flash.origin),
        ("FLASH_LENGTH", flash.length),
        ("RAM_ORIGIN", ram.origin),
        ("RAM_LENGTH", ram.length),
    ):
        text = text.replace(f"@{name}@", hex(value))
    return text


def _build(
    artifact: Artifact,
    target: Target,
    compiler: Compiler,
    sources: list[tuple[Path, tuple[str, ...]]],
    script: str,
    out: Path,
    what: str,
) -> None:
    root = artifact.path.resolve()
    objects: list[str] = []
    for index, name in enumerate(artifact.meta["sources"]):
        objects.append(f"model{index}.o")
        compiler.run(["-c", f"-I{root}", str(root / name), "-o", objects[-1]], what, out)
    for path, flags in sources:
        objects.append(f"{path.name.replace('.', '_')}.o")
        compiler.run(["-c", *flags, str(path.resolve()), "-o", objects[-1]], what, out)
    write_whole(out / "link.ld", script)
    # The accessors are the model's interface: an application calls them, so they stay.
    ports = [*artifact.meta["inputs"], *artifact.meta["outputs"]]
    interface = [*(port["accessor"] for port in ports), *filter(None, [artifact.meta.get("reset")])]
    keep = [f"-Wl,-u,{name}" for name in interface]
    # At -Os zig strips the symbols that layers are told apart by; the last level given counts.
    link = ["-O2", "-Wl,-T,link.ld", "-Wl,-e,Reset_Handler", "-Wl,--gc-sections", *keep]
    try:
        compiler.run([*link, *objects, *compiler.libraries, "-o", _IMAGE], what, out)
    except CompilerError as failure:
        _raise_overflow(failure, target, [read_elf(out / name) for name in objects], artifact.meta.get("peak", {}))
        raise


def _raise_overflow(failure: CompilerError, target: Target, objects: list[Elf], peak: Mapping[str, Any]) -> None:
    """Turn the linker's overflow message into one a user can act on; return where it is another failure."""
    over: dict[str, int] = {}
    for match in _OVERFLOW.finditer(failure.output):
        memory, bytes_over = (group for group in match.groups() if group)
        over[memory.lower()] = max(over.get(memory.lower(), 0), int(bytes_over))
    parts = []
    for memory, excess in over.items():
        if memory not in target.memory:
            continue  # the harness's own memory: the linker's message is the one to show
        where = region(target, memory)
        text = f"{memory} ({where.length:,} B) overflows by {excess:,} B"
        if largest := largest_objects(objects, writable=memory == "ram"):
            text += f"; the largest part is {largest[0].name} ({largest[0].size:,} B)"
            if largest[0].name.endswith("_arena") and peak:
                text += f", fullest in layer {peak['layer']} ({peak['bytes']:,} B)"
        parts.append(text)
    if parts:
        raise InfeasibleError(f"{target.name}: the image does not fit: {'. '.join(parts)}") from failure
