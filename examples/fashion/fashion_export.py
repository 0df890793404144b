"""Export of the example nets to float ONNX with readable names, and their accuracy in ONNX Runtime.

Batch normalisation stays a node of its own behind each convolution. Nodes carry the module path
(``stage1.block0.depthwise.conv``), weights the parameter path (``stage1.block0.depthwise.conv.weight``)
and every inner tensor the name of its node with ``.out``. Needs torch, onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from fashion_data import Images, Labels, to_input, write_whole
from fashion_nets import INPUT_SHAPE, FashionNet
from onnx import numpy_helper
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import remove_optional_bias_from_conv_rule

OPSET = 18
TOLERANCE = 1e-4
_SCOPES = "pkg.torch.onnx.name_scopes"


class ExportError(Exception):
    """The exported file is not what it has to be."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's notes on packages that are not installed and on its own old calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def to_onnx(net: FashionNet) -> onnx.ModelProto:
    """Export ``net`` in inference mode: ``image`` ``[N, 1, 28, 28]`` to ``logits`` ``[N, 10]``, float32."""
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    net.eval()
    with _quiet():
        program = torch.onnx.export(
            net,
            (torch.zeros(2, *INPUT_SHAPE),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("N", min=1)}},
            optimize=False,  # the whole set of rules would fold the batch normalisation away
            verbose=False,
        )
        assert program is not None
        model: Any = program.model
        optimizer.fold_constants(model)
        rewriter.rewrite(model, [remove_optional_bias_from_conv_rule])
        proto: onnx.ModelProto = program.model_proto
    _use_pool_and_flatten(proto.graph)
    _rename(proto.graph)
    return _rebuild(proto)


def _scope(node: onnx.NodeProto) -> str:
    """Read the path of the module a node came from out of the exporter's notes; ``""`` is the net."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""


def _use_pool_and_flatten(graph: onnx.GraphProto) -> None:
    """Write the closing mean over height and width as GlobalAveragePool, the reshape behind as Flatten.

    The nodes that only computed the shape for the reshape go.
    """
    values = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    pooled: set[str] = set()
    for node in graph.node:
        if node.op_type == "ReduceMean" and sorted(values[node.input[1]] % 4) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            pooled.add(node.output[0])
            attributes = []
        elif node.op_type == "Reshape" and node.input[0] in pooled:
            node.op_type = "Flatten"
            attributes = [onnx.helper.make_attribute("axis", 1)]
        else:
            continue
        del node.input[1:]
        del node.attribute[:]
        node.attribute.extend(attributes)
    needed = {graph.output[0].name}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _rename(graph: onnx.GraphProto) -> None:
    """Name nodes by module path, inner tensors by node, and keep one copy of each bound of Clip."""
    renamed: dict[str, str] = {}
    for node in graph.node:
        scope = _scope(node)
        if node.op_type in ("Add", "Flatten"):
            scope = f"{scope}.{node.op_type.lower()}".lstrip(".")
        node.name = scope
        if node.op_type == "Clip":
            renamed |= dict(zip(node.input[1:], ("relu6.min", "relu6.max"), strict=True))
        if node.output[0] != graph.output[0].name:
            renamed[node.output[0]] = f"{scope}.out"
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    names = [node.name for node in graph.node]
    if "" in names or len(set(names)) != len(names):
        raise ExportError(f"node names are empty or double: {names}")
    kept: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
        kept.setdefault(tensor.name, tensor)
    used = {name for node in graph.node for name in node.input}
    tensors = [tensor for name, tensor in kept.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _rebuild(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put the graph into a fresh model without the exporter's notes (they quote source paths)."""
    old = proto.graph
    nodes = []
    for node in old.node:
        fresh = onnx.NodeProto(
            op_type=node.op_type,
            name=node.name,
            input=node.input,
            output=node.output,
            attribute=node.attribute,
        )
        nodes.append(fresh)
    tensors = [numpy_helper.from_array(numpy_helper.to_array(t).copy(), t.name) for t in old.initializer]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", *INPUT_SHAPE])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 10])
    graph = onnx.helper.make_graph(nodes, "fashion", [image], [logits], tensors)
    model = onnx.helper.make_model(
        graph, producer_name="edgescale", opset_imports=[onnx.helper.make_opsetid("", OPSET)]
    )
    model.ir_version = 8  # the one that came with opset 18, so that older runtimes read it too
    onnx.checker.check_model(model, full_check=True)
    return model


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """Open a model in ONNX Runtime on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def export(net: FashionNet, path: Path, images: Images) -> float:
    """Write ``net`` to one ONNX file, once ONNX Runtime agrees with torch on ``images``.

    ``images`` is uint8 ``[N, 28, 28]``. Gives the largest absolute difference of the logits; above
    1e-4 nothing is written and ``ExportError`` is raised.
    """
    model = to_onnx(net)
    x = to_input(images)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    found = session(model).run(["logits"], {"image": x})[0]
    difference = float(np.abs(wanted - found).max())
    if not difference <= TOLERANCE:
        raise ExportError(f"{path.name}: ONNX Runtime and torch differ by {difference:.2e}")
    write_whole(path, model.SerializeToString())
    return difference


def accuracy(path: Path, images: Images, labels: Labels) -> float:
    """Share of ``images`` (uint8 ``[N, 28, 28]``) whose largest logit is the label's, from 0 to 1."""
    opened = session(path)
    right = 0
    for start in range(0, len(labels), 500):
        logits = opened.run(["logits"], {"image": to_input(images[start : start + 500])})[0]
        right += int((logits.argmax(axis=1) == labels[start : start + 500]).sum())
    return right / len(labels)
