"""Compiles programs for this machine with TVM and runs them; every test here skips where TVM is not installed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgescale.core.target import Target, load_target
from edgescale.lower import reference
from edgescale.lower.program import LIMITS, Port, Program


def load_module(name: str, path: Path):
    """A Python file of another test folder."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Harness:
    """Many single-layer programs become one, so that a compiler call takes a batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def new_folder(self) -> Path:
        self._count += 1
        return self.folder / f"build{self._count}"

    def compile(self, program: Program, target: str | Target = "host-tvm") -> tuple[Path, dict]:
        from edgescale_tvm.backend import compile_program

        out = self.new_folder()
        return out, compile_program(program, load_target(target) if isinstance(target, str) else target, out)

    def run(self, library: Path, program: Program, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `reference.run`."""
        import tvm

        from edgescale.rigs.tvm import open_machine

        main = open_machine(library)["main"]
        names = [port.tensor for port in program.outputs]
        rows = []
        for i in range(len(next(iter(inputs.values())))):
            made = main(*[tvm.runtime.tensor(inputs[port.tensor][i : i + 1]) for port in program.inputs])
            rows.append([value.numpy() for value in (made if len(names) > 1 else [made])])
        return {name: np.concatenate([row[k] for row in rows]) for k, name in enumerate(names)}

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

    def check(self, program: Program, seed: int = 0, target: str | Target = "host-tvm") -> dict:
        """Outputs equal the reference: integers bit for bit, float32 to rounding. Returns the description."""
        folder, meta = self.compile(program, target)
        given = self.inputs(program, seed)
        wanted = reference.run(program, given)
        got = self.run(folder / meta["library"], program, given)
        makers = {layer.output: layer for layer in program.layers}
        for name, value in got.items():
            if value.dtype.kind == "i":
                np.testing.assert_array_equal(value, wanted[name], err_msg=repr(makers[name]))
            else:
                np.testing.assert_allclose(value, wanted[name], rtol=2e-5, atol=2e-5, err_msg=repr(makers[name]))
        return meta

    def together(self, drawn) -> Program:
        """One program of independent layers: (layer, its inputs, its output), each under names of its own."""
        tensors, layers, inputs, outputs = {}, [], [], []
        for i, (layer, sources, out) in enumerate(drawn):
            for tensor in sources if isinstance(sources, list) else [sources]:
                inputs.append(replace(tensor, name=f"{tensor.name}_{i}"))
            outputs.append(replace(out, name=f"y_{i}"))
            names = tuple(f"{name}_{i}" for name in layer.inputs)
            layers.append(replace(layer, name=f"{layer.name}_{i}", inputs=names, output=f"y_{i}"))
        tensors = {tensor.name: tensor for tensor in (*inputs, *outputs)}

        def ports(some) -> tuple[Port, ...]:
            return tuple(Port(t.name, t.name, t.shape, tuple(range(len(t.shape)))) for t in some)

        used = {name for layer in layers for name in layer.inputs}
        return Program("test", tensors, ports([t for t in inputs if t.name in used]), ports(outputs), tuple(layers))


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    from edgescale_tvm import BACKEND

    if (hint := BACKEND.missing()) is not None:
        pytest.skip(f"TVM is not installed: {hint}")
    return Harness(tmp_path_factory.mktemp("tvm"))


@pytest.fixture(scope="session")
def drawing(repository: Path):
    """The strategies that draw layers for the C back end."""
    return load_module("c_layer_strategies", repository / "tests" / "edgescale_c" / "test_layers.py")
