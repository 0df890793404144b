"""Model files in (ONNX, TensorFlow Lite) and ONNX files out: read, checked, cleaned; written whole."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.files import write_whole
from edgescale.core.model import INDEX_TYPES, Model, TensorSpec
from edgescale.core.state import decode_states
from edgescale.frontend.fingerprint import hash_model_bytes, is_tflite

if TYPE_CHECKING:
    import onnx
    import onnx_ir

NEWEST_USEFUL_OPSET = 21
"""Models of an older opset are brought up to this one (8- and 4-bit Q/DQ) where ONNX's converter manages it."""


def load_model(path: Path) -> Model:
    """Read, check and clean an ONNX model, float or QDQ, or a TensorFlow Lite one (told by its signature).

    ONNX: default-domain opset 13 or newer, static shapes (an unknown first dimension is the batch and becomes 1),
    inputs of float32 (int8, uint8 and int16 too in a quantized model) or of token ids and masks (int64, int32, bool;
    such models may have further unknown dimensions), external data beside the file, below 2 GiB.
    Functions are inlined, the opset raised to 21 where the converter manages it, and the passes of
    `frontend.passes.clean` applied; outputs equal the file's to float32 rounding. Ports that hold the state of an
    LSTM or GRU before and after a run become states (`frontend.recurrent_states`).

    TensorFlow Lite: see `frontend.tflite.translate`; quantized files become QDQ graphs that compile to LiteRT's
    results bit for bit, their inputs and outputs keep shape and dtype. Needs the extra `tflite`
    (MissingDependencyError).

    Raises UsageError where `path` does not exist; UnsupportedModelError, one sentence naming file, node or
    tensor, for everything that is wrong with what it holds.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"model {path} does not exist")
    if path.is_dir():
        raise UnsupportedModelError(f"{path} is a directory; give the .onnx file in it")
    from edgescale.frontend import check

    where = str(path)
    check.too_large(path.stat().st_size, where)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"model {path} cannot be read: {error.strerror}") from None
    digest = hash_model_bytes(data, path.parent)
    graph = _from_tflite(data, where) if is_tflite(data) else _prepare(check.parse(data, where), path.parent, where)
    return model_from_ir(graph, c_identifier(path.stem), digest, where=where)


def _from_tflite(data: bytes, where: str) -> onnx_ir.Model:
    """Translate a TensorFlow Lite file; what comes out is checked like any other ONNX graph, and cleaned."""
    from edgescale.frontend import check, shapes
    from edgescale.frontend.tflite import translate

    proto = translate(data, where)
    check.structure(proto, where)
    check.weights(proto, where)
    shapes.check_channels(shapes.infer(proto, where), where)
    return _finish(proto, where)


def _prepare(proto: onnx.ModelProto, folder: Path, where: str) -> onnx_ir.Model:
    """Check the parsed model step by step, each step relying on the ones before, and clean it."""
    from onnx import external_data_helper

    from edgescale.frontend import check, shapes

    check.external_data(proto, folder, where)
    try:
        external_data_helper.load_external_data_for_model(proto, str(folder))
    except Exception as error:
        raise UnsupportedModelError(f"{where}: the external data cannot be read: {check.brief(error)}") from None
    _one_default_domain(proto)
    proto = _inline(proto, where)
    check.operators(proto, where)
    check.dense(proto, where)
    check.sort_nodes(proto, where)
    shapes.check_inputs(proto, where)
    shapes.fix_batch(proto, where)
    check.structure(proto, where)
    check.weights(proto, where)
    shapes.check_channels(shapes.infer(proto, where), where)
    return _finish(_upgrade(proto, where), where)


def _finish(proto: onnx.ModelProto, where: str) -> onnx_ir.Model:
    """Clean a checked model and infer the shapes of what came out."""
    import onnx_ir

    from edgescale.frontend import shapes
    from edgescale.frontend.passes import clean
    from edgescale.frontend.recurrent_states import pair_states

    passes = onnx_ir.passes
    # The library's inference pass logs a traceback where it gives up; `infer` below says the same in a sentence.
    chatter = logging.getLogger("onnx_ir.passes.common.shape_inference")
    chatter.disabled, before = True, chatter.disabled
    try:
        cleaned = clean(onnx_ir.from_proto(proto))
    except (passes.PassError, passes.InvariantError, onnx_ir.serde.SerdeError, ValueError) as error:
        raise UnsupportedModelError(f"{where}: {_root_cause(error)}") from None
    finally:
        chatter.disabled = before
    final = shapes.infer(onnx_ir.to_proto(cleaned), where)
    shapes.check_channels(final, where)
    shapes.check_outputs(final, where)
    result: onnx_ir.Model = onnx_ir.from_proto(final)
    pair_states(result)
    return result


def _root_cause(error: BaseException) -> str:
    """The first sentence of the error at the bottom of a chain; onnx_ir wraps what a pass raises."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _one_default_domain(proto: onnx.ModelProto) -> None:
    """`ai.onnx` is another name of the default domain; keep the short one."""
    for entry in (*proto.opset_import, *proto.graph.node):
        if entry.domain == "ai.onnx":
            entry.domain = ""


def _inline(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Replace calls of the model's own functions by their bodies."""
    if not proto.functions:
        return proto
    import onnx_ir
    from onnx_ir.passes.common import InlinePass

    from edgescale.frontend.check import brief

    try:
        return onnx_ir.to_proto(InlinePass()(onnx_ir.from_proto(proto)).model)
    except Exception as error:
        raise UnsupportedModelError(f"{where}: its functions cannot be inlined: {brief(error)}") from None


def _upgrade(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The model at opset 21, or as it is where it is newer or the converter fails or changes its nodes' names."""
    from onnx import version_converter

    from edgescale.frontend.shapes import infer

    version = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if version >= NEWEST_USEFUL_OPSET:
        return proto
    try:
        raised = version_converter.convert_version(proto, NEWEST_USEFUL_OPSET)
        infer(raised, where)
    except Exception:  # the converter raises plain RuntimeErrors and has gaps; the old opset serves as well
        return proto
    kept = {node.name for node in proto.graph.node} <= {node.name for node in raised.graph.node}
    raised.ir_version = max(raised.ir_version, 10)
    return raised if kept else proto


def model_from_ir(graph: onnx_ir.Model, name: str, sha256: str | None = None, *, where: str = "") -> Model:
    """Wrap an onnx_ir model with inferred shapes at its edges as a `Model`.

    Inputs and outputs that hold state (`core.state`) are not among the model's: whoever runs it feeds them back.
    `name` must be a C identifier; `sha256` is computed from the serialized graph where it is not given.
    Raises UnsupportedModelError for an input or output of unknown rank, or in models without token inputs of
    unknown size.
    """
    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.graph)
    states = decode_states(graph.metadata_props, where or name)
    fed = {state.input for state in states}
    left = {state.output for state in states}
    ports = [v for v in graph.graph.inputs if not v.is_initializer()]
    varies = any(v.dtype is not None and v.dtype.numpy().name in INDEX_TYPES for v in ports)
    inputs = tuple(_spec(v, where, varies) for v in ports if v.name not in fed)
    outputs = tuple(_spec(v, where, varies) for v in graph.graph.outputs if v.name not in left)
    digest = sha256 or hashlib.sha256(serialize(graph)).hexdigest()
    return Model(c_identifier(name), graph, inputs, outputs, digest, quantized)


def _spec(value: Any, where: str, varies: bool) -> TensorSpec:
    """`varies`: whether dimensions of any size are noted as -1 instead of refused."""
    from edgescale.frontend.graph import shape_of

    shape = shape_of(value)
    if shape is None and varies and value.shape is not None:
        shape = tuple(d if isinstance(d, int) else -1 for d in value.shape.dims)
    if shape is None or value.dtype is None:
        prefix = f"{where}: " if where else ""
        raise UnsupportedModelError(f"{prefix}{value.name!r} at the edge of the graph has no static shape and type")
    return TensorSpec(str(value.name), shape, str(value.dtype.numpy().name))


def serialize(model: Model | onnx_ir.Model) -> bytes:
    """The model as the bytes of an .onnx file, everything inside; equal models give equal bytes.

    Of a quantized graph the shapes between inputs and outputs are left out: they follow from the rest, and in small
    models they take as many bytes as the weights.
    """
    import onnx_ir

    graph = model.ir if isinstance(model, Model) else model
    proto = onnx_ir.to_proto(graph)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node):
        del proto.graph.value_info[:]
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def save_model(model: Model | onnx_ir.Model, path: Path) -> None:
    """Write a model as one .onnx file, weights inside; the old file or the new one is there, never a part."""
    write_whole(Path(path), serialize(model))


def c_identifier(stem: str) -> str:
    """A file's stem as a C identifier: other characters become `_`, a leading digit gets `m` before it."""
    cleaned = re.sub(r"\W", "_", stem, flags=re.ASCII) or "model"
    return f"m{cleaned}" if cleaned[0].isdigit() else cleaned
