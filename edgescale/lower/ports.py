"""Between the values a user's ONNX graph takes and gives and the tensors a program stores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.lower.program import Array, Port, Program
from edgescale.lower.reference_elementwise import dequantize_real, quantize_real


def to_stored(program: Program, port: Port, x: Array) -> Array:
    """Real values in ONNX layout [n, *port.shape[1:]] -> stored [n, *tensor.shape[1:]] in the tensor's dtype.

    int8: round half to even of x / scale, + zero_point, saturated. Raises UsageError for a wrong shape.
    """
    tensor = program.tensors[port.tensor]
    if x.ndim != len(port.shape) or x.shape[1:] != port.shape[1:]:
        raise UsageError(f"input {port.name} takes [n, {', '.join(map(str, port.shape[1:]))}], found {list(x.shape)}")
    moved = np.ascontiguousarray(x.transpose(port.axes)).reshape(x.shape[0], *tensor.shape[1:])
    if tensor.dtype == "int8":
        return quantize_real(moved, tensor.scale, tensor.zero_point)
    return moved.astype(tensor.dtype)


def from_stored(program: Program, port: Port, stored: Array) -> npt.NDArray[np.float32]:
    """Stored [n, *tensor.shape[1:]] -> real values in ONNX layout [n, *port.shape[1:]], float32."""
    tensor = program.tensors[port.tensor]
    permuted = [port.shape[axis] for axis in port.axes]
    value = stored.reshape(stored.shape[0], *permuted[1:]).transpose(np.argsort(port.axes))
    if tensor.dtype == "int8":
        return dequantize_real(value, tensor.scale, tensor.zero_point)
    return np.ascontiguousarray(value).astype(np.float32)
