"""Policies of generators from tables: replays against asking one by one, closed forms against trying every order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgescale.control.generators import Ladder, Stage, decode_generators, encode_generators
from edgescale.control.ladder_choice import GeneratorRequest, LadderController
from edgescale.core.errors import UsageError
from edgescale.laws.allocation import allocate, coverage_of
from edgescale.laws.errors import FitError
from edgescale.laws.samples.stopping import Verifier
from edgescale.runtime.lm.poll import Poll
from edgescale.runtime.lm.table import Drawn, Table
from edgescale.select.difficulty import fit_difficulty
from edgescale.select.generators import Checked, build_generators
from edgescale.select.ladders import Verdicts, prefixes
from edgescale.select.replay import Runs

NONE = (0.0,) * 4


def drawn(rng, chance, samples: int, size: int, wrong: int = 4) -> Drawn:
    """Samples right with `chance` [prompts] (answer 1), else one of `wrong` others or, seldom, nothing."""
    chance = np.asarray(chance)
    right = rng.random((len(chance), samples)) < chance[:, None]
    answers = np.where(right, 1, rng.integers(2, 2 + wrong, right.shape))
    answers[~right & (rng.random(right.shape) < 0.1)] = 0
    tokens = rng.integers(3, 20, right.shape)
    scores = np.log(rng.uniform(0.3, 1.0, right.shape))
    return Drawn(answers.astype(np.int32), right, tokens, scores.astype(np.float32), size, 20.0, size / 10, 1000.0)


def table(seed: int, prompts: int = 40, samples: int = 12) -> Table:
    rng = np.random.default_rng(seed)
    hard = np.linspace(0, 1, prompts)
    ids = tuple((1,) * (2 + int(10 * h)) for h in hard)
    return Table(
        tuple(f"prompt {i}" for i in range(prompts)),
        ids,
        {
            "small": drawn(rng, 0.75 * (1 - hard), samples, 1000),
            "middle": drawn(rng, 0.85 - 0.6 * hard, samples, 4000),
            "large": drawn(rng, 0.95 - 0.4 * hard, samples, 20000),
        },
    )


def ladder(rule: str, *stages: tuple[int, int, float]) -> Ladder:
    made = tuple(Stage(variant=v, samples=n, stop=stop, asked=NONE, reached=NONE) for v, n, stop in stages)
    return Ladder(rule=rule, stages=made, quality=NONE, low=NONE, high=NONE)


@pytest.mark.parametrize(
    "one",
    [
        ladder("majority", (0, 1, 1.0)),
        ladder("majority", (0, 8, 0.85)),
        ladder("majority", (0, 2, 0.7), (2, 5, 0.8)),
        ladder("majority", (1, 3, 0.93), (0, 4, 0.93), (2, 3, 1.0)),
        ladder("verified", (0, 6, 1.0)),
        ladder("verified", (0, 2, 1.0), (2, 1, 1.0), (0, 3, 1.0)),
    ],
)
def test_a_replay_is_what_asking_one_by_one_does(one):
    made = table(3)
    verdicts = {n: d.right | (np.random.default_rng(9).random(d.right.shape) < 0.2) for n, d in made.drawn.items()}
    votes = [0.8, 1.3, 2.1]
    runs = Runs(made, rounds=3, seed=5, verdicts=verdicts)
    seen = runs.replay(one, votes)
    for run in range(len(runs.prompt)):
        poll, at, tokens, right = Poll(one, votes), [0, 0, 0], [0] * len(one.stages), {}
        while (v := poll.variant) is not None:
            place, stage = at[v], poll.stage
            at[v] += 1
            answer = int(runs.answers[v][run, place])
            tokens[stage] += int(runs.tokens[v][run, place])
            right.setdefault(answer, bool(runs.right[v][run, place]))
            poll.add(answer or "", bool(runs.accepted[v][run, place]), float(runs.sure[v][run, place]))
        assert list(seen.asked[run]) == poll.asked
        assert list(seen.tokens[run]) == tokens
        assert seen.answered[run] == (poll.leader is not None)
        assert seen.right[run] == (poll.leader is not None and right[poll.leader])


def test_a_replay_needs_enough_samples():
    with pytest.raises(UsageError, match="asks small for 13"):
        Runs(table(0)).replay(ladder("verified", (0, 7, 1.0), (1, 1, 1.0), (0, 6, 1.0)), [1.0] * 3)


def test_a_verified_ladder_is_scored_as_by_every_order_of_the_samples():
    rng = np.random.default_rng(4)
    made = Table(("a", "b"), ((1,), (1,)), {n: drawn(rng, (0.3, 0.6), 4, 1000) for n in ("small", "large")})
    verdicts = [d.right | (rng.random(d.right.shape) < 0.3) for d in made.drawn.values()]
    judge = Verdicts(made, verdicts, wrong_value=-0.5)
    plan = ((0, 2, 1.0), (1, 3, 1.0), (0, 1, 1.0))
    scored = judge.score(plan)
    for p in range(2):
        worth, asked, cases = 0.0, np.zeros(3), 0
        samples = [
            [(bool(ok and a > 0), bool(r)) for ok, a, r in zip(v[p], d.answers[p], d.right[p], strict=True)]
            for v, d in zip(verdicts, made.drawn.values(), strict=True)
        ]
        for one, two in itertools.product(*(list(itertools.permutations(s)) for s in samples)):
            cases += 1
            for number, row in enumerate((one[:2], two[:3], one[2:3])):
                stopped = next((i for i, (ok, _) in enumerate(row) if ok), None)
                asked[number] += len(row) if stopped is None else stopped + 1
                if stopped is not None:
                    worth += 1.0 if row[stopped][1] else -0.5
                    break
        assert scored.worth[p] == pytest.approx(worth / cases)
        assert scored.asked[:, p] == pytest.approx(asked / cases)


def test_for_equal_costs_the_ladder_is_osca_in_greedy_order():
    rng = np.random.default_rng(2)
    chances = np.where(rng.random((3, 30)) < 0.5, 0.02, rng.uniform(0.1, 0.6, (3, 30)))
    made = Table(
        tuple(map(str, range(30))), ((1,),) * 30, {str(v): drawn(rng, c, 40, 1000) for v, c in enumerate(chances)}
    )
    judge = Verdicts(made, [d.right for d in made.drawn.values()], 0.0)
    equal = np.ones((3, 30))
    plan = judge.greedy(np.ones(30, bool), equal, 0 * equal, 24)
    seen = (judge.accepted + 0.25) / (judge.draws[:, None] + 1.0)
    for cut in prefixes(plan, 99):
        counts = [sum(n for v, n, _ in cut if v == variant) for variant in range(3)]
        exact = allocate(seen, sum(counts), "exact")
        assert coverage_of(counts, seen) >= exact.coverage - 0.01
    assert sum(n for v, n, _ in plan if v == 0) < 24  # a mix


@pytest.mark.parametrize(
    ("wrong_value", "soundness"), [(-0.7, 0.75), (-1.0, 0.75), (-2.0, 0.75), (-1.0, 0.9), (0.0, 0.75)]
)
def test_a_ladder_ends_where_the_law_says(wrong_value, soundness):
    """Two classes of problems as in arXiv:2411.17501: K* = 3, 2, 1 for the first three."""
    rng = np.random.default_rng(7)
    chance = np.where(np.arange(200) < 116, 0.87, 0.13)
    one = drawn(rng, chance, 400, 1000)
    one.answers[one.answers == 0] = 2
    made = Table(tuple(map(str, range(200))), ((1,),) * 200, {"only": one})
    verdict = one.right | (rng.random(one.right.shape) >= soundness)
    plan = Verdicts(made, [verdict], wrong_value).greedy(np.ones(200, bool), np.ones((1, 200)), np.zeros((1, 200)), 400)
    law = Verifier((0.58, 0.42), (0.87, 0.13), 1.0, soundness, wrong_value)
    asked = sum(n for _, n, _ in plan)
    assert law.reward(asked) >= law.reward(law.best()) - 0.002
    if law.best() < 5:
        assert asked == law.best()


def test_difficulty_is_told_from_tokens_of_prompts_not_seen():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 4, 200)
    ids = [[5] * int(k) + [6] * int(rng.integers(1, 4)) for k in kinds]
    rule, bins, _ = fit_difficulty(ids, 0.9 - 0.2 * kinds + rng.normal(0, 0.02, 200))
    assert np.corrcoef(bins, kinds)[0, 1] > 0.9
    scores = [np.mean([rule.bin([5] * k + [6] * n) for n in (1, 2, 3)]) for k in range(4)]
    assert scores == sorted(scores) and scores[0] < 1 < 2 < scores[3]
    with pytest.raises(FitError, match="at least 20"):
        fit_difficulty(ids[:10], np.ones(10))


@pytest.mark.parametrize("checked", [False, True])
def test_a_policy_says_what_its_ladders_come_to(checked):
    made = table(1, prompts=80)
    verifier = Checked({n: d.right for n, d in made.drawn.items()}) if checked else None
    policy = build_generators(made, {n: f"{n}.onnx" for n in made.drawn}, verifier, "toy", max_tokens=20, rounds=32)
    assert decode_generators(encode_generators(policy), "here") == policy
    assert {ladder.rule for ladder in policy.ladders} == {"verified" if checked else "majority"}
    assert any(len({s.variant for s in ladder.stages}) > 1 for ladder in policy.ladders)
    fresh = Runs(table(1, prompts=80), rounds=160, seed=99)
    bins = fit_difficulty(made.ids, np.mean([d.right.mean(axis=1) for d in made.drawn.values()], axis=0))[1]
    for one in policy.ladders[::5]:
        seen = fresh.replay(one, [v.vote for v in policy.variants])
        for d in range(4):
            group = bins[seen.prompt] == d
            # Of the same samples in other orders: how the policy's own orders fell is all that differs.
            assert one.quality[d] == pytest.approx(float(seen.right[group].mean()), abs=0.03 if checked else 0.09)
            assert one.low[d] <= one.quality[d] <= one.high[d]
            for number, stage in enumerate(one.stages):
                asked = seen.asked[group, number]
                assert stage.asked[d] == pytest.approx(float(asked.mean()), rel=0.15, abs=0.15)


def test_nothing_is_asked_where_a_wrong_answer_costs_more_than_is_to_be_won():
    made = table(5, prompts=80)
    rng = np.random.default_rng(0)
    verdicts = {n: d.right | (rng.random(d.right.shape) < 0.5) for n, d in made.drawn.items()}
    policy = build_generators(made, {n: n for n in made.drawn}, Checked(verdicts, -4.0))
    assert [one.samples == 0 for one in policy.ladders].count(True) == 1
    best = [max(policy.ladders, key=lambda one: one.quality[d]) for d in range(4)]
    assert best[0].samples > 0 and best[3].samples == 0
    controller = LadderController(policy)
    decision = controller.decide(GeneratorRequest(3, 5))
    assert policy.ladders[decision.ladder] == best[3] and decision.held
    assert Poll(best[3], [1.0] * 3).variant is None
    seen = Runs(made).replay(best[3], [1.0] * 3)
    assert not seen.answered.any() and seen.asked.sum() == 0
    free = build_generators(made, {n: n for n in made.drawn}, Checked(verdicts, 0.0))
    assert all(one.stages for one in free.ladders)


def test_a_policy_needs_a_file_for_every_variant():
    with pytest.raises(UsageError, match="variant middle"):
        build_generators(table(1), {"small": "a", "large": "b"})
