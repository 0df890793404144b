"""The session: which variant answers, with what, and how it says so."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.bundle import open_bundle, write_bundle
from edgescale.core.budget import Budget, Constraint, parse_budget
from edgescale.core.errors import EdgescaleError, UsageError
from edgescale.runtime import BudgetWarning, RunResult, Session

X = np.array([0.5, -1.0, 2.0, 0.25], np.float32)


@pytest.fixture
def session(bundle_path: Path) -> Session:
    return Session(bundle_path)


def expected(toys: ModuleType, name: str, x: Any) -> np.ndarray:
    return toys.FAMILY[name][0] * (np.asarray(x, np.float32) @ toys.WEIGHTS)


class TestChoosing:
    @pytest.mark.parametrize(
        ("budget", "name"),
        [
            ("", "large"),
            ("none", "large"),
            ("latency<=20ms", "large"),
            ("latency<=5ms", "medium"),
            ("latency<=2ms", "small"),
            ("flash<=300KiB, accuracy>=0.9", "medium"),
            ("ram<=20000B", "small"),
        ],
    )
    def test_best_that_fits(self, session: Session, toys: ModuleType, budget: str, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = session.run(X, budget)
        assert (result.variant, result.entry, result.met) == (f"{name}-fp32", f"{name}-fp32@host", True)
        np.testing.assert_allclose(result.output, expected(toys, name, X), rtol=1e-5)
        assert result.figures["latency"].value == toys.FAMILY[name][1]["latency"]
        assert str(parse_budget(budget)) in result.reason or budget in ("", "none")

    def test_no_budget_is_the_bundles_default(self, session: Session) -> None:
        choice = session.choose()
        assert (choice.variant, choice.met) == ("medium-fp32", True)
        assert choice.reason == "the bundle's default meets the bundle's budget (latency<=5ms)"

    def test_a_bundle_made_without_budget(self, toys: ModuleType, tmp_path: Path) -> None:
        choice = Session(toys.family_bundle(tmp_path, "")).choose()
        assert (choice.variant, choice.met, choice.unmet) == ("medium-fp32", True, ())
        assert "made without a budget" in choice.reason

    def test_nothing_fits_runs_the_smallest_and_says_so_once(self, session: Session, toys: ModuleType) -> None:
        with pytest.warns(BudgetWarning, match=r"no variant meets latency<=0\.5ms \(the best has 1 ms\)"):
            result = session.run(X, "latency<=0.5ms")
        assert (result.variant, result.met) == ("small-fp32", False)
        assert "fell back to the smallest, small-fp32@host" in result.reason
        np.testing.assert_allclose(result.output, expected(toys, "small", X), rtol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session.run(X, "latency <= 500us")
        with pytest.warns(BudgetWarning, match="latency<=2ms and accuracy>=0.9 together"):
            session.run(X, "latency<=2ms, accuracy>=0.9")

    def test_choosing_does_not_warn(self, session: Session) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            choice = session.choose("latency<=0.5ms, accuracy>=0.5")
        assert not choice.met and [str(c) for c in choice.unmet] == ["latency<=0.5ms"]

    def test_default_that_misses_the_bundles_budget_is_told(self, toys: ModuleType, tmp_path: Path) -> None:
        session = Session(toys.family_bundle(tmp_path, "latency<=5ms, accuracy>=0.95"))
        with pytest.warns(BudgetWarning, match=r"default misses accuracy>=0\.95 \(has 0\.9000\)"):
            assert not session.run(X).met

    def test_an_unknown_figure_never_meets_a_limit(self, session: Session) -> None:
        assert not session.choose("energy<=1J").met
        assert "no variant has a figure for energy" in session.choose("energy<=1J").reason

    def test_wrong_budgets(self, session: Session) -> None:
        for text in ("fast", "latency<=5", "speed<=3ms"):
            with pytest.raises(UsageError, match="budget"):
                session.run(X, text)

    def test_variants_are_best_first(self, session: Session) -> None:
        variants = session.variants()
        assert [v.variant for v in variants] == ["large-fp32", "medium-fp32", "small-fp32"]
        assert [v.met for v in variants] == [False, True, True]
        assert "latency<=5ms (has 9 ms)" in variants[0].reason


metric_values = {"latency": [1.0, 2.0, 3.0], "ram": [10.0, 20.0], "flash": [10.0, 20.0], "accuracy": [0.7, 0.8, 0.9]}
rows = st.fixed_dictionaries({"accuracy": st.sampled_from(metric_values["accuracy"])}).flatmap(
    lambda base: st.fixed_dictionaries(
        {}, optional={m: st.sampled_from(v) for m, v in metric_values.items() if m != "accuracy"}
    ).map(lambda rest: {**base, **rest})
)
limits = st.dictionaries(st.sampled_from(list(metric_values)), st.integers(0, 3), max_size=4).map(
    lambda picks: Budget(
        tuple(
            Constraint(m, ">=" if m == "accuracy" else "<=", [0.0, *metric_values[m], 99.0][i])
            for m, i in picks.items()
        )
    )
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.lists(rows, min_size=1, max_size=4), budgets=st.lists(limits, min_size=1, max_size=8))
def test_any_bundle_decides_as_brute_force(
    toys: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
    family: list[dict[str, float]],
    budgets: list[Budget],
) -> None:
    folder = tmp_path_factory.mktemp("family")
    entries = [toys.make_entry(folder / "made", f"v{i}", row) for i, row in enumerate(family)]
    session = Session(write_bundle(folder / "b", entries, toys.context("")))
    inf = float("inf")

    def fits(row: dict[str, float], c: Constraint) -> bool:
        return c.metric in row and (row[c.metric] >= c.limit if c.relation == ">=" else row[c.metric] <= c.limit)

    def memory(i: int) -> tuple[float, ...]:
        known = [family[i][m] for m in ("flash", "ram") if m in family[i]]
        return (-len(known), sum(known), family[i].get("ram", inf), *merit(i))

    def merit(i: int) -> tuple[float, ...]:
        row = family[i]
        return (-row["accuracy"], *(row.get(m, inf) for m in ("latency", "flash", "ram")), i)

    for budget in budgets:
        feasible = [i for i, row in enumerate(family) if all(fits(row, c) for c in budget.constraints)]
        winner = min(feasible, key=merit) if feasible else min(range(len(family)), key=memory)
        choice = session.choose(budget)
        assert (choice.variant, choice.met) == (f"v{winner}-fp32", bool(feasible))
        assert session.choose(str(budget)) == choice


class TestInputs:
    def test_sample_and_batch(self, session: Session, toys: ModuleType) -> None:
        batch = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
        result = session.run(batch)
        assert result.output.shape == (7, 3)
        np.testing.assert_allclose(result.outputs["y"], expected(toys, "medium", batch), rtol=1e-5)
        assert session.run(batch[:1]).output.shape == (1, 3)
        assert session.run(batch[0]).output.shape == (3,)
        assert session.run({"x": batch}).output.shape == (7, 3)

    @pytest.mark.parametrize("x", [[1, 2, 3, 4], np.arange(4), np.arange(4.0), np.arange(4, dtype=np.uint8)])
    def test_numbers_are_converted(self, session: Session, toys: ModuleType, x: Any) -> None:
        np.testing.assert_allclose(session.run(x).output, expected(toys, "medium", x), rtol=1e-5)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (np.zeros(5, np.float32), r"input x has shape \(5,\); .* one sample \(4,\) or a batch \(n, 4\)"),
            (np.zeros((2, 5), np.float32), r"shape \(2, 5\)"),
            (np.zeros((2, 2, 4), np.float32), r"shape \(2, 2, 4\)"),
            (np.float32(1), r"shape \(\)"),
            (np.zeros((0, 4), np.float32), "empty"),
            (np.zeros(4, complex), "complex128; the model takes float32"),
            (["a", "b", "c", "d"], "the model takes float32"),
            ([[1.0, 2.0], [3.0]], "not an array"),
            (None, "object"),
            ({"z": np.zeros(4)}, "lacks x; the model takes x"),
            ({"x": np.zeros(4), "z": np.zeros(4)}, "names z"),
        ],
    )
    def test_wrong_inputs_are_one_clear_sentence(self, session: Session, x: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            session.run(x, "latency<=0.1ms")
        assert "\n" not in str(caught.value)


class TestTargets:
    def test_a_bundle_of_c_code_says_what_to_do(self, toys: ModuleType, tmp_path: Path) -> None:
        entry = toys.make_entry(tmp_path / "made", "m", {"latency": 1.0}, target=toys.BOARD)
        path = write_bundle(tmp_path / "b", [entry], toys.context())
        with pytest.raises(UsageError, match=r"only C code for m4.*firmware from .*m-fp32@m4.*--target host"):
            Session(path)

    def test_named_targets(self, bundle_path: Path) -> None:
        assert Session(bundle_path, target="host").target == "host"
        with pytest.raises(UsageError, match=r"only C code for m4.*use target host"):
            Session(bundle_path, target="m4")
        with pytest.raises(UsageError, match="it serves: host, m4"):
            Session(bundle_path, target="m7")

    def test_c_code_of_the_same_target_is_passed_over(self, toys: ModuleType, tmp_path: Path) -> None:
        import dataclasses

        small = toys.make_entry(tmp_path / "c", "m", {"ram": 1.0, "flash": 1.0}, target=toys.BOARD, selected=True)
        artifact = dataclasses.replace(small.artifact, target="host")
        small = dataclasses.replace(small, target=toys.HOST, artifact=artifact)
        large = toys.make_entry(tmp_path / "onnx", "m", {"ram": 9.0, "flash": 9.0})
        session = Session(write_bundle(tmp_path / "b", [small, large], toys.context("")))
        assert [v.entry for v in session.variants()] == ["m-fp32@host:b_onnx"]
        assert session.choose().entry == session.choose("ram<=2B").entry == "m-fp32@host:b_onnx"


class TestLife:
    def test_damage_is_noticed_at_the_door(self, bundle_path: Path) -> None:
        model = bundle_path / "artifacts" / "small-fp32@host" / "model.onnx"
        model.write_bytes(model.read_bytes()[:-1] + b"\x00")
        with pytest.raises(EdgescaleError, match=r"changed.*model\.onnx"):
            Session(bundle_path)

    def test_a_broken_model_without_verification_is_one_sentence(self, bundle_path: Path) -> None:
        (bundle_path / "artifacts" / "small-fp32@host" / "model.onnx").write_bytes(b"no model")
        session = Session(bundle_path, verify=False)
        assert session.run(X, "accuracy>=0.9").met
        with pytest.raises(EdgescaleError, match="small-fp32"):
            session.run(X, "latency<=2ms")

    def test_variants_are_opened_once_and_when_needed(self, bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import edgescale.runtime.ort as ort

        opened: list[tuple[str, Any]] = []
        original = ort.open_session

        def spy(path: Path, options: Any) -> Any:
            opened.append((path.parent.name, options["intra_op_num_threads"]))
            return original(path, options)

        monkeypatch.setattr(ort, "open_session", spy)
        with Session(bundle_path, threads=2) as session:
            session.choose("latency<=2ms")
            assert opened == []
            for _ in range(3):
                session.run(X)
                session.run(X, "latency<=2ms")
        assert opened == [("medium-fp32@host", 2), ("small-fp32@host", 2)]

    def test_closed(self, session: Session) -> None:
        session.run(X)
        session.close()
        session.close()
        with pytest.raises(UsageError, match="closed"):
            session.run(X)

    def test_threads_are_checked(self, bundle_path: Path) -> None:
        with pytest.raises(UsageError, match="at least 1"):
            Session(bundle_path, threads=0)

    def test_observed_latency_is_measured_here(self, session: Session) -> None:
        assert session.observed == {}
        result = session.run(np.stack([X] * 5))
        assert result.observed.source == "measured" and result.observed.unit == "ms"
        assert 0 < result.observed.value < 1000
        for _ in range(200):
            session.run(X, "latency<=2ms")
        observed = session.observed
        assert set(observed) == {"medium-fp32@host", "small-fp32@host"}
        assert observed[result.entry] == result.observed
        assert "101 runs" in observed["small-fp32@host"].note

    def test_many_threads(self, session: Session, toys: ModuleType) -> None:
        budgets = {"large": "", "medium": "latency<=5ms", "small": "latency<=2ms"}
        failures: list[str] = []

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(20):
                name = list(budgets)[int(rng.integers(3))]
                x = rng.normal(size=4).astype(np.float32)
                result: RunResult = session.run(x, budgets[name])
                if not np.allclose(result.output, expected(toys, name, x), rtol=1e-4, atol=1e-5):
                    failures.append(name)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_bundle_is_at_hand(self, session: Session, bundle_path: Path) -> None:
        assert session.bundle == open_bundle(bundle_path)
