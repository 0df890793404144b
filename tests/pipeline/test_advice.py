"""An image that does not fit: the message says what is too small, by how much, and what would help."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgescale.cache import StageStore
from edgescale.core.files import shipped
from edgescale.core.target import load_target
from edgescale.core.variant import Recipe
from edgescale.pipeline import Request, compile_models

pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"


def failure(tmp_path: Path, ram: int, recipe: Recipe, memory="balanced") -> str:
    profile = (shipped("profiles") / "cortex-m4-stm32l4r5.toml").read_text()
    small = tmp_path / "small.toml"
    small.write_text(
        profile.replace("length = 0xA_0000", f"length = {ram}").replace('"cortex-m4-stm32l4r5"', '"small-m4"')
    )
    request = Request(
        models=(EXAMPLE / "fashion_medium.onnx",),
        targets=(load_target(str(small)),),
        recipes=(recipe,),
        calibration=str(EXAMPLE / "calibration.npz"),
        out=tmp_path / "bundle",
        samples=1,
        memory=memory,
    )
    result = compile_models(request, StageStore(tmp_path / "store"))
    assert result.exit_code == 3
    (found,) = result.failures
    return str(found.error)


def test_the_smallest_arrangement_is_tried_and_its_need_named(tmp_path: Path) -> None:
    text = failure(tmp_path, 10_000, Recipe(8, 8))
    assert "ram (10,000 B) overflows by" in text and "fullest in layer" in text
    assert "--memory smallest fits:" in text
    assert "cortex-m4-stm32l4r5" in text


def test_where_even_that_is_too_much_other_ways_are_named(tmp_path: Path) -> None:
    text = failure(tmp_path, 4_000, Recipe())
    assert "--memory smallest is not enough (small-m4: the image does not fit: ram (4,000 B) overflows by" in text
    assert "w8a8" in text
    text = failure(tmp_path, 4_000, Recipe(8, 8), "smallest")
    assert "--memory" not in text and "with more memory:" in text
