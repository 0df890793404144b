"""Toy bundles for this folder's tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle_toys", Path(__file__).parents[1] / "bundle" / "toys.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    return _load()


@pytest.fixture
def bundle_path(toys: ModuleType, tmp_path: Path) -> Path:
    path: Path = toys.family_bundle(tmp_path)
    return path
