"""A TensorFlow Lite file of int16 activations through the command line: compiled, measured, run on emulated cores."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")

BOARDS = ("cortex-m4-stm32l4r5", "cortex-m0plus")

pytestmark = pytest.mark.slow


def _files() -> Any:
    name = "frontend_tflite_int16_files"
    path = Path(__file__).parents[1] / "frontend" / "tflite_int16_files.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


made = _files()


def classifier(net: Any) -> int:
    """Convolution, depthwise, residual, pool, gate, dense, softmax."""
    a = net.conv(net.input((1, 12, 10, 3), 0.0003), 0.0008, channels=8, kernel=(3, 3), stride=(2, 2), activation=1)
    b = net.conv(a, 0.0009, depth=1, kernel=(3, 3), activation=1)
    c = net.conv(b, 0.0008, channels=8, kernel=(1, 1))
    d = net.binary("ADD", a, c, 0.0012, 1)
    gate = net.unary("LOGISTIC", net.mean(d, [1, 2], 0.0005), made.UNIT)
    e = net.pool("AVERAGE", net.binary("MUL", d, gate, 0.0011), kernel=(3, 3), stride=(3, 3), padding=made.VALID)
    return int(net.softmax(net.dense(e, 0.0015, 10)))


def test_compile_for_host_and_microcontrollers(edgescale: Callable, tmp_path: Path) -> None:
    from edgescale.bundle import open_bundle
    from edgescale.core.target import load_target
    from edgescale.rigs import get_rig
    from edgescale.served import entry_artifact

    net = made.Net(7)
    data = net.file(classifier(net))
    model = tmp_path / "net_16x8.tflite"
    model.write_bytes(data)
    x = (np.random.default_rng(0).normal(0, 9000, (40, 12, 10, 3))).clip(-32768, 32767).astype(np.int16)
    outputs = made.files.LiteRT(data).run(x)
    np.savez(tmp_path / "test.npz", x=x, y=outputs.argmax(axis=1))
    out = tmp_path / "bundle"
    targets = [word for name in ("host", *BOARDS) for word in ("-t", name)]
    answer = edgescale("compile", model, "--eval", tmp_path / "test.npz", "--out", out, *targets, "--json")
    assert answer.code == 0, answer.err
    entries = {(e["variant"], e["target"]): e for e in json.loads(answer.out)["entries"]}
    assert set(entries) == {("net_16x8-w8a16", target) for target in ("host", *BOARDS)}
    bundle = open_bundle(out)
    for board in BOARDS:
        entry = entries["net_16x8-w8a16", board]
        assert entry["environment"]["verified_exact"] == "True"
        assert entry["figures"]["accuracy"]["value"] == 1
        assert entry["figures"]["latency"]["source"] == "modelled"
        (record,) = bundle.entries_for(board)
        target = load_target(board)
        observed = get_rig(target.rig).raw_executor(entry_artifact(bundle, record), target)(x)
        assert observed.dtype == np.int16
        np.testing.assert_array_equal(observed, outputs)
    served = json.loads(edgescale("run", out, "--input", tmp_path / "test.npz", "--target", BOARDS[0], "--json").out)
    assert served["top1"] == 1
    header = next(out.rglob("es_net_16x8_w8a16.h")).read_text()
    assert "int16_t *es_net_16x8_w8a16_input(void);" in header
