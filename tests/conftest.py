"""Shared by all rooms: a private stage store for every test session, so that tests neither see nor leave results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]


# Machines that run other work too are slow at times: how long an example takes says nothing about the code. The suite
# draws the same examples every time, since it judges changes; `--hypothesis-profile explore` draws others.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("shared", settings.get_profile("explore"), derandomize=True)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _private_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESCALE_CACHE", str(tmp_path_factory.mktemp("edgescale-cache")))
        for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):  # zig's run-time library: seconds a core to build
            if name not in os.environ:
                patch.setenv(name, str(ROOT / ".pytest_cache" / "zig"))
        yield
