"""Files of random layers, run by LiteRT's reference kernels, equal the NumPy reference bit for bit.

The drawn layers have any multiplier; a file holds scales. So units are redrawn such that the multipliers follow from
float32 scales, as they do in every program that comes from a model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower import fixedpoint
from edgescale.lower.integer import (
    activation_rescaling,
    add_rescaling,
    interpolated_softmax_scaling,
    mean_requant,
    product_requant,
    rescaling,
    softmax_scaling,
)
from edgescale.lower.interpolated import sigmoid_scaling
from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    InterpolatedLut,
    Lut,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Quantize,
    Requant,
    Rescale,
    Reshape,
    Slice,
    Softmax,
    Tensor,
    Transpose,
    Unary,
)
from edgescale.lower.tables import table_of
from tests.seeds import SEEDS

BATCH = settings(max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
FREE = (-np.inf, np.inf)


def f32(value: float) -> float:
    return float(np.float32(value))


def ratios(requant: Requant) -> np.ndarray:
    bits = 53 if requant.rounding == "real" else 31
    found = requant.multiplier.astype(np.float64) * np.exp2(requant.shift.astype(np.float64) - bits)
    return np.maximum(found, 2.0**-40)


def told(layer, sources, out):
    """The drawn layer with units from which its rescaling follows."""
    inputs = [replace(t, scale=f32(t.scale)) for t in (sources if isinstance(sources, list) else [sources])]
    out = replace(out, scale=f32(out.scale))
    first, dtype = inputs[0], inputs[0].dtype
    if out.dtype == "float32" or dtype == "float32":
        return layer, inputs, out
    if isinstance(layer, (Conv2D, DepthwiseConv2D, FullyConnected)):
        scales = [f32(r * out.scale / first.scale) for r in ratios(layer.requant)]
        factors = [first.scale * s / out.scale for s in scales]
        rounding = layer.requant.rounding
        if rounding in ("reduced", "real"):
            made = fixedpoint.requant_wide(factors, rounding)
        else:
            made = fixedpoint.requant(factors, single=rounding == "single")
        return replace(layer, requant=made), inputs, out
    if isinstance(layer, Pool2D) and layer.requant is None:
        return layer, inputs, replace(out, scale=first.scale, zero_point=first.zero_point)
    if isinstance(layer, (Pool2D, Rescale, Mean)):
        out = replace(out, scale=f32(first.scale / np.clip(ratios(layer.requant)[0], 2.0**-20, 2.0**7)))
        if isinstance(layer, Mean):
            count = first.shape[1] * first.shape[2]
            return replace(layer, requant=mean_requant(first.scale, out.scale, count, dtype)), inputs, out
        return replace(layer, requant=rescaling(first.scale, out.scale, dtype)), inputs, out
    if isinstance(layer, Softmax):
        keys = ("input_multiplier", "input_left_shift", "diff_min")
        if dtype == "int16":
            first = replace(first, scale=(1e-6, 0.0003, 0.001, 0.3)[layer.input_multiplier % 4])
            first, out = replace(first, scale=f32(first.scale)), replace(out, scale=2.0**-15)
            scaling = interpolated_softmax_scaling(first.scale)
        else:
            beta = f32(layer.input_multiplier * 2.0 ** (layer.input_left_shift - 31 - 26) / first.scale)
            scaling = softmax_scaling(first.scale, beta)
        return replace(layer, **dict(zip(keys, scaling, strict=True))), [first], out
    if isinstance(layer, InterpolatedLut):
        scale = (2.0**-12, 2.0**-11, f32(0.0003), f32(0.001), f32(0.2), 5.0, f32(1e-7))[layer.multiplier % 7]
        multiplier, shift = sigmoid_scaling(scale)
        made = replace(layer, multiplier=multiplier, shift=shift)
        return made, [replace(first, scale=scale)], replace(out, scale=2.0**-15)
    if isinstance(layer, Mul):
        other = inputs[-1]
        out = replace(out, scale=f32(first.scale * other.scale / np.clip(ratios(layer.requant)[0], 2.0**-30, 2.0**7)))
        return replace(layer, requant=product_requant(first.scale, other.scale, out.scale, dtype)), inputs, out
    if isinstance(layer, Add):
        rng = np.random.default_rng(layer.requant.multiplier[0])
        scales = [f32(s) for s in rng.uniform(0.01, 0.5, 3)]
        inputs = [replace(t, scale=s) for t, s in zip(inputs, scales, strict=False)]
        left, pair, made = add_rescaling(*scales, dtype)
        return replace(layer, left_shift=left, rescale=pair, requant=made), inputs, replace(out, scale=scales[2])
    if isinstance(layer, Concat):
        rescale = []
        for i, scaling in enumerate(layer.rescale):
            factor = 1.0 if scaling is None else float(np.clip(ratios(scaling)[0], 2.0**-20, 2.0**7))
            zero = out.zero_point if scaling is None else inputs[i].zero_point
            inputs[i] = replace(inputs[i], scale=f32(out.scale * factor), zero_point=zero)
            rescale.append(None if scaling is None else rescaling(inputs[i].scale, out.scale, dtype))
        return replace(layer, rescale=tuple(rescale)), inputs, out
    if isinstance(layer, (Pad, Transpose, Slice)):
        return layer, inputs, replace(out, scale=first.scale, zero_point=first.zero_point)
    return layer, inputs, out


def narrow(layer):
    return replace(layer, weights=np.clip(layer.weights, -8, 7).astype(np.int8), weight_bits=4)


def mixed(drawn):
    """Every third layer with weights of four bits."""
    return [(narrow(layer) if i % 3 == 0 else layer, x, y) for i, (layer, x, y) in enumerate(drawn)]


def check(harness, drawn, seed):
    return harness.check(harness.together([told(*one) for one in drawn]), seed)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "pool"])
@BATCH
@given(data=st.data(), seed=SEEDS)
def test_window_layers(harness, drawing, kind, data, seed):
    drawn = data.draw(st.lists(drawing.window_layers(kind), min_size=24, max_size=24))
    check(harness, drawn if kind == "pool" else mixed(drawn), seed)


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_fully_connected(harness, drawing, data, seed):
    check(harness, mixed(data.draw(st.lists(drawing.dense_layers(), min_size=24, max_size=24))), seed)


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_elementwise(harness, drawing, data, seed):
    check(harness, data.draw(st.lists(drawing.elementwise_layers(), min_size=24, max_size=24)), seed)


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_moving_layers(harness, drawing, data, seed):
    drawn = data.draw(st.lists(drawing.moving_layers("int8"), min_size=16, max_size=16))
    drawn += data.draw(st.lists(drawing.moving_layers("float32"), min_size=8, max_size=8))
    check(harness, drawn, seed)


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_float_window_layers(harness, drawing, data, seed):
    drawn = [
        one
        for kind in ("conv", "depthwise", "pool")
        for one in data.draw(st.lists(drawing.window_layers(kind, "float32"), min_size=12, max_size=12))
    ]
    harness.check(harness.together(drawn), seed)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "pool", "dense", "elementwise", "moving"])
@BATCH
@given(data=st.data(), seed=SEEDS)
def test_int16_layers(harness, drawing_int16, kind, data, seed):
    makers = {name: getattr(drawing_int16, f"{name}_layers") for name in ("dense", "elementwise", "moving")}
    strategy = makers[kind]() if kind in makers else drawing_int16.window_layers(kind)
    check(harness, data.draw(st.lists(strategy, min_size=24, max_size=24)), seed)


FUNCTIONS = {
    "sigmoid": (), "tanh": (), "exp": (), "hardswish": (), "hardsigmoid": (0.2, 0.5), "leakyrelu": (0.1,),
    "elu": (1.0,),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_of_int8(harness, function):
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(12):
        units = f32(rng.uniform(0.005, 0.3)), int(rng.integers(-128, 128))
        made = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}.get(function)
        made = made if made and rng.random() < 0.5 else (f32(rng.uniform(0.004, 0.1)), int(rng.integers(-128, 128)))
        parameters = (f32(rng.uniform(0, 0.9)),) if function == "leakyrelu" else FUNCTIONS[function]
        table = table_of(function, parameters, units, made)
        x, y = (Tensor(name, (1, 1, 1, 256), "int8", *some) for name, some in (("x", units), ("y", made)))
        drawn.append((Lut("f", ("x",), "y", table, function), [x], y))
    written = harness.check(harness.together(drawn), 1)
    kinds = [kind for _, kind in written.operators]
    native = {"sigmoid": "LOGISTIC", "tanh": "TANH", "leakyrelu": "LEAKY_RELU", "hardswish": "HARD_SWISH"}
    native["exp"] = "EXP"
    assert native.get(function, "GATHER") in kinds


def test_activations_between_scales_are_relu(harness):
    """LiteRT divides the scales in float32 there, which QUANTIZE does not."""
    rng = np.random.default_rng(4)
    drawn = []
    for i in range(40):
        a, b = (f32(s) for s in rng.uniform(0.01, 0.4, 2))
        x = Tensor("x", (1, 256), "int8", a, int(rng.integers(-128, 128)))
        y = Tensor("y", (1, 256), "int8", b, int(rng.integers(-128, 20)))
        top = (127, min(127, y.zero_point + int(6 / b + 0.5)), 90)[i % 3]
        bounds = (max(-128, y.zero_point), top)
        drawn.append((Rescale("relu", ("x",), "y", activation_rescaling(a, b), bounds), [x], y))
    written = harness.check(harness.together(drawn), 2)
    assert {"RELU", "QUANTIZE"} & {kind for _, kind in written.operators}


def test_float_layers(harness):
    rng = np.random.default_rng(5)
    shape = (1, 3, 5, 4)

    def real(name: str, *extents: int) -> Tensor:
        return Tensor(name, extents, "float32")

    x, y = real("x", *shape), real("y", *shape)
    functions = {
        "relu": (), "clip": (-1.0, 2.0), "sigmoid": (), "tanh": (), "exp": (), "hardswish": (),
        "hardsigmoid": (0.2, 0.5), "leakyrelu": (0.1,), "elu": (0.7,),
    }  # fmt: skip
    drawn = [(Unary(f, ("x",), "y", f, p), [x], y) for f, p in functions.items()]
    drawn.append((Unary("elu1", ("x",), "y", "elu", (1.0,)), [x], y))
    drawn.append((Unary("clip0", ("x",), "y", "clip", (0.0, np.inf)), [x], y))
    drawn.append((Softmax("s", ("x",), "y", 0, 0, 0), [x], y))
    for second in (shape, (1, 1, 1, 4), (1, 1, 1, 1)):
        b, constant = real("b", *second), rng.normal(size=second).astype(np.float32)
        for subtract in (False, True):
            drawn.append((Add("add", ("x", "b"), "y", 0, None, None, (0.0, 6.0), subtract), [x, b], y))
        drawn.append((Mul("mul", ("x",), "y", None, FREE, constant), [x], y))
    for rows, outputs in ((1, 7), (3, 20)):
        w, bias = rng.normal(size=(outputs, 20)).astype(np.float32), rng.normal(size=outputs).astype(np.float32)
        layer = FullyConnected("fc", ("x",), "y", w, bias, None, FREE)
        drawn.append((layer, [real("x", 1, rows, 20)], real("y", 1, rows, outputs)))
    harness.check(harness.together(drawn))


def test_slices_and_reshapes(harness):
    x = Tensor("x", (1, 6, 5, 4), "int8", f32(0.1), 3)
    drawn = [
        (Slice("cut", ("x",), "y", (0, 1, 0, 2), (1, 2, 3, 1)), [x], replace(x, shape=(1, 3, 2, 2))),
        (Reshape("flat", ("x",), "y"), [x], replace(x, shape=(1, 120))),
    ]
    harness.check(harness.together(drawn))


def test_quantize_rounds_half_to_even_and_saturates(harness):
    units = ((0, 1.0), (-128, 0.25), (13, f32(0.0371)), (127, f32(1e-20)))
    x = Tensor("x", (1, 2000), "float32")
    drawn = [(Quantize("q", ("x",), "y"), [x], Tensor("y", (1, 2000), "int8", scale, zero)) for zero, scale in units]
    drawn.append((Dequantize("d", ("x",), "y"), [Tensor("x", (1, 2000), "int8", f32(0.0371), 5)], x))
    program = harness.together(drawn)
    written = harness.check(program)
    steps = np.arange(-300, 300, 0.25, dtype=np.float32)[: 2000 - 3]
    values = np.resize(np.concatenate([steps, [np.inf, -np.inf, -0.0]]).astype(np.float32), 2000)[None]
    given_values = dict.fromkeys((port.tensor for port in program.inputs), values)
    given_values["x_4"] = np.zeros((1, 2000), np.int8)
    got = harness.run(written.data, program, given_values)
    wanted = np.clip(np.rint(values[0]), -128, 127).astype(np.int8)
    np.testing.assert_array_equal(got["y_0"][0], wanted)


def test_what_has_no_scales_is_refused_by_name(harness):
    x, y = Tensor("x", (1, 4), "int8", 0.5), Tensor("y", (1, 4), "int8", 0.5)
    odd = Requant(np.array([2**30 + 12345], np.int32), np.zeros(1, np.int32))
    drawn = [
        (Rescale("head", ("x",), "y", odd, (-128, 127)), [x], y),
        (Mul("gate", ("x",), "y", odd, (-128, 127), np.ones((1, 4), np.int8)), [x], y),
    ]
    from edgescale_tflite.write import write_program

    with pytest.raises(UnsupportedModelError, match=r"(?s)'head_0' \(op Rescale\): rule: .*'gate_1' \(op Mul\): rule"):
        write_program(harness.together(drawn))
