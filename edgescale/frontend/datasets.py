"""Datasets from files, folders or a function, checked against the model that will eat them."""

from __future__ import annotations

import importlib
import itertools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.model import INDEX_TYPES, Model, TensorSpec
from edgescale.frontend.fingerprint import (
    dataset_fingerprint,
    importable_from_here,
    is_function_spec,
    split_function_spec,
)

Array = npt.NDArray[np.generic]
_LABEL_FILES = ("labels.npy", "y.npy")
CHECKED_ELEMENTS = 2**20
"""Numbers looked at together while samples are checked."""


Target = Model | TensorSpec | Sequence[TensorSpec]
"""What samples are to feed: a model, its only input, or its inputs."""


def load_dataset(spec: str, model: Target | None = None, *, need_labels: bool = False) -> Dataset:
    """Load samples, and labels where there are any.

    `spec` is one of
    - an `.npz` with x [count, ...] and optionally y [count, ...] (one array of any name is x);
    - an `.npy` with x [count, ...];
    - a folder of `.npy`, one sample a file in sorted order, with labels in `labels.npy` or `y.npy`, or one
      subfolder of samples a class (classes numbered in sorted order of the folders' names);
    - `package.module:function`, called without arguments, returning x or (x, y); modules of the current
      directory are found too.

    For a model of several inputs, an `.npz` with an array of each input's name [count, ...] and optionally y, or a
    function that returns a dict of them in x's place.

    With a `model`, or the specification of its inputs, the samples are checked and cast to
    what it takes: float64 and float16 become float32; integers and booleans become float32 with the same
    value (scaling them, say to 0..1, is the caller's business; integers beyond 2^24 are refused); a
    quantized model's int8, uint8 or int16 input, and one of token ids, takes integers within its range. Files are
    never unpickled. `need_labels` demands y.

    Raises UsageError saying what is wrong: unreadable files, no samples, another shape than the model's
    (with the transpose that would fit), a dtype without a rule, NaN or infinity, all samples constant,
    labels of another length or not numbers.
    """
    digest = dataset_fingerprint(spec)
    path = Path(spec)
    targets = _targets(model)
    if targets is not None and len(targets) > 1:
        return _several(spec, path, targets, digest, need_labels)
    if path.is_dir():
        x, y = _from_folder(path)
    elif path.is_file():
        x, y = _from_file(path)
    elif is_function_spec(spec):
        x, y = _from_function(spec)
    else:  # dataset_fingerprint has refused it
        raise UsageError(f"dataset {spec} does not exist")
    x = _checked_samples(x, spec, targets[0] if targets else None)
    labels = _checked_labels(y, len(x), spec, need_labels)
    return Dataset(_name(spec), x, labels, digest)


def _targets(model: Target | None) -> tuple[TensorSpec, ...] | None:
    if model is None or isinstance(model, TensorSpec):
        return None if model is None else (model,)
    return model.inputs if isinstance(model, Model) else tuple(model)


def _several(spec: str, path: Path, targets: Sequence[TensorSpec], digest: str, need_labels: bool) -> Dataset:
    """Samples of a model of several inputs, by name."""
    names = [target.name for target in targets]
    if path.is_file() and path.suffix == ".npz":
        loaded = _load(path)
        with loaded:
            try:
                arrays = {name: loaded[name] for name in loaded.files}
            except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
                raise UsageError(f"dataset {path} cannot be read: {_reason(error)}") from None
        y = arrays.get("y") if "y" not in names else None
    elif is_function_spec(spec) and not path.exists():
        arrays, y = _from_function(spec, several=True)
    else:
        raise UsageError(
            f"dataset {spec}: the model has {len(names)} inputs ({', '.join(names)}): give an .npz with one array "
            "each, or a function that returns a dict of them"
        )
    missing = [name for name in names if name not in arrays]
    if missing:
        found = ", ".join(arrays) or "nothing"
        raise UsageError(f"dataset {spec} has no array {', '.join(map(repr, missing))} (found: {found})")
    checked = {t.name: _checked_samples(np.asarray(arrays[t.name]), spec, t, many=True) for t in targets}
    counts = {name: len(array) for name, array in checked.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise UsageError(f"dataset {spec}: the inputs hold different numbers of samples ({listed})")
    first, *others = names
    labels = _checked_labels(y, len(checked[first]), spec, need_labels)
    return Dataset(_name(spec), checked[first], labels, digest, {name: checked[name] for name in others}, first)


def _name(spec: str) -> str:
    return spec if is_function_spec(spec) and not Path(spec).exists() else Path(spec).stem


def _from_file(path: Path) -> tuple[Array, Array | None]:
    if path.suffix not in (".npz", ".npy"):
        raise UsageError(f"dataset {path}: unknown kind of file {path.suffix!r}; give .npz, .npy or a folder of .npy")
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        return loaded, None
    with loaded:
        try:
            names = list(loaded.files)
            if "x" in names:
                return loaded["x"], loaded["y"] if "y" in names else None
            if len(names) == 1:
                return loaded[names[0]], None
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise UsageError(f"dataset {path} cannot be read: {_reason(error)}") from None
    found = ", ".join(names) or "nothing"
    raise UsageError(f"dataset {path} has no array 'x' (found: {found}); save it with np.savez(path, x=..., y=...)")


def _load(path: Path) -> Any:
    """np.load without unpickling, its errors as one sentence."""
    try:
        if path.stat().st_size == 0:
            raise UsageError(f"dataset {path} is empty")
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"dataset {path} cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "pickle" in text:
        return "it is no NumPy file of plain numbers (object arrays and pickles are not loaded)"
    return text


def _from_folder(folder: Path) -> tuple[Array, Array | None]:
    files = sorted(p for p in folder.glob("*.npy") if p.name not in _LABEL_FILES)
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and any(p.glob("*.npy")))
    if files and classes:
        raise UsageError(f"dataset {folder} holds .npy files and class folders of .npy; use one or the other")
    if classes:
        groups = [sorted(p.glob("*.npy")) for p in classes]
        x = _stack([_array(file) for group in groups for file in group], [f for g in groups for f in g], folder)
        return x, np.repeat(np.arange(len(groups), dtype=np.int64), [len(group) for group in groups])
    if not files:
        raise UsageError(f"dataset {folder} holds no .npy files")
    label_files = [folder / name for name in _LABEL_FILES if (folder / name).is_file()]
    if len(label_files) > 1:
        raise UsageError(f"dataset {folder} holds both labels.npy and y.npy; keep one")
    labels = _array(label_files[0]) if label_files else None
    return _stack([_array(file) for file in files], files, folder), labels


def _array(path: Path) -> Array:
    loaded = _load(path)
    if not isinstance(loaded, np.ndarray):
        raise UsageError(f"dataset {path} is an archive, not an .npy file")
    return loaded


def _stack(samples: list[Array], files: list[Path], folder: Path) -> Array:
    for sample, file in zip(samples, files, strict=True):
        if sample.shape != samples[0].shape:
            raise UsageError(
                f"dataset {folder}: {file.name} has the shape {list(sample.shape)}, {files[0].name} "
                f"{list(samples[0].shape)}; samples must have one shape"
            )
    return np.stack(samples)


def _from_function(spec: str, several: bool = False) -> tuple[Any, Array | None]:
    """(x, y); x an array, or with `several` a dict of arrays."""
    function = load_function(spec, "dataset")
    try:
        result = function()
    except Exception as error:
        raise UsageError(f"dataset {spec} raised {type(error).__name__}: {error}") from error
    pair = result if isinstance(result, tuple) else (result, None)
    if len(pair) != 2:
        raise UsageError(f"dataset {spec} returned {len(pair)} values; it must return x or (x, y)")
    try:
        if several and not isinstance(pair[0], Mapping):
            raise UsageError(f"dataset {spec}: the model has several inputs; return a dict of their arrays")
        x = {k: np.asarray(v) for k, v in pair[0].items()} if several else np.asarray(pair[0])
        y = None if pair[1] is None else np.asarray(pair[1])
    except ValueError as error:
        raise UsageError(f"dataset {spec} returned no regular array: {error}") from None
    return x, y


def load_function(spec: str, what: str) -> Any:
    """Import `package.module:function`; `what` ("dataset", "metric") names it in errors. Raises UsageError."""
    module_name, name = split_function_spec(spec)
    with importable_from_here():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise UsageError(
                f"{what} {spec}: importing {module_name!r} raised {type(error).__name__}: {error}"
            ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{what} {spec}: the module {module_name!r} has no function {name!r}")
    return function


def _checked_samples(x: Array, spec: str, target: TensorSpec | None, *, many: bool = False) -> Array:
    """`many`: one of several inputs, which may well hold the same number everywhere (a mask, an empty cache)."""
    if x.dtype.kind not in "fiub":
        raise UsageError(f"dataset {spec}: x has the type {x.dtype}; numbers are needed")
    if x.ndim == 0 or x.shape[0] == 0:
        raise UsageError(f"dataset {spec} holds no samples")
    if target is not None:
        _check_shape(x, target, spec)
        x = _cast(x, target, spec)
    elif x.dtype.kind == "f":
        x = x.astype(np.float32, copy=False)
    if x.size == 0 and not many:
        raise UsageError(f"dataset {spec}: x has the shape {list(x.shape)}, that is no numbers at all")
    first = _first_broken(x) if x.dtype.kind == "f" else None
    if first is not None:
        raise UsageError(f"dataset {spec}: sample {first} holds NaN or infinity (or a number beyond float32)")
    if x.size > 1 and not many and all((part == x.reshape(-1)[0]).all() for part in _parts(x)):
        raise UsageError(
            f"dataset {spec}: every number in x is {x.reshape(-1)[0]}; constant data cannot calibrate or evaluate a "
            "model, give real samples"
        )
    return np.ascontiguousarray(x)


def _parts(x: Array) -> Iterator[Array]:
    """A few samples after the other, so that what is computed of them stays small beside all samples."""
    size = max(1, CHECKED_ELEMENTS // max(x[0].size, 1))
    return (x[start : start + size] for start in range(0, len(x), size))


def _first_broken(x: Array) -> int | None:
    """Index of the first sample with a number that is not finite."""
    start = 0
    for part in _parts(x):
        broken = np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(axis=1))
        if broken.size:
            return start + int(broken[0])
        start += len(part)
    return None


def _check_shape(x: Array, target: TensorSpec, spec: str) -> None:
    wanted, found = target.shape[1:], x.shape[1:]
    if target.accepts(found):
        return
    if not target.static:
        raise UsageError(
            f"dataset {spec}: samples have the shape {list(found)}, the model's input {target.name!r} takes "
            f"{list(wanted)} (-1: any)"
        )
    message = (
        f"dataset {spec}: samples have the shape {list(found)}, the model's input {target.name!r} takes {list(wanted)}"
    )
    if x.shape == target.shape:
        message += "; x is one sample with its batch dimension: wrap it, x[None]"
    elif x.shape == wanted:
        message += "; x is a single sample: add the dimension of samples, x[None]"
    elif sorted(found) == sorted(wanted):
        order = next(p for p in itertools.permutations(range(len(found))) if tuple(found[i] for i in p) == wanted)
        axes = ", ".join(str(a) for a in (0, *(i + 1 for i in order)))
        message += f"; x.transpose({axes}) would fit"
    elif np.prod(found, dtype=np.int64) == np.prod(wanted, dtype=np.int64):
        sizes = ", ".join(str(s) for s in (-1, *wanted))
        message += f"; the sizes agree, so x.reshape({sizes}) may be what you want"
    raise UsageError(message)


def _cast(x: Array, target: TensorSpec, spec: str) -> Array:
    if x.dtype.name == target.dtype:
        return x
    if target.dtype == "float32":
        if x.dtype.kind in "iu" and x.size and max(abs(int(x.max())), abs(int(x.min()))) > 2**24:
            raise UsageError(
                f"dataset {spec}: x is {x.dtype} with values beyond 2^24, which float32 does not hold exactly; "
                "scale the samples"
            )
        with np.errstate(over="ignore"):
            return x.astype(np.float32)
    if target.dtype == "bool":
        if x.dtype.kind == "f" or (x.size and not np.isin(x, (0, 1)).all()):
            raise UsageError(f"dataset {spec}: the model's input {target.name!r} takes bool; give 0 and 1")
        return x.astype(np.bool_)
    limits = np.iinfo(np.dtype(target.dtype))
    if x.dtype.kind == "f" and target.dtype in INDEX_TYPES:
        raise UsageError(f"dataset {spec}: x is {x.dtype}, the model's input {target.name!r} takes {target.dtype}")
    if x.dtype.kind == "f":
        raise UsageError(
            f"dataset {spec}: x is {x.dtype}, the model's input {target.name!r} takes {target.dtype}; quantize the "
            "samples with the scale and zero-point of that input"
        )
    if x.size and (int(x.min()) < limits.min or int(x.max()) > limits.max):
        raise UsageError(
            f"dataset {spec}: x ranges from {x.min()} to {x.max()}, beyond the {target.dtype} that the model's input "
            f"{target.name!r} takes"
        )
    return x.astype(target.dtype)


def _checked_labels(y: Array | None, count: int, spec: str, needed: bool) -> Array | None:
    if y is None:
        if needed:
            raise UsageError(
                f"dataset {spec} has no labels, which the metric needs: add y to the .npz, labels.npy to the folder, "
                "or return (x, y)"
            )
        return None
    if y.dtype.kind not in "fiub":
        raise UsageError(f"dataset {spec}: labels have the type {y.dtype}; numbers are needed (class indices from 0)")
    if y.ndim == 0 or len(y) != count:
        held = len(y) if y.ndim else 1
        raise UsageError(f"dataset {spec}: {held} labels for {count} samples")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise UsageError(f"dataset {spec}: labels hold NaN or infinity")
    return y
