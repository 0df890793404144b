"""Writes programs as .tflite files and runs them with LiteRT's reference kernels."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgescale.lower import reference
from edgescale.lower.program import LIMITS, Port, Program, Tensor


def load_module(name: str, path: Path) -> Any:
    """A Python file of another test folder."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def litert(data: bytes, *, reference_kernels: bool = True) -> Any:
    """An interpreter with its tensors allocated."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_REF if reference_kernels else OpResolverType.AUTO
    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=kind, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


class Harness:
    """What the tests of this folder share."""

    load_module = staticmethod(load_module)

    def run(self, data: bytes, program: Program, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `reference.run`: consecutive samples of one interpreter."""
        interpreter = litert(data)
        given, made = interpreter.get_input_details(), interpreter.get_output_details()
        rows: list[list[np.ndarray]] = []
        for i in range(len(next(iter(inputs.values())))):
            for detail, port in zip(given, program.inputs, strict=True):
                interpreter.set_tensor(detail["index"], inputs[port.tensor][i : i + 1])
            interpreter.invoke()
            rows.append([interpreter.get_tensor(detail["index"]).copy() for detail in made])
        return {port.tensor: np.concatenate([row[k] for row in rows]) for k, port in enumerate(program.outputs)}

    def inputs(self, program: Program, seed: int, count: int = 3) -> dict[str, np.ndarray]:
        """Random stored inputs; the first two samples of integers hold the extremes."""
        rng = np.random.default_rng(seed)
        made = {}
        for port in program.inputs:
            tensor = program.tensors[port.tensor]
            shape = (count, *tensor.shape[1:])
            if tensor.dtype in LIMITS:
                least, most = LIMITS[tensor.dtype]
                values = rng.integers(least, most + 1, shape).astype(tensor.dtype)
                values[0] = rng.choice(np.array([least, most], tensor.dtype), shape[1:])
                values[1] = most
            else:
                values = rng.normal(0, 3, shape).astype(np.float32)
            made[port.tensor] = values
        return made

    def check(self, program: Program, seed: int = 0) -> Any:
        """LiteRT's outputs equal the reference: integers bit for bit, float32 to rounding. Returns what was written."""
        from edgescale_tflite.write import write_program

        written = write_program(program)
        given = self.inputs(program, seed)
        wanted, got = reference.run(program, given), self.run(written.data, program, given)
        makers = {layer.output: layer for layer in program.layers}
        for name, value in got.items():
            if value.dtype.kind == "i":
                np.testing.assert_array_equal(value, wanted[name], err_msg=repr(makers[name]))
            else:
                np.testing.assert_allclose(value, wanted[name], rtol=2e-5, atol=2e-5, err_msg=repr(makers[name]))
        return written

    def together(self, drawn: Sequence[tuple[Any, Any, Tensor]]) -> Program:
        """One program of independent layers: (layer, its inputs, its output), each under names of its own."""
        layers, inputs, outputs = [], [], []
        for i, (layer, sources, out) in enumerate(drawn):
            for tensor in sources if isinstance(sources, list) else [sources]:
                inputs.append(replace(tensor, name=f"{tensor.name}_{i}"))
            outputs.append(replace(out, name=f"y_{i}"))
            names = tuple(f"{name}_{i}" for name in layer.inputs)
            layers.append(replace(layer, name=f"{layer.name}_{i}", inputs=names, output=f"y_{i}"))
        tensors = {tensor.name: tensor for tensor in (*inputs, *outputs)}

        def ports(some: Sequence[Tensor]) -> tuple[Port, ...]:
            return tuple(Port(t.name, t.name, t.shape, tuple(range(len(t.shape)))) for t in some)

        used = {name for layer in layers for name in layer.inputs}
        return Program("test", tensors, ports([t for t in inputs if t.name in used]), ports(outputs), tuple(layers))


@pytest.fixture(scope="session")
def harness() -> Harness:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    return Harness()


@pytest.fixture(scope="session")
def drawing(repository: Path) -> Any:
    """The strategies that draw layers for the C back end."""
    return load_module("c_layer_strategies_for_tflite", repository / "tests" / "edgescale_c" / "test_layers.py")


@pytest.fixture(scope="session")
def drawing_int16(repository: Path) -> Any:
    """The strategies that draw layers of int16 activations."""
    folder = repository / "tests" / "edgescale_c"
    return load_module("c_int16_strategies_for_tflite", folder / "test_int16_layers.py")


@pytest.fixture(scope="session")
def mlperf_tiny() -> Callable[[str], Path]:
    """Path of a file of the MLPerf Tiny reference models; skips the test where they are absent."""

    def find(name: str) -> Path:
        roots = [os.environ.get("EDGESCALE_TEST_DATA"), Path(__file__).parents[3] / "shared" / "data"]
        for root in filter(None, roots):
            for path in (Path(root) / "mlperf_tiny" / name, Path(root) / name):
                if path.is_file():
                    return path
        pytest.skip(f"{name} not found; set EDGESCALE_TEST_DATA to the folder that holds mlperf_tiny/")

    return find
