"""Budgets: what the text means, what is refused, and when a limit holds."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgescale.core.budget import BUDGET_METRICS, Budget, Budgets, Constraint, parse_budget, parse_budgets
from edgescale.core.errors import UsageError
from edgescale.core.measurement import METRIC_UNITS
from edgescale.core.quantity import CANONICAL_UNIT, Quantity


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency<=50ms", 50.0),
        ("latency <= 0.05 s", 50.0),
        ("latency<=50000us", 50.0),
        ("latency<=5e1ms", 50.0),
        ("latency<=5e-2s", 50.0),
        ("ram<=64KiB", 65536.0),
        ("ram<=64kB", 64000.0),
        ("ram<=64KB", 64000.0),
        ("flash<=2MiB", 2097152.0),
        ("flash<=.5MB", 500000.0),
        ("flash<=10B", 10.0),
        ("energy<=1mJ", 1000.0),
        ("energy<=0.001J", 1000.0),
        ("energy<=7uJ", 7.0),
        ("accuracy>=0.88", 0.88),
        ("accuracy>=88%", 0.88),
        ("accuracy>=1", 1.0),
        ("drop<=0.5pt", 0.005),
        ("drop<=0.5%", 0.005),
        ("error<=3", 3.0),
        ("ram<=0B", 0.0),
    ],
)
def test_limits_in_canonical_units(text: str, limit: float) -> None:
    (constraint,) = parse_budget(text).constraints
    assert constraint.limit == pytest.approx(limit)
    assert constraint.metric == text.replace(" ", "").split("<")[0].split(">")[0]
    assert constraint.unit == METRIC_UNITS[constraint.metric]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("latency", "cannot read 'latency'"),
        ("latency<=", "cannot read"),
        ("<=5ms", "cannot read"),
        ("latency<=fast", "cannot read"),
        ("latency<=5", "needs a unit, e.g. latency<=5ms"),
        ("ram<=64", "needs a unit, e.g. ram<=64B"),
        ("latency<=5KiB", "'KiB' measures bytes, not time; use s, ms, us"),
        ("latency<=5parsec", "unknown unit 'parsec'"),
        ("latency>=5ms", "takes <=, not >="),
        ("accuracy<=0.9", "takes >=, not <="),
        ("latency<5ms", "takes <=, not <"),
        ("latency==5ms", "takes <=, not =="),
        ("latency=<5ms", "takes <=, not =<"),
        ("speed<=5ms", "unknown metric 'speed'; known: latency, ram"),
        ("latency<=-5ms", "not negative"),
        ("latency<=1e999ms", "finite"),
        ("latency<=5..5ms", "'5..5' in .* is not a number"),
        ("accuracy>=88", "above 1; write a fraction such as 0.88 or a percentage such as 88%"),
        ("drop<=2", "above 1"),
        ("latency<=5ms, latency<=6ms", "limited twice"),
        ("latency<=5ms ram<=3B", "cannot read"),
    ],
)
def test_refusals_name_the_part(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=f"budget: .*{part}|{part}"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["", "  ", ",", ";,", "none", " none "])
def test_no_limits(text: str) -> None:
    budget = parse_budget(text)
    assert budget == Budget() and str(budget) == "none"
    assert budget.admits({})


def test_separators_and_order() -> None:
    budget = parse_budget("ram<=1B; latency<=2ms,accuracy>=0.5,")
    assert [c.metric for c in budget.constraints] == ["ram", "latency", "accuracy"]


def limits_of(metric: str) -> st.SearchStrategy[Constraint]:
    top = 1.0 if metric in ("accuracy", "drop", "npu") else 1e12
    numbers = st.floats(0, top, allow_subnormal=False) | st.integers(0, int(top)).map(float)
    return numbers.map(lambda limit: Constraint(metric, BUDGET_METRICS[metric][1], limit))


budgets = (
    st.lists(st.sampled_from(list(BUDGET_METRICS)), unique=True)
    .flatmap(lambda metrics: st.tuples(*map(limits_of, metrics)))
    .map(Budget)
)


@given(budgets)
def test_text_parses_back_to_the_same_budget(budget: Budget) -> None:
    assert parse_budget(str(budget)) == budget


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_budget(text)


@given(budgets, st.dictionaries(st.sampled_from(list(BUDGET_METRICS)), st.floats(allow_infinity=False)))
def test_unmet_is_what_the_relations_say(budget: Budget, values: dict[str, float]) -> None:
    figures = {m: Quantity(v, CANONICAL_UNIT[BUDGET_METRICS[m][0]], "measured") for m, v in values.items()}
    unmet = budget.unmet(figures)
    for c in budget.constraints:
        value = values.get(c.metric, math.nan)
        holds = value >= c.limit if c.metric in ("accuracy", "npu") else value <= c.limit
        assert (c in unmet) == (not holds)
        if c.metric in values and not math.isnan(value):
            assert (c.margin(value) >= 0) == holds or c.limit < 1e-300
    assert budget.admits(figures) == (not unmet)


def test_margin_is_relative_to_the_limit() -> None:
    assert Constraint("latency", "<=", 4.0).margin(5.0) == pytest.approx(-0.25)
    assert Constraint("accuracy", ">=", 0.8).margin(0.9) == pytest.approx(0.125)
    assert Constraint("ram", "<=", 0.0).margin(7.0) == -7.0


def test_budget_metrics_have_the_units_of_measurements() -> None:
    for metric, (dimension, _, _) in BUDGET_METRICS.items():
        assert METRIC_UNITS[metric] == CANONICAL_UNIT[dimension]


class TestBudgetsByTarget:
    def test_own_limits_override_general_ones_metric_by_metric(self) -> None:
        budgets = parse_budgets(["latency<=50ms, accuracy>=0.9", "m4: latency<=200ms, ram<=64KiB"], ["host", "m4"])
        assert str(budgets.of("host")) == "latency<=50ms, accuracy>=0.9"
        assert str(budgets.of("m4")) == "latency<=200ms, ram<=65536B, accuracy>=0.9"

    def test_nothing_asked_is_no_limit(self) -> None:
        assert parse_budgets([], ["host"]) == Budgets()
        assert str(Budgets().of("host")) == "none"

    @pytest.mark.parametrize(
        ("texts", "words"),
        [
            (["m7: latency<=1ms"], "m7"),
            (["latency<=1ms", "ram<=1KiB"], "two texts"),
            (["m4: ram<=1KiB", "m4: latency<=1s"], "two texts for m4"),
            (["m4: nonsense<=1"], "nonsense"),
        ],
    )
    def test_wrong_requests(self, texts: list[str], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            parse_budgets(texts, ["host", "m4"])
