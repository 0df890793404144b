"""Writing an export: whole or not at all, with a record of what it was made from."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgescale import __version__
from edgescale.bundle import Bundle, EntryRecord
from edgescale.core.errors import EdgescaleError, UsageError
from edgescale.core.files import sha256_file, whole_directory
from edgescale.core.quantity import format_value
from edgescale.core.target import Target
from edgescale.export.layouts import LAYOUTS
from edgescale.export.source import read_source

RECORD_NAME = "edgescale-export.json"
FORMAT = "edgescale-export"
SCHEMA = 1
BUILD = "build"
"""Folder of an export that its Makefile fills; it goes with the export it was built from."""

_VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\Z")


@dataclass(frozen=True)
class Exported:
    """An export on disk: its folder, the library's name, and its files, relative to the folder."""

    path: Path
    name: str
    header: str
    files: tuple[str, ...]


def export(
    bundle: Bundle,
    entry: EntryRecord,
    layout: str,
    out: Path,
    firmware: Path,
    target: Target | None = None,
    version: str = "1.0.0",
) -> Exported:
    """Write `entry`, of kind "c", of a verified bundle as the folder `out` in one of LAYOUTS.

    firmware: folder with headers and templates; target: the device's profile, which gives an image's memory map;
    version: of the exported package, major.minor.patch. An earlier export in its place is replaced at the end, in
    one rename; on any failure `out` is as before. Equal arguments give equal bytes. Raises UsageError (`out` holds
    something else or changed files, a version of another form), UnsupportedModelError (a model the layout's example
    cannot feed), EdgescaleError (no space, no permission).
    """
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}; choose from: {', '.join(LAYOUTS)}")
    if not _VERSION.match(version):
        raise UsageError(f"package version {version!r} is not of the form major.minor.patch, such as 1.0.0")
    out = Path(out).resolve()
    if out.is_relative_to(bundle.path.resolve()):
        raise UsageError(
            f"{out} lies inside the bundle, which holds nothing but its own files; choose another directory"
        )
    size = 0
    try:
        check_destination(out)
        source = read_source(bundle, entry, target, version, firmware)
        files = LAYOUTS[layout](source)
        files[RECORD_NAME] = _record(bundle, entry, layout, version, files)
        size = sum(map(len, files.values()))
        with whole_directory(out) as directory:
            for path, content in files.items():
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / path).write_bytes(content)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EdgescaleError(
                f"no space left to export to {out} (it takes {format_value(size, 'B')}); nothing was written. "
                "Free some space or choose another place"
            ) from None
        raise EdgescaleError(f"cannot export to {out}: {error.strerror or error}") from None
    return Exported(out, source.name, source.header, tuple(sorted(files)))


def _record(bundle: Bundle, entry: EntryRecord, layout: str, version: str, files: Mapping[str, bytes]) -> bytes:
    """Provenance: what the export was made from, its figures as the manifest has them, and a hash for each file."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "schema": SCHEMA,
        "edgescale": __version__,
        "layout": layout,
        "package_version": version,
        "bundle_manifest_sha256": bundle.sha256,
        "entry": entry.id,
        "variant": entry.variant,
        "target": entry.target,
        "artifact_sha256": entry.artifact_sha256,
        "figures": {
            name: {"value": q.value, "unit": q.unit, "source": q.source, "note": q.note}
            for name, q in sorted(entry.quantities().items())
        },
        "files": {path: hashlib.sha256(files[path]).hexdigest() for path in sorted(files)},
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def check_destination(out: Path) -> None:
    """Raise UsageError unless `out` is free, an empty directory, or an earlier export nobody has worked in.

    What lies in an export's `build` folder is its own: it is replaced with it.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"cannot export to {out}: it is a file; give the name of a directory")
    if next(out.iterdir(), None) is None:
        return
    listed = _files_of_export(out / RECORD_NAME)
    if listed is None:
        raise UsageError(
            f"{out} exists and is not an export of edgescale; it is left as it is: choose another directory"
        )
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}
    own = {path for path in present if path.partition("/")[0] == BUILD} | {RECORD_NAME}
    foreign = sorted(present - own - listed.keys())
    changed = sorted(path for path in present & listed.keys() if sha256_file(out / path) != listed[path])
    if foreign or changed:
        what = [f"holds files that are not its own ({', '.join(foreign[:5])})"] if foreign else []
        what += [f"has been changed by hand ({', '.join(changed[:5])})"] if changed else []
        raise UsageError(
            f"the export {out} {' and '.join(what)}, which would be lost: move them away or choose another directory"
        )


def _files_of_export(record: Path) -> dict[str, str] | None:
    """Path -> SHA-256 as the record of an earlier export lists them; None where there is no such record."""
    try:
        content = json.loads(record.read_bytes())
        files = content["files"] if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        return None
    return files
