"""Where rigs keep what is expensive to build: compiler caches, built images, host libraries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from edgescale.core.files import cache_root, whole_directory


def cached_build(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory `<cache>/<kind>/<hash of key>`, filled by `build(directory)` where it does not exist yet.

    Whole or absent, also when two processes build the same thing at once: the later one wins.
    """
    directory = cache_root() / kind / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not directory.is_dir():
        with whole_directory(directory) as temporary:
            build(temporary)
    return directory
