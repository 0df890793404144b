"""Does the device compute what the reference computes? The check behind every claim of equality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgescale.core.dataset import Dataset
from edgescale.core.errors import RigError
from edgescale.core.target import Target
from edgescale.core.variant import Artifact, Variant

FLOAT_TOLERANCE = 1e-3
"""Largest difference allowed to float outputs, relative to the reference's largest magnitude: the
order of float32 sums differs between the generated C and NumPy."""


def compare_with_reference(variant: Variant, artifact: Artifact, target: Target, samples: Dataset) -> Mapping[str, Any]:
    """Run samples on the target's rig and through the NumPy reference of the lowered program.

    Integer outputs must be equal to the bit, float outputs within FLOAT_TOLERANCE. Returns
    {"samples", "exact", "largest_difference"}; raises RigError naming the first sample that differs.
    """
    from edgescale.rigs import get_rig

    _, stored, expected = _reference(variant, samples)
    observed = get_rig(target.rig).raw_executor(artifact, target)(stored)
    integer = bool(np.issubdtype(expected.dtype, np.integer))
    gap = np.abs(observed.astype(np.float64) - expected.astype(np.float64)).reshape(len(samples), -1).max(axis=1)
    limit = 0.0 if integer else FLOAT_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not np.all(gap <= limit):
        first = int(np.argmax(~(gap <= limit)))
        raise RigError(
            f"{variant.name} on {target.name}: the output of sample {first} differs from the reference by "
            f"{gap[first]:g}{' steps' if integer else ''} (allowed {limit:g}). This is a defect of the back end or of "
            "the compiler flags in the profile; no bundle entry was made from it"
        )
    return {"samples": len(samples), "exact": integer, "largest_difference": float(gap.max())}


def difference_from_reference(
    variant: Variant, artifact: Artifact, target: Target, samples: Dataset
) -> Mapping[str, Any]:
    """How far an artifact that does not follow the integer contract is from it, in steps of the output's scale.

    Returns what `compare_with_reference` does (steps where "exact", real values elsewhere), or {"unavailable": why}
    where the variant has no integer program.
    """
    from edgescale.core.errors import UnsupportedModelError, UsageError
    from edgescale.lower.ports import from_stored
    from edgescale.rigs import local_executor

    if samples.more:
        return {"unavailable": "several inputs"}
    try:
        program, _, expected = _reference(variant, samples)
    except (UnsupportedModelError, UsageError):
        return {"unavailable": "no integer program"}
    port = program.outputs[0]
    tensor = program.tensors[port.tensor]
    real = from_stored(program, port, expected).astype(np.float64)
    observed = np.asarray(local_executor(artifact, target)(samples.x), np.float64)
    integer = bool(np.issubdtype(expected.dtype, np.integer))
    gap = float(np.abs(observed.reshape(real.shape) - real).max())
    # Real values of integers lie on a grid: what float32 leaves beside it is no difference.
    largest = float(np.round(gap / tensor.scale)) if integer else gap
    return {"samples": len(samples), "exact": integer, "largest_difference": largest}


def _reference(variant: Variant, samples: Dataset) -> tuple[Any, Any, Any]:
    """(program, stored samples, stored first output of the reference)."""
    from edgescale.lower import lower_file, reference
    from edgescale.lower.ports import to_stored

    program = lower_file(variant.path, variant.name)
    port_in, port_out = program.inputs[0], program.outputs[0]
    stored = to_stored(program, port_in, samples.x)
    return program, stored, reference.run(program, {port_in.tensor: stored})[port_out.tensor]
