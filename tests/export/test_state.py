"""The example applications begin a stream before they run a model that keeps state, and only then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgescale.export.applications import example_main, sketch
from edgescale.export.source import Source

ROOT = Path(__file__).resolve().parents[2]


def _source(**extra: Any) -> Source:
    port = {"dtype": "int8", "bytes": 4, "stored_shape": [1, 4]}
    meta = {
        "symbol": "net",
        "header": "es_net.h",
        "sources": ["es_net.c"],
        "inputs": [{"name": "x", "accessor": "es_net_input", **port}],
        "outputs": [{"name": "y", "accessor": "es_net_output", **port}],
        **extra,
    }
    entry: Any = SimpleNamespace(id="net@board", environment={})
    return Source(entry, {}, meta, "cortex-m4", None, "1.0.0", ROOT / "firmware")


@pytest.mark.parametrize("application", [example_main, sketch])
def test_reset_comes_before_the_first_run(application: Any) -> None:
    text = application(_source(reset="es_net_reset"))
    body = text[text.index("int main(void)" if application is example_main else "void setup()") :]
    first_run = body.index("es_net_run()") if application is example_main else body.index("infer()")
    assert body.index("es_net_reset();") < first_run
    assert "reset" not in application(_source())
