"""Changes of an ONNX file that vendors' compilers need, none of which changes what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


def widened(model: Any) -> int:
    """Keep constants of four bits in int8 and uint8 (values, zero-points); returns how many there were.

    onnxruntime-qnn 2.7 computes something else from int4 weights without a word, and rknn-toolkit2 does not read them.
    """
    from onnx import TensorProto, numpy_helper

    wide = {TensorProto.INT4: np.int8, TensorProto.UINT4: np.uint8}
    count = 0
    for tensor in model.graph.initializer:
        if tensor.data_type in wide:
            values = numpy_helper.to_array(tensor).astype(wide[tensor.data_type])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            count += 1
    return count


def with_zero_points(model: Any) -> None:
    """Give every (de)quantizing node of constant scale the zero-point that it may leave out."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        left_out = len(node.input) < 3 or not node.input[2]
        if node.op_type not in QUANTIZING or not left_out or node.input[1] not in constants:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        stored = constants.get(node.input[0])
        dtype = numpy_helper.to_array(stored).dtype if stored is not None else np.dtype(np.uint8)
        made = numpy_helper.from_array(np.zeros(scale.shape, dtype), f"{node.output[0]}_zero_{number}")
        graph.initializer.append(made)
        del node.input[2:]
        node.input.append(made.name)
