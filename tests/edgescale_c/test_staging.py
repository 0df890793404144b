"""Weights staged in RAM: the same bits, fewer modelled cycles where flash waits, and never more RAM than there is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from edgescale_c.arrange import arrange
from edgescale_c.staging import STACK_RESERVE, Flash

from edgescale.cache import StageStore
from edgescale.core.dataset import Dataset
from edgescale.core.target import load_target
from edgescale.core.variant import Recipe
from edgescale.lower.program import Program
from edgescale.rigs import get_rig
from edgescale.sources import DataSource, ModelSource
from edgescale.stages import Stages

_SPEC = importlib.util.spec_from_file_location("striped_nets", Path(__file__).with_name("striped_nets.py"))
assert _SPEC is not None and _SPEC.loader is not None
striped_nets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(striped_nets)

SLOW = Flash(wait_states=5, line_bytes=8, data_cache=256, ram=100_000)
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
EMULATOR = all(importlib.util.find_spec(package) for package in ("unicorn", "ziglang", "capstone", "elftools"))


def net() -> Program:
    """Convolutions of many pixels with weights beyond a small cache, and one whose weights fit it."""
    drawn = striped_nets.Drawn(3, 12, 12, 8, 1)
    a = drawn.conv("x", 32, 3, 1, 1, (1, 1))
    b = drawn.conv(a, 24, 3, 1, 1, (1, 1))
    drawn.conv(b, 2, 1, 1, 1, (0, 0))
    return drawn.program()


def test_staged_layers_equal_the_reference_under_sanitizers(harness):
    built = harness.build([net()], *harness.sanitizers[:1], "-O1", family="dsp", memory="fastest", flash=SLOW)
    assert "__builtin_memcpy(" in built.generated[0].files["es_p0.c"]
    harness.check(built)


def test_only_weights_that_would_be_waited_for_are_staged():
    staged = [choice.staged for choice in arrange(net(), "dsp", "fastest", flash=SLOW).choices]
    assert staged[0] > 0 and staged[1] > 0 and staged[2] == 0
    for flash in (None, Flash(0, 8, 256, 100_000), Flash(5, 8, 1 << 20, 100_000)):
        assert not any(choice.staged for choice in arrange(net(), "dsp", "fastest", flash=flash).choices)
    assert not any(choice.staged for choice in arrange(net(), "dsp", "balanced", flash=SLOW).choices)


def test_staging_stays_within_the_ram_there_is():
    plain = arrange(net(), "dsp", "balanced").plan.arena_bytes
    full = arrange(net(), "dsp", "fastest", flash=SLOW)
    assert full.plan.arena_bytes > plain
    tight = Flash(5, 8, 256, full.plan.arena_bytes + STACK_RESERVE - 1)
    some = arrange(net(), "dsp", "fastest", flash=tight)
    assert some.plan.arena_bytes + STACK_RESERVE <= tight.ram
    assert any(choice.staged for choice in some.choices)
    none = arrange(net(), "dsp", "fastest", flash=Flash(5, 8, 256, plain))
    assert none.plan.arena_bytes == plain


@pytest.mark.slow
@pytest.mark.skipif(not EMULATOR, reason="needs pip install 'edgescale[mcu]'")
def test_fastest_takes_fewer_cycles_on_a_part_with_wait_states(tmp_path):
    stages = Stages(StageStore(tmp_path / "store"))
    loaded = stages.load(ModelSource(EXAMPLE / "fashion_large.onnx"))
    variant = stages.compress(loaded, Recipe(8, 8), DataSource(str(EXAMPLE / "calibration.npz")))
    target = load_target("cortex-m4-stm32l4r5")
    samples = Dataset("one", np.load(EXAMPLE / "test.npz")["x"][:1], None, "one")
    rig = get_rig(target.rig)
    balanced, fastest = (
        rig.measure(stages.compile(variant, target, "edgescale_c", memory), target, samples)
        for memory in ("balanced", "fastest")
    )
    assert fastest.metrics["cycles"].value < 0.97 * balanced.metrics["cycles"].value
    assert fastest.metrics["instructions"].value < 1.02 * balanced.metrics["instructions"].value
    assert fastest.environment["output_crc32"] == balanced.environment["output_crc32"]
