"""Sparsity as a stage of the line: cached, before quantization, refused where it cannot work."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgescale.cache import StageStore
from edgescale.core.errors import UsageError
from edgescale.core.recipe import parse_recipe
from edgescale.core.target import load_target
from edgescale.frontend import load_model, save_model
from edgescale.pipeline import Request, compile_models
from edgescale.sources import DataSource, ModelSource
from edgescale.sparsify.channels import find_structure
from edgescale.sparsify.shrink import layer_macs
from edgescale.stages import Stages

_SPEC = importlib.util.spec_from_file_location("sparse_nets", Path(__file__).with_name("sparse_nets.py"))
sparse_nets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sparse_nets)


@pytest.fixture
def loaded(tmp_path: Path):
    net = sparse_nets.Net(0)
    x = net.unary("Relu", net.conv(net.unary("Relu", net.conv("x", 16)), 16))
    save_model(net.model(net.head(x, 5, flat=False)), tmp_path / "toy.onnx")
    np.savez(tmp_path / "x.npz", x=sparse_nets.samples().x)
    stages = Stages(StageStore(tmp_path / "cache"))
    return stages, stages.load(ModelSource(tmp_path / "toy.onnx")), DataSource(str(tmp_path / "x.npz"))


def test_a_recipe_prunes_then_quantizes(loaded):
    stages, model, data = loaded
    dense = sum(layer_macs(find_structure(load_model(model.variant.path).ir.graph), ()).values())
    small = stages.compress(model, parse_recipe("fp32+ch0.5"), data)
    assert small.name == "toy-fp32+ch0.5"
    pruned = load_model(small.path)
    assert sum(layer_macs(find_structure(pruned.ir.graph), ()).values()) <= 0.5 * dense
    both = stages.compress(model, parse_recipe("w8a8+ch0.5+2:4"), data)
    assert both.name == "toy-w8a8+ch0.5+2:4"
    assert load_model(both.path).quantized
    assert both.path.stat().st_size < small.path.stat().st_size
    again = stages.compress(model, parse_recipe("fp32+ch0.5"), data)
    assert again == small


def test_it_needs_calibration_data(loaded):
    stages, model, _ = loaded
    with pytest.raises(UsageError, match="--calib"):
        stages.compress(model, parse_recipe("w8a8+ch0.5"), None)


def test_a_share_of_instructions_spares_what_is_dear(loaded):
    """The dearer layer loses more than where both cost the same; the share holds by the prices."""
    stages, model, data = loaded
    graph = load_model(model.variant.path).ir.graph
    macs = layer_macs(find_structure(graph), ())
    first, second = (name for name in macs if next(n for n in graph if n.name == name).op_type == "Conv")
    left = {}
    for dear in (first, second):
        prices = {name: 9.0 if name == dear else 1.0 for name in macs}
        made = load_model(stages.compress(model, parse_recipe("fp32+ch0.6i"), data, prices=prices).path)
        left[dear] = layer_macs(find_structure(made.ir.graph), ())
        assert sum(prices[n] * left[dear][n] for n in macs) <= 0.6 * sum(prices[n] * macs[n] for n in macs)
    assert left[first][first] <= left[second][first]
    with pytest.raises(UsageError, match="needs what each layer takes"):
        stages.compress(model, parse_recipe("fp32+ch0.6i"), data)


def test_a_target_prices_its_layers(loaded):
    stages, model, data = loaded
    prices = stages.prices(model, load_target("cortex-m4-stm32l4r5"), data)
    assert set(prices) == set(layer_macs(find_structure(load_model(model.variant.path).ir.graph), ()))
    assert all(0.1 < price < 100 for price in prices.values())
    with pytest.raises(UsageError, match="does not count instructions"):
        stages.prices(model, load_target("host"), data)


def test_a_share_of_instructions_is_that_of_one_target(loaded, tmp_path):
    stages, _, data = loaded
    request = Request(
        (tmp_path / "toy.onnx",),
        (load_target("cortex-m4-stm32l4r5"),),
        (parse_recipe("w8a8"), parse_recipe("w8a8+ch0.5i")),
        calibration=data.spec,
        samples=1,
        out=tmp_path / "bundle",
    )
    with pytest.raises(UsageError, match="name one target, not 2"):
        compile_models(replace(request, targets=(*request.targets, load_target("host"))), stages.store)
    dense, small = compile_models(request, stages.store).entries
    counts = [
        sum(layer.metrics["instructions"].value for layer in entry.measurement.layers if layer.macs)
        for entry in (dense, small)
    ]
    assert counts[1] < 0.7 * counts[0]  # narrow layers take more for each multiply-accumulate
