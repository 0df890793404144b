"""Policies of generators and the choice of a ladder: hulls, mean budgets, limits, deadlines, failures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.control.generators import (
    DifficultyRule,
    Generator,
    GeneratorPolicy,
    Ladder,
    Stage,
    decode_generators,
    encode_generators,
)
from edgescale.control.hull import front, hull, share_out
from edgescale.control.ladder_choice import CREDIT, GeneratorRequest, LadderController
from edgescale.control.request import Limit
from edgescale.core.errors import UsageError

NUMBERS = st.lists(
    st.tuples(st.integers(0, 30).map(float), st.integers(0, 30).map(lambda n: n / 30)), min_size=1, max_size=12
)


@given(NUMBERS, st.integers(0, 1000).map(lambda n: n / 3000))
def test_a_corner_is_best_at_any_price(points, price):
    cost, quality = zip(*points, strict=True)
    corners = hull(cost, quality)
    best = max(q - price * c for c, q in points)
    assert max(quality[i] - price * cost[i] for i in corners) == pytest.approx(best)
    assert [cost[i] for i in corners] == sorted(cost[i] for i in corners)
    assert max(quality[i] for i in corners) == max(quality)


@given(NUMBERS, st.integers(0, 30).map(float))
def test_the_front_holds_the_best_within_any_limit(points, limit):
    cost, quality = zip(*points, strict=True)
    kept = front(cost, quality)
    assert max((quality[i] for i in kept if cost[i] <= limit), default=None) == max(
        (q for c, q in points if c <= limit), default=None
    )


@settings(max_examples=60)
@given(
    st.lists(st.lists(NUMBERS.map(lambda p: p[0]), min_size=4, max_size=4), min_size=2, max_size=3), st.integers(1, 40)
)
def test_a_mean_budget_is_shared_out_as_well_as_by_trying_everything(bins, budget):
    cost = [[c for c, _ in row] for row in bins]
    quality = [[q for _, q in row] for row in bins]
    shares = [1 / len(bins)] * len(bins)
    chosen = share_out(cost, quality, shares, float(budget))

    def value(choice):
        spent = sum(s * c[i] for s, c, i in zip(shares, cost, choice, strict=True))
        return spent, sum(s * q[i] for s, q, i in zip(shares, quality, choice, strict=True))

    every = [value(choice) for choice in itertools.product(range(4), repeat=len(bins))]
    spent, worth = value(chosen)
    cheapest = min(s for s, _ in every)
    assert spent <= max(budget, cheapest) + 1e-9
    # What is reached is the best of all that cost as little, and no more than the step not taken is lost.
    assert worth >= max(q for s, q in every if s <= spent + 1e-12) - 1e-9
    largest = max(s * (max(q) - min(q)) for s, q in zip(shares, quality, strict=True))
    assert worth >= max([q for s, q in every if s <= budget], default=worth) - largest - 1e-9


def variant(name: str, size: int, token_us: float, **more) -> Generator:
    return Generator(
        name=name, file=f"{name}.onnx", bytes=size, prompt_us=token_us / 4, token_us=token_us, memory=size,
        tokens=(10.0, 10.0, 20.0, 20.0), spread=(1.0, 2.0, 3.0, 4.0), **more,
    )  # fmt: skip


def ladder(*stages: tuple[int, int], quality=(0.9, 0.7, 0.4, 0.1), asked=0.75, rule="majority") -> Ladder:
    made, reached = [], 1.0
    for v, samples in stages:
        made.append(
            Stage(variant=v, samples=samples, stop=0.9, asked=(asked * samples * reached,) * 4, reached=(reached,) * 4)
        )
        reached *= 0.5
    return Ladder(rule=rule, stages=tuple(made), quality=quality, low=quality, high=quality)


def policy(**changes) -> GeneratorPolicy:
    scale = (0.5, 0.35, 0.2, 0.1)
    values = {
        "family": "toy",
        "metric": "solved",
        "variants": (variant("small", 1000, 100.0), variant("large", 9000, 700.0)),
        "ladders": (
            ladder((0, 1), quality=scale),
            ladder((0, 4), quality=tuple(1.2 * q for q in scale)),
            ladder((1, 1), quality=tuple(1.5 * q for q in scale)),
            ladder((0, 4), (1, 2), quality=tuple(1.6 * q for q in scale)),
            ladder((1, 4), quality=tuple(1.7 * q for q in scale)),
        ),
        "difficulty": DifficultyRule(weights=(1.0, -0.1, 0.0, 0.0), edges=(0.7, 0.5, 0.3)),
        "shares": (0.25,) * 4,
        "prompt_tokens": (5.0,) * 4,
        "max_tokens": 64,
    } | changes
    return GeneratorPolicy(**values)


def test_a_policy_survives_its_file():
    made = policy().check()
    assert decode_generators(encode_generators(made), "here") == made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": (0.5, 0.5, 0.5, 0.5)}, "sum to 1"),
        ({"shares": (0.5, 0.5)}, "it takes 4"),
        ({"ladders": ()}, "ladders is 0"),
        ({"ladders": (ladder((2, 1)),)}, "variant of ladder 0 is 2"),
        ({"ladders": (ladder((0, 1), rule="verified"),)}, "whose figures the policy lacks"),
        ({"variants": (variant("small", 0, 1.0),), "ladders": (ladder((0, 1)),)}, "bytes of small"),
        ({"difficulty": DifficultyRule(weights=(1.0, 0.0, 0.0), edges=(0.1, 0.2, 0.3))}, "descend"),
        ({"schema": 9}, "schema"),
    ],
)
def test_a_policy_that_breaks_a_rule_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        decode_generators(encode_generators(policy(**changes)), "here")


def test_difficulty_is_a_linear_score_cut_at_edges():
    rule = DifficultyRule(weights=(1.0, -0.1, 0.5, 0.0), edges=(0.7, 0.5, 0.3))
    assert rule.score([2, 3, 3]) == pytest.approx(1 - 0.3 + 0.5)
    assert [rule.bin([1] * n) for n in (1, 4, 6, 9)] == [0, 1, 2, 3]


def longest(p: GeneratorPolicy, one: Ladder, d: int, prompt: int, unit: str) -> float:
    total = 0.0
    for v in {s.variant for s in one.stages}:
        first, each = p.variants[v].rates(unit)
        total += prompt * first + sum(s.samples for s in one.stages if s.variant == v) * p.variants[v].tokens[d] * each
    spread = sum(
        s.samples * (p.variants[s.variant].spread[d] * p.variants[s.variant].token_us) ** 2 for s in one.stages
    )
    return total + (spread**0.5 if unit == "us" else 0.0)


@given(
    st.integers(0, 3),
    st.integers(0, 30),
    st.sampled_from([0, 5_000, 60_000, 200_000, 900_000]),
    st.sampled_from([0, 900, 5_000, 20_000, 90_000]),
    st.sampled_from([0, 1_500, 9_500, 20_000]),
)
def test_limits_of_a_call_leave_the_best_ladder_that_keeps_them_all(d, prompt, token_bytes, us, memory):
    made = policy()
    controller = LadderController(made)
    controller.resident = {0, 1}
    request = GeneratorRequest(d, prompt, token_bytes=token_bytes, us=us, memory=memory)
    decision = controller.decide(request)
    fits = [
        i
        for i, one in enumerate(made.ladders)
        if (not token_bytes or longest(made, one, d, prompt, "bytes") <= token_bytes)
        and (not us or longest(made, one, d, prompt, "us") * decision.slowdown <= us)
        and (not memory or sum(made.variants[v].memory for v in {s.variant for s in one.stages}) <= memory)
    ]
    assert decision.held == bool(fits)
    if fits:
        assert decision.ladder == max(fits, key=lambda i: made.ladders[i].quality[d])
        assert (decision.binding == Limit.NONE) == (decision.ladder == 4)
    else:
        assert decision.binding != Limit.NONE


def test_the_cheapest_that_is_good_enough():
    controller = LadderController(policy())
    assert controller.decide(GeneratorRequest(0, 5, quality=0.7, cheapest=True)).ladder == 2
    decision = controller.decide(GeneratorRequest(3, 5, quality=0.9))
    assert (decision.ladder, decision.held, decision.binding) == (4, False, Limit.QUALITY)


@pytest.mark.parametrize("dear", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("mean", [30_000.0, 100_000.0, 250_000.0])
def test_a_mean_budget_is_kept_though_costs_are_not_as_expected(mean, dear):
    made = policy()
    controller, rng = LadderController(made), np.random.default_rng(0)
    spent, best = [], []
    for _ in range(2000):
        d = int(rng.integers(4))
        index = controller.decide(GeneratorRequest(d, 5, mean=mean)).ladder
        cost = dear * controller.cost(index, d, 5, "bytes") * rng.exponential()
        controller.report({"bytes": cost, "us": 1.0, "uj": 0.0}, 1.0, 1.0)
        spent.append(cost)
        best.append(made.ladders[index].quality[d])
    assert np.cumsum(spent)[-1] <= mean * (2000 + 2 * CREDIT)
    cost = [[dear * controller.cost(i, d, 5, "bytes") for i in range(5)] for d in range(4)]
    quality = [[one.quality[d] for one in made.ladders] for d in range(4)]
    ideal = share_out(cost, quality, made.shares, mean)
    assert np.mean(best) >= np.mean([quality[d][i] for d, i in enumerate(ideal)]) - 0.01


def test_a_deadline_is_kept_when_the_device_slows_down():
    controller, rng = LadderController(policy()), np.random.default_rng(1)
    controller.resident = {0, 1}
    late = []
    for call in range(600):
        slow = (2.5 if 200 <= call < 400 else 1.0) * float(np.exp(rng.normal(0, 0.1)))
        index = controller.decide(GeneratorRequest(0, 5, us=20_000, violation=0.05)).ladder
        us = slow * controller.cost(index, 0, 5, "us", longest=True)
        controller.report({"bytes": 1.0, "us": us, "uj": 0.0}, us / slow, us)
        late.append(us > 20_000)
    assert np.mean(late[10:]) <= 0.06


def test_a_variant_that_fails_is_left_out_longer_each_time():
    controller = LadderController(policy())
    asked = GeneratorRequest(0, 5)
    waits = []
    for _ in range(3):
        assert controller.decide(asked).ladder == 4
        controller.failed(1)
        calls = 0
        while controller.decide(asked).ladder != 4:
            assert controller.decide(asked).ladder == 1
            assert controller.decide(asked).binding & Limit.DEMOTED
            controller.report({"bytes": 1.0, "us": 1.0, "uj": 0.0}, 1.0, 1.0)
            calls += 1
        waits.append(calls)
    assert waits == [8, 16, 32]


def test_requests_out_of_range_are_refused():
    for wrong in ({"difficulty": 4}, {"mean": -1.0}, {"violation": 0.0}, {"us": float("nan")}):
        with pytest.raises(UsageError):
            GeneratorRequest(**({"difficulty": 0, "prompt_tokens": 1} | wrong))
