"""Everything that can be wrong with a model ends in one sentence and the right exit code."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.frontend import load_model, model_fingerprint, save_model
from edgescale.frontend.load import serialize


def refused(path, *words):
    """Load, expect exit code 4, and check the sentence: one line, naming the file and every word."""
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(path)
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in text
    assert str(path) in text
    for word in words:
        assert word in text, text


def small(builder, **keywords):
    b = builder()
    b.conv("x", 3, 4, name="conv")
    b.nodes[-1].output[0] = "y"
    return b.build({"y": ["N", 4, 6, 6]}, **keywords)


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_model(tmp_path / "nothing.onnx")


def test_directory(tmp_path):
    refused(tmp_path, "directory")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["is empty"]),
        (b"hello, this is no model", ["not an ONNX model"]),
        (bytes(100), ["not an ONNX model"]),
        (b"\x1c\x00\x00\x00TFL3" + bytes(20), ["TensorFlow Lite"]),
        (b"PK\x03\x04" + bytes(40), ["zip archive"]),
        (b"version https://git-lfs.github.com/spec/v1", ["git lfs pull"]),
    ],
)
def test_other_bytes(written, data, words):
    refused(written(data), *words)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated(builder, written, part):
    data = small(builder).SerializeToString()
    refused(written(data[: int(len(data) * part)]), "cut short")


def test_cycle(builder, written):
    b = builder()
    b.node("Add", ["x", "b"], "first", out="a")
    b.node("Relu", ["a"], "second", out="b")
    b.node("Relu", ["b"], "last", out="y")
    refused(written(b.build({"y": ["N", 3, 8, 8]})), "cycle", "first", "second")


def test_nodes_out_of_order_are_sorted(builder, written):
    b = builder()
    b.node("Relu", ["a"], "second", out="y")
    b.node("Sigmoid", ["x"], "first", out="a")
    assert [n.name for n in load_model(written(b.build({"y": ["N", 3, 8, 8]}))).ir.graph] == ["first", "second"]


def test_missing_value_double_value_missing_output(builder, written):
    b = builder()
    b.node("Add", ["x", "ghost"], "node_a", out="y")
    refused(written(b.build({"y": ["N", 3, 8, 8]})), "node_a", "ghost")
    b = builder()
    b.node("Relu", ["x"], out="y")
    b.node("Sigmoid", ["x"], out="y")
    refused(written(b.build({"y": ["N", 3, 8, 8]})), "'y'", "twice")
    b = builder()
    b.node("Relu", ["x"], out="z")
    refused(written(b.build({"y": ["N", 3, 8, 8]})), "output 'y'")


def test_old_and_future_opsets(builder, written):
    refused(written(small(builder, opset=12)), "opset 12", "13")
    refused(written(small(builder, opset=999)), "opset 999")


def test_foreign_domain_and_unknown_operator(builder, written):
    b = builder()
    b.nodes.append(helper.make_node("FusedThing", ["x"], ["y"], name="odd", domain="com.microsoft"))
    proto = b.build({"y": ["N", 3, 8, 8]})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    refused(written(proto), "odd", "FusedThing", "com.microsoft")
    b = builder()
    b.node("Reluu", ["x"], "typo", out="y")
    refused(written(b.build({"y": ["N", 3, 8, 8]})), "typo", "Reluu", "does not define")


def test_invalid_attribute_and_arity(builder, written):
    b = builder()
    b.node("Relu", ["x"], "strange", out="y", foo=1)
    refused(written(b.build({"y": ["N", 3, 8, 8]})), "foo", "strange")
    b = builder()
    b.node("Conv", ["x"], "half", out="y")
    refused(written(b.build({"y": ["N", 3, 8, 8]})), "half")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda b: b.node("Conv", ["x", b.const(b.normal(4, 5, 3, 3))], "c", out="y"), ["'c'", "3 channels"]),
        (
            lambda b: b.node("Conv", ["x", b.const(b.normal(4, 3, 3, 3)), b.const(b.normal(5))], "c", out="y"),
            ["'c'", "bias"],
        ),
        (
            lambda b: b.node("Gemm", [b.node("Flatten", ["x"]), b.const(b.normal(7, 4))], "g", out="y"),
            ["do not fit", "g"],
        ),
        (lambda b: b.node("Add", ["x", b.const(b.normal(5))], "a", out="y"), ["a)", "ncompatible"]),
        (lambda b: b.node("Add", ["x", b.const(np.arange(8))], "a", out="y"), ["type", "int64"]),
        (lambda b: b.node("Reshape", ["x", b.const(np.array([1, 7, -1]))], "r", out="y"), ["r)"]),
    ],
)
def test_shapes_and_types_that_do_not_fit(builder, written, make, words):
    b = builder()
    make(b)
    refused(written(b.build({"y": ["N", None, None, None]})), *words)


def test_declared_output_shape_contradicts(builder, written):
    b = builder()
    b.conv("x", 3, 4)
    b.nodes[-1].output[0] = "y"
    refused(written(b.build({"y": ["N", 9, 6, 6]})), "do not fit")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_weights(builder, written, bad):
    b = builder()
    weights = b.normal(4, 3, 3, 3)
    weights[1, 2, 0, 1] = bad
    b.node("Conv", ["x", b.const(weights, "conv.weight")], out="y")
    refused(written(b.build({"y": ["N", 4, 6, 6]})), "'conv.weight'", "1 of 108")


def test_sparse_tensors(builder, written):
    b = builder()
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("indices", TensorProto.INT64, [1], [1]), [8])
    b.nodes.append(helper.make_node("Constant", [], ["k"], name="thin", sparse_value=sparse))
    b.node("Mul", ["x", "k"], out="y")
    refused(written(b.build({"y": ["N", 3, 8, 8]})), "'thin'", "sparse")


def test_an_infinite_bound_is_fine(builder, written):
    b = builder()
    b.node("Clip", ["x", b.const(np.float32(0)), b.const(np.float32(np.inf))], out="y")
    assert len(load_model(written(b.build({"y": ["N", 3, 8, 8]}))).ir.graph) == 1


def test_broken_normalization(builder, written):
    b = builder()
    t = b.conv("x", 3, 2)
    parameters = [b.const(np.array(v, np.float32)) for v in ([1, 1], [0, 0], [0, 0], [1, -1])]
    b.node("BatchNormalization", [t, *parameters], "bn", out="y")
    refused(written(b.build({"y": ["N", 2, 6, 6]})), "'bn'", "variance")


def test_inputs(builder, written):
    b = builder()
    b.node("Relu", [b.const(b.normal(1, 3))], out="y")
    proto = b.build({"y": [1, 3]})
    del proto.graph.input[:]
    refused(written(proto), "no inputs")
    for kind, name in ((TensorProto.DOUBLE, "double"), (TensorProto.FLOAT16, "float16"), (TensorProto.UINT8, "uint8")):
        b = builder()
        b.node("Cast", ["x"], out="y", to=TensorProto.FLOAT)
        refused(written(b.build({"y": ["N", 3, 8, 8]}, kinds={"x": kind})), "'x'", name, "float32")


@pytest.mark.parametrize("batch", ["N", None, 0, -1, 1])
def test_unknown_batch_becomes_one(builder, written, batch):
    model = load_model(written(small(builder, inputs={"x": [batch, 3, 8, 8]})))
    assert model.inputs[0].shape == (1, 3, 8, 8)
    assert model.outputs[0].shape == (1, 4, 6, 6)


def test_other_dynamic_dimensions(builder, written):
    refused(written(small(builder, inputs={"x": ["N", 3, "height", 8]})), "'x'", "dimension 2", "'height'")
    refused(written(small(builder, inputs={"x": [1, 3, 8, None]})), "dimension 3")
    refused(written(small(builder, inputs={"x": [4, 3, 8, 8]})), "[4, 3, 8, 8]", "batch")


def test_data_dependent_output(builder, written):
    b = builder()
    b.node("NonZero", ["x"], out="y")
    refused(written(b.build({"y": [4, None]}, kinds={"y": TensorProto.INT64})), "'y'", "depends on the data")


@pytest.fixture
def external(builder, tmp_path):
    """A model with its weights in big.bin beside it, and the array they hold."""

    def make(location="big.bin"):
        b = builder()
        weights = b.normal(64, 3, 3, 3)
        b.node("Conv", ["x", b.const(weights, "w")], out="y")
        proto = b.build({"y": ["N", 64, 6, 6]})
        (tmp_path / "big.bin").write_bytes(weights.tobytes())
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(weights.nbytes))):
            tensor.external_data.add(key=key, value=value)
        path = tmp_path / "net.onnx"
        path.write_bytes(proto.SerializeToString())
        return path, weights

    return make


def test_external_data(external, tmp_path):
    path, weights = external()
    model = load_model(path)
    np.testing.assert_array_equal(model.ir.graph.initializers["w"].const_value.numpy(), weights)
    save_model(model, tmp_path / "out" / "whole.onnx")
    whole = onnx.load(tmp_path / "out" / "whole.onnx", load_external_data=False)
    np.testing.assert_array_equal(numpy_helper.to_array(whole.graph.initializer[0]), weights)


def test_external_data_missing_short_or_outside(external, tmp_path):
    path, _ = external()
    (tmp_path / "big.bin").write_bytes(b"short")
    refused(path, "big.bin", "cut short", "'w'")
    (tmp_path / "big.bin").unlink()
    refused(path, "big.bin", "missing", "'w'")
    path, _ = external("../big.bin")
    refused(path, "outside")


def test_fingerprint_covers_external_data(external, tmp_path):
    path, weights = external()
    first = model_fingerprint(path)
    assert first == load_model(path).sha256
    (tmp_path / "big.bin").write_bytes((weights + 1).tobytes())
    assert model_fingerprint(path) != first


def test_fingerprint_of_one_file_is_its_hash(builder, written):
    import hashlib

    path = written(small(builder))
    assert model_fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest() == load_model(path).sha256
    with pytest.raises(UsageError):
        model_fingerprint(path.parent / "no.onnx")


def test_too_large(builder, written, monkeypatch):
    from edgescale.frontend import check

    path = written(small(builder))
    monkeypatch.setattr(check, "MAX_BYTES", 100)
    refused(path, "2 GiB")


@pytest.mark.parametrize(
    ("stem", "name"), [("my-net.v2", "my_net_v2"), ("3d", "m3d"), ("ok_name", "ok_name"), ("größe", "gr__e")]
)
def test_name_is_a_c_identifier(builder, written, stem, name):
    assert load_model(written(small(builder), f"{stem}.onnx")).name == name


def test_saving_is_deterministic_and_loads_again(builder, written, tmp_path):
    model = load_model(written(small(builder)))
    save_model(model, tmp_path / "a.onnx")
    again = load_model(tmp_path / "a.onnx")
    assert serialize(again) == serialize(model)


def test_every_flipped_byte_is_a_model_or_one_sentence(builder, written):
    data = bytearray(small(builder).SerializeToString())
    random = np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(data)
        broken[random.integers(len(data))] ^= 1 << random.integers(8)
        try:
            load_model(written(bytes(broken)))
        except UnsupportedModelError as error:
            assert "\n" not in str(error)
