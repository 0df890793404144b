"""Where the input scales of AWQ go for nothing: into the normalization or the layer that makes the input."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.frontend.graph import constant, input_at, int_attribute, is_op
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.linear import Rounded, bias_user

Real = npt.NDArray[np.float64]
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


def absorb(
    source: ir.Value, readers: Sequence[ir.Node], scale: Real, rounded: MutableMapping[ir.Node, Rounded]
) -> bool:
    """Divide the channels of `source` by `scale` in the constants that make it; False, and nothing done, where that
    cannot be: somebody else reads it, or what makes it is not linear in a constant of its own.

    rounded: the layers already rounded; one whose outputs are divided is replaced there (its scales are).
    """
    actions = _actions(source, set(readers), scale, rounded)
    if actions is None:
        return False
    for action in actions:
        action()
    return True


def _actions(
    value: ir.Value, readers: set[ir.Node], scale: Real, rounded: MutableMapping[ir.Node, Rounded]
) -> list[Callable[[], None]] | None:
    node = value.producer()
    if node is None or value.is_graph_output() or any(use.node not in readers or use.idx != 0 for use in value.uses()):
        return None
    if is_op(node, "Add", "Mul"):
        return _elementwise(node, scale, rounded)
    if node.op_type in _NORMS and int_attribute(node, "axis", -1) in (-1, len(value.shape or ()) - 1):
        indices = [i for i in (1, 2) if input_at(node, i) is not None]
        if not all(_vector(node, i, len(scale)) for i in indices):
            return None
        return [_division(node, i, scale) for i in indices]
    if is_op(node, "MatMul", "Gemm"):
        return _linear(node, scale, rounded)
    return None


def _elementwise(
    node: ir.Node, scale: Real, rounded: MutableMapping[ir.Node, Rounded]
) -> list[Callable[[], None]] | None:
    """x * c: into c. x + c: into c and into what makes x."""
    for index in (0, 1):
        if not _vector(node, index, len(scale)):
            continue
        own = [_division(node, index, scale)]
        if node.op_type == "Mul":
            return own
        other = node.inputs[1 - index]
        producer = other.producer() if other is not None else None
        if other is None or producer is None or len(other.uses()) != 1 or other.is_graph_output():
            return None
        if producer in rounded and rounded[producer].bias is not None and bias_user(producer) == (node, index):
            own = []  # the new bias replaces this constant, and is divided with its layer
        if is_op(producer, "MatMul", "Gemm"):
            before = _linear(producer, scale, rounded)
        else:
            before = _elementwise(producer, scale, rounded) if is_op(producer, "Add", "Mul") else None
        return None if before is None else [*own, *before]
    return None


def _linear(node: ir.Node, scale: Real, rounded: MutableMapping[ir.Node, Rounded]) -> list[Callable[[], None]] | None:
    weights = constant(input_at(node, 1))
    if weights is None or weights.ndim != 2:
        return None
    axis = 0 if is_op(node, "Gemm") and int_attribute(node, "transB", 0) else 1
    if weights.shape[axis] != len(scale):
        return None
    actions: list[Callable[[], None]] = []
    if is_op(node, "Gemm") and input_at(node, 2) is not None:
        if not _vector(node, 2, len(scale)):
            return None
        actions.append(_division(node, 2, scale))

    def divide() -> None:
        if node in rounded:
            rounded[node] = rounded[node].divided(scale)
        else:
            shape = (-1, 1) if axis == 0 else (1, -1)
            set_constant(
                node,
                1,
                (np.asarray(weights, np.float64) / scale.reshape(shape)).astype(np.float32),
                f"{node.name}.weight",
            )

    return [*actions, divide]


def _vector(node: ir.Node, index: int, width: int) -> bool:
    array = constant(input_at(node, index))
    return array is not None and array.dtype == np.float32 and array.shape == (width,)


def _division(node: ir.Node, index: int, scale: Real) -> Callable[[], None]:
    def divide() -> None:
        array = constant(node.inputs[index])
        if array is None:
            raise ValueError(f"{node.name}: input {index} is no constant any more")
        set_constant(
            node, index, (np.asarray(array, np.float64) / scale).astype(np.float32), f"{node.name}.scaled_{index}"
        )

    return divide
