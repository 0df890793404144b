"""Qualcomm's Hexagon NPU: onnxruntime-qnn compiles an HTP context binary on this machine and emulates it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.target import Target
from edgescale_npu.prepare import widened
from edgescale_npu.spawn import Tool

CHIPS = {"sm8350": 30, "sm8450": 36, "sm8550": 43, "sm8650": 57, "sm8750": 69}
"""Snapdragon 888, 8 Gen 1, 8 Gen 2, 8 Gen 3 and 8 Elite, as QNN numbers them."""


def chip(target: Target) -> Mapping[str, Any]:
    """soc_model of the target's chip."""
    name = target.npu.accelerator if target.npu else ""
    if name not in CHIPS:
        raise UnsupportedModelError(
            f"target {target.name}: [npu] accelerator is one of {', '.join(CHIPS)}, found {name!r}"
        )
    return {"soc": name, "soc_model": CHIPS[name]}


def prepare(source: Path, destination: Path) -> None:
    """Weights of four bits in eight; else the file as it is."""
    import onnx

    model = onnx.load(str(source))
    widened(model)
    onnx.save(model, str(destination))


QNN = Tool(
    name="edgescale_qnn",
    kind="qnn",
    title="Qualcomm QNN",
    package="onnxruntime-qnn",
    variable="EDGESCALE_QNN_PYTHON",
    install="onnxruntime-qnn onnxruntime",
    script="qnn_child.py",
    profile="hexagon-sm8650",
    chip=chip,
    prepare=prepare,
)
