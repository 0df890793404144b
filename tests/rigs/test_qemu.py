"""Every QEMU board computes the reference's bits and, where unicorn has the core, counts what unicorn counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.measurement import Measurement
from edgescale.core.target import Target, load_target
from edgescale.core.variant import Artifact, Recipe, Variant
from edgescale.rigs import BOARDS, get_rig
from edgescale.rigs.image import build_image
from edgescale.rigs.qemu_boards import BOARDS as BOARD_TABLE
from edgescale.rigs.qemu_model import Loaded

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
PROFILE_OF = {
    "microbit": "cortex-m0plus",
    "mps2-an385": "cortex-m3",
    "mps2-an386": "cortex-m4-stm32l4r5",
    "mps2-an500": "cortex-m7-stm32f746",
    "mps2-an505": "cortex-m33-stm32u575",
    "mps3-an547": "cortex-m55-an547",
    "virt-riscv32": "esp32-c3",
}
ALSO_UNICORN = [board for board in BOARDS if board not in ("mps3-an547", "virt-riscv32")]
COMPILERS = ("zig", "gcc")
IMAGES = 20


@dataclass(frozen=True)
class Case:
    """The small example net with images and the reference's outputs, stored; artifacts by target."""

    compile: Callable[[Target], Artifact]
    variant: Variant
    images: Dataset
    stored: np.ndarray
    expected: np.ndarray


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    from edgescale.cache import StageStore
    from edgescale.lower import lower_file, reference
    from edgescale.lower.ports import to_stored
    from edgescale.sources import DataSource, ModelSource
    from edgescale.stages import Stages

    stages = Stages(StageStore(tmp_path_factory.mktemp("store")))
    loaded = stages.load(ModelSource(EXAMPLE / "fashion_small.onnx"))
    variant = stages.compress(loaded, Recipe(8, 8), DataSource(str(EXAMPLE / "calibration.npz")))
    images = DataSource(str(EXAMPLE / "test.npz")).for_model(loaded).load().head(IMAGES)
    program = lower_file(variant.path, variant.name)
    stored = to_stored(program, program.inputs[0], images.x)
    expected = reference.run(program, {program.inputs[0].tensor: stored})[program.outputs[0].tensor]
    return Case(lambda target: stages.compile(variant, target, "edgescale_c"), variant, images, stored, expected)


def test_every_board_is_covered() -> None:
    assert set(PROFILE_OF) == set(BOARDS) == set(BOARD_TABLE)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", BOARDS)
def test_outputs_equal_the_reference(
    board: str, compiler: str, case: Case, need: Callable[..., None], built_with: Callable[[Target, str], Target]
) -> None:
    target = built_with(load_target(PROFILE_OF[board]), compiler)
    need(f"qemu:{board}", compiler, target)
    observed = get_rig(f"qemu:{board}").raw_executor(case.compile(target), target)(case.stored)
    assert observed.dtype == case.expected.dtype == np.int8
    np.testing.assert_array_equal(observed, case.expected)


def counts(measured: Measurement) -> list[float | None]:
    """Instructions of every layer, None where the compiler left no function."""
    return [layer.metrics["instructions"].value if layer.metrics else None for layer in measured.layers]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", ALSO_UNICORN)
def test_counts_equal_unicorns(
    board: str, compiler: str, case: Case, need: Callable[..., None], built_with: Callable[[Target, str], Target]
) -> None:
    """Instructions of the net and of every layer, stack and outputs: no difference, IT blocks and calls included."""
    target = built_with(load_target(PROFILE_OF[board]), compiler)
    need(f"qemu:{board}", compiler, target)
    need(target.rig, compiler, target)
    artifact = case.compile(target)
    for first in (0, 7):
        image = Dataset("one", case.images.x[first : first + 1], None, f"one-{first}")
        qemu, unicorn = (get_rig(rig).measure(artifact, target, image) for rig in (f"qemu:{board}", target.rig))
        assert qemu.metrics["instructions"].value == unicorn.metrics["instructions"].value
        assert counts(qemu) == counts(unicorn)
        assert sum(map(bool, counts(qemu))) >= 3
        for metric in ("flash", "ram", "stack", "arena", "weights"):
            assert qemu.metrics[metric] == unicorn.metrics[metric]
        assert qemu.environment["output_crc32"] == unicorn.environment["output_crc32"]
        assert qemu.environment["image_sha256"] == unicorn.environment["image_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS)
def test_the_placed_image_has_the_plain_images_code(board: str, case: Case, need: Callable[..., None]) -> None:
    """Linking for the board's memories and the harness changes no function of the model."""
    need(f"qemu:{board}")
    target = load_target(PROFILE_OF[board])
    artifact = case.compile(target)
    placed = Loaded(artifact, target, BOARD_TABLE[board]).placed
    names = [f"es_{artifact.meta['symbol']}_run", *(layer["symbol"] for layer in artifact.meta["layers"])]
    plain = build_image(artifact, target).layer_symbols(names)
    assert [s and s.size for s in placed.layer_symbols(names)] == [s and s.size for s in plain]
    harness, _ = BOARD_TABLE[board].harness_memory()
    for symbol in placed.elf.symbols:
        if symbol.kind == "STT_FUNC" and symbol.size:
            inside = harness.origin <= symbol.address < harness.origin + harness.length
            assert inside == (symbol.name.startswith("es_harness") or symbol.name == "es_board_fault" or inside)
            assert not (inside and symbol.name in names)
