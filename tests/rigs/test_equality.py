"""The same C on this machine, on emulated cores and written out in NumPy: equal to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs import get_rig, host_c, local_executor

CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
Array = np.ndarray[Any, Any]


@pytest.fixture
def stored() -> Array:
    return np.random.default_rng(3).integers(-128, 128, (40, 8, 8, 1), np.int8)


def test_host_build_equals_numpy(tiny: Artifact, stored: Array, reference: Callable[[Array], Array]) -> None:
    np.testing.assert_array_equal(host_c.raw_executor(tiny)(stored), reference(stored))


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
def test_emulated_core_equals_numpy(
    core: str,
    tiny: Artifact,
    stored: Array,
    reference: Callable[[Array], Array],
    make_target: Callable[..., Target],
    emulator: None,
) -> None:
    outputs = get_rig(f"emulator:{core}").raw_executor(tiny, make_target(core))(stored)
    np.testing.assert_array_equal(outputs, reference(stored))


def test_ports_quantize_and_transpose(
    tiny: Artifact,
    images: Dataset,
    quantize_input: Callable[[Array], Array],
    reference: Callable[[Array], Array],
    make_target: Callable[..., Target],
) -> None:
    """Real values in ONNX layout in, real values out: scale 0.25 and zero-point 1 at the output."""
    real = local_executor(tiny, make_target("cortex-m4"))(images.x)
    expected = (reference(quantize_input(images.x)).astype(np.float32) - 1) * np.float32(0.25)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, expected)


def test_a_wrong_sample_shape_is_refused(tiny: Artifact, make_target: Callable[..., Target]) -> None:
    with pytest.raises(UsageError, match=r"takes samples of shape \(1, 8, 8\), not \(1, 9, 8\)"):
        local_executor(tiny, make_target("cortex-m4"))(np.zeros((2, 1, 9, 8), np.float32))
    with pytest.raises(UsageError, match="stored as int8, not float32"):
        host_c.raw_executor(tiny)(np.zeros((2, 8, 8, 1), np.float32))


def test_a_changed_kernel_is_noticed(
    variation: Callable[..., Artifact], stored: Array, reference: Callable[[Array], Array]
) -> None:
    """The comparison has teeth: floor instead of truncation in the division shows."""
    wrong = variation(("saturate(sum / 37)", "saturate((sum < 0 ? sum - 36 : sum) / 37)"))
    assert not np.array_equal(host_c.raw_executor(wrong)(stored), reference(stored))
