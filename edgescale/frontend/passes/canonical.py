"""One form for what ONNX writes in several: Gemm, padding, means over the image."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgescale.frontend.graph import (
    constant,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    is_float,
    is_op,
    only_consumer,
    scalar,
    shape_of,
    string_attribute,
    take_place,
)
from edgescale.frontend.passes.fusion import per_channel, set_constant


class CanonicalGemm(ir.passes.InPlacePass):
    """Write fully connected layers as Gemm with weights [O, I] (transB=1), bias [O], alpha = beta = 1.

    Requires: shapes inferred, constants lifted. Contract: MatMul of a matrix [M, I] by a constant [I, O],
    with an Add of a per-output constant behind it or without, becomes a Gemm of the MatMul's name; alpha
    and beta go into weights and bias. A Gemm whose weights or bias are computed, that transposes A,
    or whose bias differs from row to row stays as it is. Outputs agree to float32 rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each MatMul and Gemm that qualifies."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "MatMul"):
                modified |= self._from_matmul(node, model.graph)
            elif is_op(node, "Gemm"):
                modified |= self._normalize(node)
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def _from_matmul(node: ir.Node, graph: ir.Graph) -> bool:
        left, weights = shape_of(node.inputs[0]), constant(node.inputs[1])
        if left is None or len(left) != 2 or weights is None or weights.ndim != 2 or weights.dtype != np.float32:
            return False
        made = ir.node(
            "Gemm",
            [node.inputs[0], node.inputs[1]],
            attributes={"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1},
            name=node.name,
        )
        made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        graph.insert_before(node, made)
        name = node.outputs[0].name
        take_place(node.outputs[0], made.outputs[0])
        graph.remove(node, safe=True)
        made.outputs[0].name = name
        set_constant(made, 1, np.ascontiguousarray(weights.T), f"{node.name}.weight")
        return True

    @staticmethod
    def _normalize(node: ir.Node) -> bool:
        weights, bias_value = constant(node.inputs[1]), input_at(node, 2)
        output = shape_of(node.outputs[0])
        if weights is None or weights.dtype != np.float32 or int_attribute(node, "transA", 0) or output is None:
            return False
        alpha, beta = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
        transposed = int_attribute(node, "transB", 0)
        units = output[1]
        vector = None
        if bias_value is not None:
            array = constant(bias_value)
            if array is None:
                return False
            if array.ndim == 2 and array.shape[0] not in (1,):
                return False
            vector = per_channel(bias_value, 2, 1, units)
            if vector is None:
                return False
            if transposed and alpha == beta == 1.0 and array.shape == (units,):
                return False
        elif transposed and alpha == 1.0:
            return False
        name = node.name or "Gemm"
        if not transposed or alpha != 1.0:
            arranged = weights if transposed else weights.T
            set_constant(node, 1, (arranged.astype(np.float64) * alpha).astype(np.float32), f"{name}.weight")
        if vector is not None:
            set_constant(node, 2, (vector * beta).astype(np.float32), f"{name}.bias")
        for attribute, value in (("alpha", 1.0), ("beta", 1.0), ("transB", 1)):
            node.attributes[attribute] = ir.convenience.convert_attribute(attribute, value)
        return True


class ExplicitPadding(ir.passes.InPlacePass):
    """Replace auto_pad by numbers, and fold a Pad of zeros over height and width into the Conv behind it.

    Requires: shapes inferred, constants lifted. Contract: auto_pad of Conv, MaxPool and AveragePool with
    known shapes becomes `pads` (SAME: the ONNX formula, VALID: none); a constant Pad by zeros, none of
    them negative, read by one Conv alone is added to that Conv's pads. Outputs do not change.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each window operator."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "Conv", "MaxPool", "AveragePool"):
                modified |= self._resolve(node)
        for node in list(model.graph):
            if is_op(node, "Pad"):
                modified |= self._absorb(node, model.graph)
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def _resolve(node: ir.Node) -> bool:
        mode = string_attribute(node, "auto_pad", "NOTSET")
        before = shape_of(node.inputs[0])
        kernel = ints_attribute(node, "kernel_shape")
        if kernel is None and node.op_type == "Conv":
            weights = shape_of(node.inputs[1])
            kernel = weights[2:] if weights is not None else None
        if mode == "NOTSET" or before is None or kernel is None:
            return False
        rank = len(kernel)
        strides = ints_attribute(node, "strides") or (1,) * rank
        dilations = ints_attribute(node, "dilations") or (1,) * rank
        begin, end = [0] * rank, [0] * rank
        if mode != "VALID":
            for axis in range(rank):
                size, stride = before[2 + axis], strides[axis]
                reach = (kernel[axis] - 1) * dilations[axis] + 1
                total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
                small, large = total // 2, total - total // 2
                begin[axis], end[axis] = (small, large) if mode == "SAME_UPPER" else (large, small)
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s("pads", begin + end)
        return True

    @staticmethod
    def _absorb(node: ir.Node, graph: ir.Graph) -> bool:
        before, pads = shape_of(node.inputs[0]), constant(input_at(node, 1))
        value, axes = input_at(node, 2), input_at(node, 3)
        after = only_consumer(node.outputs[0])
        if before is None or pads is None or after is None or not is_op(after, "Conv"):
            return False
        zero = value is None or scalar(value) == 0.0
        if not zero or axes is not None or string_attribute(node, "mode", "constant") != "constant":
            return False
        if after.inputs[0] is not node.outputs[0] or string_attribute(after, "auto_pad", "NOTSET") != "NOTSET":
            return False
        rank = len(before)
        amounts = [int(p) for p in pads.reshape(-1)]
        if min(amounts) < 0 or any(amounts[:2]) or any(amounts[rank : rank + 2]):
            return False
        wanted = amounts[2:rank] + amounts[rank + 2 :]
        old = ints_attribute(after, "pads") or (0,) * len(wanted)
        after.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(old, wanted, strict=True)])
        after.replace_input_with(0, node.inputs[0])
        graph.remove(node, safe=True)
        return True


class MeanToPooling(ir.passes.InPlacePass):
    """Write ReduceMean over all image axes as GlobalAveragePool, with a Flatten where the axes vanish.

    Requires: shapes inferred, constants lifted. Contract: the pool keeps the node's name, the Flatten is
    `<name>_flatten`. Outputs agree to float32 rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each ReduceMean that qualifies."""
        modified = False
        for node in list(model.graph):
            if not is_op(node, "ReduceMean") or not self._over_image(node):
                continue
            source, output = node.inputs[0], node.outputs[0]
            before = shape_of(source)
            if source is None or before is None:
                continue
            made = [ir.node("GlobalAveragePool", [source], name=node.name)]
            made[0].outputs[0].type = output.type
            made[0].outputs[0].shape = ir.Shape(before[:2] + (1,) * (len(before) - 2))
            if not int_attribute(node, "keepdims", 1):
                flat = ir.node("Flatten", [made[0].outputs[0]], attributes={"axis": 1}, name=f"{node.name}_flatten")
                flat.outputs[0].type, flat.outputs[0].shape = output.type, output.shape
                made.append(flat)
            model.graph.insert_before(node, made)
            name = output.name
            take_place(output, made[-1].outputs[0])
            model.graph.remove(node, safe=True)
            made[-1].outputs[0].name = name
            modified = True
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def _over_image(node: ir.Node) -> bool:
        shape = shape_of(node.inputs[0])
        if shape is None or len(shape) not in (3, 4) or not is_float(node.inputs[0]):
            return False
        axes = ints_attribute(node, "axes")
        if axes is None:
            array = constant(input_at(node, 1))
            if array is None:
                return False
            axes = tuple(int(a) for a in array.reshape(-1))
        return {a % len(shape) for a in axes} == set(range(2, len(shape)))
