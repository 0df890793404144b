"""Training end to end: the file computes what was trained, runs resume, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.variant import parse_recipe, with_overrides
from edgescale.frontend.load import serialize
from edgescale.lower import lower
from edgescale.lower.reference import run_real
from edgescale.quantize import quantize

torch = pytest.importorskip("torch", reason="PyTorch (extra `train`) is not installed")

from edgescale.finetune import Settings  # noqa: E402
from edgescale.finetune.graph import TorchGraph  # noqa: E402
from edgescale.finetune.network import QuantizedGraph  # noqa: E402
from edgescale.finetune.train import fit, train  # noqa: E402
from edgescale.quantize.post_training import finish, prepare  # noqa: E402
from edgescale.quantize.reconstruct import round_weights  # noqa: E402

QUICK = Settings(epochs=2, batch=32, annealing=0.5)
RECIPE = parse_recipe("w4a8-qat")
RECIPE_PLAIN = parse_recipe("w4a8")


@pytest.fixture
def case(toy, loaded, samples, onnx_rows):
    """(float model, calibration, training data labelled by the float model)."""
    proto = toy()
    x = samples(192).x
    return loaded(proto), samples(48, seed=4), samples(192, labels=onnx_rows(proto, x).argmax(1))


@pytest.mark.parametrize("name", ["w4a8", "w8a8", "w3a16", "w4a8-g4", "w4", "w4a8-tensor"])
def test_the_file_computes_what_was_trained(name, case, onnx_rows, samples):
    model, calibration, data = case
    recipe = parse_recipe(name)
    prepared = prepare(model, calibration, replace(recipe, rounding=""))
    teacher = TorchGraph(prepared.graph)
    student = QuantizedGraph(prepared, round_weights(prepared, calibration, _silent()), "statsq")
    fit(teacher, student, data, QUICK, _silent())
    x = samples(256, seed=9).x
    with torch.no_grad():
        wanted = student(torch.from_numpy(x))[student.model.graph.outputs[0]].numpy()
    made, stored = student.finished()
    proto = onnx_ir.to_proto(finish(made, stored, recipe))
    onnx.checker.check_model(proto, full_check=True)
    found = onnx_rows(proto, x)
    assert np.mean(found.argmax(1) == wanted.argmax(1)) >= 0.999
    power = float(np.sqrt(np.mean(wanted**2)))
    assert np.mean(np.abs(found - wanted)) < 0.002 * power


@pytest.mark.parametrize("start", ["reconstructed", "float"])
def test_training_starts_where_it_is_told(start, case):
    model, calibration, _ = case
    prepared = prepare(model, calibration, RECIPE_PLAIN)
    floats = {name: array.copy() for name, array in TorchGraph(prepared.graph).trained().items()}
    net = QuantizedGraph(prepared, round_weights(prepared, calibration, _silent()), "statsq", start)
    for node in net.layers:
        latent = net.latent(node).detach()
        position = net.layers[node][1].position(latent).numpy()
        own = floats[node.inputs[1].name]
        if start == "float":
            np.testing.assert_array_equal(net.weight_of(node).detach().numpy(), own)
            assert np.abs(position - np.rint(position)).max() > 0.1
        else:
            np.testing.assert_allclose(position, np.rint(position), atol=1e-4)
            assert np.abs(net.weight_of(node).detach().numpy() - own).max() > 0


def test_the_form_is_that_of_post_training_quantization(case):
    model, calibration, data = case
    trained = onnx_ir.to_proto(train(model, calibration, data, RECIPE, QUICK))
    rounded = onnx_ir.to_proto(quantize(model, calibration, parse_recipe("w4a8")))
    assert [n.op_type for n in trained.graph.node] == [n.op_type for n in rounded.graph.node]
    kinds = [sorted((t.data_type, *t.dims) for t in p.graph.initializer) for p in (trained, rounded)]
    assert kinds[0] == kinds[1]
    assert {p.key: p.value for p in trained.metadata_props}["edgescale.recipe"] == "w4a8-qat"


def test_the_integer_program_takes_it(case, onnx_rows):
    model, calibration, data = case
    made = train(model, calibration, data, RECIPE, QUICK)
    wanted = onnx_rows(onnx_ir.to_proto(made), data.x[:64])
    program = lower(made, "net")
    found = run_real(program, data.x[:64])
    assert np.mean(found.argmax(1) == wanted.argmax(1)) > 0.95


@pytest.mark.parametrize("labelled", [True, False])
def test_training_beats_rounding(labelled, case, onnx_rows):
    """Without labels the float model's answers (here the same classes) are all there is to learn from."""
    model, calibration, data = case
    given = data if labelled else Dataset(data.name, data.x, None, data.sha256)
    recipe = parse_recipe("w2a8")
    rounded = onnx_rows(onnx_ir.to_proto(quantize(model, calibration, replace(recipe, rounding="rtn"))), data.x)
    made = train(model, calibration, given, replace(recipe, rounding="qat"), Settings(epochs=12, batch=16, rate=0.02))
    trained = onnx_rows(onnx_ir.to_proto(made), data.x)
    assert np.mean(trained.argmax(1) == data.y) > np.mean(rounded.argmax(1) == data.y) + 0.05


@pytest.mark.parametrize("scales", ["statsq", "lsq"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(case, tmp_path, scales):
    model, calibration, data = case
    settings = replace(QUICK, epochs=3, scales=scales)
    whole = serialize(train(model, calibration, data, RECIPE, settings))
    keep = tmp_path / "run.pt"

    def stop(epoch, figures):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, calibration, data, RECIPE, settings, keep=keep, listener=stop)
    assert keep.exists()
    epochs = []
    resumed = train(model, calibration, data, RECIPE, settings, keep=keep, listener=lambda e, _: epochs.append(e))
    assert epochs == [2, 3]
    assert serialize(resumed) == whole
    assert not keep.exists()


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(case, tmp_path):
    model, calibration, data = case
    keep = tmp_path / "run.pt"
    keep.write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match="remove it to start over"):
        train(model, calibration, data, RECIPE, QUICK, keep=keep)


def test_annealing_calms_the_weights(case):
    model, calibration, data = case
    seen = []
    train(model, calibration, data, parse_recipe("w3a8-qat"), Settings(epochs=6, batch=16, rate=0.02, annealing=0.5),
          listener=lambda _, figures: seen.append(figures["flips"]))  # fmt: skip
    assert seen[-1] < seen[2] / 5


def test_overrides_train_in_their_own_format(case):
    model, calibration, data = case
    name = next(node.name for node in model.ir.graph if node.op_type == "Gemm")
    made = onnx_ir.to_proto(train(model, calibration, data, with_overrides(RECIPE, [f"{name}=w8a8"]), QUICK))
    kinds = [t.data_type for t in made.graph.initializer if len(t.dims) > 1]
    assert kinds.count(onnx.TensorProto.INT8) == 1
    assert kinds.count(onnx.TensorProto.INT4) == 4


def test_what_does_not_fit_is_refused(case):
    model, calibration, data = case
    for labels, words in (
        (np.full(len(data), 4), "class indices from 4 to 4, and the model has 4 outputs"),
        (np.zeros((len(data), 3), np.float32), r"shape \[3\] a sample"),
    ):
        with pytest.raises(UsageError, match=words):
            train(model, calibration, replace(data, y=labels), RECIPE, QUICK)
    with pytest.raises(UsageError, match="samples are float32"):
        train(model, calibration, replace(data, x=data.x[:, :, 1:]), RECIPE, QUICK)
    with pytest.raises(UsageError, match="not trained; write w4a8-qat"):
        train(model, calibration, data, parse_recipe("w4a8"), QUICK)
    with pytest.raises(UsageError, match="start is 'zero'; known: reconstructed, float"):
        train(model, calibration, data, RECIPE, replace(QUICK, start="zero"))
    with pytest.raises(UsageError, match="epochs is 0"):
        train(model, calibration, data, RECIPE, Settings(epochs=0))


def test_recurrent_layers_are_refused_by_name(lstm, loaded):
    proto, data = lstm
    with pytest.raises(UnsupportedModelError, match=r"\(LSTM\) has no PyTorch form here"):
        train(loaded(proto), data, data, RECIPE, QUICK)


def _silent():
    from edgescale.core.progress import SILENT

    return SILENT
