"""Fashion-MNIST for the example family: reading the original files and cutting out the tracked subsets.

The data set comes with the Debian package ``dataset-fashion-mnist``. Needs numpy only.
"""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package puts the four files."""

CLASS_NAMES: tuple[str, ...] = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CALIBRATION_COUNT = 512
TEST_COUNT = 2000

Images = NDArray[np.uint8]
"""Pixels, uint8 ``[N, 28, 28]``, 0 (background) to 255."""
Labels = NDArray[np.int64]
"""Class numbers, int64 ``[N]``, 0 to 9."""


class DataMissingError(Exception):
    """The data set is not there or not readable; the message says what to do."""


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one gzip-packed IDX file of unsigned bytes; the shape is the one its header states."""
    try:
        with gzip.open(path, "rb") as stream:
            raw = stream.read()
    except FileNotFoundError as error:
        raise DataMissingError(
            f"{path} is not there: install the data set with 'apt-get install dataset-fashion-mnist', "
            "or name the folder of its four .gz files with --data"
        ) from error
    except (OSError, EOFError) as error:
        raise DataMissingError(f"{path} cannot be read: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataMissingError(f"{path} is not an IDX file of unsigned bytes")
    rank = raw[3]
    start = 4 + 4 * rank
    shape = tuple(int(value) for value in np.frombuffer(raw[4:start], dtype=">u4"))
    if len(raw) - start != int(np.prod(shape)):
        raise DataMissingError(f"{path} holds {len(raw) - start} bytes of values, its header says {shape}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def load_split(folder: Path, split: str) -> tuple[Images, Labels]:
    """Load a split, ``train`` (60,000 images) or ``test`` (10,000), as pixels and class numbers."""
    stem = {"train": "train", "test": "t10k"}[split]
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
    if images.shape != (len(labels), 28, 28):
        raise DataMissingError(f"{folder}: images {images.shape} and labels {labels.shape} do not match")
    return images, labels.astype(np.int64)


def to_input(images: Images) -> NDArray[np.float32]:
    """Turn pixels ``[N, 28, 28]`` into what the nets take: float32 ``[N, 1, 28, 28]`` in ``[0, 1]``."""
    return images[:, None].astype(np.float32) / np.float32(255.0)


def stratified(labels: Labels, count: int, seed: int) -> NDArray[np.int64]:
    """Choose ``count`` different indices, classes as even as possible, in an order given by ``seed``.

    Where ``count`` is no multiple of ten, the first classes get one more each.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in range(10):
        share = count // 10 + (1 if label < count % 10 else 0)
        chosen.append(rng.choice(np.flatnonzero(labels == label), size=share, replace=False))
    return rng.permutation(np.concatenate(chosen)).astype(np.int64)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in one piece: a temporary file beside it, then a rename over the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a compressed ``.npz`` whose bytes depend on the arrays only (no time stamps inside)."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980-01-01 unless told otherwise
            info.external_attr = 0o644 << 16
            archive.writestr(info, entry.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    write_whole(path, packed.getvalue())


def write_subsets(data: Path, out: Path, seed: int) -> list[Path]:
    """Write ``calibration.npz`` (512 of the train split) and ``test.npz`` (2,000 of the test split).

    Both hold ``x``, float32 ``[N, 1, 28, 28]`` in ``[0, 1]``, and ``y``, int64 ``[N]``, with classes as
    even as possible. Gives the two paths.
    """
    written = []
    for name, split, count in (("calibration", "train", CALIBRATION_COUNT), ("test", "test", TEST_COUNT)):
        images, labels = load_split(data, split)
        index = stratified(labels, count, seed)
        path = out / f"{name}.npz"
        save_npz(path, {"x": to_input(images[index]), "y": labels[index]})
        written.append(path)
    return written
