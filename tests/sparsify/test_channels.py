"""Pruned graphs stay valid, whatever goes; what is taken out equals what is masked; the repair repairs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UsageError
from edgescale.core.model import Model
from edgescale.frontend import model_from_ir
from edgescale.frontend.graph import constant
from edgescale.frontend.load import serialize
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.patches import product_of
from edgescale.sparsify.channels import Structure, find_structure
from edgescale.sparsify.prune import ChannelRequest, prune_channels
from edgescale.sparsify.shrink import layer_macs, shrink

_SPEC = importlib.util.spec_from_file_location("sparse_nets", Path(__file__).with_name("sparse_nets.py"))
sparse_nets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sparse_nets)
random_net, run, samples = sparse_nets.random_net, sparse_nets.run, sparse_nets.samples

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
FEWER = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))


def masked(model: Model, structure: Structure, removed: np.ndarray) -> Model:
    """The dense graph in which nothing reads the channels removed: the oracle of what taking them out means."""
    graph = model.ir.clone()
    nodes = {str(node.name): node for node in graph.graph}
    for layer in structure.weighted:
        if layer.depthwise:
            continue
        node = nodes[layer.node]
        weights = constant(node.inputs[1])
        product = product_of(node, weights.shape)
        gate = np.repeat(structure.kept(layer.reads, removed), layer.kernel)
        set_constant(node, 1, product.weights(product.matrix(weights) * gate).astype(np.float32), "w")
    return model_from_ir(graph, model.name)


@FEW
@given(seed=SEEDS, drop=SEEDS)
def test_taking_channels_out_equals_masking_them(seed, drop):
    model = random_net(seed)
    structure = find_structure(model.ir.graph)
    rng = np.random.default_rng(drop)
    removed = np.array(
        sorted(
            unit
            for members in structure.families.values()
            for unit in rng.permutation(members)[: rng.integers(0, len(members))]
        ),
        np.int64,
    )
    small = model_from_ir(shrink(model.ir, structure, removed), model.name)
    data = samples(6)
    expected = run(masked(model, structure, removed), data)
    assert small.outputs == model.outputs
    np.testing.assert_allclose(run(small, data), expected, rtol=1e-4, atol=1e-4)
    if removed.size:
        assert sum(layer_macs(structure, removed).values()) < sum(layer_macs(structure, ()).values())
        counted = layer_macs(find_structure(small.ir.graph), ())
        assert counted == layer_macs(structure, removed)


@FEW
@given(seed=SEEDS)
def test_a_share_of_one_changes_nothing(seed):
    model = random_net(seed)
    pruned = prune_channels(model, samples(4), ChannelRequest(1.0))
    assert serialize(pruned.model) == serialize(model)
    assert pruned.share == 1.0


@FEWER
@given(seed=SEEDS, importance=st.sampled_from(["magnitude", "activation", "taylor", "reconstruction"]))
def test_any_importance_meets_the_budget_and_repair_lowers_the_error(seed, importance):
    model, data = random_net(seed), samples()
    request = ChannelRequest(0.8, importance=importance, align=1)
    try:
        pruned = prune_channels(model, data, request)
    except UsageError as error:  # nets with little to take
        assert "cannot reach" in str(error)
        return
    bare = prune_channels(model, data, ChannelRequest(0.8, importance=importance, align=1, repair=False))
    assert pruned.share <= 0.8
    assert pruned.error <= bare.error * 1.05 + 1e-6


def test_what_must_stay_stays():
    model = random_net(3)
    with pytest.raises(UsageError, match="cannot reach"):
        prune_channels(model, samples(8), ChannelRequest(0.001))
    with pytest.raises(UsageError, match="share"):
        prune_channels(model, samples(8), ChannelRequest(0.0))
    with pytest.raises(UsageError, match="importance"):
        prune_channels(model, samples(8), ChannelRequest(0.5, importance="luck"))


def test_a_price_makes_the_budget_one_of_time():
    """With all the cost in one layer, that layer is what shrinks."""
    model, data = random_net(11), samples(8)
    structure = find_structure(model.ir.graph)
    costly = max(structure.weighted, key=lambda layer: layer_macs(structure, ())[layer.node]).node
    prices = {layer.node: float(layer.node == costly) for layer in structure.weighted}
    pruned = prune_channels(model, data, ChannelRequest(0.6, prices=prices, align=1))
    before, after = pruned.macs[costly]
    assert after <= 0.6 * before


def test_outputs_and_inputs_keep_their_channels():
    model = random_net(5)
    structure = find_structure(model.ir.graph)
    gemm = next(layer for layer in structure.weighted if layer.positions == 1 and layer.kernel == 1)
    last = list(structure.weighted)[-1]
    assert not np.isin(structure.root[last.makes], structure.units).any(), gemm
    assert isinstance(model.ir, ir.Model)
