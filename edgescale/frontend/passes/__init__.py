"""The clean-up between an exporter's graph and the one the rest of edgescale sees, as onnx_ir passes.

`clean` runs them in order. Node names survive; values at the graph's edges keep names and meaning.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgescale.frontend.passes.canonical import CanonicalGemm, ExplicitPadding, MeanToPooling
from edgescale.frontend.passes.folding import FoldConstants
from edgescale.frontend.passes.fusion import FuseAffine, SeparateNormalization
from edgescale.frontend.passes.naming import NameNodes
from edgescale.frontend.passes.noops import RemoveNoOps

__all__ = [
    "CanonicalGemm",
    "ExplicitPadding",
    "FoldConstants",
    "FuseAffine",
    "MeanToPooling",
    "NameNodes",
    "RemoveNoOps",
    "SeparateNormalization",
    "clean",
]

_MOST_FOLDING_SWEEPS = 8


def clean(model: ir.Model) -> ir.Model:
    """Bring a checked model into canonical form, in place; returns it.

    Requires: functions inlined, batch fixed, default-domain opset 13 or newer. Ensures: no Constant,
    Identity, Dropout or inference-mode BatchNormalization of constant parameters is left, except a lone
    Identity between an input and an output; every node has a unique name; initializers are used
    and are no inputs; nodes are in topological order; outputs equal the source model's to float32 rounding.
    """
    ir.passes.Sequential(
        NameNodes(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.TopologicalSortPass(),
    )(model)
    infer = common.ShapeInferencePass(check_type=True, strict_mode=True, data_prop=True)
    for _ in range(_MOST_FOLDING_SWEEPS):
        infer(model)
        if not FoldConstants()(model).modified:
            break
    ir.passes.Sequential(
        RemoveNoOps(),
        ExplicitPadding(),
        MeanToPooling(),
        CanonicalGemm(),
        FuseAffine(),
        SeparateNormalization(),
        infer,
        RemoveNoOps(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        NameNodes(),
    )(model)
    return model
