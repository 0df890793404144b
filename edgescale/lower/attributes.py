"""Reading node parameters that moved between attributes and inputs over the opsets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgescale.lower.context import Context
from edgescale.lower.errors import NodeError

if TYPE_CHECKING:
    import onnx_ir


def integer(node: onnx_ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def real(node: onnx_ir.Node, name: str, default: float) -> float:
    """A float attribute."""
    return float(node.attributes[name].as_float()) if name in node.attributes else default


def flag(node: onnx_ir.Node, name: str, *, default: bool = False) -> bool:
    """A 0/1 attribute."""
    return bool(integer(node, name, int(default)))


def integers(context: Context, node: onnx_ir.Node, name: str, index: int) -> tuple[int, ...] | None:
    """Integers given as attribute `name` (older opsets) or as constant input `index`; None where absent."""
    if name in node.attributes:
        return tuple(int(value) for value in node.attributes[name].as_ints())
    constant = context.optional(node, index)
    return None if constant is None else tuple(int(value) for value in constant.values.reshape(-1))


def axes_of(context: Context, node: onnx_ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    """The node's axes as non-negative, ascending numbers; None where absent or empty. Raises NodeError out of range."""
    given = integers(context, node, "axes", index)
    if not given:
        return None
    return tuple(sorted({normal_axis(axis, rank) for axis in given}))


def normal_axis(axis: int, rank: int) -> int:
    """A possibly negative axis as 0 <= axis < rank. Raises NodeError out of range."""
    if not -rank <= axis < rank:
        raise NodeError(f"axis {axis} of {rank} axes")
    return axis % rank
