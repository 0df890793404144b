"""Selection under budgets against brute force over the definition."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgescale.bundle.policy import binding, decide
from edgescale.core.budget import Budget, Constraint, parse_budget
from edgescale.core.errors import UsageError
from edgescale.core.measurement import METRIC_UNITS
from edgescale.core.quantity import Quantity
from edgescale.select import Candidate, pareto_names, select, smallest

INF = float("inf")
RELATION = {"latency": "<=", "ram": "<=", "flash": "<=", "accuracy": ">="}


def figures(values: Mapping[str, float], source: str = "measured") -> dict[str, Quantity]:
    return {m: Quantity(v, METRIC_UNITS[m], source, "by hand") for m, v in values.items()}  # type: ignore[arg-type]


def make(name: str, target: str = "host", recipe: str = "fp32", model: str = "", **values: float) -> Candidate:
    return Candidate(name, model or name, recipe, target, figures(values), {"energy": "no power figure"})


values = st.fixed_dictionaries(
    {}, optional={"latency": st.integers(1, 4), "ram": st.integers(1, 4), "flash": st.integers(1, 4)}
).flatmap(lambda d: st.integers(1, 4).map(lambda a: {**d, "accuracy": a / 4}))
families = st.lists(values, min_size=1, max_size=7).map(
    lambda rows: {f"v{i}": {k: float(v) for k, v in row.items()} for i, row in enumerate(rows)}
)
budgets = st.dictionaries(st.sampled_from(list(RELATION)), st.integers(0, 4), max_size=4).map(
    lambda limits: Budget(
        tuple(
            Constraint(m, RELATION[m], float(v) / (4 if m == "accuracy" else 1))  # type: ignore[arg-type]
            for m, v in limits.items()
        )
    )
)


def meets(row: Mapping[str, float], budget: Budget) -> bool:
    for c in budget.constraints:
        if c.metric not in row:
            return False
        if (row[c.metric] > c.limit) if c.relation == "<=" else (row[c.metric] < c.limit):
            return False
    return True


def order_of(name: str, row: Mapping[str, float]) -> tuple[object, ...]:
    return (-row["accuracy"], row.get("latency", INF), row.get("flash", INF), row.get("ram", INF), name)


@given(families, budgets)
def test_chooses_what_brute_force_chooses(family: dict[str, dict[str, float]], budget: Budget) -> None:
    selection = select([make(name, **row) for name, row in family.items()], budget)
    feasible = sorted((order_of(n, r), n) for n, r in family.items() if meets(r, budget))
    assert selection.feasible == bool(feasible)
    assert {v.name for v in selection.ranking} == set(family)
    assert [v.name for v in selection.ranking[: len(feasible)]] == [name for _, name in feasible]
    if feasible:
        assert selection.chosen is not None and selection.chosen.name == feasible[0][1]
        assert not selection.binding
        everything = {n: figures(r) for n, r in family.items() if meets(r, budget)}
        assert selection.chosen.name in pareto_names(everything)
    else:
        assert selection.chosen is None and selection.binding
        for left, right in zip(selection.ranking, selection.ranking[1:], strict=False):
            assert (left.unknown, left.violation) <= (right.unknown, right.violation)


@given(families, budgets)
def test_run_time_policy_agrees_with_selection(family: dict[str, dict[str, float]], budget: Budget) -> None:
    selection = select([make(name, **row) for name, row in family.items()], budget)
    order = {n: figures(r) for n, r in sorted(family.items(), key=lambda item: order_of(*item))}
    decision = decide(order, smallest(order), budget)
    assert decision.met == selection.feasible
    assert decision.name == (selection.best.name if selection.feasible else selection.fallback)
    assert decision.binding == selection.binding


@given(families, budgets)
def test_binding_limits_exclude_everyone_and_none_is_spare(family: dict[str, dict[str, float]], budget: Budget) -> None:
    blame = binding(budget, {n: figures(r) for n, r in family.items()})
    if any(meets(r, budget) for r in family.values()):
        assert blame == ()
        return
    alone = [c for c in budget.constraints if not any(meets(r, Budget((c,))) for r in family.values())]
    if alone:
        assert list(blame) == alone
        return
    assert not any(meets(r, Budget(blame)) for r in family.values())
    for size in range(1, len(blame)):
        for group in combinations(budget.constraints, size):
            assert any(meets(r, Budget(group)) for r in family.values())


def test_verdict_table_tells_value_source_margin() -> None:
    budget = parse_budget("latency<=4ms, accuracy>=0.8, energy<=1mJ")
    verdict = select([make("a", latency=5.0, accuracy=0.9)], budget).best
    latency, accuracy, energy = verdict.rows
    assert (latency.value, latency.source, latency.holds) == (5.0, "measured", False)
    assert latency.margin == pytest.approx(-0.25)
    assert (accuracy.holds, accuracy.note) == (True, "by hand")
    assert accuracy.margin == pytest.approx(0.125)
    assert (energy.value, energy.source, energy.margin, energy.note) == (None, "unavailable", None, "no power figure")
    assert verdict.violation == pytest.approx(0.25) and verdict.unknown == 1
    assert [row.metric for row in verdict.missed] == ["latency", "energy"]
    assert verdict.misses() == "latency<=4ms (has 5 ms), energy<=1000uJ (has no such figure)"


def test_infeasible_names_the_nearest_and_the_limit() -> None:
    family = [make("big", latency=9, flash=300_000, accuracy=0.9), make("tiny", latency=2, flash=30_000, accuracy=0.8)]
    selection = select(family, parse_budget("latency<=1ms, flash<=40kB"))
    assert selection.chosen is None and selection.best.name == "tiny"
    assert [str(c) for c in selection.binding] == ["latency<=1ms"]
    assert "no variant meets latency<=1ms (the best has 2 ms); nearest is tiny" in selection.reason
    clash = select(family, parse_budget("flash<=40kB, accuracy>=0.85"))
    assert [c.metric for c in clash.binding] == ["flash", "accuracy"]
    assert "no variant meets flash<=40000B and accuracy>=0.85 together" in clash.reason
    unknown = select(family, parse_budget("energy<=1J"))
    assert "no variant has a figure for energy" in unknown.reason


def test_error_metrics_are_minimised() -> None:
    family = [make("a", error=0.3, latency=1), make("b", error=0.1, latency=2)]
    assert select(family, Budget()).best.name == "b"


def test_without_quality_cost_decides_and_is_told() -> None:
    selection = select([make("a", latency=3, flash=1), make("b", latency=1, flash=9)], Budget())
    assert selection.best.name == "b"
    assert any("ordered by cost alone" in text for text in selection.warnings)


class TestWorseWarnings:
    def test_slower_compressed_variant_is_told_with_its_ratio(self) -> None:
        family = [
            make("m-fp32", model="m", latency=1.0, accuracy=0.9),
            make("m-w8a8", model="m", recipe="w8a8", latency=1.3, accuracy=0.89),
        ]
        selection = select(family, Budget())
        assert selection.best.name == "m-fp32"
        assert selection.warnings == ("m-w8a8 is slower than m-fp32 on host (x1.30: 1.3 ms against 1 ms)",)

    def test_its_choice_says_what_it_is_for(self) -> None:
        family = [
            make("m-fp32", model="m", latency=1.0, accuracy=0.9, flash=400.0),
            make("m-w8a8", model="m", recipe="w8a8", latency=1.3, accuracy=0.89, flash=100.0),
        ]
        (text,) = select(family, parse_budget("flash<=200B")).warnings
        assert text.endswith("it was chosen for its flash")

    def test_four_bits_are_compared_with_eight(self) -> None:
        family = [
            make("m-w8a8", model="m", recipe="w8a8", latency=10.0, accuracy=0.90, flash=18_000.0),
            make("m-w8a8-o1", model="m", recipe="w8a8-o1", latency=11.0, accuracy=0.90, flash=18_000.0),
            make("m-w4a8", model="m", recipe="w4a8", latency=20.0, accuracy=0.91, flash=19_000.0),
            make("m-auto-o1", model="m", recipe="auto-o1", latency=10.0, accuracy=0.89, flash=18_500.0),
            make("m-w4a16", model="m", recipe="w4a16", latency=90.0, accuracy=0.5, flash=90_000.0),
        ]
        selection = select(family, Budget())
        assert selection.best.name == "m-w4a8"
        slower, larger = (text for text in selection.warnings if "limit chooses" not in text)
        assert slower.startswith(
            "m-w4a8 is slower than m-w8a8 on host (x2.00: 20 ms against 10 ms) and larger (18.6 KiB"
        )
        assert slower.endswith("it was chosen for its quality")
        assert larger.startswith("m-auto-o1 is larger than m-w8a8-o1 on host (18.1 KiB against 17.6 KiB)")

    def test_faster_or_other_model_or_noise_is_not(self) -> None:
        family = [
            make("m-fp32", model="m", latency=1.0, accuracy=0.9),
            make("m-w8a8", model="m", recipe="w8a8", latency=1.02, accuracy=0.9),
            make("n-w8a8", model="n", recipe="w8a8", latency=9.0, accuracy=0.9),
        ]
        assert select(family, Budget()).warnings == ()


class TestSmallest:
    def test_least_flash_and_ram(self) -> None:
        assert smallest({"a": figures({"flash": 5, "ram": 5}), "b": figures({"flash": 8, "ram": 1})}) == "b"

    def test_tie_goes_to_less_ram_then_preference(self) -> None:
        assert smallest({"a": figures({"flash": 4, "ram": 6}), "b": figures({"flash": 6, "ram": 4})}) == "b"
        same = {"flash": 1.0, "ram": 1.0}
        assert smallest({"a": figures({**same, "accuracy": 0.1}), "b": figures({**same, "accuracy": 0.2})}) == "b"

    def test_missing_figures_come_last(self) -> None:
        assert smallest({"a": figures({"flash": 1}), "b": figures({"flash": 900, "ram": 900})}) == "b"
        assert smallest({"a": figures({"flash": 2}), "b": figures({"flash": 1})}) == "b"

    def test_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="no entries"):
            smallest({})


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="no variant"):
        select([], Budget())
    with pytest.raises(UsageError, match="one target"):
        select([make("a"), make("b", target="m4")], Budget())
    with pytest.raises(UsageError, match="share a name"):
        select([make("a"), make("a")], Budget())


def test_a_much_cheaper_variant_nearly_as_good_is_pointed_out() -> None:
    best = make("big", accuracy=0.917, latency=133.0, flash=100_000)
    close = make("small", accuracy=0.916, latency=50.0, flash=30_000)
    far = make("poor", accuracy=0.80, latency=1.0, flash=3_000)
    warnings = select([best, close, far], Budget()).warnings
    assert [w for w in warnings if "small" in w and "0.10 points" in w and "2.7 times faster" in w]
    assert not any("poor" in w for w in warnings)
