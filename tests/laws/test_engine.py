"""The fitting engine: exact derivatives, known answers, refusals, warnings, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from law_worlds import WORLDS
from scipy.optimize import minimize as scipy_minimize

from edgescale.laws.checklist import checklist
from edgescale.laws.errors import ExtrapolationError, FitError
from edgescale.laws.fit import fit
from edgescale.laws.forms import FORMS, form_named, shared_slopes
from edgescale.laws.intervals import bootstrap, profile
from edgescale.laws.problem import problem_of
from edgescale.laws.solver import huber, minimise
from edgescale.laws.store import load, save
from edgescale.laws.validate import edge_holdouts, leave_out


@pytest.mark.parametrize("name", list(WORLDS))
def test_derivatives_equal_differences(name):
    world = WORLDS[name]
    form, rng = world.form, np.random.default_rng(1)
    columns = form.columns({k: v[:20] for k, v in world.inputs(rng).items()})
    inner = form.inner(world.truth)[None] * (1 + 0.01 * rng.standard_normal((3, len(form.parameters))))
    value, slopes = form.derivatives(inner, columns)
    assert value == pytest.approx(form.values(inner, columns))
    for index in range(inner.shape[1]):
        step = 1e-6 * max(1.0, abs(inner[0, index]))
        up, down = inner.copy(), inner.copy()
        up[:, index] += step
        down[:, index] -= step
        difference = (form.values(up, columns) - form.values(down, columns)) / (2 * step)
        assert slopes[:, index] == pytest.approx(difference, rel=1e-4, abs=1e-7 * np.abs(value).max())


@pytest.mark.parametrize("name", list(WORLDS))
def test_clean_data_give_the_curve_back(name):
    world = WORLDS[name]
    columns = world.inputs(np.random.default_rng(5))
    made = fit(world.form, columns, world.clean(columns), starts=80)
    beyond = {key: np.array([value]) for key, value in world.beyond.items()}
    assert made.predict(beyond) == pytest.approx(world.clean(beyond), rel=2e-3)


def test_the_solver_ends_where_scipy_ends():
    world = WORLDS["chinchilla"]
    rng = np.random.default_rng(2)
    columns = world.inputs(rng)
    y = world.observe(columns, rng)
    made = fit(world.form, columns, y)

    def loss(u):
        terms = [u[0] - u[3] * np.log(columns["N"]), u[1] - u[4] * np.log(columns["D"]), np.full(y.size, u[2])]
        r = np.abs(np.logaddexp.reduce(terms) - np.log(y))
        q = np.minimum(r, 1e-3)
        return 1e6 * (q * (r - q / 2)).sum()

    best = min(
        scipy_minimize(
            loss, made.inner + 0.02 * rng.standard_normal(5), method="Nelder-Mead",
            options={"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-10},
        ).fun
        for _ in range(3)
    )  # fmt: skip
    assert made.objective <= best / 1e6 * (1 + 1e-7)


def test_huber_is_quadratic_inside_and_linear_outside():
    assert huber(np.array([0.5, -3.0]), 1.0) == pytest.approx([0.125, 2.5])
    assert huber(np.array([-3.0]), np.inf) == pytest.approx([4.5])


def test_the_solver_respects_bounds_and_weights():
    target = np.array([1.0, 5.0])

    def residuals(inner, rows):
        return inner[:, :1] - target, np.ones((inner.shape[0], 1, 2))

    wide = np.array([-10.0]), np.array([10.0])
    found = minimise(residuals, np.zeros((2, 1)), delta=np.inf, bounds=wide, weights=np.array([[1.0, 0.0], [1.0, 3.0]]))
    assert found.inner[:, 0] == pytest.approx([1.0, 4.0])
    low = minimise(residuals, np.zeros((1, 1)), delta=np.inf, bounds=(np.array([-10.0]), np.array([2.0])))
    assert low.inner[0, 0] == pytest.approx(2.0)


def test_outliers_do_not_move_the_curve():
    world = WORLDS["power-law"]
    rng = np.random.default_rng(3)
    columns = world.inputs(rng)
    y = world.clean(columns) * np.exp(rng.normal(0, 0.002, world.count))
    y[:6] *= 1.5
    robust, plain = (fit(world.form, columns, y, delta=delta) for delta in (1e-3, np.inf))
    point = {"n": 4e5}
    truth = float(world.clean({"n": np.array([4e5])})[0])
    assert abs(float(robust.predict(point)[0]) / truth - 1) < 0.01
    assert abs(float(plain.predict(point)[0]) / truth - 1) > abs(float(robust.predict(point)[0]) / truth - 1)


def test_held_parameters_stay():
    world = WORLDS["chinchilla"]
    columns = world.inputs(np.random.default_rng(0))
    made = fit(world.form, columns, world.clean(columns), fixed={"E": 1.8})
    assert made.params["E"] == pytest.approx(1.8) and made.free_count == 4


def test_a_seed_reproduces_and_a_hash_tells_data_apart():
    world = WORLDS["power-law"]
    rng = np.random.default_rng(4)
    columns = world.inputs(rng)
    y = world.observe(columns, rng)
    first, again, other = fit(world.form, columns, y), fit(world.form, columns, y), fit(world.form, columns, y * 1.001)
    assert (first.inner == again.inner).all() and first.data_sha256 == again.data_sha256 != other.data_sha256
    assert (bootstrap(first, 50, 7).inner == bootstrap(again, 50, 7).inner).all()


@pytest.mark.parametrize(
    ("form", "columns", "y", "says"),
    [
        ("chinchilla", {"N": [1e6, 1e7, 1e8], "D": [1e9, 1e8, 1e9]}, [3, 2.5, 2], "3 points cannot determine"),
        ("power-law", {"n": [10] * 9}, np.linspace(1, 2, 9), "distinct input points"),
        ("power-law", {"n": np.arange(1, 10)}, np.ones(9), "same in all 9 rows"),
        ("power-law", {"n": np.arange(0, 9)}, np.linspace(1, 2, 9), "column 'n', row 0"),
        ("power-law", {"n": np.arange(1, 10)}, [1, 2, 3, np.nan, 5, 6, 7, 8, 9], "row 3: not a finite number"),
        ("power-law", {"n": np.arange(1, 10)}, np.linspace(-1, 2, 9), "no logarithm"),
        ("power-law", {"size": np.arange(1, 10)}, np.linspace(1, 2, 9), "needs a column 'n'"),
        ("power-law", {"n": np.arange(1, 8)}, np.linspace(1, 2, 9), "7 rows"),
        ("power-law", {"n": ["a"] * 9}, np.linspace(1, 2, 9), "no number"),
    ],
)
def test_what_cannot_be_fitted_is_refused(form, columns, y, says):
    with pytest.raises(FitError, match=says):
        fit(FORMS[form], columns, y)


def test_collinear_inputs_are_refused_or_named():
    size = np.geomspace(1e6, 1e9, 40)
    data = {"N": size, "D": 20 * size}
    y = 1.8 + 400 * size**-0.35 + 900 * (20 * size) ** -0.35
    try:
        made = fit(FORMS["chinchilla"], data, y)
    except FitError as error:
        assert "apart" in str(error)
    else:
        assert any("together" in w or "no influence" in w for w in made.warnings)


def test_a_flat_direction_is_named():
    rng = np.random.default_rng(0)
    size, data = np.exp(rng.uniform(13.8, 15, 60)), np.exp(rng.uniform(20, 20.2, 60))
    y = (1.8 + 400 * size**-0.35 + 2000 * data**-0.36) * np.exp(rng.normal(0, 0.001, 60))
    made = fit(FORMS["chinchilla"], {"N": size, "D": data}, y)
    assert any("B" in w and ("together" in w or "influence" in w or "bound" in w) for w in made.warnings)


def test_a_law_that_turns_refuses_to_go_beyond():
    n = np.geomspace(1e2, 1e5, 60)
    y = np.exp(-1 + 0.05 * np.log(n / 2e4) ** 2)
    made = fit(FORMS["turning"], {"n": n}, y)
    assert made.params["n_turn"] == pytest.approx(2e4, rel=1e-3)
    assert float(made.predict(n=1e4)[0]) > 0
    with pytest.raises(ExtrapolationError, match="turns at n"):
        made.predict(n=1e6)


def test_profile_and_bootstrap_agree():
    world = WORLDS["power-law"]
    rng = np.random.default_rng(11)
    columns = world.inputs(rng)
    made = fit(world.form, columns, world.observe(columns, rng, outliers=0.0), delta=np.inf)
    by_refit = bootstrap(made, 600, 0).intervals()["alpha"]
    by_profile = profile(made, "alpha")
    assert by_profile.low < made.params["alpha"] < by_profile.high
    width = by_profile.high - by_profile.low
    assert 0.6 < width / (by_refit.high - by_refit.low) < 1.6


def test_an_unbounded_side_is_infinite():
    n = np.geomspace(1e2, 1e4, 30)
    y = 2.0 * n**-0.3 * np.exp(np.random.default_rng(0).normal(0, 0.02, 30))
    made = fit(FORMS["power-law"], {"n": n}, y)
    assert profile(made, "E").low < 1e-3


def test_groups_widen_intervals_of_clustered_rows():
    rng = np.random.default_rng(8)
    runs = np.repeat(np.arange(12), 10)
    n = np.exp(np.repeat(rng.uniform(5, 11, 12), 10))
    y = (0.1 + 3 * n**-0.4) * np.exp(np.repeat(rng.normal(0, 0.03, 12), 10) + rng.normal(0, 0.002, 120))
    made = fit(FORMS["power-law"], {"n": n * np.exp(rng.normal(0, 0.01, 120))}, y, delta=0.1)
    alone, grouped = bootstrap(made, 300, 0), bootstrap(made, 300, 0, groups=runs)
    assert grouped.standard_errors()["alpha"] > 1.5 * alone.standard_errors()["alpha"]


def test_leaving_rows_out():
    world = WORLDS["chinchilla"]
    rng = np.random.default_rng(1)
    columns = world.inputs(rng)
    made = fit(world.form, columns, world.observe(columns, rng))
    held = leave_out(made, columns["N"] > 3e8, "N above 3e8")
    assert held.count == int((columns["N"] > 3e8).sum()) and held.relative < 0.02
    assert {h.rule for h in edge_holdouts(made)} == {"largest N", "largest D"}
    with pytest.raises(FitError):
        leave_out(made, np.zeros(world.count, bool), "nothing")


def test_a_fit_file_predicts_what_the_fit_predicts(tmp_path):
    world = WORLDS["weight-precision"]
    rng = np.random.default_rng(1)
    columns = world.inputs(rng)
    made = fit(world.form, columns, world.observe(columns, rng))
    refits = bootstrap(made, 100, 3)
    save(tmp_path / "fit.json", refits, checklist(made, refits))
    saved = load(tmp_path / "fit.json")
    point = {"N": [1e8], "D": [1e10], "P_w": [4.0]}
    ours, theirs = refits.band(point), saved.band(point)
    assert theirs.value == pytest.approx(ours.value) and theirs.low == pytest.approx(ours.low, rel=1e-6)
    wide = saved.band(point, observation=True)
    assert wide.low < theirs.low and wide.high > theirs.high
    assert saved.data_sha256 == made.data_sha256
    assert saved.beyond({"N": [4e9], "D": [1e10]}) and not saved.beyond({"N": [1e8], "D": [1e10], "P_w": [4.0]})
    found = json.loads((tmp_path / "fit.json").read_text())["checklist"]
    assert found["data"]["sha256"] == made.data_sha256 and found["set-up"]["training"] == "not stated"
    assert "Huber" in found["optimisation"]["loss"]
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(FitError, match="no fit file"):
        load(tmp_path / "fit.json")
    with pytest.raises(FitError, match="does not exist"):
        load(tmp_path / "none.json")


def test_families_share_slopes_and_keep_intercepts():
    form = shared_slopes(("a", "b", "c"))
    assert form_named(form.name).names == form.names
    with pytest.raises(FitError, match="unknown law"):
        form_named("nonsense")
    with pytest.raises(FitError, match="no parameter"):
        problem_of(FORMS["power-law"], {"n": np.arange(1, 9)}, np.arange(1, 9), fixed={"Z": 1.0})
