"""A content-addressed store of finished stages: same inputs, same code, no work.

A stage is keyed by everything that shapes its result: the fingerprints of its inputs, its options,
and the source of edgescale itself. Its result is a directory with the stage's files and a
`result.json`; a directory appears whole or not at all, so an interrupted run resumes at the stage
it was in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgescale.core.files import cache_root, whole_directory, write_whole

_RESULT = "result.json"
DEFAULT_LIMIT_BYTES = 4 * 1024**3


@cache
def code_fingerprint() -> str:
    """SHA-256 over edgescale's own Python files: a changed tool never serves an old result."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if "_data" not in path.parts:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Stage:
    """A finished stage: its directory, its key and what it recorded."""

    path: Path
    key: str
    result: Mapping[str, Any]
    fresh: bool
    """Whether it was computed now rather than found."""


class StageStore:
    """Finished stages under `root`; `enabled=False` recomputes every stage and replaces what is stored."""

    def __init__(self, root: Path | None = None, *, enabled: bool = True) -> None:
        self.root = (root or cache_root()) / "stages"
        self.enabled = enabled

    def run(self, stage: str, parts: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]) -> Stage:
        """Return the stage keyed by `parts` (JSON-ready), calling `build(directory)` where it is not stored.

        `build` writes files into the directory and returns a JSON-ready result.
        """
        key = hashlib.sha256(
            json.dumps([stage, code_fingerprint(), parts], sort_keys=True, default=str).encode()
        ).hexdigest()
        path = self.root / stage / key[:40]
        if self.enabled and (stored := self._read(path)) is not None:
            return Stage(path, key, stored, fresh=False)
        with whole_directory(path) as directory:
            result = build(directory)
            write_whole(directory / _RESULT, json.dumps(result))
        return Stage(path, key, json.loads(json.dumps(result)), fresh=True)

    def _read(self, path: Path) -> Mapping[str, Any] | None:
        try:
            stored: Mapping[str, Any] = json.loads((path / _RESULT).read_text())
        except (OSError, ValueError):
            return None
        os.utime(path)
        return stored

    def size(self) -> int:
        """Bytes the stored stages take."""
        return sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file())

    def trim(self, limit: int = DEFAULT_LIMIT_BYTES) -> int:
        """Drop the stages used longest ago until at most `limit` bytes remain; returns the bytes dropped.

        Stages used within the last hour stay, since a running compile may hold their paths.
        """
        stages = sorted((p for p in self.root.glob("*/*") if p.is_dir()), key=lambda p: p.stat().st_mtime)
        sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in stages}
        excess, dropped = sum(sizes.values()) - limit, 0
        for path in stages:
            if dropped >= excess or path.stat().st_mtime > time.time() - 3600:
                break
            shutil.rmtree(path, ignore_errors=True)
            dropped += sizes[path]
        return dropped
