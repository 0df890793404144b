"""What an ELF file says: symbols, section sizes, load segments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgescale.core.errors import MissingDependencyError, RigError


@dataclass(frozen=True)
class Symbol:
    """A named function or object; `address` without the Thumb bit, sizes in bytes."""

    name: str
    address: int
    size: int
    kind: str
    section: str

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.address + self.size


@dataclass(frozen=True)
class Section:
    """A section that occupies memory. `loaded` ones have their bytes in flash, `writable` ones live in RAM."""

    name: str
    address: int
    size: int
    loaded: bool
    writable: bool
    executable: bool


@dataclass(frozen=True)
class Elf:
    """An image or object file, decoded once."""

    symbols: tuple[Symbol, ...]
    sections: tuple[Section, ...]
    segments: tuple[tuple[int, bytes], ...]
    """(physical load address, bytes) of every loadable segment with content."""

    def find(self, name: str) -> Symbol | None:
        """The symbol called `name`, or None."""
        return next((s for s in self.symbols if s.name == name), None)

    def address(self, name: str) -> int:
        """The address of `name`; raises RigError where the image has no such symbol."""
        if (symbol := self.find(name)) is None:
            raise RigError(f"the image has no symbol {name!r}")
        return symbol.address

    def total(self, *, loaded: bool | None = None, writable: bool | None = None) -> int:
        """Bytes of the sections that match."""
        return sum(
            s.size
            for s in self.sections
            if (loaded is None or s.loaded == loaded) and (writable is None or s.writable == writable)
        )


def read_elf(path: Path) -> Elf:
    """Decode an ELF file. Raises RigError for anything else, MissingDependencyError without pyelftools."""
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise MissingDependencyError("pyelftools", "pip install 'edgescale[mcu]'") from None
    try:
        with path.open("rb") as handle:
            return _decode(ELFFile(handle))
    except (ELFError, OSError) as error:
        raise RigError(f"{path.name}: cannot read as ELF: {error}") from None


def _decode(file: Any) -> Elf:
    sections = []
    names: list[str] = []
    for section in file.iter_sections():
        names.append(section.name)
        flags = section["sh_flags"]
        if flags & 0x2 and section["sh_size"]:  # SHF_ALLOC
            sections.append(
                Section(
                    section.name,
                    section["sh_addr"],
                    section["sh_size"],
                    loaded=section["sh_type"] != "SHT_NOBITS",
                    writable=bool(flags & 0x1),
                    executable=bool(flags & 0x4),
                )
            )
    symbols = []
    table = file.get_section_by_name(".symtab")
    for symbol in table.iter_symbols() if table is not None else ():
        kind, index = symbol["st_info"]["type"], symbol["st_shndx"]
        if kind not in ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE") or not symbol.name or symbol.name.startswith("$"):
            continue
        address = symbol["st_value"] & ~1 if kind == "STT_FUNC" else symbol["st_value"]
        where = names[index] if isinstance(index, int) and index < len(names) else ""
        symbols.append(Symbol(symbol.name, address, symbol["st_size"], kind, where))
    segments = tuple(
        (segment["p_paddr"], segment.data())
        for segment in file.iter_segments()
        if segment["p_type"] == "PT_LOAD" and segment["p_filesz"]
    )
    return Elf(tuple(symbols), tuple(sections), segments)


def largest_objects(files: Iterable[Elf], *, writable: bool) -> list[Symbol]:
    """Functions and objects of object files by falling size: those of RAM (`writable`) or of flash."""
    found: dict[str, Symbol] = {}
    for elf in files:
        kinds = {s.name: s.writable for s in elf.sections}
        for symbol in elf.symbols:
            if symbol.size and symbol.kind != "STT_NOTYPE" and kinds.get(symbol.section) == writable:
                found[symbol.name] = symbol
    return sorted(found.values(), key=lambda s: -s.size)
