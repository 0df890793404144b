"""Fits of public data end where their authors' (or a careful re-analysis) ended."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.laws.fit import fit
from edgescale.laws.forms import FORMS
from edgescale.laws.intervals import bootstrap
from edgescale.laws.published import published
from edgescale.laws.tradeoffs import sparse_multiplier
from edgescale.laws.validate import edge_holdouts


@pytest.fixture(scope="module")
def vit(law_data):
    table = law_data.json("sparse_law/vit-data.json")
    scale, sparsity, examples, loss = (
        np.array(list(table[name].values()), float) for name in ("scale", "sparsity", "total_examples", "val-loss")
    )
    size = 12 * 12 * 768**2 * scale * (1 - sparsity) / 1e6
    return {"S": sparsity, "N": size, "D": examples / 1e9}, loss


@pytest.fixture(scope="module")
def t5(law_data):
    scale, sparsity, steps, loss = law_data.columns("sparse_law/t5-data.csv", "scale", "sparsity", "steps", "val-loss")
    size = 24 * 12 * 768**2 * scale * (1 - sparsity) / 1e6
    return {"S": sparsity, "N": size, "D": steps / 1e5}, loss


def test_sparse_law_of_vision_transformers(vit):
    made = fit(FORMS["sparse"], *vit, space="linear", delta=0.01, mean=True)
    assert made.objective <= 4.9291e-4
    assert sparse_multiplier(made.law, [0.5, 0.75, 0.875]) == pytest.approx([1.596, 2.172, 2.634], abs=0.005)
    assert made.r_squared == pytest.approx(0.9931, abs=2e-4)
    assert made.params["a_D"] * 1e9 == pytest.approx(2.374e8, rel=1e-3)


def test_sparse_law_of_t5_beats_the_published_optimum(t5, vectors):
    columns, loss = t5
    made = fit(FORMS["sparse"], columns, loss, delta=0.001, mean=True)
    assert made.objective <= 4.89e-6
    assert made.objective == pytest.approx(vectors["sparse"]["t5_obj_best"], rel=1e-6)
    law = dict(published("sparse-t5").params)
    # the published units: parameters and tokens; here millions and 1e5 steps of 65,536 tokens
    in_units = {**law, "a_S": law["a_S"] * 1e6 ** -law["b_N"], "c_S": law["c_S"] * 1e6 ** -law["b_N"]}
    in_units["a_D"] = law["a_D"] / (65_536 * 1e5)
    assert made.problem.cost(FORMS["sparse"].inner(in_units)) == pytest.approx(7.6036e-6, rel=0.02)
    beyond = {"S": 0.75, "N": 48 * 12 * 1024**2 / 1e6, "D": 5.0}
    assert float(made.predict(beyond)[0]) == pytest.approx(vectors["sparse"]["t5_extrap_measured"], rel=0.02)


def test_leaving_out_the_edge_of_the_t5_data(t5):
    made = fit(FORMS["sparse"], *t5, delta=0.001, mean=True)
    rules = {held.rule: held for held in edge_holdouts(made)}
    assert rules["largest S"].relative < 0.04 and rules["largest N"].relative < 0.04
    # without the largest D only two amounts of data are left for the three parameters of their term
    assert "largest D" not in rules


@pytest.mark.parametrize(
    ("file", "form", "objective"),
    [
        ("gemstones/wandb_df_for_fitting_hot.jsonl", "chinchilla", 2.07505e-4),
        ("gemstones/wandb_df_for_fitting_hot_100b+.jsonl", "chinchilla", 6.92329e-4),
        ("gemstones/wandb_df_for_fitting_hot_100b+.jsonl", "width-depth", 2.94805e-4),
    ],
)
def test_gemstones(law_data, file, form, objective):
    names = ("params_active_precise", "tokens", "width", "depth", "final_loss")
    size, tokens, width, depth, loss = law_data.columns(file, *names)
    made = fit(FORMS[form], {"N": size, "D": tokens, "width": width, "depth": depth}, loss, delta=1e-4)
    assert made.objective <= objective * (1 + 1e-5)
    assert made.objective == pytest.approx(objective, rel=1e-3)


def test_overtrained_models_and_their_task_error(law_data, vectors):
    rows = [r for r in law_data.rows("overtraining/gadre_104_models.csv") if r["dataset_name"] == "rpj"]

    def columns(chosen, *names):
        return [np.array([float(r[name]) for r in chosen]) for name in names]

    def at(compute, size):
        return next(r for r in rows if float(r["cc_mult"]) == compute and abs(float(r["N"]) / size - 1) < 0.01)

    small = [at(1, n) for n in (10569312, 78914048, 153677376, 411616256)] + [at(16, 10569312)]
    large = [at(32, 1439795200), at(1, 6889410560)]
    size, tokens, loss = columns(small, "N", "D", "loss_c4_val")
    law = fit(FORMS["overtrained"], {"N": size, "D": tokens}, loss, space="linear", delta=np.inf)
    size, tokens, measured = columns(large, "N", "D", "loss_c4_val")
    predicted = law.predict(N=size, D=tokens)
    errors = vectors["gadre_rpj"]["rel_err"]
    assert np.abs(predicted / measured - 1) == pytest.approx(
        [errors["1.4B_M640_loss"], errors["6.9B_M20_loss"]], abs=5e-6
    )
    told = published("overtrained-redpajama").params
    assert law.params == pytest.approx(told, rel=1e-3)

    loss, error = columns([*small, at(1, 1439795200)], "loss_c4_val", "err_avg_subset")
    task = fit(FORMS["loss-to-error"], {"L": loss}, error, delta=np.inf)
    (found,) = columns(large, "err_avg_subset")
    assert np.abs(task.predict(L=predicted) / found - 1) == pytest.approx(
        [errors["1.4B_err"], errors["6.9B_err"]], abs=5e-5
    )
    assert task.params == pytest.approx(published("loss-to-error-redpajama").params, rel=1e-3)


def test_multipliers_of_the_t5_optimum_are_uncertain(t5):
    made = fit(FORMS["sparse"], *t5, delta=0.001, mean=True)
    draws = bootstrap(made, 200, 0).inner
    outer = made.form.outer(draws)
    at = [
        float(sparse_multiplier(made.form.with_values(dict(zip(made.form.names, row, strict=True))), 0.75))
        for row in outer
    ]
    low, high = np.quantile(at, (0.1, 0.9))
    assert 2.1 < low < float(sparse_multiplier(made.law, 0.75)) < high < 2.4
