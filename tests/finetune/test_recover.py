"""Recovery from pruning: zeros stay where they belong, schedules keep their closed form, runs resume."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgescale.cache import StageStore
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.recipe import parse_recipe
from edgescale.core.sparsity import parse_sparsity
from edgescale.frontend import load_model, model_from_ir, save_model
from edgescale.frontend.load import serialize
from edgescale.quantize.rules import WEIGHTED
from edgescale.sources import DataSource, ModelSource
from edgescale.sparsify.channels import find_structure
from edgescale.sparsify.masks import prune_weights
from edgescale.sparsify.prune import ChannelRequest, prune_channels
from edgescale.sparsify.shrink import layer_macs

torch = pytest.importorskip("torch", reason="PyTorch (extra `train`) is not installed")

from edgescale.compress import Training  # noqa: E402
from edgescale.finetune import Settings  # noqa: E402
from edgescale.finetune.graph import TorchGraph  # noqa: E402
from edgescale.finetune.masks import Gradual, Masks, cubic, find_layers, moved, scaled, swap  # noqa: E402
from edgescale.finetune.objective import Objective  # noqa: E402
from edgescale.finetune.recover import prune_and_recover, recover  # noqa: E402
from edgescale.finetune.train import train  # noqa: E402
from edgescale.stages import Stages  # noqa: E402

QUICK = Settings(epochs=2, batch=32)
PATTERNS = ("2:4", "1x4:0.5", "u0.6")


@pytest.fixture
def case(toy, loaded, samples, onnx_rows):
    """(float model, calibration, training data labelled by the float model)."""
    proto = toy()
    x = samples(192).x
    return loaded(proto), samples(48, seed=4), samples(192, labels=onnx_rows(proto, x).argmax(1))


def weights_of(model) -> dict[str, np.ndarray]:
    """{node: [outputs, taps, inputs]} of convolutions and linear layers, input channels last as devices store them."""
    found = {}
    for node in model.ir.graph if hasattr(model, "ir") else model.graph:
        if node.op_type in WEIGHTED:
            array = node.inputs[1].const_value.numpy()
            rows = array if array.ndim == 2 else np.moveaxis(array, 1, -1)
            found[str(node.name)] = rows.reshape(len(rows), -1, rows.shape[-1])
    return found


def check_pattern(rows: np.ndarray, text: str, layers: int = 1) -> None:
    """Brute force over one layer, or over several with one budget; counts are whole numbers, a layer's rounded."""
    part = parse_sparsity(text)
    if part.pattern == "n:m":
        groups = (rows.reshape(len(rows), -1, part.m) != 0).sum(axis=2)
        assert groups.max() <= part.n
    elif part.pattern == "block":
        blocks = (rows.reshape(-1, 4) != 0).any(axis=1)
        assert blocks.sum() <= (1 - part.share) * blocks.size + 0.5 * layers
    else:
        assert (rows != 0).sum() <= (1 - part.share) * rows.size + 0.5 * layers


def sparse_layers(model, text: str) -> list[str]:
    return [str(layer.product.node.name) for layer in find_layers(model.ir, parse_sparsity(text))]


@pytest.mark.parametrize("text", PATTERNS)
def test_zeros_are_held_exactly_where_pruning_put_them(text, case):
    model, calibration, data = case
    part = parse_sparsity(text)
    pruned, _ = prune_weights(model, calibration, part)
    made = recover(model, pruned, data, QUICK, zeros=part)
    before, after = weights_of(pruned), weights_of(made)
    assert sparse_layers(model, text)
    for name in sparse_layers(model, text):
        np.testing.assert_array_equal(after[name][before[name] == 0], 0)
        assert not np.array_equal(after[name], before[name])
        check_pattern(after[name], text)


@pytest.mark.parametrize(
    ("text", "method"),
    [(t, "gmp") for t in PATTERNS] + [(t, "rigl") for t in PATTERNS] + [("1x4:0.5", "dsl"), ("u0.6", "dsl")],
)
def test_schedules_end_in_the_pattern(text, method, case):
    model, calibration, data = case
    part = parse_sparsity(text)
    start = model if method == "gmp" else prune_weights(model, calibration, part)[0]
    settings = replace(QUICK, epochs=4, batch=16)
    made = recover(model, start, data, settings, zeros=part, method=method)
    names, rows = sparse_layers(model, text), weights_of(made)
    if method == "dsl":  # one budget for all
        check_pattern(np.concatenate([rows[name].reshape(1, 1, -1) for name in names], axis=2), text, len(names))
    else:
        for name in names:
            check_pattern(rows[name], text)
    held = weights_of(start)
    assert any(np.any((rows[name] != 0) != (held[name] != 0)) for name in names)


def test_the_file_computes_what_was_trained(case, onnx_rows, samples):
    model, calibration, data = case
    pruned = prune_channels(model, calibration, ChannelRequest(0.5))
    made = recover(model, pruned.model, data, QUICK, kept=pruned.kept)
    net = TorchGraph(made.ir)
    x = samples(64, seed=9).x
    with torch.no_grad():
        wanted = net(torch.from_numpy(x))[net.model.graph.outputs[0]].numpy()
    np.testing.assert_allclose(onnx_rows(onnx_ir.to_proto(made.ir), x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labelled", [True, False])
def test_recovery_brings_answers_back(labelled, case, onnx_rows):
    """Judged by the dense model's classes on the training samples; without labels its answers are all there is."""
    model, calibration, data = case
    given = data if labelled else replace(data, y=None)
    pruned = prune_channels(model, calibration, ChannelRequest(0.4, importance="magnitude", repair=False))
    made = recover(model, pruned.model, given, Settings(epochs=16, batch=16, rate=0.02), kept=pruned.kept)
    before, after = (
        np.mean(onnx_rows(onnx_ir.to_proto(m.ir), data.x).argmax(1) == data.y) for m in (pruned.model, made)
    )
    assert after > before + 0.05


def test_inner_activations_are_compared_channel_by_channel(case):
    """The loss of a pruned net that computes what the dense one does on its channels is that of its answers alone."""
    model, calibration, data = case
    pruned = prune_channels(model, calibration, ChannelRequest(0.5))
    dense, small = TorchGraph(model.ir), TorchGraph(pruned.model.ir)
    x = torch.from_numpy(data.x[:32])
    with torch.no_grad():
        plain = float(Objective(dense, small, None, replace(QUICK, features=0.0))(x, None))
        whole = float(Objective(dense, small, None, replace(QUICK, features=1.0), kept=pruned.kept)(x, None))
        swapped = {name: tuple(reversed(channels)) for name, channels in pruned.kept.items()}
        wrong = float(Objective(dense, small, None, replace(QUICK, features=1.0), kept=swapped)(x, None))
    assert plain < whole < wrong


def test_masks_of_ones_change_nothing(case):
    model, _, data = case
    nets = [TorchGraph(model.ir.clone()) for _ in range(2)]
    hooks = Masks(
        nets[1],
        {name: torch.ones_like(w, dtype=torch.bool) for name, w in zip(nets[1].names, nets[1].weights, strict=True)},
    )
    for net in nets:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        objective = Objective(TorchGraph(model.ir), net, None, QUICK)
        for step in range(3):
            optimizer.zero_grad()
            (objective(torch.from_numpy(data.x[:16]), None) + sum(w.sum() for w in net.weights)).backward()
            if net is nets[1]:
                hooks.before(step)
            optimizer.step()
            if net is nets[1]:
                hooks.after(step)
    for one, other in zip(*(net.weights for net in nets), strict=True):
        assert torch.equal(one, other)


def test_a_share_of_one_is_the_dense_model(case):
    model, calibration, _ = case
    assert serialize(prune_channels(model, calibration, ChannelRequest(1.0)).model.ir) == serialize(model.ir)


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0.51, 1), st.floats(0.01, 0.99))
def test_the_cubic_is_that_of_gradual_pruning(done, begin, end, final):
    """s_t = s_f + (s_i - s_f)(1 - (t - t_0) / (n dt))^3 of Zhu and Gupta, s_i = 0."""
    inside = np.clip((done - begin) / (end - begin), 0, 1)
    assert final * cubic(done, begin, end) == pytest.approx(final + (0 - final) * (1 - inside) ** 3, abs=1e-12)


def test_the_schedules_have_their_published_values():
    assert [cubic(t, 0.2, 0.8) for t in (0, 0.2, 0.5, 0.8, 1)] == pytest.approx([0, 0, 0.875, 1, 1])
    assert [moved(t, 0.3, 0.75) for t in (0, 0.25, 0.375, 0.5, 0.75, 1)] == pytest.approx(
        [0.3, 0.225, 0.15, 0.075, 0, 0]
    )
    assert scaled(parse_sparsity("2:4"), 0.1) is None
    assert str(scaled(parse_sparsity("2:4"), 0.5)) == "3:4"
    assert scaled(parse_sparsity("2:4"), 1.0) == parse_sparsity("2:4")
    assert scaled(parse_sparsity("u0.9"), 0.5).share == pytest.approx(0.45)


def test_zeros_grow_along_the_cubic(case):
    model, _, _ = case
    net, steps = TorchGraph(model.ir.clone()), 400
    masks = Gradual(net, parse_sparsity("u0.8"), replace(QUICK, ramp=(0.25, 0.75)), steps)
    seen = []
    for step in range(steps):
        masks.after(step)
        seen.append(masks.figures()["density"])
        settled = masks.settled
        assert settled == (step >= 0.75 * steps - 1)
    assert all(a >= b for a, b in pairwise(seen))
    for step in (0, 100, 150, 200, 250, 399):
        at = step // 10 * 10 / steps if step < 299 else 1.0
        assert seen[step] == pytest.approx(1 - 0.8 * cubic(at, 0.25, 0.75), abs=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 8), st.floats(0, 1))
def test_as_many_come_as_go(seed, groups, units, share):
    dice = np.random.default_rng(seed)
    kept = dice.random((groups, units)) < 0.5
    weights, gradients = np.where(kept, dice.random((groups, units)), 0.0), dice.random((groups, units))
    made = swap(kept, weights, gradients, share)
    np.testing.assert_array_equal(made.sum(axis=1), kept.sum(axis=1))
    gone, come = kept & ~made, made & ~kept
    assert gone.sum() == come.sum() <= round(share * kept.sum())
    for group in range(groups):  # what came has a greater gradient than what could have come
        idle = ~made[group]
        if come[group].any() and idle.any():
            assert gradients[group][come[group]].min() >= gradients[group][idle].max()
    if gone.any():
        assert weights[gone].max() <= np.sort(weights[kept])[round(share * kept.sum()) - 1]


@pytest.mark.parametrize(("text", "method"), [("2:4", "ft"), ("u0.6", "gmp"), ("1x4:0.5", "rigl"), ("u0.6", "dsl")])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(text, method, case, tmp_path):
    model, calibration, data = case
    part, settings = parse_sparsity(text), replace(QUICK, epochs=4)
    start = model if method == "gmp" else prune_weights(model, calibration, part)[0]

    def run(**more):
        return serialize(recover(model, start, data, settings, zeros=part, method=method, **more).ir)

    whole, keep = run(), tmp_path / "run.pt"

    def stop(epoch, figures):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(keep=keep, listener=stop)
    epochs = []
    assert run(keep=keep, listener=lambda epoch, _: epochs.append(epoch)) == whole
    assert epochs == [3, 4]
    assert run(keep=keep, listener=lambda epoch, _: epochs.append(epoch)) == whole
    assert epochs == [3, 4]
    with pytest.raises(UsageError, match="remove it to start over"):
        recover(model, start, data, replace(settings, seed=1), zeros=part, method=method, keep=keep)


def test_channels_go_in_steps_and_the_run_resumes(case, tmp_path):
    model, calibration, data = case
    parts, settings = parse_recipe("fp32+ch0.9+1x4:0.5-gmp").sparsity, replace(QUICK, epochs=3)
    whole, report = prune_and_recover(model, calibration, data, parts, settings)
    full, left = (sum(both[i] for both in report["macs"].values()) for i in (0, 1))
    assert full == sum(layer_macs(find_structure(model.ir.graph), ()).values())
    assert left == sum(layer_macs(find_structure(whole.ir.graph), ()).values()) <= 0.9 * full
    rows = weights_of(whole)
    for name in report["density"]:
        check_pattern(rows[name], "1x4:0.5")

    class Stop:
        """Stops during the second of the trainings."""

        began = 0

        def start(self, label, total):
            self.began += label == "training"
            return 0

        def advance(self, task, steps=1):
            if self.began == 2:
                raise KeyboardInterrupt

        def finish(self, task):
            return None

    with pytest.raises(KeyboardInterrupt):
        prune_and_recover(model, calibration, data, parts, settings, Stop(), folder=tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["channels0.pt"]
    again, _ = prune_and_recover(model, calibration, data, parts, settings, folder=tmp_path / "runs")
    assert serialize(again.ir) == serialize(whole.ir)


def test_what_cannot_be_is_refused(case):
    model, _, data = case
    with pytest.raises(UnsupportedModelError, match="enough input channels for the sparsity 1:16"):
        recover(model, model, data, QUICK, zeros=parse_sparsity("1:16"), method="gmp")
    with pytest.raises(UsageError, match="unknown recovery 'best'; known: ft, gmp, rigl, dsl"):
        recover(model, model, data, QUICK, zeros=parse_sparsity("2:4"), method="best")
    with pytest.raises(UsageError, match="give their pattern"):
        recover(model, model, data, QUICK, method="rigl")
    with pytest.raises(UsageError, match=r"ramp is 0\.8 to 0\.2"):
        recover(model, model, data, replace(QUICK, ramp=(0.8, 0.2)))


@pytest.mark.parametrize("recipe", ["w4a8-qat+2:4", "w8a8-qat+1x4:0.5", "w2a8-qat+u0.6"])
def test_trained_rounding_keeps_the_zeros(recipe, case, onnx_rows):
    model, calibration, data = case
    chosen = parse_recipe(recipe)
    pruned, _ = prune_weights(model, calibration, chosen.sparsity[0])
    made = model_from_ir(train(pruned, calibration, data, chosen, QUICK, teacher=model), "net")
    integers = {}
    for node in made.ir.graph:
        if node.op_type in WEIGHTED:
            found = node.inputs[1].producer().inputs[0].const_value.numpy().astype(np.int64)
            rows = found if found.ndim == 2 else np.moveaxis(found, 1, -1)
            integers[str(node.name)] = rows.reshape(len(rows), -1, rows.shape[-1])
    before = weights_of(pruned)
    for name in sparse_layers(model, str(chosen.sparsity[0])):
        np.testing.assert_array_equal(integers[name][before[name] == 0], 0)
        check_pattern(integers[name], str(chosen.sparsity[0]))


def test_the_dense_model_teaches(case):
    """Trained towards another net's answers, the result is another one."""
    model, calibration, data = case
    pruned = prune_channels(model, calibration, ChannelRequest(0.5)).model
    recipe, unlabelled = parse_recipe("w8a8-qat+ch0.5"), replace(data, y=None)
    own = train(pruned, calibration, unlabelled, recipe, QUICK)
    taught = train(pruned, calibration, unlabelled, recipe, QUICK, teacher=model)
    assert serialize(own) != serialize(taught)


@pytest.mark.parametrize(
    "name", ["w8a8-qat+ch0.5", "w4a8-qat+2:4", "w8a8+u0.6-gmp", "fp32+ch0.6+1x4:0.5-rigl", "w8a8+ch0.5-gmp"]
)
def test_a_recipe_runs_through_the_line(name, case, tmp_path):
    model, calibration, data = case
    save_model(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "calibration.npz", x=calibration.x)
    np.savez(tmp_path / "train.npz", x=data.x, y=data.y)
    stages = Stages(StageStore(tmp_path / "cache"))
    source = stages.load(ModelSource(tmp_path / "net.onnx"))
    training = Training(DataSource(str(tmp_path / "train.npz")), QUICK)
    given = DataSource(str(tmp_path / "calibration.npz"))
    with pytest.raises(UsageError, match="--train"):
        stages.compress(source, parse_recipe(name), given)
    variant = stages.compress(source, parse_recipe(name), given, training)
    assert variant.name == f"net-{name}"
    made = load_model(variant.path)
    assert made.quantized != name.startswith("fp32")
    assert not list((tmp_path / "cache" / "stages" / "training").glob("*"))
    assert stages.compress(source, parse_recipe(name), given, training) == variant
