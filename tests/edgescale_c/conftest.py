"""Builds generated C for this machine and runs it."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from edgescale_c.generate import Generated, generate

from edgescale.core.files import firmware_root, sha256_tree
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact
from edgescale.lower import reference
from edgescale.lower.program import LIMITS, Port, Program, Tensor

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror")
ARMV6M = ("-DES_NO_SMULL", "-DES_NO_DIVIDE", "-DES_TILE_PIXELS=1")
"""The paths that cores without a long multiply, a divide and many registers take."""

# pointer-overflow is left out: it looks for addresses that wrap around, and triples the compiler's time.
SANITIZERS = (
    "-Og",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize=pointer-overflow",
    "-fno-sanitize-recover=all",
    "-DES_NO_ARENA_SECTION",
)


@dataclass
class Built:
    """Programs in one shared object."""

    library: ctypes.CDLL
    programs: list[Program]
    generated: list[Generated]

    def run(self, index: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `reference.run`: stored inputs [n, ...] by tensor name -> stored outputs."""
        program, meta = self.programs[index], self.generated[index].meta
        entry = getattr(self.library, f"es_{meta['symbol']}_run")
        entry.restype = None
        count = len(next(iter(inputs.values())))
        results: dict[str, list[np.ndarray]] = {port.tensor: [] for port in program.outputs}
        for sample in range(count):
            for port, described in zip(program.inputs, meta["inputs"], strict=True):
                data = np.ascontiguousarray(inputs[port.tensor][sample]).tobytes()
                assert len(data) == described["bytes"]
                ctypes.memmove(self._address(described["accessor"]), data, len(data))
            entry()
            for port, described in zip(program.outputs, meta["outputs"], strict=True):
                data = ctypes.string_at(self._address(described["accessor"]), described["bytes"])
                results[port.tensor].append(
                    np.frombuffer(data, described["dtype"]).reshape(described["stored_shape"][1:])
                )
        return {name: np.stack(values) for name, values in results.items()}

    def _address(self, accessor: str) -> int:
        function = getattr(self.library, accessor)
        function.restype = ctypes.c_void_p
        return function()


class Harness:
    """Generates, compiles and runs programs; compilers are called as seldom as possible."""

    warnings = WARNINGS
    armv6m = ARMV6M
    sanitizers = SANITIZERS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def gcc(self) -> list[str]:
        """GCC, else clang from the ziglang package; skips without either."""
        return ["gcc"] if shutil.which("gcc") else self.zig()

    def zig(self) -> list[str]:
        """Clang from the ziglang package; skips without it."""
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("neither gcc nor the ziglang package is here")
        return [sys.executable, "-m", "ziglang", "cc"]

    def new_folder(self) -> Path:
        self._count += 1
        folder = self.folder / f"build{self._count}"
        folder.mkdir()
        return folder

    def write(self, programs: list[Program], folder: Path, firmware: Path | None = None, **options) -> list[Generated]:
        """Files of all programs (symbols p0, p1, ...) and all.c that includes every one."""
        made = [generate(p, f"p{i}", firmware or firmware_root(), **options) for i, p in enumerate(programs)]
        for one in made:
            for name, text in one.files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text)
        (folder / "all.c").write_text("".join(f'#include "es_p{i}.c"\n' for i in range(len(programs))))
        return made

    def build(
        self,
        programs: list[Program],
        *flags: str,
        compiler: list[str] | None = None,
        firmware: Path | None = None,
        **options,
    ) -> Built:
        folder = self.new_folder()
        made = self.write(programs, folder, firmware, **options)
        self.compile(folder, "-shared", "-fPIC", *flags, compiler=compiler, output="all.so")
        return Built(ctypes.CDLL(str(folder / "all.so")), programs, made)

    def compile(
        self, folder: Path, *flags: str, compiler: list[str] | None = None, source: str = "all.c", output: str = "a.out"
    ) -> None:
        """Compile with every warning an error; AssertionError shows what the compiler said."""
        command = [*(compiler or self.gcc()), *WARNINGS, "-O1", *flags, "-o", output, source]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-4000:]

    def inputs(self, program: Program, rng: np.random.Generator, count: int = 3) -> dict[str, np.ndarray]:
        """Random stored inputs; the first two samples hold the extremes."""
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

    def check(self, built: Built, seed: int = 0) -> None:
        """Every program's outputs equal the reference: integers bit for bit, float32 to rounding."""
        for index, program in enumerate(built.programs):
            given = self.inputs(program, np.random.default_rng(seed + index))
            wanted = reference.run(program, given)
            for name, value in built.run(index, given).items():
                message = f"{program.layers}\n{built.generated[index].plan}"
                if value.dtype.kind == "i":
                    np.testing.assert_array_equal(value, wanted[name], err_msg=message)
                else:
                    np.testing.assert_allclose(value, wanted[name], rtol=2e-5, atol=2e-5, err_msg=message)

    def one_artifact(self, programs: list[Program], made: list[Generated], family: str, **options) -> Artifact:
        """All programs behind one input and one output: the bytes of each, in turn."""
        folder = self.new_folder()
        self.write(programs, folder, family=family, **options)
        sizes = [[sum(port["bytes"] for port in one.meta[kind]) for one in made] for kind in ("inputs", "outputs")]
        steps = []
        for one in made:
            moves = [
                f"move({port['accessor']}(), x, {port['bytes']}); x += {port['bytes']};" for port in one.meta["inputs"]
            ]
            moves.append(f"es_{one.meta['symbol']}_run();")
            moves += [f"move(y, {p['accessor']}(), {p['bytes']}); y += {p['bytes']};" for p in one.meta["outputs"]]
            steps.append("    " + " ".join(moves))
        text = f"""#include "all.c"
static int8_t all_in[{sum(sizes[0])}], all_out[{sum(sizes[1])}];
int8_t *es_all_input(void);
const int8_t *es_all_output(void);
void es_all_run(void);
int8_t *es_all_input(void) {{ return all_in; }}
const int8_t *es_all_output(void) {{ return all_out; }}
static void move(int8_t *to, const int8_t *from, int n) {{ while (n-- > 0) *to++ = *from++; }}
void es_all_run(void)
{{
    const int8_t *x = all_in;
    int8_t *y = all_out;
{chr(10).join(steps)}
}}
"""
        (folder / "es_all.c").write_text(text)

        def port(accessor: str, size: int) -> dict:
            shape = [1, size]
            return {
                "name": accessor, "accessor": accessor, "bytes": size, "dtype": "int8", "scale": 1.0, "zero_point": 0,
                "shape": shape, "axes": [0, 1], "stored_shape": shape,
            }  # fmt: skip

        meta = {
            "symbol": "all", "sources": ["es_all.c"], "header": "all.c", "arena_bytes": 0, "weights_bytes": 0,
            "inputs": [port("es_all_input", sum(sizes[0]))], "outputs": [port("es_all_output", sum(sizes[1]))],
            "layers": [layer for one in made for layer in one.meta["layers"]],
        }  # fmt: skip
        (folder / "artifact.json").write_text(json.dumps(meta))
        return Artifact("all", "any", "edgescale_c", "c", folder, sha256_tree(folder), meta)

    def check_emulated(self, built: Built, core: str, seed: int, family: str, compiler: str = "zig", **options) -> None:
        """As `check`, on an emulated core: all programs are one image, for the kernels of `family`; options: those of
        `generate` with which `built` was made."""
        from edgescale.rigs import get_rig

        target = load_target(core)
        target = replace(target, toolchain=replace(target.toolchain, compiler=compiler))
        given_inputs = [self.inputs(p, np.random.default_rng(seed + i)) for i, p in enumerate(built.programs)]
        wanted = [reference.run(p, x) for p, x in zip(built.programs, given_inputs, strict=True)]
        stored = np.concatenate([v.reshape(len(v), -1) for x in given_inputs for v in x.values()], axis=1)
        expected = np.concatenate([v.reshape(len(v), -1) for x in wanted for v in x.values()], axis=1)
        artifact = self.one_artifact(built.programs, built.generated, family, **options)
        got = get_rig(target.rig).raw_executor(artifact, target)(stored)
        at = 0
        for program, outputs in zip(built.programs, wanted, strict=True):
            size = sum(v[0].size for v in outputs.values())
            part = slice(at, at + size)
            np.testing.assert_array_equal(got[:, part], expected[:, part], err_msg=f"{core}, {compiler}: {program}")
            at += size

    def program(self, layers, inputs: list[Tensor], *others: Tensor, outputs: list[str] | None = None) -> Program:
        """A program of `layers`; the last layer's output is the graph's unless `outputs` says otherwise."""
        tensors = {tensor.name: tensor for tensor in (*inputs, *others)}

        def port(tensor: Tensor) -> Port:
            return Port(tensor.name, tensor.name, tensor.shape, tuple(range(len(tensor.shape))))

        ends = outputs or [layers[-1].output]
        return Program(
            "test",
            tensors,
            tuple(port(tensor) for tensor in inputs),
            tuple(port(tensors[name]) for name in ends),
            tuple(layers),
        )


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


@pytest.fixture(scope="module")
def shared_harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(tmp_path_factory.mktemp("generated"))
