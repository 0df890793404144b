"""The diagnosis finds the layer that was spoilt on purpose, says why, and its override helps."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from onnx import numpy_helper

from edgescale.core.variant import parse_recipe, with_overrides
from edgescale.quantize import quantize, quantize_and_explain


def chain(n):
    t = n.relu(n.conv("x", 3, 16, strides=[2, 2]))
    for _ in range(2):
        t = n.relu(n.conv(t, 16, 16))
    t = n.node("Flatten", [n.node("GlobalAveragePool", [t])])
    return n.gemm(t, 16, 6)


def scaled(proto, node, channel, factor):
    """The same net, with one output channel of a Conv grown by `factor` and its reader's input shrunk by it."""
    convs = [x for x in proto.graph.node if x.op_type == "Conv"]
    first = next(i for i, x in enumerate(convs) if x.name == node)
    tensors = {t.name: t for t in proto.graph.initializer}

    def change(name, index, by):
        array = numpy_helper.to_array(tensors[name]).copy()
        array[index] *= by
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    change(convs[first].input[1], channel, factor)
    change(convs[first].input[2], channel, factor)
    change(convs[first + 1].input[1], (slice(None), channel), 1 / factor)
    return proto


@pytest.fixture
def explain(loaded, images):
    def call(proto, name):
        return quantize_and_explain(loaded(proto), images(), parse_recipe(name))[1]

    return call


def error(proto, made, run, x):
    exact, got = run(proto, x)[0], run(onnx_ir.to_proto(made), x)[0]
    return float(np.sum((got - exact) ** 2))


def test_outlier_channel(net, explain, loaded, images, run):
    n = net(8)
    last = chain(n)
    # The channels leave the net, too: no factor may be moved into the layers that read them.
    proto = n.proto([last, n.nodes[3].output[0]], opset=21)
    middle = [x.name for x in proto.graph.node if x.op_type == "Conv"][1]
    proto = scaled(proto, middle, 5, 400.0)
    worst = explain(proto, "w8a8")[0]
    assert worst.name == middle
    assert worst.share > 0.8
    assert any(c.startswith("outlier channels: channel 5 reaches") for c in worst.causes)
    assert worst.override == f"{middle}=w8a16"
    model, x = loaded(proto), images(64, seed=5).x
    plain = error(proto, quantize(model, images(), parse_recipe("w8a8")), run, x)
    helped = quantize(model, images(), with_overrides(parse_recipe("w8a8"), [worst.override]))
    assert error(proto, helped, run, x) < 0.3 * plain


def test_saturation(net, loaded, images, run):
    """Calibrated from faint images, judged on what is five times as bright: the layers' results leave their ranges."""
    from edgescale.core.dataset import Dataset
    from edgescale.core.progress import SILENT
    from edgescale.quantize.diagnose import diagnose
    from edgescale.quantize.post_training import prepare
    from edgescale.quantize.reconstruct import round_weights

    n = net(8)
    model = loaded(n.proto(chain(n), opset=21))
    faint = Dataset("faint", images().x / 5, None, "")
    prepared = prepare(model, faint, parse_recipe("w8a8"))
    found = diagnose(prepared, round_weights(prepared, faint, SILENT), images(), SILENT)
    worst = found[0]
    assert any(cause.startswith("saturation: ") for cause in worst.causes)
    assert worst.loss > 100 * diagnose(prepared, round_weights(prepared, faint, SILENT), faint, SILENT)[0].loss


def test_every_layer_that_is_blamed_has_a_cause(net, explain):
    """Wide results without outliers are told by the coarseness of their steps."""
    n = net(8)
    for layer in explain(n.proto(chain(n), opset=21), "w8a8"):
        if layer.share > 0.2:
            assert layer.causes


def test_few_bits(net, explain, loaded, images, run):
    n = net(8)
    proto = n.proto(chain(n), opset=21)
    found = explain(proto, "w3a8-rtn")
    worst = found[0]
    assert [layer.loss for layer in found] == sorted((layer.loss for layer in found), reverse=True)
    assert sum(layer.share for layer in found) == pytest.approx(1)
    assert any(cause.startswith("weights: rounding to 3 bits") for cause in worst.causes)
    assert worst.override == f"{worst.name}=w8a8"
    model, x = loaded(proto), images(64, seed=5).x
    plain = error(proto, quantize(model, images(), parse_recipe("w3a8-rtn")), run, x)
    helped = quantize(model, images(), with_overrides(parse_recipe("w3a8-rtn"), [worst.override]))
    assert error(proto, helped, run, x) < plain


def test_dead_channels(net, explain):
    n = net(8)
    proto = n.proto(chain(n), opset=21)
    first = next(x for x in proto.graph.node if x.op_type == "Conv")
    tensor = next(t for t in proto.graph.initializer if t.name == first.input[2])
    bias = numpy_helper.to_array(tensor).copy()
    bias[[2, 7]] = -1000
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    layer = next(x for x in explain(proto, "w8a8") if x.name == first.name)
    assert any(c.startswith("dead channels: 2 of 16") for c in layer.causes) or any("dead" in c for c in layer.causes)


def test_a_layer_alone_errs_as_if_only_it_were_quantized(net, loaded, images, run):
    """Oracle: the model quantized with all other layers overridden to float."""
    n = net(8)
    proto = n.proto(chain(n), opset=21)
    model = loaded(proto)
    layer = next(x for x in quantize_and_explain(model, images(), parse_recipe("w4a8-rtn"))[1] if x.op == "Gemm")
    others = [f"{x.name}=fp32" for x in model.ir.graph if x.name != layer.name]
    made = quantize(model, images(), with_overrides(parse_recipe("w4a8-rtn"), others))
    exact = run(proto, images().x)[0]
    alone = error(proto, made, run, images().x) / float(np.sum(exact**2))
    # The oracle also rounds the layer's input, which is another layer's result.
    assert layer.loss == pytest.approx(alone, rel=0.15)


@pytest.mark.parametrize("name", ["w8a16", "w4", "wfp8afp8", "auto0.8"])
def test_every_kind_of_recipe(net, explain, name):
    n = net(8)
    found = explain(n.proto(chain(n), opset=21), name)
    assert all(np.isfinite(layer.loss) for layer in found)
    assert len(found) >= 4
