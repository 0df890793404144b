"""What a device pays for `import edgescale.runtime`, checked in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FORBIDDEN = {
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "click",
    "rich",
    "scipy",
    "unicorn",
    "ziglang",
    "capstone",
    "elftools",
    "edgescale_onnx",
    "edgescale_c",
    "edgescale.frontend",
    "edgescale.quantize",
    "edgescale.lower",
    "edgescale.rigs",
    "edgescale.cli",
    "edgescale.select",
    "edgescale.report",
}
TARGET_SECONDS = 0.2


def run(code: str, *arguments: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("module", ["edgescale.runtime", "edgescale.runtime.lm", "edgescale.runtime.samples"])
def test_import_is_light_and_quick(module: str) -> None:
    code = """
import importlib, json, sys, time, numpy
start = time.process_time()
importlib.import_module(sys.argv[1])
print(json.dumps({"seconds": time.process_time() - start, "modules": list(sys.modules)}))
"""
    answers = [run(code, module) for _ in range(3)]
    assert not FORBIDDEN & set(answers[0]["modules"])  # type: ignore[call-overload]
    assert min(float(str(a["seconds"])) for a in answers) < TARGET_SECONDS


def test_onnxruntime_comes_with_the_first_run_and_no_compiler_ever(bundle_path: Path) -> None:
    code = """
import json, sys
from edgescale.runtime import Session
session = Session(sys.argv[1])
session.choose("latency<=5ms")
session.variants()
before = list(sys.modules)
session.run([1, 2, 3, 4])
print(json.dumps({"before": before, "after": list(sys.modules)}))
"""
    answer = run(code, str(bundle_path))
    assert not FORBIDDEN & set(answer["before"])  # type: ignore[call-overload]
    assert FORBIDDEN & set(answer["after"]) == {"onnxruntime"}  # type: ignore[call-overload]
