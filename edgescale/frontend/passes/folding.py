"""Constant folding: what does not depend on an input is computed once, here."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from edgescale.frontend.graph import DEFAULT_DOMAINS, add_initializer, constant, shape_of, take_place

_LOG = logging.getLogger(__name__)

# Never folded: a DequantizeLinear of weights *is* the quantized model, and random draws are no constants.
_KEPT = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
    }
)
# An Expand or ConstantOfShape may blow a few bytes up into many; such a result stays a node above this size.
_LARGEST_GROWTH = 1 << 20


class FoldConstants(ir.passes.InPlacePass):
    """Replace nodes of constant inputs by initializers, and Shape and Size of static shapes by numbers.

    Requires: Constant nodes lifted to initializers, nodes in topological order. Contract: values are those
    of ONNX's reference evaluator; QuantizeLinear, DequantizeLinear, random operators, operators with
    subgraphs and results that grow by more than 1 MiB over their inputs stay. A node that the evaluator
    cannot run stays too.
    """

    def requires(self, model: ir.Model) -> None:
        """No Constant node that could have been lifted is left."""
        for node in model.graph:
            if node.op_type == "Constant" and not node.outputs[0].is_graph_output():
                raise ir.passes.PreconditionError(f"Constant node {node.name!r} has not been lifted")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in graph order, so that chains fold in one sweep."""
        modified = False
        for node in list(model.graph):
            if node.domain not in DEFAULT_DOMAINS or any(value.is_graph_output() for value in node.outputs):
                continue
            results = self._shape(node) if node.op_type in ("Shape", "Size") else self._evaluate(node, model)
            if results is None:
                continue
            for value, array in zip(node.outputs, results, strict=True):
                if value.uses():
                    take_place(value, add_initializer(model.graph, f"{value.name}_folded", array))
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def _shape(node: ir.Node) -> list[npt.NDArray[np.generic]] | None:
        shape = shape_of(node.inputs[0])
        if shape is None:
            return None
        if node.op_type == "Size":
            return [np.asarray(np.prod(shape, dtype=np.int64))]
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(shape)
        return [np.asarray(shape[start:end], np.int64)]

    @staticmethod
    def _evaluate(node: ir.Node, model: ir.Model) -> list[npt.NDArray[np.generic]] | None:
        if node.op_type in _KEPT or not node.inputs:
            return None
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return None
        feeds: dict[str, npt.NDArray[np.generic]] = {}
        for value in node.inputs:
            if value is None:
                continue
            array = constant(value)
            if array is None or value.name is None:
                return None
            feeds[value.name] = array
        try:
            results = _run(node, feeds, model.opset_imports.get("", 0))
        except Exception as error:  # the evaluator lacks some operators and raises a dozen kinds of errors
            _LOG.debug("not folded: %s %r: %s", node.op_type, node.name, error)
            return None
        arrays = [r for r in results if isinstance(r, np.ndarray | np.generic)]
        grown = sum(a.nbytes for a in arrays) - sum(a.nbytes for a in feeds.values())
        if len(arrays) != len(node.outputs) or grown > _LARGEST_GROWTH:
            return None
        return [np.asarray(a) for a in arrays]


def _run(node: ir.Node, feeds: dict[str, npt.NDArray[np.generic]], opset: int) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    infos = [onnx.helper.make_tensor_value_info(n, _element(a), a.shape) for n, a in feeds.items()]
    outputs = [onnx.helper.make_empty_tensor_value_info(str(value.name)) for value in node.outputs]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "fold", infos, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return list(ReferenceEvaluator(model).run(None, feeds))


def _element(array: npt.NDArray[np.generic]) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
