"""Weights are packed when asked, or when a flash budget would be missed without; and not otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgescale.cache import StageStore
from edgescale.core.budget import parse_budgets
from edgescale.core.recipe import parse_recipe
from edgescale.core.target import load_target
from edgescale.pipeline import CompileResult, Request, compile_models

pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")


def compile_net(folder: Path, share: float, memory="balanced", budget: str = "") -> CompileResult:
    """A layer of 256 inputs and 64 outputs, `share` of its weights zero, for Cortex-M4."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((64, 256)) * (rng.random((64, 256)) >= share)).astype(np.float32)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c]) for n, c in (("x", 256), ("y", 64))]
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "layer", transB=1)
    graph = helper.make_graph([node], "net", ports[:1], ports[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "x.npz", x=rng.standard_normal((16, 256)).astype(np.float32))
    request = Request(
        models=(folder / "net.onnx",),
        targets=(load_target("cortex-m4-stm32l4r5"),),
        recipes=(parse_recipe("w8a8"),),
        calibration=str(folder / "x.npz"),
        budgets=parse_budgets([budget] if budget else [], ["cortex-m4-stm32l4r5"]),
        out=folder / f"bundle-{memory}-{len(budget)}",
        samples=1,
        memory=memory,
    )
    return compile_models(request, StageStore(folder / "store"))


def flash(result: CompileResult) -> float:
    return float(result.entries[0].measurement.metrics["flash"].value)


def mode(result: CompileResult) -> str:
    return str(result.entries[0].artifact.meta["memory"]["mode"])


def test_packing_is_offered_asked_for_and_taken_for_a_budget(tmp_path):
    plain = compile_net(tmp_path, 0.75)
    offer = plain.entries[0].artifact.meta["packing"]
    assert not offer["packed"]
    (note,) = plain.entries[0].artifact.meta["notes"]
    assert f"--memory packed would save {offer['bytes']:,} B of flash for {offer['instructions']:,} more" in note

    packed = compile_net(tmp_path, 0.75, memory="packed")
    # The code of the dense kernel goes as well.
    assert flash(packed) <= flash(plain) - offer["bytes"]
    assert "packed weights save" in packed.entries[0].artifact.meta["notes"][0]
    assert packed.entries[0].measurement.environment["verified_exact"] == "True"

    between = (flash(packed) + flash(plain)) / 2
    tight = compile_net(tmp_path, 0.75, budget=f"flash<={between:.0f}B")
    assert mode(tight) == "packed"
    assert tight.exit_code == 0
    assert flash(tight) == flash(packed)


def test_a_budget_out_of_reach_changes_nothing(tmp_path):
    result = compile_net(tmp_path, 0.75, budget="flash<=1000B")
    assert mode(result) == "balanced"
    assert result.exit_code != 0


def test_dense_weights_are_not_packed(tmp_path):
    result = compile_net(tmp_path, 0.0, budget="flash<=1000B")
    assert "packing" not in result.entries[0].artifact.meta
    assert "notes" not in result.entries[0].artifact.meta
