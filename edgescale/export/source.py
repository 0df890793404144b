"""What is exported: an entry's files and what they say of themselves, checked before any of it goes into a build."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgescale.bundle import Bundle, BundleError, EntryRecord
from edgescale.core.target import Target

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FILE = re.compile(r"[A-Za-z0-9_.+/-]+\Z")
_LEVEL = re.compile(r"(?<!\S)-O\S+")


@dataclass(frozen=True)
class Port:
    """An input or output of the model as its C shows it; `macro` is the prefix of its macros in the header."""

    name: str
    accessor: str
    dtype: str

    @property
    def macro(self) -> str:
        return self.accessor.upper()


@dataclass(frozen=True)
class Source:
    """An entry of kind "c" with the content of its files (path inside the artifact -> bytes).

    target: the device's profile, where it is the one the bundle was made with; version: of the exported
    package, `major.minor.patch`; firmware: folder of templates and headers.
    """

    entry: EntryRecord
    files: Mapping[str, bytes]
    meta: Mapping[str, Any]
    cpu: str
    target: Target | None
    version: str
    firmware: Path

    @property
    def name(self) -> str:
        """Name of the library, of its package and of its C symbols."""
        return f"es_{self.meta['symbol']}"

    @property
    def header(self) -> str:
        return str(self.meta["header"])

    @property
    def sources(self) -> list[str]:
        return list(self.meta["sources"])

    @cached_property
    def inputs(self) -> list[Port]:
        return [Port(p["name"], p["accessor"], p["dtype"]) for p in self.meta["inputs"]]

    @cached_property
    def outputs(self) -> list[Port]:
        return [Port(p["name"], p["accessor"], p["dtype"]) for p in self.meta["outputs"]]

    @property
    def optimize(self) -> str:
        """Optimization level of the image the figures belong to; -O2 where the rig does not tell."""
        levels = _LEVEL.findall(self.entry.environment.get("flags", ""))
        return levels[-1] if levels else "-O2"

    def template(self, path: str) -> str:
        """Text of a file of the firmware folder."""
        return (self.firmware / path).read_text(encoding="utf-8")


def read_source(bundle: Bundle, entry: EntryRecord, target: Target | None, version: str, firmware: Path) -> Source:
    """Read an entry of a verified bundle. Raises BundleError where its artifact.json does not describe C files."""
    root = bundle.artifact_path(entry)
    files = {file.path.removeprefix(f"{entry.path}/"): (bundle.path / file.path).read_bytes() for file in entry.files}
    try:
        meta = json.loads(files["artifact.json"])
        names = [meta["symbol"], *(port["accessor"] for port in (*meta["inputs"], *meta["outputs"]))]
        listed = [meta["header"], *meta["sources"]]
        dtypes = [port["dtype"] for port in (*meta["inputs"], *meta["outputs"])]
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{root / 'artifact.json'} does not describe C files: {error!r}") from None
    # These names become part of build scripts and C text.
    wrong = [name for name in names if not isinstance(name, str) or not _IDENTIFIER.match(name)]
    wrong += [name for name in listed if not isinstance(name, str) or not _FILE.match(name) or name not in files]
    if wrong or not meta["sources"] or not all(isinstance(dtype, str) for dtype in dtypes):
        raise BundleError(f"{root / 'artifact.json'} names no C symbol, or a file that is missing: {wrong!r}")
    record = next(t for t in bundle.manifest.targets if t.name == entry.target)
    return Source(entry, files, meta, record.cpu, target, version, firmware)


def one_line(text: str) -> str:
    """`text` fit for a comment or a property: one line of plain ASCII that neither ends a comment nor continues it."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return re.sub(r"\s+", " ", plain).replace("*/", "* /").rstrip("\\")


_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace every @NAME@; a name without a value is a KeyError, since templates and values ship together."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)
