"""Between the values a user's ONNX graph takes and gives and the tensors a program stores."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.lower.program import LIMITS, Array, Port, Program
from edgescale.lower.reference_elementwise import dequantize_real, quantize_real


def describe_port(program: Program, port: Port) -> dict[str, Any]:
    """The port as a back end notes it under `inputs` or `outputs` of artifact.json; `edgescale.rigs.ports` reads it."""
    tensor = program.tensors[port.tensor]
    return {
        "name": port.name,
        "bytes": tensor.nbytes,
        "dtype": tensor.dtype,
        "value_dtype": port.dtype,
        "scale": tensor.scale,
        "zero_point": tensor.zero_point,
        "shape": list(port.shape),
        "axes": list(port.axes),
        "stored_shape": list(tensor.shape),
    }


def to_stored(program: Program, port: Port, x: Array) -> Array:
    """ONNX values in ONNX layout [n, *port.shape[1:]] -> stored [n, *tensor.shape[1:]] in the tensor's dtype.

    Real values of an integer tensor: round half to even of x / scale, + zero_point, saturated. An integer port takes
    the integers themselves. Raises UsageError for a wrong shape, and for numbers an integer port does not take.
    """
    tensor = program.tensors[port.tensor]
    if x.ndim != len(port.shape) or x.shape[1:] != port.shape[1:]:
        raise UsageError(f"input {port.name} takes [n, {', '.join(map(str, port.shape[1:]))}], found {list(x.shape)}")
    moved = np.ascontiguousarray(x.transpose(port.axes)).reshape(x.shape[0], *tensor.shape[1:])
    if port.dtype != "float32":
        return _integers(port, moved)
    if tensor.dtype in LIMITS:
        return quantize_real(moved, tensor.scale, tensor.zero_point, tensor.dtype)
    return moved.astype(tensor.dtype)


def _integers(port: Port, x: Array) -> Array:
    """Integers of the port's dtype as they are stored: uint8 as int8, less 128."""
    limits = np.iinfo(port.dtype)
    if x.dtype.kind not in "iu" or (x.size and (int(x.min()) < limits.min or int(x.max()) > limits.max)):
        raise UsageError(
            f"input {port.name} takes {port.dtype}, integers from {limits.min} to {limits.max}; found {x.dtype}"
            + (f" from {x.min()} to {x.max()}" if x.size else "")
        )
    if port.dtype == "uint8":
        return (x.astype(np.int16) - 128).astype(np.int8)
    return x.astype(port.dtype)


def from_stored(program: Program, port: Port, stored: Array) -> npt.NDArray[np.float32]:
    """Stored [n, *tensor.shape[1:]] -> real values in ONNX layout [n, *port.shape[1:]], float32.

    Also where the port is of integers: they are dequantized.
    """
    tensor = program.tensors[port.tensor]
    permuted = [port.shape[axis] for axis in port.axes]
    value = stored.reshape(stored.shape[0], *permuted[1:]).transpose(np.argsort(port.axes))
    if tensor.dtype in LIMITS:
        return dequantize_real(value, tensor.scale, tensor.zero_point)
    return np.ascontiguousarray(value).astype(np.float32)
