"""A model that arrives quantized is named by what its file stores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgescale.cache import StageStore
from edgescale.sources import ModelSource
from edgescale.stages import Stages

MAKE = Path(__file__).parents[2] / "tools" / "make_mobilenet.py"


@pytest.mark.parametrize(("bits", "name"), [("8", "w8a8"), ("4", "w4a8")])
def test_bits_are_read_from_the_file(bits, name, tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / "net.tflite"
    command = [sys.executable, MAKE, path, "--bits", bits, "--size", "32", "--width", "0.03125"]
    subprocess.run(command, check=True, capture_output=True)
    loaded = Stages(StageStore(tmp_path / "cache")).load(ModelSource(path))
    assert str(loaded.variant.recipe) == name
