"""Shapes: the batch fixed to 1, other dimensions numbers (in models of token inputs any may vary), strict inference.

Every function works on the proto in place and raises UnsupportedModelError; `where` is the file's name.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, shape_inference

from edgescale.core.errors import UnsupportedModelError
from edgescale.frontend.check import DEFAULT_DOMAINS, brief

_QUANTIZED_INPUTS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16)
_INDEX_INPUTS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


def _inputs(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """The inputs a user feeds (initializers may be listed among the graph's inputs too)."""
    constants = {tensor.name for tensor in graph.initializer}
    return (value for value in graph.input if value.name not in constants)


def is_quantized(graph: onnx.GraphProto) -> bool:
    """Whether the graph holds QuantizeLinear or DequantizeLinear nodes."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)


def takes_tokens(graph: onnx.GraphProto) -> bool:
    """Whether an input holds token ids or the like: int64, int32 or bool."""
    return any(value.type.tensor_type.elem_type in _INDEX_INPUTS for value in _inputs(graph))


def check_inputs(model: onnx.ModelProto, where: str) -> None:
    """There is an input, and each is a tensor of float32, int64, int32 or bool.

    Quantized models may take int8, uint8 or int16 too.
    """
    values = list(_inputs(model.graph))
    if not values:
        raise UnsupportedModelError(f"{where} has no inputs: its output never changes")
    allowed = (TensorProto.FLOAT, *_INDEX_INPUTS, *(_QUANTIZED_INPUTS if is_quantized(model.graph) else ()))
    for value in values:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise UnsupportedModelError(f"{where}: the input {value.name!r} is no tensor but {kind or 'of no type'}")
        element = value.type.tensor_type.elem_type
        if element not in allowed:
            names = ", ".join(TensorProto.DataType.Name(a).lower().replace("float", "float32") for a in allowed)
            raise UnsupportedModelError(
                f"{where}: the input {value.name!r} is {TensorProto.DataType.Name(element).lower()}; supported: "
                f"{names}. Export the model with such inputs"
            )
        if not value.type.tensor_type.HasField("shape"):
            raise UnsupportedModelError(f"{where}: the input {value.name!r} has no shape; export it with a fixed shape")


def fix_batch(model: onnx.ModelProto, where: str) -> None:
    """Set an unknown first dimension of each input to 1; refuse any other unknown one, but for models of tokens.

    A symbolic, absent, 0 or -1 first dimension is the batch. Models that take token ids keep other symbolic
    dimensions (a text's length). The shapes the file notes for
    inner values are dropped, and so are unknown dimensions of the outputs: inference fills them anew.
    """
    values = list(_inputs(model.graph))
    varies = takes_tokens(model.graph)
    for value in values:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            known = dim.HasField("dim_value") and dim.dim_value > 0
            if axis == 0 and not known:
                dim.Clear()
                dim.dim_value = 1
            elif not known and varies:
                if not dim.dim_param:
                    dim.dim_param = f"{value.name}_dim{axis}"
            elif not known:
                label = repr(dim.dim_param) if dim.dim_param else "unnamed"
                raise UnsupportedModelError(
                    f"{where}: dimension {axis} of the input {value.name!r} is dynamic ({label}); only the batch, "
                    "dimension 0, may be. Export the model with a fixed size there"
                )
        dims = value.type.tensor_type.shape.dim
        if len(values) == 1 and dims and dims[0].dim_value != 1:
            raise UnsupportedModelError(
                f"{where}: the input {value.name!r} has the shape {[d.dim_value for d in dims]}, whose first dimension "
                "is not 1. It must be the batch: export the model with batch 1 or a dynamic batch (recurrent layers of "
                "PyTorch put the batch first with batch_first=True)"
            )
    del model.graph.value_info[:]
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if not (dim.HasField("dim_value") and dim.dim_value > 0):
                dim.Clear()


def infer(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Strict inference of types and shapes; a contradiction is an error."""
    try:
        return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise UnsupportedModelError(f"{where}: shapes or types do not fit together: {brief(error)}") from None


def check_channels(model: onnx.ModelProto, where: str) -> None:
    """Each Conv's weights fit its input's channels, its groups and its bias (inference does not look at these)."""
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes.setdefault(value.name, tuple(d.dim_value for d in dims))
    for node in graph.node:
        if node.op_type != "Conv" or node.domain not in DEFAULT_DOMAINS:
            continue
        x, w = shapes.get(node.input[0]), shapes.get(node.input[1])
        if x is None or w is None or len(x) < 3 or len(w) != len(x):
            continue
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        label = f"{where}: Conv {node.name or node.output[0]!r}"
        if groups < 1 or w[0] % groups or x[1] != w[1] * groups:
            raise UnsupportedModelError(
                f"{label}: weights of shape {list(w)} in {groups} group(s) do not fit an input of {x[1]} channels"
            )
        bias = shapes.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias != (w[0],):
            raise UnsupportedModelError(f"{label}: a bias of shape {list(bias)} does not fit {w[0]} output channels")


def check_outputs(model: onnx.ModelProto, where: str) -> None:
    """Every output is a tensor of static shape; in models of tokens, of known rank."""
    varies = takes_tokens(model.graph)
    for value in model.graph.output:
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if varies and tensor.HasField("shape"):
            continue
        if not tensor.HasField("shape") or not all(d.HasField("dim_value") and d.dim_value > 0 for d in dims):
            raise UnsupportedModelError(
                f"{where}: the shape of the output {value.name!r} depends on the data; only static shapes are supported"
            )
