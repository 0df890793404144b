"""A decoder in ONNX Runtime: token ids in, logits out, keys and values kept where the graph takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError
from edgescale.runtime.lm.cache import CacheShape, KeyValueCache, Precision
from edgescale.runtime.ort import open_session

Array = npt.NDArray[Any]

CONTEXT_KEY = "context_length"
"""Metadata of the model: positions it can take, where it is bounded."""
_PAST = re.compile(r"past(?:_key_values)?\.(\d+)\.(key|value)")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_OWN = ("input_ids", "attention_mask", "position_ids")


class Decoder:
    """A decoder as the usual exporters write it.

    Inputs: input_ids [batch, new]; optional attention_mask [batch, past + new] and position_ids [batch, new];
    past_key_values.N.key and .value [batch, heads, past, width] with outputs present.N.key and .value. Without the
    last ones every pass computes the whole text anew (see `describe`). A graph whose batch is fixed at 1 computes
    the sequences of a batch one after the other.
    """

    def __init__(self, path: Path, config: Mapping[str, Any] | None = None) -> None:
        """Open the model; `config` as an artifact's session table.

        Raises UsageError (no file), UnsupportedModelError (inputs or outputs of another kind of model).
        """
        self.name = path.name
        self._session = open_session(path, config or {})
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        if "input_ids" not in inputs or "logits" not in outputs:
            raise UnsupportedModelError(f"{self.name}: a decoder has an input input_ids and an output logits")
        pasts = sorted((int(m[1]), m[2], name) for name in inputs if (m := _PAST.fullmatch(name)))
        self._pasts = [name for _, _, name in pasts]
        self._presents = [f"present.{layer}.{part}" for layer, part, _ in pasts]
        if missing := [name for name in self._presents if name not in outputs]:
            raise UnsupportedModelError(f"{self.name}: no output {missing[0]} for {self._pasts[0]} and its like")
        if strange := [name for name in inputs if name not in (*_OWN, *self._pasts)]:
            raise UnsupportedModelError(f"{self.name}: input {strange[0]} is none of a decoder's")
        self.shapes = [self._cache_shape(inputs[name]) for name in self._pasts]
        self._kinds = {name: self._integer(inputs[name]) for name in _OWN if name in inputs}
        self.cached = bool(self._pasts)
        self.has_positions = "position_ids" in inputs
        self._one_row = inputs["input_ids"].shape[:1] == [1]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.context = int(metadata[CONTEXT_KEY]) if CONTEXT_KEY in metadata else None
        external = path.with_name(path.name + ".data")
        self.file_bytes = path.stat().st_size + (external.stat().st_size if external.is_file() else 0)

    def _cache_shape(self, value: Any) -> CacheShape:
        shape, dtype = value.shape, _TYPES.get(value.type)
        if dtype is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            raise UnsupportedModelError(
                f"{self.name}: {value.name} must be float [batch, heads, past, width] with heads and width fixed, "
                f"not {value.type} {shape}"
            )
        return CacheShape(shape[1], shape[3], dtype)

    def _integer(self, value: Any) -> npt.DTypeLike:
        if value.type not in _INTEGERS:
            raise UnsupportedModelError(f"{self.name}: {value.name} must be int64 or int32, not {value.type}")
        return _INTEGERS[value.type]

    def describe(self) -> str:
        """What kind of decoder it is, in a line; warns where it lacks a cache."""
        if not self.cached:
            return f"{self.name}: WARNING: no key/value cache, every token computes the whole text anew"
        bound = f", {self.context} positions" if self.context else ""
        bound += ", batch fixed at 1" if self._one_row else ""
        return f"{self.name}: {len(self.shapes) // 2} layers with key/value cache{bound}"

    def new_cache(self, batch: int, precision: Precision = "float") -> KeyValueCache:
        """An empty cache of this model."""
        return KeyValueCache(self.shapes, batch, precision)

    def forward(self, cache: KeyValueCache, ids: Array, valid: npt.NDArray[np.bool_], positions: Array) -> Array:
        """Logits float32 [batch, new, vocabulary] of `ids` behind `cache`, which takes the new places.

        ids, valid, positions: [batch, new]; places that are not valid are computed and attended to by none.
        """
        shown, places = ids, positions
        if not self.cached:
            shown = np.concatenate([cache.ids, ids], axis=1)
            places = np.concatenate([cache.positions, positions], axis=1)
        feed = {
            "input_ids": shown,
            "attention_mask": np.concatenate([cache.valid, valid], axis=1),
            "position_ids": places,
        }
        feed = {name: feed[name].astype(kind) for name, kind in self._kinds.items()}
        feed.update(zip(self._pasts, cache.parts(), strict=True))
        logits, *presents = self._run(feed, len(ids))
        cache.append(presents, ids, valid, positions)
        new: Array = logits[:, logits.shape[1] - ids.shape[1] :].astype(np.float32)
        return new

    def _run(self, feed: dict[str, Array], rows: int) -> list[Array]:
        names = ["logits", *self._presents]
        if not self._one_row or rows == 1:
            return list(self._session.run(names, feed))
        each = [self._session.run(names, {key: a[row : row + 1] for key, a in feed.items()}) for row in range(rows)]
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]
