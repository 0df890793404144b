"""Values at the edges of a C artifact: float arrays in ONNX layout <-> bytes in the arena."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.core.variant import Artifact

PortMeta = Mapping[str, Any]
"""An entry of `inputs` or `outputs` in artifact.json: accessor, bytes, dtype, scale, zero_point, shape, axes,
stored_shape. stored = onnx_value.transpose(axes).reshape(stored_shape). `value_dtype`, where it is noted, is the
type of the model's own value: float32, or the integers themselves (int8, uint8, int16)."""


def single_input(artifact: Artifact) -> PortMeta:
    """The artifact's only input; raises UsageError where it has several, since samples are one array."""
    ports = artifact.meta["inputs"]
    if len(ports) != 1:
        names = ", ".join(p["name"] for p in ports)
        raise UsageError(f"{artifact.variant} has {len(ports)} inputs ({names}); samples can feed only one")
    port: PortMeta = ports[0]
    return port


def to_stored(port: PortMeta, x: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Samples as the model takes them [n, *shape[1:]] -> stored units [n, *stored_shape[1:]] (int8, int16 or float32).

    Real values become integers as by ONNX's QuantizeLinear: x / scale rounded half to even, plus the zero-point,
    saturated, in float32. Samples of an int8 port that are int8 or uint8, and of an int16 port that are int16, are
    the model's own integers: they are stored as they are, uint8 less 128.
    """
    shape = tuple(port["shape"])
    if x.shape[1:] != shape[1:]:
        raise UsageError(f"input {port['name']!r} takes samples of shape {shape[1:]}, not {x.shape[1:]}")
    moved = x.reshape(len(x), *shape)  # one ONNX value, batch 1, a sample
    moved = moved.transpose(0, *(axis + 1 for axis in port["axes"])).reshape(len(x), *port["stored_shape"][1:])
    if port["dtype"] == "int8" and moved.dtype in (np.int8, np.uint8) and port.get("value_dtype") != "float32":
        offset = 128 if moved.dtype == np.uint8 else 0
        return np.ascontiguousarray((moved.astype(np.int16) - offset).astype(np.int8))
    if port["dtype"] == "int16" and moved.dtype == np.int16 and port.get("value_dtype") != "float32":
        return np.ascontiguousarray(moved)
    values = np.ascontiguousarray(moved, np.float32)
    if port["dtype"] == "float32":
        return values
    quantized = np.rint(values / np.float32(port["scale"])) + np.float32(port["zero_point"])
    limits = np.iinfo(port["dtype"])
    clipped: npt.NDArray[np.generic] = np.clip(quantized, limits.min, limits.max).astype(port["dtype"])
    return clipped


def from_stored(port: PortMeta, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Stored units [n, *stored_shape[1:]] -> real values [n, *shape[1:]] in ONNX layout, float32."""
    values = stored.astype(np.float32)
    if port["dtype"] != "float32":
        values = (values - np.float32(port["zero_point"])) * np.float32(port["scale"])
    shape, axes = tuple(port["shape"]), tuple(port["axes"])
    moved = values.reshape(len(values), *(shape[axis] for axis in axes))
    back = moved.transpose(0, *(1 + int(i) for i in np.argsort(axes)))
    return np.ascontiguousarray(back.reshape(len(values), *shape[1:]), np.float32)


def check_stored(port: PortMeta, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Stored samples [n, ...] as C-contiguous [n, *stored_shape[1:]] of the port's dtype.

    Raises UsageError for another type or size.
    """
    dtype = np.dtype(port["dtype"])
    if stored.dtype != dtype:
        raise UsageError(f"input {port['name']!r} is stored as {dtype}, not {stored.dtype}")
    size = int(np.prod(port["stored_shape"]))
    if len(stored) and stored[0].size != size:
        raise UsageError(f"input {port['name']!r} holds {size} values a sample, not {stored[0].size}")
    return np.ascontiguousarray(stored).reshape(len(stored), *port["stored_shape"][1:])
