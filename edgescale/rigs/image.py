"""Building the bare-metal image of a C artifact within its target's own memory limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from edgescale.core.errors import InfeasibleError, RigError, UsageError
from edgescale.core.files import sha256_file, sha256_tree, write_whole
from edgescale.core.target import MemoryRegion, Target
from edgescale.core.variant import Artifact
from edgescale.rigs.cachedir import cached_build
from edgescale.rigs.elf import Elf, Symbol, largest_objects, read_elf
from edgescale.rigs.toolchain import Compiler, CompilerError, cross_compiler

BOARD = "cortex_m"
_IMAGE = "image.elf"
_OVERFLOW = re.compile(r"section '([^']*)' will not fit in region '(\w+)': overflowed by (\d+) bytes")


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


def firmware_root() -> Path:
    """The firmware folder: inside the installed package, or beside it in a checkout."""
    packaged = Path(str(resources.files("edgescale"))) / "_data" / "firmware"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "firmware"


def region(target: Target, name: str) -> MemoryRegion:
    """A memory region of the target; raises UsageError where the profile lacks it."""
    if name not in target.memory:
        raise UsageError(f"target {target.name} has no [memory.{name}] table, which an image needs")
    return target.memory[name]


def build_image(artifact: Artifact, target: Target) -> Image:
    """Compile and link a C artifact with an application that only runs it.

    Built once per content (cache folder). Raises InfeasibleError naming the memory that overflows, the
    bytes over and the largest contributor; RigError where the compiler refuses the code.
    """
    if artifact.kind != "c":
        raise RigError(f"{target.name} runs C artifacts, not {artifact.kind!r} ({artifact.variant})")
    compiler = cross_compiler(target)
    board = firmware_root() / "boards" / BOARD
    script = _linker_script(board / "link.ld.in", target)
    recipe = sha256_file(Path(__file__))  # how this file compiles and links is part of what an image is
    key = "\n".join([artifact.sha256, sha256_tree(board), script, recipe, compiler.description, *compiler.flags])
    what = f"{artifact.variant} for {target.name}"
    folder = cached_build("images", key, lambda out: _build(artifact, target, compiler, board, script, out, what))
    return Image(folder / _IMAGE, target, compiler.description, compiler.flags)


def _linker_script(template: Path, target: Target) -> str:
    flash, ram = region(target, "flash"), region(target, "ram")
    text = template.read_text()
    for name, value in (
        ("FLASH_ORIGIN", flash.origin),
        ("FLASH_LENGTH", flash.length),
        ("RAM_ORIGIN", ram.origin),
        ("RAM_LENGTH", ram.length),
    ):
        text = text.replace(f"@{name}@", hex(value))
    return text


def _build(
    artifact: Artifact, target: Target, compiler: Compiler, board: Path, script: str, out: Path, what: str
) -> None:
    symbol = artifact.meta["symbol"]
    root = artifact.path.resolve()
    objects: list[str] = []
    for index, name in enumerate(artifact.meta["sources"]):
        objects.append(f"model{index}.o")
        compiler.run(["-c", f"-I{root}", str(root / name), "-o", objects[-1]], what, out)
    for name, flags in (
        ("startup.c", []),
        ("memory.c", ["-fno-builtin"]),
        ("main.c", [f"-DES_BOARD_RUN=es_{symbol}_run"]),
    ):
        objects.append(name.replace(".c", ".o"))
        compiler.run(["-c", *flags, str(board.resolve() / name), "-o", objects[-1]], what, out)
    write_whole(out / "link.ld", script)
    # The accessors are the model's interface: an application calls them, so they stay.
    ports = [*artifact.meta["inputs"], *artifact.meta["outputs"]]
    keep = [f"-Wl,-u,{port['accessor']}" for port in ports]
    # At -Os zig strips the symbols that layers are told apart by; the last level given counts.
    link = ["-O2", "-Wl,-T,link.ld", "-Wl,-e,Reset_Handler", "-Wl,--gc-sections", *keep]
    try:
        compiler.run([*link, *objects, "-o", _IMAGE], what, out)
    except CompilerError as failure:
        _raise_overflow(failure, target, [read_elf(out / name) for name in objects])
        raise


def _raise_overflow(failure: CompilerError, target: Target, objects: list[Elf]) -> None:
    """Turn the linker's overflow message into one a user can act on; return where it is another failure."""
    over: dict[str, int] = {}
    for _section, memory, excess in _OVERFLOW.findall(failure.output):
        over[memory.lower()] = max(over.get(memory.lower(), 0), int(excess))
    parts = []
    for memory, excess in over.items():
        where = region(target, memory)
        text = f"{memory} ({where.length:,} B) overflows by {excess:,} B"
        if largest := largest_objects(objects, writable=memory == "ram"):
            text += f"; the largest part is {largest[0].name} ({largest[0].size:,} B)"
        parts.append(text)
    if parts:
        raise InfeasibleError(f"{target.name}: the image does not fit: {'. '.join(parts)}") from failure
