"""From what the caller hands over to what the model takes, one sample at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.bundle.manifest import TensorRecord
from edgescale.core.errors import UsageError

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Feed:
    """Checked inputs of `count` inferences; `batched` tells whether the caller gave a batch axis.

    arrays: name -> [count, *sample_shape]; whole: inputs without a batch axis of 1, the same for all.
    """

    arrays: Mapping[str, Array]
    whole: Mapping[str, Array]
    count: int
    batched: bool

    def sample(self, index: int) -> dict[str, Array]:
        """The inputs of one inference, with the batch axis of 1 the model was compiled for."""
        return {name: array[index : index + 1] for name, array in self.arrays.items()} | dict(self.whole)


def read_inputs(x: npt.ArrayLike | Mapping[str, npt.ArrayLike], specs: Sequence[TensorRecord]) -> Feed:
    """Check `x` against the model's inputs and bring it to their dtypes.

    x: one array for a one-input model, else name -> array. An array has the input's shape without
    the batch axis (one sample) or with it, of any length (a batch); an input whose first axis is not
    a batch of 1 is taken in its own shape. Numbers are converted within their kind (float64 to
    float32, integers to float); floats are never cut to integers, and integers must fit. Raises
    UsageError naming the input, what it got and what it takes.
    """
    given = _by_name(x, specs)
    arrays: dict[str, Array] = {}
    whole: dict[str, Array] = {}
    lengths: dict[str, tuple[int, bool]] = {}
    for spec in specs:
        array = _convert(given[spec.name], spec)
        if spec.shape[:1] != (1,):
            if not _fits(array.shape, spec.shape):
                raise UsageError(f"input {spec.name} has shape {array.shape}; the model takes {spec.shape}")
            whole[spec.name] = array
            continue
        sample = spec.shape[1:]
        batched = array.ndim == len(spec.shape)
        if not _fits(array.shape[batched:], sample):
            many = ", ".join(("n", *map(str, sample)))
            any_size = ", -1 for any size" if -1 in sample else ""
            raise UsageError(
                f"input {spec.name} has shape {array.shape}; the model takes one sample {sample} or a batch ({many})"
                f"{any_size}"
            )
        arrays[spec.name] = array if batched else array[np.newaxis]
        lengths[spec.name] = (len(arrays[spec.name]), batched)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name}: {n if batched else 'one'}" for name, (n, batched) in lengths.items())
        raise UsageError(f"the inputs hold different numbers of samples ({counts})")
    count, batched = next(iter(lengths.values()), (1, False))
    if count == 0:
        raise UsageError("the batch is empty: give at least one sample")
    return Feed(arrays, whole, count, batched)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array's shape is the one wanted, where -1 takes any size."""
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted, strict=True))


def _by_name(x: npt.ArrayLike | Mapping[str, npt.ArrayLike], specs: Sequence[TensorRecord]) -> dict[str, npt.ArrayLike]:
    names = [spec.name for spec in specs]
    if not isinstance(x, Mapping):
        if len(names) != 1:
            raise UsageError(f"the model has {len(names)} inputs: give a dict with {', '.join(names)}")
        return {names[0]: x}
    missing = [name for name in names if name not in x]
    unknown = [str(name) for name in x if name not in names]
    if missing or unknown:
        trouble = f"lacks {', '.join(missing)}" if missing else f"names {', '.join(unknown)}"
        raise UsageError(f"the input dict {trouble}; the model takes {', '.join(names)}")
    return dict(x)


# Kind of the model's dtype -> kinds it is converted from; values are range-checked for integers.
_ACCEPTED = {"f": "biuf", "i": "biu", "u": "biu", "b": "b"}


def _convert(value: npt.ArrayLike, spec: TensorRecord) -> Array:
    wanted = np.dtype(spec.dtype)
    try:
        array: Array = np.asarray(value)
    except ValueError as error:
        raise UsageError(f"input {spec.name} is not an array: {error}") from None
    if array.dtype == wanted:
        return array
    if array.dtype.kind not in _ACCEPTED.get(wanted.kind, ""):
        raise UsageError(f"input {spec.name} is of {array.dtype}; the model takes {wanted}")
    if wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise UsageError(
                f"input {spec.name} holds values from {low} to {high}; {wanted} takes {limits.min} to {limits.max}"
            )
    return array.astype(wanted)
