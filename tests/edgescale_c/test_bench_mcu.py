"""tools/bench_mcu.py: what counts as worse than a baseline, and whose published figures belong to a model."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("bench_mcu", ROOT / "tools" / "bench_mcu.py")
    assert spec and spec.loader
    import sys

    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_mcu"] = module
    spec.loader.exec_module(module)
    return module


def test_one_percent_is_allowed_and_more_is_named(tool):
    old = {"model": "m", "target": "t", "instructions": 1000, "flash": 2000, "ram": 300, "stack": 8}
    assert tool.regressions([old | {"instructions": 1010, "flash": 1, "stack": 999}], [old]) == []
    worse = tool.regressions([old | {"instructions": 1011, "ram": 400}], [old])
    assert worse == ["m on t: instructions 1,000 -> 1,011 (+1.10 %)", "m on t: ram 300 -> 400 (+33.33 %)"]
    assert tool.regressions([old | {"model": "n"}], [old]) == ["n on t: not in the baseline"]


def test_published_figures_go_with_the_file_and_the_core(tool, tmp_path, monkeypatch):
    model = tmp_path / "m.tflite"
    model.write_bytes(b"abc")
    table = tmp_path / "published.toml"
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180-2
    table.write_text(f'[[engine]]\nname = "E"\nmodels.m.sha256 = "{digest}"\nmodels.m.cortex-m4 = {{ flash = 7 }}\n')
    monkeypatch.setattr(tool, "PUBLISHED", table)
    assert tool.published(model, "cortex-m4") == {"E": {"flash": 7}}
    assert tool.published(model, "cortex-m7") == {}
    model.write_bytes(b"abd")
    assert tool.published(model, "cortex-m4") == {}


def test_the_shipped_figures_are_whole(tool):
    engines = tomllib.loads(tool.PUBLISHED.read_text())["engine"]
    for engine in engines:
        assert engine["name"] and engine["origin"]
        for entry in engine["models"].values():
            assert len(entry["sha256"]) == 64
            for core, figures in entry.items():
                if core != "sha256":
                    assert set(figures) <= set(tool.METRICS) and set(tool.WATCHED) <= set(figures)
