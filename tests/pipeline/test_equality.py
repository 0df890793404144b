"""The promise behind every figure of a microcontroller: the emulated core computes the reference's bits.

On the example family, every emulated profile, 100 real images; and running at exactly the reported
memory works while one word less is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgescale.cache import StageStore
from edgescale.core.dataset import Dataset
from edgescale.core.errors import RigError
from edgescale.core.target import load_target, profile_names
from edgescale.core.variant import Recipe, Variant
from edgescale.lower import lower_file, reference
from edgescale.lower.ports import to_stored
from edgescale.rigs import get_rig
from edgescale.sources import DataSource, ModelSource
from edgescale.stages import Stages

pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
CORES = [name for name in profile_names() if load_target(name).rig.startswith("emulator:")]
IMAGES = 100

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A quantized net with images and the reference's outputs, all in stored units."""

    stages: Stages
    variant: Variant
    images: Dataset
    stored: np.ndarray
    expected: np.ndarray


@pytest.fixture(scope="module", params=["small", "medium", "large"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    stages = Stages(StageStore(tmp_path_factory.mktemp("store")))
    loaded = stages.load(ModelSource(EXAMPLE / f"fashion_{request.param}.onnx"))
    variant = stages.compress(loaded, Recipe(8, 8), DataSource(str(EXAMPLE / "calibration.npz")))
    images = DataSource(str(EXAMPLE / "test.npz")).for_model(loaded).load().head(IMAGES)
    program = lower_file(variant.path, variant.name)
    stored = to_stored(program, program.inputs[0], images.x)
    expected = reference.run(program, {program.inputs[0].tensor: stored})[program.outputs[0].tensor]
    yield Case(stages, variant, images, stored, expected)


def test_five_kinds_of_core_are_covered() -> None:
    assert {load_target(name).core.cpu for name in CORES} >= {
        "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33",
    }  # fmt: skip


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4-stm32l4r5"])
def test_stripes_on_the_core_equal_the_reference_in_less_memory(case: Case, core: str) -> None:
    target = load_target(core)
    rig = get_rig(target.rig)
    balanced = case.stages.compile(case.variant, target, "edgescale_c")
    smallest = case.stages.compile(case.variant, target, "edgescale_c", "smallest")
    assert smallest.meta["arena_bytes"] < balanced.meta["arena_bytes"]
    got = rig.raw_executor(smallest, target)(case.stored[:20])
    np.testing.assert_array_equal(got.reshape(20, -1), case.expected[:20].reshape(20, -1))
    costs = [
        rig.measure(artifact, target, case.images.head(1)).metrics["instructions"].value
        for artifact in (balanced, smallest)
    ]
    assert costs[1] <= 1.4 * costs[0]


@pytest.mark.parametrize("core", CORES)
def test_every_core_equals_the_reference_bit_for_bit(case: Case, core: str) -> None:
    target = load_target(core)
    artifact = case.stages.compile(case.variant, target, "edgescale_c")
    observed = get_rig(target.rig).raw_executor(artifact, target)(case.stored)
    assert observed.dtype == case.expected.dtype == np.int8
    np.testing.assert_array_equal(observed, case.expected)


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4-stm32l4r5"])
def test_reported_memory_is_enough_and_one_word_less_is_not(case: Case, core: str) -> None:
    target = load_target(core)
    artifact = case.stages.compile(case.variant, target, "edgescale_c")
    rig, samples = get_rig(target.rig), case.images.head(2)
    figures = rig.measure(artifact, target, samples).metrics
    arena, stack = int(figures["arena"].value), int(figures["stack"].value)
    exact = rig.measure(artifact, target, samples, arena_limit=arena, stack_limit=stack)
    assert exact.metrics["instructions"].value == figures["instructions"].value
    with pytest.raises(RigError, match="arena"):
        rig.measure(artifact, target, samples, arena_limit=arena - 4)
    with pytest.raises(RigError, match="stack"):
        rig.measure(artifact, target, samples, stack_limit=stack - 4)


def test_int8_is_within_half_a_point_of_float(case: Case) -> None:
    """The integer program on all 2,000 test images against the float model in ONNX Runtime."""
    import onnxruntime as ort

    data = np.load(EXAMPLE / "test.npz")
    program = lower_file(case.variant.path, case.variant.name)
    quantized = np.mean(reference.run_real(program, data["x"]).argmax(axis=1) == data["y"])
    session = ort.InferenceSession(str(EXAMPLE / f"{case.variant.model}.onnx"), providers=["CPUExecutionProvider"])
    plain = np.mean(
        [session.run(None, {"image": x[None]})[0].argmax() == y for x, y in zip(data["x"], data["y"], strict=True)]
    )
    assert plain - quantized <= 0.005
