"""The reference against LiteRT's reference kernels, bit for bit: whole models layer by layer, and single operators."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgescale.lower import reference
from edgescale.lower.program import Program

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")


def _translation() -> Any:
    path = Path(__file__).with_name("tflite_program.py")
    spec = importlib.util.spec_from_file_location("lower_tflite_program", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tflite = _translation()


def interpreter(data: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    made = Interpreter(
        model_content=data,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    made.allocate_tensors()
    return made


@pytest.mark.parametrize("name", ["kws01", "ic01", "ad01"])
def test_every_layer_of_a_reference_model(mlperf_tiny: Callable[[str], Path], name: str) -> None:
    data = mlperf_tiny(f"{name}_int8.tflite").read_bytes()
    program: Program = tflite.Reader(data).program()
    litert = interpreter(data)
    index = litert.get_input_details()[0]["index"]
    rng = np.random.default_rng(3)
    samples = rng.integers(-128, 128, (5, *program.tensors[program.inputs[0].tensor].shape[1:]), dtype=np.int8)
    ours = reference.run(program, {program.inputs[0].tensor: samples}, keep=program.tensors)
    for number, sample in enumerate(samples):
        litert.set_tensor(index, sample[None])
        litert.invoke()
        for layer in program.layers:
            theirs = litert.get_tensor(int(layer.output[1:]))
            np.testing.assert_array_equal(ours[layer.output][number], theirs[0], err_msg=layer.name)


UNITS = {"x": (0.037, -11), "y": (0.021, 25), "out": (0.043, 4)}
SINGLE: list[tuple[str, dict[str, Any]]] = [
    ("ADD", {}), ("ADD", {"activation": "RELU"}), ("ADD", {"out": (0.9, 100)}), ("SUB", {}), ("MUL", {}),
    ("MUL", {"out": (0.0007, -3)}), ("MEAN", {}), ("MEAN", {"size": (7, 7)}), ("MEAN", {"size": (3, 43)}),
    ("MEAN", {"out": (0.004, -7)}), ("MAX_POOL_2D", {"same": True}), ("AVERAGE_POOL_2D", {"same": True}),
    ("AVERAGE_POOL_2D", {"same": False}), ("SOFTMAX", {"x": (0.037, -11)}), ("SOFTMAX", {"x": (0.9, 3)}),
    ("SOFTMAX", {"x": (0.0021, 3)}), ("SOFTMAX", {"x": (0.2, 3), "size": (3, 130)}), ("PAD", {}), ("QUANTIZE", {}),
    ("QUANTIZE", {"out": (0.5, 4)}), ("CONCATENATION", {}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "options"), SINGLE, ids=lambda value: str(value))
def test_single_operator(operator: str, options: dict[str, Any]) -> None:
    data = tflite.single_operator(operator, {**UNITS, **options})
    program: Program = tflite.Reader(data).program()
    litert = interpreter(data)
    rng = np.random.default_rng(5)
    for _ in range(4):
        feed = {}
        for detail, port in zip(litert.get_input_details(), program.inputs, strict=True):
            feed[port.tensor] = rng.integers(-128, 128, detail["shape"], dtype=np.int8)
            litert.set_tensor(detail["index"], feed[port.tensor])
        litert.invoke()
        (result,) = reference.run(program, feed).values()
        np.testing.assert_array_equal(result, litert.get_tensor(litert.get_output_details()[0]["index"]))
