"""Weight-only quantization of transformers; ONNX Runtime and loops over blocks as oracles."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from edgescale_onnx.backend import SESSION
from edgescale_onnx.fused import unfused_weights
from onnx import numpy_helper

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.recipe import parse_recipe, with_overrides
from edgescale.frontend import model_from_ir, save_model
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize import quantize
from edgescale.quantize.blockwise import storage_block
from edgescale.quantize.following import Inputs, make_up
from edgescale.quantize.relay import Relay
from edgescale.runtime.ort import session_options


def _nets() -> Any:
    """transformer_nets.py beside this file; tests import nothing from each other."""
    spec = importlib.util.spec_from_file_location("transformer_nets", Path(__file__).with_name("transformer_nets.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nets = _nets()
HEADS, WIDTH, WORDS = nets.HEADS, nets.WIDTH, nets.WORDS


def text(count: int, seed: int, length: int = 24) -> dict[str, np.ndarray]:
    """Token ids of skewed frequency and masks that end somewhere."""
    random = np.random.default_rng(seed)
    ids = np.minimum(random.geometric(0.08, (count, length)), WORDS - 1)
    ends = random.integers(length // 2, length + 1, (count, 1))
    return {"ids": ids, "attention_mask": (np.arange(length) < ends).astype(np.int64)}


def dataset(arrays: dict[str, np.ndarray]) -> Dataset:
    (first, x), *others = arrays.items()
    return Dataset("text", x, None, "text", dict(others), first)


CALIBRATION, HELD_OUT = text(48, 1), text(24, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return nets.encoder(tmp_path_factory.mktemp("encoder"))


def made(model: Model, recipe: str, path: Path, data: Dataset | None = None, overrides: tuple[str, ...] = ()) -> Path:
    graph = quantize(model, data, with_overrides(parse_recipe(recipe), overrides))
    save_model(model_from_ir(graph, model.name), path)
    return path


def session(path: Path, level: str = "0") -> onnxruntime.InferenceSession:
    options = session_options({"intra_op_num_threads": 1, "config": {"session.qdq_matmulnbits_accuracy_level": level}})
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path: Path, arrays: dict[str, np.ndarray], level: str = "0") -> np.ndarray:
    """Of the positions that are no padding."""
    run = session(path, level)
    rows = []
    for i in range(len(arrays["ids"])):
        y = run.run(None, {name: array[i : i + 1] for name, array in arrays.items()})[0][0]
        rows.append(y[arrays["attention_mask"][i] != 0] if "attention_mask" in arrays else y)
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def floats(model, tmp_path_factory) -> np.ndarray:
    path = tmp_path_factory.mktemp("float") / "f.onnx"
    save_model(model, path)
    return outputs(path, HELD_OUT)


def loss(path: Path, floats: np.ndarray) -> float:
    return float(np.mean((outputs(path, HELD_OUT) - floats) ** 2))


@pytest.mark.parametrize("bits", [3, 4])
def test_methods_that_look_at_data_lose_less(model, floats, tmp_path, bits):
    data = dataset(CALIBRATION)
    losses = {
        method: loss(made(model, f"w{bits}a16-g32-{method}", tmp_path / f"{method}.onnx", data), floats)
        for method in ("pos-rtn", "rtn", "clip", "awq", "awq-abc", "gptq", "gptq-clip", "gptq-awq", "adaround")
    }
    shares = {method: lost / losses["pos-rtn"] for method, lost in losses.items()}
    assert shares["rtn"] < 0.8
    assert max(shares["clip"], shares["awq"], shares["awq-abc"]) < 0.25
    assert shares["awq"] < 0.9 * shares["clip"]
    assert max(shares["gptq"], shares["gptq-clip"], shares["gptq-awq"], shares["adaround"]) < 0.1


@pytest.mark.parametrize("recipe", ["w4a16-g32-asym-awq", "w4a16-g32-asym-gptq"])
def test_zero_points(model, floats, tmp_path, recipe):
    nearest = loss(made(model, "w4a16-g32-asym", tmp_path / "rtn.onnx"), floats)
    assert loss(made(model, recipe, tmp_path / "q.onnx", dataset(CALIBRATION)), floats) < 0.8 * nearest


def test_low_rank_and_rotation(model, floats, tmp_path):
    plain = loss(made(model, "w3a16-g32", tmp_path / "rtn.onnx"), floats)
    assert loss(made(model, "w3a16-g32-lorc", tmp_path / "lorc.onnx"), floats) < plain
    # At 8 bits what remains is rounding: the rotation itself changes nothing.
    fine = loss(made(model, "w8a16-g32", tmp_path / "rtn8.onnx"), floats)
    assert loss(made(model, "w8a16-g32-hadamard", tmp_path / "h8.onnx"), floats) < 3 * fine < 0.02 * plain


def initializers(path: Path) -> tuple[onnx.GraphProto, dict[str, Any]]:
    graph = onnx.load(path).graph
    return graph, {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def dequantized(path: Path) -> dict[str, np.ndarray]:
    """{MatMul: weights [terms, outputs]} of a file, term by term."""
    graph, constants = initializers(path)
    found = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        reader = next(n for n in graph.node if node.output[0] in n.input)
        block = next(a.i for a in node.attribute if a.name == "block_size")
        q, s = constants[node.input[0]].astype(np.float64), constants[node.input[1]].astype(np.float64)
        z = constants[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros_like(s)
        found[reader.name] = np.stack([(q[t] - z[t // block]) * s[t // block] for t in range(len(q))])
    return found


@pytest.mark.parametrize("suffix", ["", "-pos"])
@pytest.mark.parametrize("group", [8, 16, 20, 24, 32, 48, 64, 72, 96, 100, 128, 256])
def test_groups_of_any_size_and_ragged_widths(model, tmp_path, group, suffix):
    """Every group of `group` terms along a row, the last one however short, has the smallest scale that covers it;
    with `pos` that of its largest weight over 7."""
    path = made(model, f"w4a16-g{group}{suffix}", tmp_path / "q.onnx")
    stored = dequantized(path)
    source = {str(n.name): np.asarray(n.inputs[1].const_value.numpy()) for n in model.ir.graph if str(n.name) in stored}
    assert len(stored) == 12
    for name, weights in source.items():
        expected = np.empty(weights.shape)
        for start in range(0, len(weights), group):
            part = weights[start : start + group].astype(np.float64)
            low, high = -part.min(axis=0, initial=0), part.max(axis=0, initial=0)
            up, down = np.maximum(low / 8, high / 7), np.maximum(high / 8, low / 7)
            scale = np.where(down < up, -down, up) if not suffix else np.maximum(low, high) / 7
            scale = scale.astype(np.float32).astype(np.float64)
            expected[start : start + group] = np.clip(np.rint(part / scale), -8, 7) * scale
        # A weight just between two levels may fall either way, by the last bit of its scale.
        off = np.abs(stored[name] - expected) > 1e-6
        assert off.mean() < 1e-3, name
    scales = np.concatenate([a.ravel() for n, a in initializers(path)[1].items() if n.endswith(".weight_s")])
    assert (scales < 0).any() == (not suffix)


def layer_of(path: Path, q: np.ndarray, s: np.ndarray, block: int, kind: int) -> Path:
    """y = x DequantizeLinear(q, s), q [terms, outputs] in blocks along the terms."""
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=block),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    values = [
        onnx.helper.make_tensor("q", kind, q.shape, q.ravel().tolist()),
        numpy_helper.from_array(s.astype(np.float32), "s"),
    ]
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["rows", side]) for n, side in (("x", len(q)), ("y", q.shape[1])))
    graph = onnx.helper.make_graph(nodes, "layer", [x], [y], values)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("kind", [onnx.TensorProto.INT4, onnx.TensorProto.INT8])
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("rows", [1, 7])
def test_scales_below_zero_compute_bit_for_bit(tmp_path, kind, block, rows):
    """Columns whose scales are negated come out negated, to the bit, in every kernel; blocks of both signs in one
    column, the lowest code among them, give what NumPy multiplies."""
    random = np.random.default_rng(block)
    low, high = (-8, 7) if kind == onnx.TensorProto.INT4 else (-128, 127)
    q = random.integers(low, high + 1, (200, 24))
    s = random.uniform(0.01, 0.1, (-(-200 // block), 24)).astype(np.float32)
    columns, mixed = random.choice([-1, 1], 24).astype(np.float32), random.choice([-1, 1], s.shape)
    x = random.standard_normal((rows, 200)).astype(np.float32)
    files = {
        name: layer_of(tmp_path / f"{name}.onnx", q, scale, block, kind)
        for name, scale in (("plain", s), ("negated", s * columns), ("mixed", s * mixed))
    }
    wanted = x.astype(np.float64) @ (q * np.repeat(s * mixed, block, 0)[:200].astype(np.float64))
    unfused = session_options({"intra_op_num_threads": 1, "graph_optimization_level": "ORT_DISABLE_ALL"})
    for level in ("0", "4", "off"):
        made = {}
        for name, path in files.items():
            if level != "off":
                config = {**SESSION, "config": {"session.qdq_matmulnbits_accuracy_level": level}}
                assert unfused_weights(path, config) == []
            run = session(path, level) if level != "off" else onnxruntime.InferenceSession(str(path), unfused)
            made[name] = run.run(None, {"x": x})[0]
        np.testing.assert_array_equal((made["plain"] * columns).view(np.uint32), made["negated"].view(np.uint32))
        error = np.sqrt(np.mean((made["mixed"] - wanted) ** 2) / np.mean(wanted**2))
        assert error < (0.01 if level == "4" else 1e-6)


@pytest.mark.parametrize("recipe", ["w4a16-g32", "w4a16-g32-asym", "w4a16-g48", "w8a16", "w8a16-g64", "w4a16-g128"])
def test_what_fuses_computes_what_the_file_says(model, tmp_path, recipe):
    """All layers become MatMulNBits; their float kernel agrees with the unfused file."""
    path = made(model, recipe, tmp_path / "q.onnx")
    assert unfused_weights(path, SESSION) == []
    options = session_options(SESSION)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node].count("MatMulNBits") == 12
    plain = session_options({"intra_op_num_threads": 1, "graph_optimization_level": "ORT_DISABLE_ALL"})
    exact = onnxruntime.InferenceSession(str(path), plain, providers=["CPUExecutionProvider"])
    one = {name: array[:1] for name, array in HELD_OUT.items()}
    wanted = exact.run(None, one)[0]
    np.testing.assert_allclose(session(path).run(None, one)[0], wanted, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("recipe", ["w4a16-g32", "w4a16-g32-asym", "w8a16-g64", "w4a16-g128"])
@pytest.mark.parametrize("terms", [96, 200])
def test_the_fast_kernel_of_one_layer(tmp_path, recipe, terms):
    """What the back end's session computes, inputs rounded to int8 by block, beside NumPy on the file's weights."""
    g = nets.Graph()
    g.dense("x", terms, 40, "layer")
    g.nodes[-1].output[0] = "y"
    single = g.write(tmp_path / "layer.onnx", {"x": (onnx.TensorProto.FLOAT, ["batch", 16, terms])}, ["y"])
    path = made(single, recipe, tmp_path / "q.onnx")
    assert unfused_weights(path, SESSION) == []
    x = np.random.default_rng(5).standard_normal((1, 16, terms)).astype(np.float32)
    _, constants = initializers(path)
    bias = next(a for a in constants.values() if a.shape == (40,))
    wanted = x @ dequantized(path)["layer"] + bias
    run = onnxruntime.InferenceSession(str(path), session_options(SESSION), providers=["CPUExecutionProvider"])
    fast = run.run(None, {"x": x})[0]
    assert np.sqrt(np.mean((fast - wanted) ** 2) / np.mean(wanted**2)) < 0.015


def test_groups_without_a_power_of_two_are_reported(model, tmp_path):
    path = made(model, "w4a16-g20", tmp_path / "q.onnx")
    left = unfused_weights(path, SESSION)
    assert len(left) == 12 and "l0.q" in left


def test_input_scales_fold_into_normalizations(model, tmp_path):
    graph, _ = initializers(made(model, "w4a16-g32-awq", tmp_path / "q.onnx", dataset(CALIBRATION)))
    scaled = [n.name for n in graph.node if n.name.endswith(".scaled_input")]
    # q, k, v and up read a LayerNormalization alone, down reads the Relu of up: only o may keep a Mul.
    assert not [name for name in scaled if name.split(".")[1] in ("q", "up")]


def test_the_relay_gives_what_the_graph_computes(model, tmp_path):
    graph = model.ir.clone()
    nodes = list(graph.graph)
    at = next(i for i, n in enumerate(nodes) if n.name == "l1.up")
    relay = Relay(model, graph, dataset(HELD_OUT))
    relay.advance(at)
    value = nodes[at].inputs[0]
    assert value is not None
    path = tmp_path / "f.onnx"
    save_model(model, path)
    proto = onnx.load(path)
    proto.graph.output.append(onnx.ValueInfoProto(name=value.name))
    whole = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for i, rows in enumerate(relay.rows(value)):
        y = whole.run([value.name], {name: array[i : i + 1] for name, array in HELD_OUT.items()})[0][0]
        np.testing.assert_allclose(rows, y[HELD_OUT["attention_mask"][i] != 0], rtol=1e-3, atol=1e-4)


def with_output(model: Model, graph: Any, value: str, path: Path) -> onnxruntime.InferenceSession:
    save_model(model_from_ir(graph, model.name), path)
    proto = onnx.load(path)
    proto.graph.output.append(onnx.ValueInfoProto(name=value))
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def test_weights_make_up_for_what_earlier_layers_lost(model, tmp_path):
    """The correction is the regression of the float input on the changed one, from rows that ONNX Runtime gives, damped
    as serves the other half of the samples best."""
    changed = model.ir.clone()
    nodes = {str(n.name): n for n in changed.graph}
    random = np.random.default_rng(7)
    for name in ("l0.v", "l0.up", "l0.down"):
        weights = np.asarray(nodes[name].inputs[1].const_value.numpy())
        noise = random.normal(size=weights.shape) * 0.3 * weights.std()
        set_constant(nodes[name], 1, (weights + noise).astype(np.float32), f"{name}.changed")
    order = [str(n.name) for n in changed.graph]
    value = str(nodes["l1.up"].inputs[0].name)
    runs = [with_output(model, g, value, tmp_path / f"{i}.onnx") for i, g in enumerate((model.ir, changed))]
    keep = HELD_OUT["attention_mask"] != 0
    x, seen = (
        np.concatenate(
            [run.run([value], {n: a[i : i + 1] for n, a in HELD_OUT.items()})[0][0][keep[i]] for i in range(len(keep))]
        ).astype(np.float64)
        for run in runs
    )
    inputs = Inputs(model, changed, dataset(HELD_OUT), follow=True)
    assert inputs.of(order.index("l0.q"))[1] is None  # nothing before it has changed
    found, correction = inputs.of(order.index("l1.up"))
    assert correction is not None
    np.testing.assert_allclose(found.second, seen.T @ seen / len(seen), rtol=1e-3, atol=1e-4)
    of = np.concatenate([np.full(k.sum(), i % 2) for i, k in enumerate(keep)])

    def regression(rows: np.ndarray, wanted: np.ndarray, damping: float) -> np.ndarray:
        second = rows.T @ rows / len(rows)
        ridge = damping * np.trace(second) / len(second) * np.eye(len(second))
        return 0.75 * (wanted - rows).T @ rows / len(rows) @ np.linalg.inv(second + ridge)

    errors = {}
    for damping in (0.01, 0.03, 0.1, 0.3, 1.0):
        left = [
            (x - seen)[of == 1 - half] - seen[of == 1 - half] @ regression(seen[of == half], x[of == half], damping).T
            for half in (0, 1)
        ]
        errors[damping] = sum(np.mean(np.sum(part**2, axis=1)) for part in left)
    expected = regression(seen, x, min(errors, key=lambda damping: errors[damping]))
    np.testing.assert_allclose(correction, expected, atol=2e-3 * np.abs(expected).max())
    matrix = np.asarray(nodes["l1.up"].inputs[1].const_value.numpy(), np.float64).T
    matrix[:3, :5] = 0
    made = make_up(matrix, correction)
    assert not made[:3, :5].any()
    np.testing.assert_array_equal(make_up(matrix, None), matrix)
    without, with_it = (np.mean((seen @ w.T - x @ matrix.T) ** 2) for w in (matrix, made))
    assert with_it < 0.6 * without
    assert Inputs(model, changed, dataset(HELD_OUT), follow=False).of(order.index("l1.up"))[1] is None


def test_decoder_with_a_cache_needs_no_data(tmp_path):
    """Embedding and head by choice; with data the cache is an input like others."""
    model = nets.decoder(tmp_path)
    assert [spec.name for spec in model.inputs] == ["ids", "past_k", "past_v"]
    random = np.random.default_rng(3)
    past = random.standard_normal((6, 2, HEADS, 5, WIDTH // HEADS)).astype(np.float32)
    feed = {"ids": random.integers(0, WORDS, (6, 3)), "past_k": past[:, 0], "past_v": past[:, 1]}
    save_model(model, tmp_path / "f.onnx")
    wanted = outputs(tmp_path / "f.onnx", feed)

    def relative(path: Path) -> float:
        return float(np.mean((outputs(path, feed) - wanted) ** 2) / np.mean(wanted**2))

    free = made(model, "w8a16-g32", tmp_path / "q.onnx", None, ("embedding=w8", "head=fp32"))
    assert relative(free) < 1e-3
    _, constants = initializers(free)
    assert constants["embedding.table_q"].shape == (WORDS, WIDTH) and "head.weight_q" not in constants
    nearest = relative(made(model, "w4a16-g32", tmp_path / "rtn.onnx"))
    assert relative(made(model, "w4a16-g32-awq", tmp_path / "awq.onnx", dataset(feed))) < 0.8 * nearest
    with pytest.raises(UsageError, match="needs calibration data"):
        made(model, "w4a16-g32-awq", tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="holds no array for past_k, past_v"):
        made(model, "w4a16-g32-awq", tmp_path / "x.onnx", Dataset("d", feed["ids"], None, ""))


@pytest.mark.parametrize(("bits", "stored"), [(3, "INT4"), (5, "INT8")])
def test_bits_without_storage_are_simulated(model, tmp_path, bits, stored):
    path = made(model, f"w{bits}a16-g32", tmp_path / "q.onnx")
    proto = onnx.load(path)
    kinds = {t.data_type for t in proto.graph.initializer if t.name.endswith(".weight_q")}
    assert kinds == {onnx.TensorProto.DataType.Value(stored)}
    notes = {p.key: p.value for p in proto.metadata_props}
    assert f"weights of {bits} bits" in notes["edgescale.simulated"] and notes["edgescale.recipe"].endswith("simulated")
    levels = np.concatenate([a.astype(int).ravel() for n, a in initializers(path)[1].items() if n.endswith("weight_q")])
    assert levels.min() >= -(2 ** (bits - 1)) and levels.max() < 2 ** (bits - 1)


def test_what_cannot_be(model):
    with pytest.raises(UsageError, match="quantizes activations"):
        quantize(model, dataset(CALIBRATION), parse_recipe("w8a8"))
    with pytest.raises(UsageError, match="matches no node"):
        quantize(model, None, with_overrides(parse_recipe("w4a16-g32"), ["lm_head=w8"]))
    with pytest.raises(UsageError, match="stored in 8 bits"):
        quantize(model, None, with_overrides(parse_recipe("w4a16-g32"), ["embedding=w4"]))
    with pytest.raises(UsageError, match="cle serves quantized activations"):
        quantize(model, None, parse_recipe("w4a16-g32-cle"))
    nothing = with_overrides(parse_recipe("w4a16-g32"), ["*=fp32"])
    with pytest.raises(UnsupportedModelError, match="no MatMul or Gemm"):
        quantize(model, None, nothing)
    for name in ("w4a16-g32-awq-mse", "w4a16-tensor-awq", "w4a8-awq"):
        with pytest.raises(UsageError):
            parse_recipe(name)


@pytest.mark.parametrize(
    ("group", "terms", "block"),
    [
        (32, 384, 32),
        (48, 384, 16),
        (256, 384, 128),
        (384, 384, 128),
        (128, 96, 128),
        (20, 96, 20),
        (8, 96, 8),
        (4, 4, 16),
    ],
)
def test_storage_block(group, terms, block):
    assert storage_block(group, terms) == block
