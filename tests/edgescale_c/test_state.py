"""State in generated C: streams equal to the reference and to LiteRT, in place or copied, and plans that are safe."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescale_c import BACKEND
from edgescale_c.generate import generate
from edgescale_c.planner import plan
from edgescale_c.verifier import PlanError, verify

from edgescale.core.files import firmware_root
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact, Recipe, Variant
from edgescale.frontend import load_model, save_model
from edgescale.lower import lower_file, reference
from edgescale.lower.program import (
    Concat,
    Lut,
    Pool2D,
    Port,
    Program,
    Reshape,
    Slice,
    State,
    Tensor,
    Unary,
)

M4 = "cortex-m4-stm32l4r5"
EMULATOR = all(importlib.util.find_spec(package) for package in ("unicorn", "ziglang", "capstone", "elftools"))
ONES = (1, 1, 1, 1)
NAMES = ("alexa", "hey_jarvis", "hey_mycroft", "okay_nabu")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("EDGESCALE_CACHE", str(cache.mkdir("edgescale")))


@pytest.fixture(scope="module")
def states() -> Any:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    path = Path(__file__).resolve().parents[1] / "frontend" / "tflite_state_files.py"
    spec = importlib.util.spec_from_file_location("c_state_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows(name: str, count: int, channels: int = 5, dtype: str = "int8") -> Tensor:
    scale, zero = (0.1, -7) if dtype == "int8" else (0.0, 0)
    return Tensor(name, (1, count, 1, channels), dtype, scale, zero)


def program(layers: list[Any], tensors: list[Tensor], outputs: list[str], states: dict[str, str], seed: int) -> Program:
    """Input "x"; states from input to output tensor, with random initial values."""
    known = {tensor.name: tensor for tensor in tensors}
    rng = np.random.default_rng(seed)

    def port(name: str) -> Port:
        return Port(name, name, known[name].shape, (0, 1, 2, 3))

    kept = []
    for name, output in states.items():
        shape = known[name].shape
        initial = rng.integers(-128, 128, shape).astype(known[name].dtype)
        kept.append(State(name, name, output, initial))
    return Program("p", known, (port("x"),), tuple(port(n) for n in outputs), tuple(layers), tuple(kept))


def part(name: str, source: str, output: str, row: int, channel: int = 0, step: tuple[int, ...] = ONES) -> Slice:
    return Slice(name, (source,), output, begin=(0, row, 0, channel), step=step)


def copy(name: str, source: str, output: str) -> Slice:
    return part(name, source, output, 0)


def table(name: str, source: str, output: str, seed: int = 0) -> Lut:
    values = np.random.default_rng(seed).integers(-128, 128, 256).astype(np.int8)
    return Lut(name, (source,), output, values, "noise")


def join(name: str, inputs: tuple[str, ...], output: str, axis: int = 1) -> Concat:
    return Concat(name, inputs, output, axis=axis, rescale=(None,) * len(inputs))


def pool(name: str, source: str, output: str, height: int) -> Pool2D:
    clamp = (-128, 127)
    return Pool2D(name, (source,), output, "max", (height, 1), (1, 1), (0, 0, 0, 0), False, None, clamp)


def collection() -> dict[str, tuple[Program, list[bool]]]:
    """Programs by what is particular to them, and whether each state is updated in place."""
    x, s, c, n, y = rows("x", 2), rows("s", 4), rows("c", 6), rows("n", 4), rows("y", 1)
    made = {
        "oldest first": (
            [join("j", ("s", "x"), "c"), pool("p", "c", "y", 6), part("u", "c", "n", 2)], [], ["y"], [True],
        ),
        "newest first": (
            [join("j", ("x", "s"), "c"), pool("p", "c", "y", 6), part("u", "c", "n", 0)], [], ["y"], [True],
        ),
        "in the middle": (
            [table("t", "x", "a"), join("j", ("a", "s", "x"), "d"), pool("p", "d", "y", 8), part("u", "d", "n", 3)],
            [rows("a", 2), rows("d", 8)], ["y"], [True],
        ),
        "made in place": (
            [table("t", "x", "a"), join("j", ("s", "a"), "c"), pool("p", "c", "y", 6), part("u", "c", "n", 2)],
            [rows("a", 2)], ["y"], [True],
        ),
        "read in parts": (
            [
                join("j", ("s", "x"), "c"), part("tail", "c", "b", 3), part("narrow", "c", "e", 0, 2, (1, 2, 1, 2)),
                pool("p", "b", "y", 3), pool("q", "e", "z", 3), part("u", "c", "n", 1),
            ],
            [rows("b", 3), rows("e", 3, 2), rows("z", 1, 2)], ["y", "z"], [True],
        ),
        "read after its update": (
            [join("j", ("s", "x"), "c"), part("u", "c", "n", 2), pool("p", "c", "y", 6)], [], ["y"], [True],
        ),
        "history is an output": (
            [join("j", ("s", "x"), "c"), part("u", "c", "n", 2), pool("p", "c", "y", 6)], [], ["y", "c"], [True],
        ),
        "next value is an output": (
            [join("j", ("s", "x"), "c"), pool("p", "c", "y", 6), part("u", "c", "n", 2)], [], ["y", "n"], [True],
        ),
        "state is read twice": (
            [join("j", ("s", "x"), "c"), pool("p", "s", "y", 4), part("u", "c", "n", 2)], [], ["y"], [True],
        ),
        "cut across": (
            [join("j", ("s", "v"), "c", 3), pool("p", "c", "y", 2), part("u", "c", "n", 0, 1)],
            [rows("s", 2, 4), rows("c", 2, 5), rows("n", 2, 4), rows("v", 2, 1)], ["y"], [True],
        ),
        "goes to its place": (
            [join("j", ("s", "x"), "c"), pool("p", "c", "y", 6), pool("u", "c", "n", 3)], [], ["y"], [True],
        ),
        "computed from itself": (
            [table("u", "s", "n"), join("j", ("n", "x"), "c"), pool("p", "c", "y", 6)], [], ["y"], [False],
        ),
        "never changes": ([join("j", ("s", "x"), "c"), pool("p", "c", "y", 6)], [], ["y"], [True]),
        "delays": (
            [copy("k", "s", "n2"), join("j", ("s2", "x"), "c"), copy("i", "x", "n"), pool("p", "c", "y", 4)],
            [rows("s", 2), rows("n", 2), rows("s2", 2), rows("n2", 2), rows("c", 4)], ["y"], [True, False],
        ),
        "another state's history": (
            [join("j", ("s", "x"), "c"), pool("p", "c", "y", 6), part("k", "c", "n2", 1), join("o", ("s2", "y"), "d"),
             pool("q", "d", "z", 4), part("u", "c", "n", 2)],
            [rows("s2", 3), rows("n2", 3), rows("d", 4), rows("z", 1)], ["z"], [True, False],
        ),
    }  # fmt: skip
    made["cut across"] = (
        [part("v", "x", "v", 0, 4), *made["cut across"][0]], *made["cut across"][1:],
    )  # fmt: skip
    found = {}
    for seed, (name, (layers, extra, outputs, in_place)) in enumerate(made.items()):
        shapes = {tensor.name: tensor for tensor in (x, s, c, n, y, *extra)}
        used = {"x", "s", *(layer.output for layer in layers)}
        if "s2" in shapes:
            used.add("s2")
        kept = {"s": "s" if name == "never changes" else "n"} | ({"s2": "n2"} if "s2" in shapes else {})
        tensors = [tensor for key, tensor in shapes.items() if key in used]
        found[name] = (program(layers, tensors, outputs, kept, seed), in_place)
    return found


def start(built: Any, index: int) -> None:
    getattr(built.library, built.generated[index].meta["reset"])()


def test_streams_equal_the_reference(harness):
    """Every way in which a state may live; runs continue one another, a reset starts again."""
    cases = collection()
    programs = [one for one, _ in cases.values()]
    built = harness.build(programs)
    rng = np.random.default_rng(5)
    for index, (name, (one, in_place)) in enumerate(cases.items()):
        assert [entry["in_place"] for entry in built.generated[index].meta["states"]] == in_place, name
        x = rng.integers(-128, 128, (23, *one.tensors["x"].shape[1:])).astype(np.int8)
        expected = reference.run(one, {"x": x})
        for _ in range(2):
            start(built, index)
            parts = [built.run(index, {"x": x[:9]}), built.run(index, {"x": x[9:]})]
            for tensor, values in expected.items():
                observed = np.concatenate([done[tensor] for done in parts])
                assert np.array_equal(observed, values), f"{name}: {tensor}"


def test_float_states(harness):
    x, s, c, n, y = (
        rows(name, count, 3, "float32") for name, count in (("x", 1), ("s", 2), ("c", 3), ("n", 2), ("y", 3))
    )
    layers = [join("j", ("s", "x"), "c"), Unary("f", ("c",), "y", "tanh"), part("u", "c", "n", 1)]
    one = program(layers, [x, s, c, n, y], ["y"], {"s": "n"}, 1)
    built = harness.build([one])
    values = np.random.default_rng(0).normal(size=(9, 1, 1, 3)).astype(np.float32)
    start(built, 0)
    assert np.allclose(built.run(0, {"x": values})["y"], reference.run(one, {"x": values})["y"], atol=1e-5)


def test_random_slices_equal_the_reference(harness):
    """Any begin and step of four axes, int8 and float32, also of a slice that is a view."""
    rng = np.random.default_rng(11)
    programs = []
    for index in range(24):
        dtype = ("int8", "float32")[index % 2]
        shape = tuple(int(size) for size in (1, *rng.integers(1, 6, 3)))
        begin = tuple(int(rng.integers(0, size)) for size in shape)
        step = tuple(int(rng.integers(1, 4)) if size > 1 else 1 for size in shape)
        sizes = [-(-(size - low) // by) for size, low, by in zip(shape, begin, step, strict=True)]
        out = tuple(int(rng.integers(1, size + 1)) for size in sizes)
        units = (0.1, 0) if dtype == "int8" else (0.0, 0)
        tensors = [Tensor("x", shape, dtype, *units), Tensor("y", out, dtype, *units)]
        programs.append(program([Slice("cut", ("x",), "y", begin=begin, step=step)], tensors, ["y"], {}, 0))
    built = harness.build(programs)
    for index, one in enumerate(programs):
        x = rng.integers(-128, 128, (3, *one.tensors["x"].shape[1:])).astype(one.tensors["x"].dtype)
        assert np.array_equal(built.run(index, {"x": x})["y"], reference.run(one, {"x": x})["y"]), one.layers


def test_the_verifier_catches_planted_faults():
    """A state under a transient, an input over a state, two states in one place, a copy that would clobber a result."""
    one, _ = collection()["read in parts"]
    delays, _ = collection()["delays"]
    placed = plan(one)
    good = {name: placed.offset(name) for name in one.tensors}
    verify(one, good, placed.arena_bytes)
    for moved in ("x", "e", "z", "y"):
        bad = good | {moved: good["s"]}
        with pytest.raises(PlanError):
            verify(one, bad, placed.arena_bytes)
    two = plan(delays)
    offsets = {name: two.offset(name) for name in delays.tensors}
    verify(delays, offsets, two.arena_bytes)
    for name, target in (("s2", "s"), ("y", "s2"), ("n2", "s"), ("n", "s2")):
        with pytest.raises(PlanError):
            verify(delays, offsets | {name: offsets[target]}, two.arena_bytes)


def test_a_history_costs_one_buffer():
    """State, history and next value share bytes, and what is new is computed in them."""
    one, _ = collection()["made in place"]
    placed = plan(one)
    assert placed.offset("s") == placed.offset("c") == placed.offset("n")
    assert placed.offset("a") == placed.offset("c") + one.tensors["s"].nbytes
    assert placed.arena_bytes == one.tensors["c"].nbytes + one.tensors["x"].nbytes


def test_the_header_says_how_to_begin():
    one, _ = collection()["oldest first"]
    files = generate(one, "ear", firmware_root()).files
    assert "void es_ear_reset(void);" in files["es_ear.h"] and "once, before the first run" in files["es_ear.h"]
    plain = dataclasses.replace(one, states=(), inputs=(*one.inputs, Port("s", "s", (1, 4, 1, 5), (0, 1, 2, 3))))
    assert "reset" not in generate(plain, "ear", firmware_root()).files["es_ear.h"]


def compiled(path: Path, folder: Path, symbol: str = "stream") -> Artifact:
    model = load_model(path)
    save_model(model, folder / f"{symbol}.onnx")
    variant = Variant(symbol, Recipe(8, 8), folder / f"{symbol}.onnx", "")
    return BACKEND.compile(variant, load_target(M4), folder / "c")


def check_against_litert(states: Any, data: bytes, artifact: Artifact, count: int, emulated: int) -> None:
    """Host build over `count` frames, final states included; the emulated core over `emulated` of them."""
    from edgescale.rigs import get_rig, host_c

    frames = states.frames(data, count)
    expected, _ = states.LiteRT(data).stream(frames)
    expected = (expected.astype(np.int16) - 128).astype(np.int8)
    stored = frames.reshape(count, *artifact.meta["inputs"][0]["stored_shape"][1:])
    model = host_c.HostModel(artifact)
    assert np.array_equal(model.run_stored(stored).reshape(expected.shape), expected)
    library = ctypes.CDLL(str(host_c.build_host_library(artifact) / "model.so"))
    bytes_ = (ctypes.c_int8 * artifact.meta["arena_bytes"]).in_dll(library, f"es_{artifact.meta['symbol']}_arena")
    arena = np.frombuffer(bytes_, np.int8)
    litert = states.LiteRT(data)
    # What a variable holds before the frame after the last one.
    _, held = litert.stream(np.concatenate([frames, frames[:1]]))
    for state in artifact.meta["states"]:
        kept = arena[state["offset"] : state["offset"] + state["bytes"]]
        assert np.array_equal(kept, held[state["name"]][-1].reshape(-1)), state["name"]
    if emulated and EMULATOR:
        observed = get_rig("emulator:cortex-m4").raw_executor(artifact, load_target(M4))(stored[-emulated:])
        fresh, _ = states.LiteRT(data).stream(frames[-emulated:])
        assert np.array_equal(observed.reshape(fresh.shape), (fresh.astype(np.int16) - 128).astype(np.int8))


def test_a_tflite_stream_equals_litert_on_host_and_emulated_m4(states, tmp_path):
    data = states.stream(2)
    (tmp_path / "s.tflite").write_bytes(data)
    artifact = compiled(tmp_path / "s.tflite", tmp_path)
    assert {entry["name"]: entry["in_place"] for entry in artifact.meta["states"]} == {
        "near": True, "far": True, "sum": False, "before": True,
    }  # fmt: skip
    check_against_litert(states, data, artifact, 300, 60)


@pytest.mark.parametrize("name", NAMES)
def test_wake_words_equal_litert_over_1000_frames(states, tmp_path, name):
    path = states.wake_word(name)
    if path is None:
        pytest.skip("pymicro-wakeword is not installed and EDGESCALE_MWW is not set")
    artifact = compiled(path, tmp_path, name)
    assert all(entry["in_place"] for entry in artifact.meta["states"])
    assert artifact.meta["arena_bytes"] < 1.4 * sum(entry["bytes"] for entry in artifact.meta["states"])
    check_against_litert(states, path.read_bytes(), artifact, 1000, 60)


def test_scalar_and_dsp_plans_of_a_stream_are_safe(states, tmp_path):
    (tmp_path / "s.tflite").write_bytes(states.stream(1))
    save_model(load_model(tmp_path / "s.tflite"), tmp_path / "s.onnx")
    one = lower_file(tmp_path / "s.onnx", "s")
    for family in ("scalar", "dsp"):
        for overlap in (True, False):
            generate(one, "s", firmware_root(), family, overlap=overlap)  # verifies its plan


def test_reshaped_parts_are_placed_too(harness):
    """What is joined to a state through a Reshape is computed in its buffer."""
    x, flat, a = rows("x", 2), Tensor("f", (1, 1, 2, 5), "int8", 0.1, -7), Tensor("a", (1, 1, 2, 5), "int8", 0.1, -7)
    layers = [
        Reshape("r", ("x",), "f"), table("t", "f", "a"), Reshape("back", ("a",), "b"), join("j", ("s", "b"), "c"),
        pool("p", "c", "y", 6), part("u", "c", "n", 2),
    ]  # fmt: skip
    tensors = [x, flat, a, rows("b", 2), rows("s", 4), rows("c", 6), rows("n", 4), rows("y", 1)]
    one = program(layers, tensors, ["y"], {"s": "n"}, 4)
    built = harness.build([one])
    placed = built.generated[0].plan
    assert placed.offset("a") == placed.offset("c") + 20
    values = np.random.default_rng(1).integers(-128, 128, (12, 2, 1, 5)).astype(np.int8)
    start(built, 0)
    assert np.array_equal(built.run(0, {"x": values})["y"], reference.run(one, {"x": values})["y"])
