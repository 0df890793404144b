from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# Test folders are no packages; the helpers are loaded by path under a name of their own.
_spec = importlib.util.spec_from_file_location("lm_nets", Path(__file__).with_name("nets.py"))
assert _spec is not None and _spec.loader is not None
lm_nets = importlib.util.module_from_spec(_spec)
sys.modules["lm_nets"] = lm_nets
_spec.loader.exec_module(lm_nets)


@pytest.fixture(scope="session")
def flat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder whose next token is open (many are likely)."""
    return lm_nets.write(tmp_path_factory.mktemp("flat") / "flat.onnx", lm_nets.random_weights())


@pytest.fixture(scope="session")
def uncached_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same decoder without inputs of the past."""
    return lm_nets.write(tmp_path_factory.mktemp("uncached") / "flat.onnx", lm_nets.random_weights(), cached=False)
