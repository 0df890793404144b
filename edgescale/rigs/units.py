"""The units of a quantized ONNX output, so that every rig speaks of real values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.state import decode_states

_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


def output_units(model: Path) -> tuple[float, int] | None:
    """(scale, zero-point) of the first output of an ONNX file where it is int8, uint8 or int16; None for other outputs.

    Follows the output back over what only moves elements to its QuantizeLinear. Raises UnsupportedModelError
    where an integer output has no constant units of one scale.
    """
    import onnx
    from onnx import numpy_helper

    loaded = onnx.load(str(model))
    graph = loaded.graph
    model_states = decode_states({entry.key: entry.value for entry in loaded.metadata_props}, model.name)
    held = {state.output for state in model_states}
    output = next(port for port in graph.output if port.name not in held)
    if output.type.tensor_type.elem_type not in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16):
        return None
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    node = makers.get(output.name)
    while node is not None and node.op_type in _MOVES:
        node = makers.get(node.input[0])
    if node is not None and node.op_type == "QuantizeLinear":
        found = [numpy_helper.to_array(constants[name]).reshape(-1) for name in node.input[1:] if name in constants]
        if len(found) == len(node.input) - 1 and all(array.size == 1 for array in found):
            return float(found[0][0]), int(found[1][0]) if len(found) > 1 else 0
    raise UnsupportedModelError(
        f"{model.name}: the integer output {output.name!r} has no constant scale and zero-point"
    )


def real_values(stored: npt.NDArray[np.generic], units: tuple[float, int] | None) -> npt.NDArray[np.float32]:
    """scale * (stored - zero-point) as float32; without units the numbers themselves."""
    if units is None:
        return np.asarray(stored, np.float32)
    return (stored.astype(np.int32) - units[1]).astype(np.float32) * np.float32(units[0])
