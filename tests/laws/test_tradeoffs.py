"""What follows from published laws, against the check vectors and against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.laws.costs.lifetime import plan_lifetime
from edgescale.laws.errors import FitError
from edgescale.laws.forms import FORMS
from edgescale.laws.published import PUBLISHED, published
from edgescale.laws.tradeoffs import (
    best_sparsity,
    best_training_precision,
    critical_data,
    optimal_split,
    precision_factor,
    pruning_cost,
    sparse_multiplier,
    vanishing_bits,
)


def test_effective_parameters_of_the_precision_law(vectors):
    law = published("precision")
    for bits, share in vectors["precision"]["Neff_over_N_w"].items():
        assert float(precision_factor(law, float(bits))) == pytest.approx(share, abs=6e-4)
    for bits, share in vectors["precision"]["Neff_over_N_joint"].items():
        assert float(precision_factor(law, *[float(bits)] * 3)) == pytest.approx(share, abs=6e-4)
    assert vanishing_bits(law, "a") == pytest.approx(vectors["precision"]["act_zero_bits"], abs=0.005)
    assert float(precision_factor(law, act=3.0)) == 0.0


def test_best_training_precision_is_seven_bits_and_needs_the_offsets():
    law = published("precision")
    assert best_training_precision(law) == pytest.approx(7.0, abs=0.05)
    without = law.form.with_values({**law.params, "n_w": 0.0, "n_a": 0.0, "n_kv": 0.0})
    assert best_training_precision(without) == pytest.approx(3.47, abs=0.02)


@pytest.mark.parametrize(("size", "key"), [(30e6, "ptq_delta_N30M_D26B"), (220e6, "ptq_delta_N220M_D26B")])
def test_loss_added_by_quantizing_after_training(vectors, size, key):
    law = published("quantization-loss")
    for bits, added in vectors["precision"][key].items():
        assert float(law.predict(N=size, D=26e9, P_post=float(bits))[0]) == pytest.approx(added, rel=0.03)


def test_critical_data_is_where_the_sum_turns():
    law, added = published("precision"), published("quantization-loss")
    turn = critical_data(law, added, 60e6, 4.0)
    data = turn * np.array([0.8, 1.0, 1.25])
    total = law.predict(N=60e6, D=data) + added.predict(N=60e6, D=data, P_post=4.0)
    assert total[1] < total[0] and total[1] < total[2]


def test_sparse_multipliers():
    t5, vit = published("sparse-t5"), published("sparse-vit")
    assert sparse_multiplier(t5, [0.5, 0.75, 0.875]) == pytest.approx([1.587, 2.160, 2.635], abs=2e-3)
    assert sparse_multiplier(vit, [0.5, 0.75, 0.875]) == pytest.approx([1.596, 2.172, 2.633], abs=2e-3)
    assert float(sparse_multiplier(t5, 1 - 1e-12)) == pytest.approx(3.65, abs=0.01)


def test_best_sparsity_equals_the_table_and_a_search(vectors):
    law = published("sparse-t5")
    for size, row in vectors["sparse"]["S_opt_T5"].items():
        for compute, wanted in row.items():
            found = float(best_sparsity(law, float(size), float(compute)))
            assert found == pytest.approx(wanted, abs=6e-4)
            grid = np.linspace(0, 0.99, 20_001)
            data = float(compute) * (1 - grid) / (6 * float(size))
            loss = law.predict(S=grid, N=np.full(grid.size, float(size)), D=data)
            assert found == pytest.approx(grid[int(np.argmin(loss))], abs=1e-3)


def test_pruning_cost_is_dense_cost_at_no_sparsity():
    assert pruning_cost(1e6, 1e9, 0.0) == 6e15
    assert pruning_cost(1e6, 1e9, 0.75) == pytest.approx(6e15 * 0.53125 / 0.25)


def test_dense_and_sparse_law_is_chinchilla_at_no_sparsity():
    values = {"e": 1.7, "gamma": 0.1, "a": 400.0, "c": 90.0, "alpha": 0.3, "b": 500.0, "beta": 0.3}
    dense = {"A": 400.0, "B": 500.0, "E": 1.7, "alpha": 0.3, "beta": 0.3}
    point = {"N": 1e8, "D": 1e10}
    assert FORMS["dense-and-sparse"].with_values(values).predict(point, S=0.0) == pytest.approx(
        FORMS["chinchilla"].with_values(dense).predict(point)
    )


def test_lifetime_demand(vectors):
    law = published("beyond-chinchilla")
    for row in vectors["beyond_chinchilla"]:
        plan = plan_lifetime(law, row["N0"], row["D_inf"])
        assert plan.n == pytest.approx(row["N"], rel=0.004)
        assert plan.d == pytest.approx(row["D"], rel=0.004)
        assert plan.saving == pytest.approx(row["saving"], abs=0.0006)
    none = plan_lifetime(law, 30e9, 0.0)
    assert none.n == pytest.approx(30e9, rel=1e-6) and none.saving == pytest.approx(0, abs=1e-9)


def test_optimal_split_is_a_minimum():
    law = published("chinchilla-replication")
    size, data = optimal_split(law, 5.76e23)
    assert 6 * size * data == pytest.approx(5.76e23)
    around = law.predict(N=size * np.array([0.9, 1, 1.1]), D=data / np.array([0.9, 1, 1.1]))
    assert around.argmin() == 1


def test_experts_law_falls_with_experts():
    loss = published("experts").predict(N=1.1e9, D=1e11, experts=[1, 2, 4, 8, 16, 32])
    assert loss == pytest.approx([2.427, 2.406, 2.380, 2.352, 2.322, 2.294], abs=1e-3)


def test_parallel_streams_follow_their_formula(vectors):
    for name, where in (("parallel-stack", "stack"), ("parallel-pile", "pile")):
        told = vectors["parscale"][where]
        assert published(name).params == pytest.approx({k: told[k] for k in ("E", "A", "alpha", "k")}, rel=1e-4)
    e, a, alpha, k = (vectors["parscale"]["stack"][x] for x in ("E", "A", "alpha", "k"))
    by_hand = e + (a / (1.6e9 * (k * np.log(4) + 1))) ** alpha
    assert float(published("parallel-stack").predict(N=1.6e9, P=4)[0]) == pytest.approx(by_hand, rel=1e-4)


def test_every_published_law_predicts_and_names_its_source():
    for name, law in PUBLISHED.items():
        point = {i.name: 3.0 if i.unit == "nat" else (0.5 if i.name == "S" else 8.0) for i in law.form.inputs}
        point |= {i.name: 1e10 for i in law.form.inputs if i.name in ("N", "D")}
        assert np.isfinite(law.predict(point)).all() and "arXiv" in law.cite, name


def test_a_tradeoff_of_the_wrong_law_is_refused():
    with pytest.raises(FitError, match="sparse"):
        sparse_multiplier(published("precision"), 0.5)
    with pytest.raises(FitError, match="no published law"):
        published("gpt")
