"""Sliding windows of Conv and the pools: stride, dilation, padding and output size from ONNX attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgescale.lower.errors import NodeError
from edgescale.lower.program import Padding, Pair

if TYPE_CHECKING:
    import onnx_ir


@dataclass(frozen=True)
class Window:
    """A window over [H, W]; a 1-D operator has height 1 everywhere. output: [OH, OW]."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Padding
    output: Pair


def window_of(node: onnx_ir.Node, shape: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window over an input of ONNX `shape` [1, C, (H,) W]. `kernel`: [(KH,) KW].

    With ceil_mode the padding below and right grows (or shrinks) to what the windows reach.
    Raises NodeError for a kernel that does not fit, and for inconsistent attributes.
    """
    axes = len(kernel)
    stride = _ints(node, "strides", [1] * axes)
    dilation = _ints(node, "dilations", [1] * axes)
    pads = _ints(node, "pads", [0] * 2 * axes)
    mode = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    ceil = bool(node.attributes["ceil_mode"].as_int()) if "ceil_mode" in node.attributes else False
    given = _ints(node, "kernel_shape", list(kernel))
    if len(stride) != axes or len(dilation) != axes or len(pads) != 2 * axes or given != list(kernel):
        raise NodeError(
            f"kernel {list(kernel)}, kernel_shape {given}, strides {stride}, dilations {dilation}, pads {pads}"
        )
    if min(stride) < 1 or min(dilation) < 1 or min(pads) < 0 or min(kernel) < 1:
        raise NodeError(f"kernel {list(kernel)}, strides {stride}, dilations {dilation}, pads {pads}")
    before, after, output = [], [], []
    for axis in range(axes):
        size, span = shape[2 + axis], (kernel[axis] - 1) * dilation[axis] + 1
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-size // stride[axis])
            total = max((count - 1) * stride[axis] + span - size, 0)
            first = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pair = (first, total - first)
        elif mode in ("NOTSET", "VALID"):
            pair = (pads[axis], pads[axes + axis]) if mode == "NOTSET" else (0, 0)
        else:
            raise NodeError(f"auto_pad {mode!r}")
        room = size + sum(pair) - span
        if room < 0:
            raise NodeError(f"a kernel spanning {span} on a padded axis of {size + sum(pair)}")
        count = (math.ceil if ceil else math.floor)(room / stride[axis]) + 1
        if ceil and (count - 1) * stride[axis] >= size + pair[0]:
            # A window that starts in the padding behind the data is not one.
            count -= 1
        reach = (count - 1) * stride[axis] + span - size - pair[0]
        before.append(pair[0])
        after.append(max(reach, 0))
        output.append(count)
    return Window(
        _pair(kernel, 1), _pair(stride, 1), _pair(dilation, 1),
        (*_pair(before, 0), *_pair(after, 0)), _pair(output, 1),
    )  # fmt: skip


def _ints(node: onnx_ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


def _pair(values: Sequence[int], height: int) -> Pair:
    return (values[0], values[1]) if len(values) == 2 else (height, values[0])
