"""Whole models under recipes: what is written, how close it stays, what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, numpy_helper

from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.variant import parse_recipe, with_overrides
from edgescale.frontend import load_dataset, load_model, save_model
from edgescale.lower import lower
from edgescale.quantize import quantize

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "fashion"


def separable_net(n):
    """What 4-bit rounding hurts: thin depthwise and pointwise layers in a row, a shortcut, a classifier."""
    t = n.relu6(n.conv("x", 3, 16, strides=[2, 2]))
    for _ in range(3):
        s = n.relu6(n.conv(t, 16, 16, group=16))
        t = n.node("Add", [n.conv(s, 16, 16, 1, bias=False), t])
    t = n.node("Flatten", [n.node("GlobalAveragePool", [n.relu(t)])])
    return n.gemm(t, 16, 6)


@pytest.fixture
def made(net, loaded, images):
    n = net(11)
    model = loaded(n.proto(separable_net(n), opset=21))

    def call(name, overrides=(), **options):
        recipe = with_overrides(parse_recipe(name), overrides)
        proto = onnx_ir.to_proto(quantize(model, images(), recipe, **options))
        onnx.checker.check_model(proto, full_check=True)
        return proto

    return call


@pytest.fixture
def sqnr(net, run, images):
    n = net(11)
    x = images(64, seed=5).x
    exact = run(n.proto(separable_net(n), opset=21), x)[0]

    def call(proto):
        error = run(proto, x)[0] - exact
        return 10 * np.log10((exact**2).sum() / (error**2).sum())

    return call


def test_reconstruction_keeps_what_rounding_loses(made, sqnr):
    assert sqnr(made("w4a8")) > sqnr(made("w4a8-rtn")) + 6
    assert sqnr(made("w4a8-gptq-bc")) > sqnr(made("w4a8-rtn"))
    assert sqnr(made("w3a8")) > sqnr(made("w3a8-rtn")) + 6


def test_more_bits_are_closer(made, sqnr):
    values = [sqnr(made(f"w{bits}a8")) for bits in (2, 3, 4, 6)]
    assert values == sorted(values)


@pytest.mark.parametrize("name", ["w4a8-rtn-bc", "w4a8-rtn-abc", "w8a16"])
def test_steps_help(made, sqnr, name):
    plain = "w8a8" if name == "w8a16" else "w4a8-rtn"
    assert sqnr(made(name)) > sqnr(made(plain))


def test_four_bits_are_stored_as_four_bits_with_int32_biases(made):
    proto = made("w4a8")
    kinds = Counter(t.data_type for t in proto.graph.initializer if len(t.dims) > 1)
    assert kinds == {TensorProto.INT4: 8}
    biases = [t for t in proto.graph.initializer if t.data_type == TensorProto.INT32 and len(t.dims) == 1]
    assert len(biases) >= 8  # layers without a bias got one
    assert all(len(t.raw_data) == (np.prod(t.dims) + 1) // 2 for t in proto.graph.initializer if t.data_type == 22)


def test_integer_contract_takes_four_bit_models(made):
    program = lower(onnx_ir.from_proto(made("w4a8")), "net")
    weights = [layer.weights for layer in program.layers if hasattr(layer, "weights")]
    assert len(weights) == 8
    assert all(w.dtype == np.int8 and w.min() >= -8 and w.max() <= 7 for w in weights)


def test_groups_are_blocks_of_the_input_channels(net, loaded, images, run, cosine):
    n = net(2)
    t = n.relu(n.gemm("x", 64, 48))
    proto = n.proto(n.node("MatMul", [t, n.const(n.weights(48, 8, fan=48))]), shape=(64,), opset=21)
    data = images(64, (64,))
    for name in ("w4a16-g32", "w4-g32", "w4-g32-asym", "w8-g16"):
        quantized = onnx_ir.to_proto(quantize(loaded(proto), data, parse_recipe(name)))
        onnx.checker.check_model(quantized, full_check=True)
        sizes = [a.i for node in quantized.graph.node for a in node.attribute if a.name == "block_size"]
        assert sizes == [int(name.split("g")[1].split("-")[0])] * 2
        assert cosine(run(proto, data.x)[0], run(quantized, data.x)[0]) > 0.98


@pytest.mark.parametrize("name", ["fp4-g16", "nf4", "fp8", "wfp8afp8"])
def test_simulated_models_compute_but_do_not_compile(made, sqnr, name):
    proto = made(name)
    assert {e.key: e.value for e in proto.metadata_props}["edgescale.recipe"].endswith("-simulated")
    assert sqnr(proto) > 3
    with pytest.raises(UnsupportedModelError, match="simulated"):
        lower(onnx_ir.from_proto(proto), "net")


def test_signed_activations_are_the_same_integers_shifted(made, run, images):
    one, other = made("w8a8"), made("w8a8", activations="int8")
    types = {t.data_type for t in other.graph.initializer}
    assert TensorProto.UINT8 not in types
    np.testing.assert_allclose(run(one, images().x)[0], run(other, images().x)[0], atol=1e-6)


def test_overrides_reach_the_layers_they_name(made):
    proto = made("w4a8", ["Conv_*=w8a8", "Conv_2=w2a8", "Gemm*=fp32"])
    constants = {t.name: t for t in proto.graph.initializer}
    producers = {o: node for node in proto.graph.node for o in node.output}
    found = {}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            source = producers.get(node.input[1])
            found[node.name] = constants[source.input[0]] if source is not None else None
    convs = [name for name in found if name.startswith("Conv")]
    assert found[next(name for name in found if name.startswith("Gemm"))] is None
    kinds = [found[name].data_type for name in convs]
    assert kinds.count(TensorProto.INT4) == 1
    assert numpy_helper.to_array(found["Conv_2"]).astype(int).min() >= -2
    with pytest.raises(UsageError, match=r"'nowhere\*' matches no node"):
        made("w4a8", ["nowhere*=w8a8"])


@pytest.mark.parametrize("step", ["cle", "smooth"])
def test_equalization_leaves_the_float_net_as_it_is(net, loaded, images, run, step):
    from edgescale.core.progress import SILENT
    from edgescale.frontend.passes import CanonicalGemm
    from edgescale.quantize.equalize import equalize, find_pairs

    n = net(4)
    t = n.relu(n.conv("x", 3, 12))
    t = n.relu(n.conv(t, 12, 12, group=12))
    t = n.node("MaxPool", [n.conv(t, 12, 8, 1)], kernel_shape=[2, 2], strides=[2, 2])
    t = n.relu(n.conv(t, 8, 8))
    t = n.gemm(n.relu(n.gemm(n.node("Flatten", [n.node("GlobalAveragePool", [t])]), 8, 16)), 16, 4)
    proto = n.proto(t)
    model = loaded(proto)
    graph = model.ir.clone()
    CanonicalGemm()(graph)
    assert len(find_pairs(graph.graph)) == 4
    equalize(model, graph, images(), (step,), SILENT)
    after = onnx_ir.to_proto(graph)
    changed = [
        not np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
        for a in after.graph.initializer
        for b in proto.graph.initializer
        if a.name == b.name and len(a.dims) > 1
    ]
    assert sum(changed) >= 4
    np.testing.assert_allclose(run(after, images().x)[0], run(proto, images().x)[0], rtol=2e-3, atol=2e-4)


def test_equal_arguments_give_equal_bytes(made):
    assert made("w4a8").SerializeToString() == made("w4a8").SerializeToString()


def test_nothing_is_read_twice_or_kept(net, loaded, images):
    """Memory of reconstruction does not grow with the samples once the live activations are at their limit."""
    import tracemalloc

    from edgescale.quantize import streams

    n = net(11)
    model = loaded(n.proto(separable_net(n), opset=21))
    before = streams.LIVE_BYTES
    streams.LIVE_BYTES = 2**20
    try:
        peaks = []
        for count in (100, 800):
            data = images(count)
            tracemalloc.start()
            quantize(model, data, parse_recipe("w4a8"))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    finally:
        streams.LIVE_BYTES = before
    assert peaks[1] < 1.2 * peaks[0]


def top1(graph, data):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    answers = np.concatenate([session.run(None, {name: sample})[0] for sample in data.batches(1)])
    return float(np.mean(answers.argmax(axis=1) == data.y))


@pytest.mark.parametrize(("size", "points"), [("small", 2.0), ("medium", 1.0), ("large", 1.0)])
def test_fashion_at_four_bits(size, points, tmp_path):
    model = load_model(EXAMPLES / f"fashion_{size}.onnx")
    calibration = load_dataset(str(EXAMPLES / "calibration.npz"), model)
    evaluation = load_dataset(str(EXAMPLES / "test.npz"), model, need_labels=True)
    graph = quantize(model, calibration, parse_recipe("w4a8"))
    assert top1(graph, evaluation) >= top1(model.ir, evaluation) - points / 100
    save_model(graph, tmp_path / "q.onnx")
    assert load_model(tmp_path / "q.onnx").quantized


def test_the_file_is_compact(tmp_path):
    path = EXAMPLES / "fashion_large.onnx"
    model = load_model(path)
    calibration = load_dataset(str(EXAMPLES / "calibration.npz"), model)
    save_model(quantize(model, calibration.head(32), parse_recipe("w8a8")), tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_size <= 0.35 * path.stat().st_size


def test_what_is_dropped_for_size_changes_nothing(net, loaded, images, run):
    """A model with every default spelled out and long names computes the same after it lost both."""
    from edgescale.quantize.compact import Compact

    n = net(3)
    t = n.relu(n.conv("x", 3, 8, auto_pad="NOTSET", dilations=[1, 1], kernel_shape=[3, 3], strides=[1, 1]))
    t = n.node("AveragePool", [t], kernel_shape=[2, 2], strides=[2, 2], count_include_pad=0, pads=[0, 0, 0, 0])
    out = n.gemm(n.node("Flatten", [t]), 288, 5, alpha=1.0, beta=1.0, transA=0)
    proto = n.proto(out)
    model = loaded(proto)
    graph = model.ir.clone()
    names = [node.name for node in graph.graph]
    Compact()(graph)
    after = onnx_ir.to_proto(graph)
    assert [node.name for node in after.graph.node] == names
    assert [v.name for v in after.graph.output] == [v.name for v in proto.graph.output]
    assert sum(len(node.attribute) for node in after.graph.node) < sum(len(node.attribute) for node in proto.graph.node)
    np.testing.assert_allclose(run(after, images().x)[0], run(proto, images().x)[0], atol=1e-5)


def test_layers_whose_first_axis_is_not_the_batch(net, loaded, images, run, cosine):
    """Sequences first, as recurrent exports have it: samples then are walked one by one and kept apart."""
    n = net(5)
    t = n.node("Transpose", [n.relu(n.conv("x", 3, 8, pads=[0, 0, 0, 0]))], perm=[2, 3, 0, 1])  # [10, 10, 1, 8]
    t = n.node("MatMul", [t, n.const(n.weights(8, 12, fan=8))])
    t = n.node("Transpose", [t], perm=[2, 3, 0, 1])
    out = n.gemm(n.node("Flatten", [n.node("GlobalAveragePool", [n.relu(t)])]), 12, 5)
    proto = n.proto(out, opset=21)
    made = onnx_ir.to_proto(quantize(loaded(proto), images(), parse_recipe("w4a8")))
    assert cosine(run(proto, images().x)[0], run(made, images().x)[0]) > 0.99
