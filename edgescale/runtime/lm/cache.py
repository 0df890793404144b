"""Keys and values of the tokens seen, in float or int8, with places that count and places that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError

Array = npt.NDArray[Any]
Precision = Literal["float", "int8"]
PRECISIONS = ("float", "int8")
_LARGEST = 127
_TINY = 1e-12


@dataclass(frozen=True)
class CacheShape:
    """One layer's past: heads, head width and the model's element type (float32 or float16)."""

    heads: int
    width: int
    dtype: npt.DTypeLike


class KeyValueCache:
    """The past of a batch of sequences of different lengths.

    Every part (a layer's keys or values) is [batch, heads, places, width]; a model without a cache has none. `valid`
    [batch, places] says which places a sequence attends to, `positions` which position each holds and `ids` which
    token (both [batch, places]). Places appended later lie behind, so that a model's causal mask by place is one by
    time. int8: symmetric, one scale a head and place; what has been rounded is not rounded again.
    """

    def __init__(self, shapes: Sequence[CacheShape], batch: int, precision: Precision = "float") -> None:
        """An empty cache; `shapes` of every part in the order of the model's inputs."""
        if precision not in PRECISIONS:
            raise UsageError(f"cache precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        self.precision = precision
        self._shapes = tuple(shapes)
        kind: Any = np.int8 if precision == "int8" else None
        self._parts: list[Array] = [np.zeros((batch, s.heads, 0, s.width), kind or s.dtype) for s in shapes]
        self._scales: list[Array] = [np.zeros((batch, s.heads, 0, 1), np.float32) for s in shapes] if kind else []
        self.valid: npt.NDArray[np.bool_] = np.zeros((batch, 0), bool)
        self.positions: npt.NDArray[np.int64] = np.zeros((batch, 0), np.int64)
        self.ids: npt.NDArray[np.int64] = np.zeros((batch, 0), np.int64)

    @property
    def batch(self) -> int:
        """Sequences."""
        return int(self.valid.shape[0])

    @property
    def places(self) -> int:
        """Places, valid or not."""
        return int(self.valid.shape[1])

    @property
    def bytes(self) -> int:
        """Bytes of keys, values and scales as held."""
        return sum(part.nbytes for part in (*self._parts, *self._scales))

    def parts(self) -> list[Array]:
        """Keys and values as the model takes them."""
        if not self._scales:
            return self._parts
        return [
            (part * scale).astype(shape.dtype)
            for part, scale, shape in zip(self._parts, self._scales, self._shapes, strict=True)
        ]

    def key_norms(self) -> npt.NDArray[np.float64]:
        """Length of each place's key, the mean over layers and heads, [batch, places] (0 without layers)."""
        keys = self.parts()[::2]
        norms = [np.linalg.norm(key.astype(np.float64), axis=3).mean(axis=1) for key in keys]
        return np.mean(norms, axis=0) if norms else np.zeros(self.valid.shape)

    def append(self, presents: Sequence[Array], ids: Array, valid: npt.NDArray[np.bool_], positions: Array) -> None:
        """Take over the last `valid.shape[1]` places of the model's `presents`; the other arrays [batch, new]."""
        count = valid.shape[1]
        if self._scales:
            for index, present in enumerate(presents):
                values, scales = _rounded(present[:, :, present.shape[2] - count :])
                self._parts[index] = np.concatenate([self._parts[index], values], axis=2)
                self._scales[index] = np.concatenate([self._scales[index], scales], axis=2)
        else:
            self._parts = list(presents)
        self.valid = np.concatenate([self.valid, valid], axis=1)
        self.positions = np.concatenate([self.positions, positions], axis=1)
        self.ids = np.concatenate([self.ids, ids], axis=1)

    def keep(self, keep: npt.NDArray[np.bool_]) -> None:
        """Drop the places that `keep` [batch, places] denies or that were not valid, and close the gaps.

        The order stays. A sequence with fewer places than the longest has invalid ones in front.
        """
        kept = self.valid & keep
        if kept.all():
            return
        counts = kept.sum(axis=1)
        longest = int(counts.max(initial=0))
        order = np.argsort(kept, axis=1, kind="stable")[:, kept.shape[1] - longest :]
        index = order[:, None, :, None]
        self._parts = [np.take_along_axis(part, index, axis=2) for part in self._parts]
        self._scales = [np.take_along_axis(scale, index, axis=2) for scale in self._scales]
        self.valid = np.arange(longest)[None] >= longest - counts[:, None]
        self.positions = np.take_along_axis(self.positions, order, axis=1)
        self.ids = np.take_along_axis(self.ids, order, axis=1)

    def rows(self, rows: Sequence[int]) -> KeyValueCache:
        """A cache of the sequences `rows`, which may be repeated or left out."""
        index = np.asarray(rows, dtype=np.int64)
        other = KeyValueCache((), 0, self.precision)
        other._shapes = self._shapes
        other._parts = [part[index] for part in self._parts]
        other._scales = [scale[index] for scale in self._scales]
        other.valid, other.positions, other.ids = self.valid[index], self.positions[index], self.ids[index]
        return other


def _rounded(values: Array) -> tuple[Array, Array]:
    """int8 and float32 scales of `values` [batch, heads, places, width], one scale a head and place."""
    wide = values.astype(np.float32)
    scales = np.maximum(np.abs(wide).max(axis=3, keepdims=True), _TINY) / _LARGEST
    return np.rint(wide / scales).astype(np.int8), scales.astype(np.float32)
