"""Constants of the graph: plain arrays, and integers behind a DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgescale.lower.errors import NodeError
from edgescale.lower.program import Array

if TYPE_CHECKING:
    import onnx_ir

Real = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Constant:
    """A constant value. Quantized where `scale` is set: real = scale * (values - zero_point).

    scale and zero_point broadcast against `values`: one entry, one along an axis, or one a block.
    """

    values: Array
    scale: Real | None = None
    zero_point: npt.NDArray[np.int64] | None = None

    @property
    def quantized(self) -> bool:
        """Whether the integers and their scale are known."""
        return self.scale is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """ONNX shape."""
        return self.values.shape

    def real(self) -> Real:
        """The values as float64. Raises NodeError where one is not finite."""
        if self.scale is None:
            real = self.values.astype(np.float64)
        else:
            zero = 0 if self.zero_point is None else self.zero_point
            real = (self.values.astype(np.int64) - zero) * self.scale
        if not np.isfinite(real).all():
            raise NodeError(f"{int((~np.isfinite(real)).sum())} values that are not finite", "constants must be finite")
        return real

    def symmetric_int8(self, axis: int) -> tuple[npt.NDArray[np.int8], Real]:
        """(values - zero_point as int8, one scale an entry of `axis`).

        Raises NodeError where the zero-point does not fold in, scales vary along another axis or one is below zero.
        """
        if self.scale is None:
            raise ValueError("only quantized constants have integer values")
        zero = 0 if self.zero_point is None else self.zero_point
        centred = self.values.astype(np.int64) - zero
        if centred.size and (centred.min() < -128 or centred.max() > 127):
            raise NodeError(
                f"{self.values.dtype} weights with zero-point {_brief(zero)} (centred range "
                f"{centred.min()} to {centred.max()})",
                "weights must be symmetric: zero-point 0 for int8, 128 for uint8",
            )
        scale = self.scale.reshape((1,) * (self.values.ndim - self.scale.ndim) + self.scale.shape)
        if any(size != 1 for position, size in enumerate(scale.shape) if position != axis):
            raise NodeError(
                f"scales of shape {list(scale.shape)} for weights {list(self.shape)}",
                f"weight scales must be per tensor or per output channel (axis {axis})",
            )
        if (scale < 0).any():
            raise NodeError(
                f"scale {float(scale.min()):g}", "scales of weights that integers multiply must be positive"
            )
        return centred.astype(np.int8), np.broadcast_to(scale.reshape(-1), (self.shape[axis],)).astype(np.float64)

    def transpose(self, permutation: tuple[int, ...]) -> Constant:
        """The constant with its axes permuted, quantization included."""

        def moved(part: Any) -> Any:
            if part is None or part.size == 1:
                return part
            aligned = part.reshape((1,) * (self.values.ndim - part.ndim) + part.shape)
            return aligned.transpose(permutation)

        return Constant(self.values.transpose(permutation), moved(self.scale), moved(self.zero_point))


def _brief(zero: Any) -> str:
    values = np.unique(np.asarray(zero))
    return str(int(values[0])) if values.size == 1 else f"{int(values.min())} to {int(values.max())}"


def along_axis(parameter: Array, rank: int, axis: int) -> Array:
    """A scalar as shape (1,), a vector reshaped to broadcast along `axis` of a tensor of `rank`."""
    if parameter.size == 1:
        return parameter.reshape(1)
    shape = [1] * rank
    shape[axis] = parameter.size
    return parameter.reshape(shape)


def fold(node: onnx_ir.Node, inputs: list[Constant | None], opset: int) -> list[Constant]:
    """Evaluate a node whose inputs are all constant (None: an omitted one)."""
    if len(inputs) == 1 and inputs[0] is not None and inputs[0].quantized:
        kept = _fold_quantized(node, inputs[0])
        if kept is not None:
            return [kept]
    if node.op_type == "Add" and len(inputs) == 2 and inputs[0] is not None and inputs[1] is not None:
        joined = _joined(inputs[0], inputs[1])
        if joined is not None:
            return [joined]
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    names = [value.name if value is not None else "" for value in node.inputs]
    arrays = {
        name: (constant.real().astype(np.float32) if constant.quantized else constant.values)
        for name, constant in zip(names, inputs, strict=True)
        if constant is not None and name
    }
    proto = ir.serde.serialize_node(node)
    infos = [onnx.ValueInfoProto(name=name) for name in arrays]
    outputs = [onnx.ValueInfoProto(name=value.name) for value in node.outputs]
    graph = onnx.helper.make_graph([proto], "fold", infos, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        results = ReferenceEvaluator(model).run(None, arrays)
    except Exception as error:
        raise NodeError(f"constant inputs that cannot be evaluated ({error})") from None
    return [Constant(np.asarray(result)) for result in results]


def _joined(low: Constant, high: Constant) -> Constant | None:
    """The sum of two quantized constants of 32 bits as one of 64, where the second counts in 2^31 of the first's steps:
    the form of biases beyond 32 bits. None for any other sum."""
    pair = low.scale is not None and high.scale is not None and low.values.dtype == high.values.dtype == np.int32
    if not pair or low.scale is None or high.scale is None or low.shape != high.shape:
        return None
    zeros = any(part.zero_point is not None and part.zero_point.any() for part in (low, high))
    if zeros or low.scale.shape != high.scale.shape or (high.scale != low.scale * 2.0**31).any():
        return None
    return Constant(low.values.astype(np.int64) + (high.values.astype(np.int64) << 31), low.scale, low.zero_point)


def _fold_quantized(node: onnx_ir.Node, constant: Constant) -> Constant | None:
    """Layout changes of quantized weights that keep them quantized; None where this one does not."""
    if node.op_type == "Transpose":
        given = node.attributes.get("perm")
        permutation = given.as_ints() if given is not None else reversed(range(constant.values.ndim))
        return constant.transpose(tuple(permutation))
    return constant if node.op_type == "Identity" else None
