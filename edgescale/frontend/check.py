"""Checks on a model as it was read, each with one sentence that says what is wrong and what to do.

Every function raises UnsupportedModelError; `where` is the file's name as the user wrote it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgescale.core.errors import UnsupportedModelError

OLDEST_OPSET = 13
DEFAULT_DOMAINS = ("", "ai.onnx")
FLOAT_KINDS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
MAX_BYTES = 2**31 - 1

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive (PyTorch checkpoint, .keras or .npz?)"),
    (0, b"\x89HDF\r\n", "an HDF5 file (Keras .h5?)"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"\x80\x04", "a Python pickle"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
)

_PREFIXES = re.compile(r"\[\w*Error\]|Inference error\(s\):")
_CONTEXT = re.compile(r"Name: (\S+) OpType")


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """Decode the bytes of an .onnx file."""
    if not data:
        raise UnsupportedModelError(f"{where} is empty")
    for offset, signature, what in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            raise UnsupportedModelError(f"{where} is {what}, not an ONNX model")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # protobuf's DecodeError; its class has moved between protobuf releases
        raise UnsupportedModelError(f"{where} is not an ONNX model, or it is cut short") from None
    if not model.HasField("graph") or not model.ir_version or not model.opset_import:
        raise UnsupportedModelError(f"{where} is not an ONNX model, or it is cut short: it has no graph or no opset")
    if not _readable(model):
        raise UnsupportedModelError(f"{where} is damaged: it holds names that are not UTF-8 text")
    if not model.graph.node:
        raise UnsupportedModelError(f"{where} holds a graph without nodes")
    if not model.graph.output:
        raise UnsupportedModelError(f"{where} holds a graph without outputs")
    return model


def _readable(message: Any) -> bool:
    """Whether every string of a protobuf message, at any depth, is text (protobuf hands broken ones out as bytes)."""
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_MESSAGE:
            children = [value] if hasattr(value, "ListFields") else list(value)
            if not all(_readable(child) for child in children):
                return False
        elif descriptor.type == descriptor.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else list(value)
            if any(isinstance(text, bytes) for text in texts):
                return False
    return True


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor a graph holds: initializers and attributes, subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from tensors(inner)


def external_data(model: onnx.ModelProto, folder: Path, where: str) -> None:
    """Every external tensor lies in a file below `folder` that is long enough; together they stay below 2 GiB."""
    total = 0
    for tensor in tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = folder / location
        if not location or not path.resolve().is_relative_to(folder.resolve()):
            raise UnsupportedModelError(
                f"{where}: tensor {tensor.name!r} lies in {location!r}, outside the model's folder; "
                "external data must be beside the model"
            )
        if not path.is_file():
            raise UnsupportedModelError(
                f"{where}: the external data file {location!r} with tensor {tensor.name!r} is missing; "
                f"put it into {folder}"
            )
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError:
            raise UnsupportedModelError(f"{where}: tensor {tensor.name!r} has a broken external-data entry") from None
        size = path.stat().st_size
        need = length if length >= 0 else tensor_bytes(tensor)
        total += need
        if offset < 0 or offset + need > size:
            raise UnsupportedModelError(
                f"{where}: the external data file {location!r} is cut short: tensor {tensor.name!r} needs "
                f"{offset + need} bytes, the file has {size}"
            )
    too_large(total, where)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's elements; 4-bit types count as packed."""
    count: int = math.prod(tensor.dims)
    if tensor.data_type in (onnx.TensorProto.UINT4, onnx.TensorProto.INT4):
        return (count + 1) // 2
    try:
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return count


def too_large(size: int, where: str) -> None:
    """The model fits protobuf's limit."""
    if size > MAX_BYTES:
        raise UnsupportedModelError(
            f"{where} holds {size / 2**30:.1f} GiB; models up to 2 GiB (protobuf's limit) are supported"
        )


def operators(model: onnx.ModelProto, where: str) -> None:
    """The default domain's opset is known and not too old; every node is known there or a function of the model."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    version = opsets.get("", opsets.get("ai.onnx", 0))
    newest = onnx.defs.onnx_opset_version()
    if version < OLDEST_OPSET:
        raise UnsupportedModelError(
            f"{where} uses opset {version}; {OLDEST_OPSET} or newer is supported: export it again with "
            f"opset_version={OLDEST_OPSET} or higher, or convert it with onnx.version_converter"
        )
    if version > newest:
        raise UnsupportedModelError(
            f"{where} uses opset {version}; the installed onnx {onnx.__version__} knows opsets up to {newest}: "
            "export it with an older opset or upgrade onnx"
        )
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model.graph):
        if (node.domain, node.op_type) in functions:
            continue
        label = f"node {node.name or node.output[0]!r}" if node.output else f"node {node.name!r}"
        if node.domain not in DEFAULT_DOMAINS:
            raise UnsupportedModelError(
                f"{where}: {label} is {node.op_type!r} of domain {node.domain!r}; only ONNX's own operators are "
                "supported"
            )
        if not onnx.defs.has(node.op_type):
            raise UnsupportedModelError(f"{where}: {label} is {node.op_type!r}, which ONNX does not define")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _nodes(inner)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Values a node reads, those of its subgraphs included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            made = {v.name for v in inner.input} | {t.name for t in inner.initializer}
            for child in inner.node:
                names |= _reads(child) - made
                made |= set(child.output)
            names -= made
    return names


def sort_nodes(model: onnx.ModelProto, where: str) -> None:
    """Put the nodes into an order in which every value is made before it is read, keeping theirs where it is one.

    Raises on a cycle (its nodes are named), a value made twice and a value nobody makes.
    """
    graph = model.graph
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    known |= {t.values.name for t in graph.sparse_initializer}
    makers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in makers or name in known:
                raise UnsupportedModelError(f"{where}: the value {name!r} is made twice; names of values must differ")
            makers[name] = index
    reads = [_reads(node) for node in graph.node]
    for node, names in zip(graph.node, reads, strict=True):
        for name in sorted(names - known - makers.keys()):
            raise UnsupportedModelError(
                f"{where}: node {node.name or node.op_type!r} reads {name!r}, which nothing in the graph makes"
            )
    for value in graph.output:
        if value.name not in makers and value.name not in known:
            raise UnsupportedModelError(f"{where}: nothing in the graph makes the output {value.name!r}")

    waiting = {i: {makers[n] for n in names if n in makers} for i, names in enumerate(reads)}
    order: list[int] = []
    done: set[int] = set()
    while waiting:
        ready = []
        for index, needs in waiting.items():
            if needs <= done:
                ready.append(index)
                done.add(index)  # stable: a node may follow one that became ready in the same sweep
        if not ready:
            raise UnsupportedModelError(f"{where}: the graph has a cycle through {_cycle(graph, waiting)}")
        order += ready
        for index in ready:
            del waiting[index]
    if order != sorted(order):
        nodes = [graph.node[i] for i in order]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _cycle(graph: onnx.GraphProto, waiting: dict[int, set[int]]) -> str:
    """Names of the nodes of one cycle among the nodes that never became ready."""
    trail = [min(waiting)]
    while True:
        following = min(waiting[trail[-1]] & waiting.keys())
        if following in trail:
            names = [graph.node[i].name or graph.node[i].op_type for i in trail[trail.index(following) :]]
            return " -> ".join(reversed(names))
        trail.append(following)


def dense(model: onnx.ModelProto, where: str) -> None:
    """No tensor is stored sparse."""
    for tensor in model.graph.sparse_initializer:
        raise UnsupportedModelError(
            f"{where}: the weight tensor {tensor.values.name!r} is stored sparse; store it dense"
        )
    for node in _nodes(model.graph):
        if any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in node.attribute):
            label = node.name or (node.output[0] if node.output else node.op_type)
            raise UnsupportedModelError(f"{where}: node {label!r} holds a sparse tensor; store it dense")


def structure(model: onnx.ModelProto, where: str) -> None:
    """What onnx.checker demands: attributes, arity, types declared, sparse and external tensors well-formed."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, or a plain error out of the C++ side
        raise UnsupportedModelError(f"{where} is not a valid ONNX model: {brief(error)}") from None


def weights(model: onnx.ModelProto, where: str) -> None:
    """No weight is NaN or infinite; a single infinite number (a bound of Clip, a padding value) is allowed."""
    for graph_tensor in tensors(model.graph):
        if graph_tensor.data_type not in FLOAT_KINDS:
            continue
        try:
            array = numpy_helper.to_array(graph_tensor)
        except Exception as error:
            raise UnsupportedModelError(
                f"{where}: the tensor {graph_tensor.name!r} cannot be decoded: {brief(error)}"
            ) from None
        if array.dtype.kind not in "f":
            array = array.astype(np.float32)
        if np.isfinite(array).all() or (array.size == 1 and not np.isnan(array).any()):
            continue
        count = int(np.count_nonzero(~np.isfinite(array)))
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise UnsupportedModelError(
            f"{where}: the weight tensor {graph_tensor.name!r} holds {what} ({count} of {array.size} values are not "
            "finite); train or export the model again"
        )


def brief(error: Exception) -> str:
    """The sentence in an error of the C++ side: without its prefixes and the dump behind it, with the node's name."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sentence = _PREFIXES.sub("", lines[0]).strip().rstrip(".") if lines else type(error).__name__
    node = _CONTEXT.search(text)
    if node is not None and node.group(1) not in sentence:
        sentence += f" (node {node.group(1)!r})"
    return sentence
