"""The C kernel headers: where they are, and which of them a generated file needs."""

from __future__ import annotations

import re
from pathlib import Path

from edgescale.core.errors import UsageError

_INCLUDE = re.compile(r'^#include "(?:edgescale/)?(es_\w+\.h)"', re.MULTILINE)


def families(root: Path) -> list[str]:
    """Kernel families that `root` holds, as target profiles name them."""
    return sorted(path.name for path in (root / "kernels").iterdir() if path.is_dir())


def include_directories(root: Path, family: str) -> tuple[Path, ...]:
    """Folders to search for headers: the family's, then the scalar one, which every family builds on.

    Raises UsageError for an unknown family.
    """
    if family not in families(root):
        raise UsageError(f"kernel family {family!r} does not exist; known: {', '.join(families(root))}")
    kernels = dict.fromkeys((root / "kernels" / family, root / "kernels" / "scalar"))
    return (*kernels, root / "include" / "edgescale")


def needed_headers(text: str, root: Path, family: str) -> dict[str, str]:
    """Name -> content of every header that C text includes, directly or through another."""
    directories = include_directories(root, family)
    found: dict[str, str] = {}
    waiting = _INCLUDE.findall(text)
    while waiting:
        name = waiting.pop()
        path = next((d / name for d in directories if (d / name).is_file()), None)
        if name in found or path is None:
            continue
        found[name] = path.read_text(encoding="utf-8")
        waiting += _INCLUDE.findall(found[name])
    return dict(sorted(found.items()))
