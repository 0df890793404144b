"""`--tune`: candidates are equal in what they compute, records resume a search, the quickest is taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edgescale_tvm import tune
from edgescale_tvm.backend import compile_program, tuned_program

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.target import load_target
from edgescale.core.variant import parse_recipe
from edgescale.frontend import load_dataset, load_model
from edgescale.lower import lower, reference
from edgescale.lower.program import Program

TARGET = load_target("host-tvm")


@pytest.fixture(scope="module")
def program(harness, repository: Path) -> Program:
    from edgescale.quantize import quantize

    folder = repository / "examples" / "fashion"
    model, calibration = load_model(folder / "fashion_medium.onnx"), load_dataset(str(folder / "calibration.npz"))
    return lower(quantize(model, calibration, parse_recipe("w8a8")), model.name)


class Bars:
    """A progress listener that counts."""

    def __init__(self) -> None:
        self.steps = 0

    def start(self, label: str, total: int | None) -> int:
        return 0

    def advance(self, task: int, steps: int = 1) -> None:
        self.steps += steps

    def finish(self, task: int) -> None:
        pass


def test_every_candidate_computes_the_same(harness, program: Program, tmp_path: Path) -> None:
    from edgescale_tvm.library import machine_of

    given = harness.inputs(program, 3)
    wanted = reference.run(program, given)
    for tile in tune.WIDE if machine_of(TARGET).offset else tune.NARROW:
        out = tmp_path / f"{tile.rows}x{tile.columns}"
        meta = compile_program(program, TARGET, out, tile.flags)
        for name, value in harness.run(out / meta["library"], program, given).items():
            np.testing.assert_array_equal(value, wanted[name])


def test_records_are_read_again(harness, program: Program, tmp_path: Path) -> None:
    records, bars = tmp_path / "tune" / "records.jsonl", Bars()
    meta = tuned_program(program, TARGET, tmp_path / "one", 2, records, bars)
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert bars.steps == len(lines) == 2 and all(0.2 < line["share"] < 5 for line in lines)
    assert meta["tuning"]["time_by_default"] == {line["tile"]: line["share"] for line in lines}
    # An interrupted search: the last line is cut short, and only what it lacks is timed.
    whole = records.read_text()
    records.write_text(whole[: len(whole.splitlines()[0]) + 9] + "\n")
    bars = Bars()
    tuned_program(program, TARGET, tmp_path / "two", 3, records, bars)
    assert bars.steps == 2
    bars = Bars()
    tuned_program(program, TARGET, tmp_path / "three", 3, records, bars)
    assert bars.steps == 0


@pytest.mark.parametrize(("share", "chosen"), [(0.5, True), (0.995, False), (1.5, False)])
def test_the_quickest_is_taken(harness, program: Program, tmp_path: Path, share: float, chosen: bool) -> None:
    from edgescale_tvm.library import machine_of

    candidates = (tune.WIDE if machine_of(TARGET).offset else tune.NARROW)[:2]
    records = tmp_path / "records.jsonl"
    names = [f"{tile.rows}x{tile.columns}" for tile in candidates]
    records.write_text(
        "".join(json.dumps({"tile": n, "share": s}) + "\n" for n, s in zip(names, (2, share), strict=True))
    )
    meta = tuned_program(program, TARGET, tmp_path / "out", 2, records)
    assert meta["tuning"]["flags"] == (list(candidates[1].flags) if chosen else [])


def test_another_machine_is_not_timed_here(harness, program: Program, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="target aarch64-linux: --tune times candidates on this machine"):
        tuned_program(program, load_target("aarch64-linux"), tmp_path / "out", 1, tmp_path / "records.jsonl")
