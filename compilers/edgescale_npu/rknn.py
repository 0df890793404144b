"""Rockchip's NPU: rknn-toolkit2 converts and simulates on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.target import Target
from edgescale_npu.prepare import QUANTIZING, widened, with_zero_points
from edgescale_npu.spawn import Tool

OPSET = 19


def chip(target: Target) -> Mapping[str, Any]:
    """The platform as the toolkit names it; it lists what it knows where it does not know one."""
    if target.npu is None:
        raise UnsupportedModelError(
            f"target {target.name} has no [npu] table: its accelerator is a chip such as 'rk3588'"
        )
    return {"platform": target.npu.accelerator}


def prepare(source: Path, destination: Path) -> None:
    """Opset 19 at most, a zero-point in every (de)quantizing node, weights of four bits in eight: the toolkit needs it.

    Raises UnsupportedModelError for 16 bits and for scales in blocks, which opset 19 has not.
    """
    import onnx
    from onnx import TensorProto

    model = onnx.load(str(source))
    widened(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    refused = []
    for node in (node for node in model.graph.node if node.op_type in QUANTIZING):
        kinds = {constants[name].data_type for name in node.input if name in constants}
        if kinds & {TensorProto.INT16, TensorProto.UINT16}:
            refused.append(f"node {node.name or node.output[0]!r}: rknn-toolkit2 quantizes to int8, found 16 bits")
        elif any(a.name == "block_size" and a.i for a in node.attribute):
            refused.append(f"node {node.name or node.output[0]!r}: rknn-toolkit2 has no scales in blocks")
    if refused:
        more = f", and {len(refused) - 1} more such nodes" if len(refused) > 1 else ""
        raise UnsupportedModelError(refused[0] + more)
    with_zero_points(model)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, OPSET)
    model.ir_version = min(model.ir_version, 9)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        why = str(error).splitlines()[0]
        raise UnsupportedModelError(f"{source.name}: not expressible in opset {OPSET}, the toolkit's: {why}") from None
    onnx.save(model, str(destination))


RKNN = Tool(
    name="edgescale_rknn",
    kind="rknn",
    title="Rockchip RKNN",
    package="rknn-toolkit2",
    variable="EDGESCALE_RKNN_PYTHON",
    install="rknn-toolkit2",
    script="rknn_child.py",
    profile="rockchip-rk3588",
    chip=chip,
    prepare=prepare,
)
