"""Content hashes of models and datasets for the stage cache: bytes only, nothing is decoded or imported."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgescale.core.errors import UsageError
from edgescale.core.files import sha256_file, sha256_tree

_FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")

# TensorProto.external_data holds StringStringEntryProto messages; serialized, the one that names a file
# is field 1 (0x0A) "location", then field 2 (0x12) with the path, its length a varint.
_LOCATION = b"\x0a\x08location\x12"


def is_tflite(data: bytes) -> bool:
    """Whether the bytes carry the signature of a TensorFlow Lite file."""
    return data[4:8] == b"TFL3"


def is_function_spec(spec: str) -> bool:
    """Whether `spec` reads as `package.module:function`."""
    return _FUNCTION.match(spec) is not None


def split_function_spec(spec: str) -> tuple[str, str]:
    """`package.module:function` -> (module, function)."""
    module, _, name = spec.partition(":")
    return module, name


def external_files(data: bytes) -> list[str]:
    """Sorted, distinct paths of the external-data files that a serialized ModelProto names.

    Scans the bytes instead of decoding them, so that a cache key costs no import of onnx.
    """
    found: set[str] = set()
    at = data.find(_LOCATION)
    while at >= 0:
        at += len(_LOCATION)
        length, shift = 0, 0
        while at < len(data):
            byte = data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        raw = data[at : at + length]
        if 0 < length == len(raw):
            found.add(raw.decode("utf-8", "replace"))
        at = data.find(_LOCATION, at)
    return sorted(found)


def hash_model_bytes(data: bytes, folder: Path) -> str:
    """SHA-256 of a model's bytes and, where it names some, of its external-data files beside it.

    A model in one file hashes like the file. A named file that is absent counts as absent (loading
    then fails with its name). TensorFlow Lite files hold everything themselves.
    """
    digest = hashlib.sha256(data)
    if is_tflite(data):
        return digest.hexdigest()
    for location in external_files(data):
        path = folder / location
        content = sha256_file(path) if path.is_file() else "absent"
        digest.update(f"\0{location}\0{content}".encode())
    return digest.hexdigest()


def model_fingerprint(path: Path) -> str:
    """SHA-256, 64 hex digits, of a model file and its external-data files; equals `Model.sha256`.

    Raises UsageError where the file does not exist or cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"model {path} does not exist" if not path.exists() else f"model {path} is not a file")
    try:
        return hash_model_bytes(path.read_bytes(), path.parent)
    except OSError as error:
        raise UsageError(f"model {path} cannot be read: {error.strerror}") from None


def dataset_fingerprint(spec: str) -> str:
    """SHA-256, 64 hex digits, of the source of a dataset; equals `Dataset.sha256`.

    A file: its bytes. A folder: every file's relative path and bytes. `package.module:function`: the
    bytes of the module's source file and the function's name. What such a function reads from
    elsewhere is not part of it, so a cached result outlives a change there.
    Raises UsageError where the source does not exist.
    """
    path = Path(spec)
    if path.is_file():
        return sha256_file(path)
    if path.is_dir():
        return sha256_tree(path)
    if not is_function_spec(spec):
        raise UsageError(f"dataset {spec} does not exist; give an .npz, a folder of .npy or package.module:function")
    module, name = split_function_spec(spec)
    with importable_from_here():
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise UsageError(f"dataset {spec}: there is no Python module {module!r} here or on the import path")
    return hashlib.sha256(Path(found.origin).read_bytes() + f"\0{name}".encode()).hexdigest()


@contextmanager
def importable_from_here() -> Iterator[None]:
    """Let modules of the current directory be imported, as `python -m` does, while the block runs."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
