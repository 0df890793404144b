"""Whole files or none: temporary name, then rename; content hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """Where what is expensive is kept: $EDGESCALE_CACHE, else $XDG_CACHE_HOME/edgescale, else ~/.cache/edgescale.

    Not created here; everything below it may be deleted at any time.
    """
    if chosen := os.environ.get("EDGESCALE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgescale"


def shipped(name: str) -> Path:
    """A folder that comes with edgescale ("profiles", "firmware", "examples/fashion"): packaged, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "_data" / name
    return packaged if packaged.is_dir() else package.parent / name


def firmware_root() -> Path:
    """The C side: include/, kernels/, boards/, examples/, cmake/."""
    return shipped("firmware")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_tree(root: Path) -> str:
    """SHA-256 over the sorted relative paths and contents of every file under `root`."""
    files = (path for path in root.rglob("*") if path.is_file())
    return sha256_listing({path.relative_to(root).as_posix(): sha256_file(path) for path in files})


def sha256_listing(files: Mapping[str, str]) -> str:
    """`sha256_tree` from a list of files: relative path with forward slashes -> SHA-256 of the content."""
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        digest.update(f"{name}\0{files[name]}\n".encode())
    return digest.hexdigest()


def write_whole(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `path` when the block ends, and vanishes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(retired / "previous")
            try:
                temporary.rename(path)
            except BaseException:
                (retired / "previous").rename(path)
                raise
            finally:
                shutil.rmtree(retired, ignore_errors=True)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
