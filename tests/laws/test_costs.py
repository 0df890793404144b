"""Cost models against brute-force sums, published pairs and synthetic devices."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.core.measurement import LayerFigures
from edgescale.core.quantity import Quantity
from edgescale.core.target import load_target
from edgescale.laws.costs.activations import association, compound_scale
from edgescale.laws.costs.energy import energy_from_operations, energy_from_power
from edgescale.laws.costs.kinetics import Decoder, attended, generation_cost, samples_within
from edgescale.laws.costs.roofline import Work, calibrate, decode_traffic, work_of
from edgescale.laws.errors import FitError

# parameters, layers, key-value heads, head size, query heads a key-value head
QWEN = {
    "0.6B": (0.752e9, 28, 8, 128, 2),
    "1.7B": (2.03e9, 28, 8, 128, 2),
    "4B": (4.02e9, 36, 8, 128, 4),
    "8B": (8.19e9, 36, 8, 128, 4),
    "14B": (14.77e9, 40, 8, 128, 5),
    "32B": (32.76e9, 64, 8, 128, 8),
}


def _decoder(name: str) -> Decoder:
    params, layers, heads, size, group = QWEN[name]
    return Decoder(params, 2 * layers * heads * size, group)


@pytest.mark.parametrize("name", QWEN)
def test_kinetics_pairs(vectors, name):
    compute, memory = vectors["kinetics_TFLOP_Lin128_Lout8192"][name]
    cost = generation_cost(_decoder(name), 128, 8192)
    assert cost.compute / 1e12 == pytest.approx(compute, rel=3e-3)
    assert cost.memory / 1e12 == pytest.approx(memory, rel=1e-4)
    assert cost.weights == 0.0


@pytest.mark.parametrize(
    ("prompt", "generated", "budget"), [(128, 1000, 512), (600, 100, 512), (10, 20, 512), (0, 9, 4), (5, 5, 5)]
)
def test_sparse_attention_sums_what_it_reads(prompt, generated, budget):
    assert attended(prompt, generated, budget) == sum(min(prompt + t, budget) for t in range(generated))
    assert attended(prompt, generated) == sum(prompt + t for t in range(generated))
    # in the continuous form the ramp to the budget subtracts (B - ctx)^2/2
    if prompt < budget < prompt + generated:
        continuous = budget * generated - 0.5 * (budget - prompt) ** 2
        assert attended(prompt, generated, budget) == pytest.approx(continuous, abs=budget)


def test_weights_dominate_at_batch_one():
    model = _decoder("0.6B")
    alone = generation_cost(model, 128, 256, batch=1)
    shared = generation_cost(model, 128, 256, 16, batch=16)
    assert alone.weights == 0.752e9 * 2 * 256 * 562.5 and alone.weights > alone.memory
    assert shared.weights == alone.weights
    assert generation_cost(model, 128, 256, 16, batch=1).weights == 16 * alone.weights


def test_a_shared_prompt_is_read_once():
    model = _decoder("4B")
    one, four = (generation_cost(model, 4096, 10, n) for n in (1, 4))
    assert four.memory < 1.1 * one.memory and four.compute == pytest.approx(4 * one.compute)


def test_samples_within_a_budget():
    model = _decoder("4B")
    for count in (1, 7, 33):
        flops = generation_cost(model, 128, 512, count).total
        assert samples_within(model, 128, 512, flops * 1.0001) == count
    assert samples_within(model, 128, 512, 1.0) == 0


def test_a_roofline_finds_the_device_again():
    rng = np.random.default_rng(0)
    work, times = [], []
    for _ in range(40):
        kind = ["conv", "depthwise", "dense"][rng.integers(3)]
        macs, moved = np.exp(rng.uniform(9, 15)), np.exp(rng.uniform(6, 12))
        work.append(Work(kind, macs, moved))
        rate = {"conv": 1e-5, "depthwise": 4e-5, "dense": 2e-5}[kind]
        times.append((0.01 + macs * rate + moved * 3e-6) * np.exp(rng.normal(0, 0.01)))
    made = calibrate(work, times)
    assert not made.overlap and made.error < 0.03
    assert made.per_mac == pytest.approx({"conv": 1e-5, "depthwise": 4e-5, "dense": 2e-5}, rel=0.05)
    value, low, high = made.total(work)
    assert low < sum(times) < high and value == pytest.approx(sum(times), rel=0.02)
    assert made.bound(Work("conv", 1e8, 10)) == "compute" and made.bound(Work("conv", 10, 1e8)) == "memory"
    with pytest.raises(FitError, match="no measurement of 'lstm'"):
        made.predict(Work("lstm", 1, 1))


def test_a_device_that_overlaps_is_told_apart():
    rng = np.random.default_rng(1)
    macs, moved = np.exp(rng.uniform(9, 15, 60)), np.exp(rng.uniform(9, 15, 60))
    made = calibrate(
        [Work("conv", a, b) for a, b in zip(macs, moved, strict=True)], 0.02 + np.maximum(macs * 1e-5, moved * 1e-5)
    )
    assert made.overlap and made.error < 0.02


def test_measured_layers_become_work():
    layer = LayerFigures("a", "Conv", 1000, {"latency": Quantity(2.0, "ms", "measured")}, "conv_s8")
    rows, times = work_of([layer])
    assert rows == [Work("conv_s8", 1000, 0.0)] and times == [2.0]
    with pytest.raises(FitError, match="no cycles"):
        work_of([layer], "cycles")
    with pytest.raises(FitError, match="give at least"):
        calibrate(rows, times)


def test_energy_says_how_it_is_known():
    made = energy_from_operations({"int32-mul": 1e6, "int32-add": 1e6})
    assert (
        made.value == pytest.approx(3.2)
        and made.unit == "uJ"
        and made.source == "published"
        and "Horowitz" in made.note
    )
    with pytest.raises(FitError, match="no energy of"):
        energy_from_operations({"warp": 1})


def test_energy_needs_a_stated_power():
    from dataclasses import replace

    from edgescale.core.target import Power

    host = load_target("host")
    with pytest.raises(FitError, match="states no power"):
        energy_from_power(replace(host, power=None), Quantity(2.0, "ms", "measured"))
    made = energy_from_power(replace(host, power=Power(30.0, "data sheet")), Quantity(2.0, "ms", "measured"))
    assert made.value == 60.0 and made.source == "modelled" and "data sheet" in made.note


def test_small_things():
    assert decode_traffic(1e6, 100, 50) == 1e6 + 5000
    depth, width, resolution = compound_scale(16)
    assert depth * width**2 * resolution**2 == pytest.approx(16) and width == pytest.approx(16**0.4)
    assert association([1, 2, 4], [2, 4, 8]).slope == pytest.approx(1.0)
