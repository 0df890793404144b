#!/usr/bin/env python3
"""What the controller of generators is worth on the tiny language family: size, bits and number of samples by call.

    tools/bench_generators.py                         all parts; completions are recorded once (build/lm_tables)
    tools/bench_generators.py budget                  some of: budget verifier traces live

budget    solved test problems at equal mean token-bytes a problem: the best fixed (size, bits, N), the same asked one
          after another until one is accepted, and the controller; with an exact checker, and by vote (replayed)
verifier  a checker that accepts 20 % of wrong answers: the predicted number of samples (K*), the best one measured, and
          where the controller stops
traces    a deadline on synthetic slowdowns: problems solved in time, beside fixed numbers of samples (the best of
          those that miss as seldom as asked) and the same ladders chosen with the slowdown known; replayed
live      the controller generating for real, beside the replay of the same prompts

Policies are made from calibration prompts; test prompts are others. Token-bytes: tokens of the prompt and of all
completions times the bytes of the model's file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_tables import EXAMPLE, MODELS, OPTIONS, answer_of, correct, tables

from edgescale.control.generators import NEVER, GeneratorPolicy, Ladder, Stage
from edgescale.control.ladder_choice import GeneratorRequest, LadderController
from edgescale.control.traces import SHAPES, synthetic
from edgescale.laws.samples.coverage import fit_beta_coverage
from edgescale.laws.samples.stopping import Verifier
from edgescale.runtime.lm.adaptive import AdaptiveGenerator
from edgescale.runtime.lm.table import Table
from edgescale.select.generators import Checked, build_generators
from edgescale.select.replay import Replay, Runs

PARTS = ("budget", "verifier", "traces", "live")
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
BUDGETS = tuple(float(f"{x:.2g}") for x in np.geomspace(0.7e6, 400e6, 20))
ROUNDS = 4
SOUNDNESS = 0.8
RULES = (("verified", "with the exact checker"), ("majority", "by vote, without a checker"))
NONE = (0.0,) * 4
_RATES = {"bytes": ("file_bytes", "file_bytes"), "us": ("prompt_us", "token_us")}
Real = np.ndarray


@dataclass(frozen=True)
class Fixed:
    """A fixed setting on a table: solved problems and mean token-bytes, all samples drawn, or one after another."""

    name: str
    solved: float
    cost: float
    sequential: float


def single(variant: int, count: int, rule: str) -> Ladder:
    """A ladder of one variant that asks all its samples (unless one is verified)."""
    stage = Stage(variant=variant, samples=count, asked=NONE, reached=NONE, stop=NEVER)
    return Ladder(rule=rule, stages=(stage,), quality=NONE, low=NONE, high=NONE)  # type: ignore[arg-type]


def spent(table: Table, ladder: Ladder, replay: Replay, unit: str = "bytes") -> Real:
    """Token-bytes of each run, or microseconds at profiled speed."""
    drawn = list(table.drawn.values())
    first, each = ([getattr(d, name) for d in drawn] for name in _RATES[unit])
    prompt = np.array([len(ids) for ids in table.ids])[replay.prompt]
    total, seen = np.zeros(len(prompt)), set()
    for number, stage in enumerate(ladder.stages):
        v = stage.variant
        read = 0 if v in seen else prompt * (replay.asked[:, number] > 0)
        total += replay.tokens[:, number] * each[v] + read * first[v]
        seen.add(stage.variant)
    return total


def fixed_settings(table: Table, runs: Runs, rule: str) -> list[Fixed]:
    """Every variant with every number of samples."""
    made = []
    prompt = np.array([len(ids) for ids in table.ids])[runs.prompt]
    for v, (name, drawn) in enumerate(table.drawn.items()):
        for count in COUNTS:
            ladder = single(v, count, rule)
            seen = runs.replay(ladder, [1.0] * len(table.drawn))
            whole = (prompt + runs.tokens[v][:, :count].sum(axis=1)) * drawn.file_bytes
            made.append(
                Fixed(
                    f"{name} x{count}",
                    float(seen.right.mean()),
                    float(whole.mean()),
                    float(spent(table, ladder, seen).mean()),
                )
            )
    return made


class Played:
    """A policy on a table: what each ladder comes to in every run, so that any budget is played in no time."""

    def __init__(self, policy: GeneratorPolicy, table: Table, runs: Runs) -> None:
        self.policy, self.table, self.runs = policy, table, runs
        votes = [v.vote for v in policy.variants]
        self.replays = replays = [runs.replay(ladder, votes) for ladder in policy.ladders]
        self.right = np.array([r.right for r in replays])
        self.wrong = np.array([r.answered & ~r.right for r in replays])
        self.cost = np.array([spent(table, o, r) for o, r in zip(policy.ladders, replays, strict=True)])
        self.samples = np.array([r.asked.sum(axis=1) for r in replays])
        self.bins = [policy.difficulty.bin(ids) for ids in table.ids]

    def play(self, mean: float) -> tuple[float, float]:
        """(solved, mean token-bytes) of the controller under a mean budget, prompts in random order."""
        controller = LadderController(self.policy)
        order = np.random.default_rng(0).permutation(len(self.runs.prompt))
        right = spent = 0.0
        for run in order:
            prompt = int(self.runs.prompt[run])
            request = GeneratorRequest(
                difficulty=self.bins[prompt], prompt_tokens=len(self.table.ids[prompt]), mean=mean
            )
            ladder = controller.decide(request).ladder
            right += bool(self.right[ladder, run])
            spent += float(self.cost[ladder, run])
            controller.report({"bytes": float(self.cost[ladder, run]), "us": 1.0, "uj": 0.0}, 1.0, 1.0)
        return right / len(order), spent / len(order)


def policy_of(table: Table, checked: Checked | None) -> GeneratorPolicy:
    """The policy from calibration completions."""
    files = {name: str(path.relative_to(EXAMPLE)) for name, path in MODELS.items()}
    return build_generators(table, files, checked, "tinylm", "solved", OPTIONS.max_tokens)


def exact(table: Table) -> Checked:
    """The checker of the task, which knows."""
    return Checked({name: drawn.right for name, drawn in table.drawn.items()})


def budget(parts: dict[str, Table]) -> None:
    """Solved problems over the mean token-bytes of a problem."""
    for rule, title in RULES:
        policy = policy_of(parts["calibration"], exact(parts["calibration"]) if rule == "verified" else None)
        known = fixed_settings(parts["calibration"], Runs(parts["calibration"], ROUNDS, 7), rule)
        runs = Runs(parts["test"], ROUNDS, 8)
        settings = fixed_settings(parts["test"], runs, rule)
        played = Played(policy, parts["test"], runs)
        print(f"budget, {title}: {len(policy.ladders)} ladders; solved test problems of {len(parts['test'].prompts)}")
        print(f"  {'MB/problem':>10}  {'fixed':>6} {'(setting)':14} {'hindsight':>9} {'(setting)':14} "
              f"{'one by one':>10} {'controller':>10} {'spent':>6} {'gain over':>9} {'hindsight':>9}")  # fmt: skip
        gains, curve = [], []
        for limit in BUDGETS:
            allowed = [i for i, f in enumerate(known) if f.cost <= limit]
            late = [f for f in settings if f.cost <= limit]
            if not allowed or not late:
                continue
            chosen = settings[max(allowed, key=lambda i: known[i].solved)]
            best = max(late, key=lambda f: f.solved)
            stepwise = max((f for f in settings if f.sequential <= limit), key=lambda f: f.solved)
            solved, spent = played.play(limit)
            curve.append((spent, solved))
            gains.append((solved - chosen.solved, solved - best.solved, solved - stepwise.solved))
            print(f"  {limit / 1e6:10.2f}  {chosen.solved:6.3f} {chosen.name:14} {best.solved:9.3f} {best.name:14} "
                  f"{stepwise.solved:10.3f} {solved:10.3f} {spent / limit:6.1%} {100 * gains[-1][0]:+9.1f} "
                  f"{100 * gains[-1][1]:+9.1f}")  # fmt: skip
        for name, column in (("fixed, chosen on calibration", 0), ("fixed, best in hindsight", 1),
                             ("one by one, best in hindsight", 2)):  # fmt: skip
            values = [100 * g[column] for g in gains]
            print(f"  points over {name}: from {min(values):+.1f} to {max(values):+.1f}")
        compute(settings, curve)
        if rule == "verified":
            beyond(parts["test"], curve)


def compute(settings: list[Fixed], curve: list[tuple[float, float]]) -> None:
    """How much less the controller takes for the same share of solved problems."""
    best = [f for f in settings if not any(o.cost <= f.cost and o.solved > f.solved for o in settings)]
    spent, solved = np.array(sorted(curve)).T
    solved = np.maximum.accumulate(solved)
    rows = []
    for f in sorted(best, key=lambda f: f.cost):
        if solved[0] <= f.solved <= solved[-1]:
            rows.append((f.cost / float(np.exp(np.interp(f.solved, solved, np.log(spent)))), f))
    for ratio, f in rows:
        print(f"  as many as {f.name} ({f.solved:.3f} at {f.cost / 1e6:.1f} MB): {ratio:.1f}x less")


def beyond(table: Table, curve: list[tuple[float, float]]) -> None:
    """Fixed settings of more samples than the table has, extrapolated by the anchored law of coverage."""
    spent, solved = np.array(sorted(curve)).T
    prompt = float(np.mean([len(ids) for ids in table.ids]))
    found = []
    for name, drawn in table.drawn.items():
        law = fit_beta_coverage(drawn.right.sum(axis=1), drawn.right.shape[1])
        for count in (2 * table.samples, 4 * table.samples):
            cost = (prompt + count * float(drawn.tokens.mean())) * drawn.file_bytes
            found.append((cost, float(law.predict(count)), f"{name} x{count}"))
    for cost, share, name in sorted(found):
        if cost <= spent[-1] and not any(c <= cost and s > share for c, s, _ in found):
            there = float(np.interp(np.log(cost), np.log(spent), np.maximum.accumulate(solved)))
            print(f"  extrapolated: {name} {share:.3f} at {cost / 1e6:.1f} MB, the controller {there:.3f}")


def noisy(table: Table, soundness: float, seed: int) -> Checked:
    """The checker, accepting wrong answers with 1 - soundness, each completion anew; a wrong one costs as much as a
    right one brings."""
    rng = np.random.default_rng(seed)
    return Checked({n: d.right | (rng.random(d.right.shape) >= soundness) for n, d in table.drawn.items()}, -1.0)


def verifier(parts: dict[str, Table]) -> None:
    """Where sampling until accepted should stop, and where the controller does."""
    checked = {part: noisy(parts[part], SOUNDNESS, seed) for seed, part in enumerate(parts)}
    policy = policy_of(parts["calibration"], checked["calibration"])
    figures = policy.verifier
    assert figures is not None
    print(
        f"verifier: completeness {figures.completeness:.3f}, soundness {figures.soundness:.3f} (at least "
        f"{figures.soundness_low:.3f}), a wrong answer is worth {figures.wrong_value:g}"
    )
    runs = Runs(parts["test"], ROUNDS, 9, checked["test"].verdicts)
    bins = np.array([policy.difficulty.bin(ids) for ids in parts["test"].ids])[runs.prompt]
    print("  K* of one variant: predicted on calibration, measured on test (reward there: of predicted, of measured)")
    for v, name in enumerate(parts["test"].drawn):
        if name.split("-")[1] != "int8":
            continue
        cells = []
        for d in range(4):
            group = bins == d
            worth = rewards(runs, v, group)
            predicted = figures.most[v][d]
            measured = int(np.argmax(worth))
            shown = worth[min(predicted, len(worth) - 1)]
            at = predicted if predicted < len(worth) else "64+"
            cells.append(f"{at:>3}/{measured:<3}({shown:+.3f} {worth[measured]:+.3f})")
        print(f"  {name:8} " + "  ".join(cells))
    overall(parts, policy, runs)
    print("  the controller without a budget, by difficulty: where its ladder ends, and where the same one, cut or")
    print("  continued, is worth most on test (reward there)")
    for d in range(4):
        ladder = max(policy.ladders, key=lambda one: one.quality[d])
        least = max((one for one in policy.ladders if one.stages), key=lambda one: one.quality[d])
        worth = [0.0, *(float(lengthened(runs, least, k)[bins == d].mean()) for k in range(1, least.samples + 33))]
        best = int(np.argmax(worth))
        name = " ".join(f"{policy.variants[s.variant].name} x{s.samples}" for s in ladder.stages) or "asks nothing"
        print(f"    {name}: {ladder.samples} ({worth[ladder.samples]:+.3f}), best {best} ({worth[best]:+.3f})")
    played = Played(policy, parts["test"], runs)
    for limit in (2e6, 5e6, 10e6, 20e6, 50e6, 100e6):
        controller = LadderController(policy)
        worth = samples = most = 0.0
        for run in range(len(runs.prompt)):
            prompt = int(runs.prompt[run])
            request = GeneratorRequest(
                difficulty=int(bins[run]), prompt_tokens=len(parts["test"].ids[prompt]), mean=limit
            )
            ladder = controller.decide(request).ladder
            worth += float(played.right[ladder, run]) - float(played.wrong[ladder, run])
            samples += float(played.samples[ladder, run])
            most = max(most, policy.ladders[ladder].samples)
            cost = float(played.cost[ladder, run])
            controller.report({"bytes": cost, "us": 1.0, "uj": 0.0}, 1.0, 1.0)
        n = len(runs.prompt)
        print(f"  controller at {limit / 1e6:5.1f} MB: reward {worth / n:+.3f}, {samples / n:.2f} samples a problem")


def lengthened(runs: Runs, ladder: Ladder, samples: int) -> Real:
    """Reward of each run of a ladder cut to so many samples, or with its last variant asked on."""
    stages, left = [], samples
    for number, stage in enumerate(ladder.stages):
        count = left if number == len(ladder.stages) - 1 else min(stage.samples, left)
        left -= count
        if count:
            stages.append(Stage(variant=stage.variant, samples=count, asked=NONE, reached=NONE))
    seen = runs.replay(Ladder(rule="verified", stages=tuple(stages), quality=NONE, low=NONE, high=NONE), [])
    return seen.right.astype(float) - (seen.answered & ~seen.right)


def rewards(runs: Runs, variant: int, group: Real) -> Real:
    """Mean reward of up to 0, 1, ... samples of a variant on the runs `group`: right - wrong accepted."""
    accepted, right = runs.accepted[variant][group], runs.right[variant][group]
    first = np.where(accepted.any(axis=1), accepted.argmax(axis=1), accepted.shape[1])
    sign = np.where(right[np.arange(len(right)), np.minimum(first, right.shape[1] - 1)], 1.0, -1.0)
    return np.array([0.0, *(float((sign * (first < k)).mean()) for k in range(1, accepted.shape[1] + 1))])


def overall(parts: dict[str, Table], policy: GeneratorPolicy, runs: Runs) -> None:
    """K* over all difficulties at once."""
    figures = policy.verifier
    assert figures is not None
    everyone = np.ones(len(runs.prompt), bool)
    cells = []
    for v, (name, drawn) in enumerate(parts["calibration"].drawn.items()):
        chance = drawn.right.mean(axis=1)
        law = Verifier((1 / len(chance),) * len(chance), tuple(map(float, chance)), figures.completeness,
                       figures.soundness, figures.wrong_value)  # fmt: skip
        worth = rewards(runs, v, everyone)
        cells.append(f"{name} {law.best(64)}/{int(np.argmax(worth))}")
    print("  K* where the difficulty is not known, predicted/measured: " + ", ".join(cells))


def traces(parts: dict[str, Table], calls: int = 1500, violation: float = 0.05) -> None:
    """Deadlines under slowdowns that the policy does not know of."""
    policy = policy_of(parts["calibration"], exact(parts["calibration"]))
    table = parts["test"]
    runs = Runs(table, ROUNDS, 8)
    played = Played(policy, table, runs)
    us = np.array([spent(table, o, r, "us") for o, r in zip(policy.ladders, played.replays, strict=True)])
    fixed = [(v, count) for v in range(len(table.drawn)) for count in (1, 2, 4, 8, 16)]
    names = [f"{policy.variants[v].name} x{count}" for v, count in fixed]
    alone = [single(v, count, "verified") for v, count in fixed]
    right = np.array([runs.replay(o, []).right for o in alone])
    first = np.array([len(ids) for ids in table.ids])[runs.prompt]
    whole = np.array([
        first * policy.variants[v].prompt_us + runs.tokens[v][:, :n].sum(axis=1) * policy.variants[v].token_us
        for v, n in fixed
    ])  # fmt: skip
    one = float(np.mean(whole[names.index("xl-int8 x1")]))
    for deadline in (one, 4 * one, 16 * one):
        print(f"traces: deadline {deadline / 1e3:.0f} ms: calls that would not have ended by then, solved in time")
        for shape in SHAPES:
            slow = synthetic(shape, calls, 1, 0).slowdown
            order = np.random.default_rng(1).integers(len(runs.prompt), size=calls)
            controller = LadderController(policy)
            controller.resident = set(range(len(policy.variants)))
            ours, best = [], []
            for run, factor in zip(order, slow, strict=True):
                prompt = int(runs.prompt[run])
                asked = {"difficulty": played.bins[prompt], "prompt_tokens": len(table.ids[prompt])}
                ladder = controller.decide(GeneratorRequest(**asked, us=deadline, violation=violation)).ladder
                took = float(us[ladder, run])
                seen = min(took, deadline / factor)  # the run-time cuts the call off there
                controller.report({"bytes": 0.0, "us": seen * factor, "uj": 0.0}, seen, seen * factor)
                ours.append((took * factor > deadline, bool(played.right[ladder, run])))
                fits = [
                    i for i in range(len(us)) if controller.cost(i, **_at(asked), longest=True) * factor <= deadline
                ]
                chosen = max(fits, key=lambda i: policy.ladders[i].quality[asked["difficulty"]], default=0)
                best.append((us[chosen, run] * factor > deadline, bool(played.right[chosen, run])))
            late = whole[:, order] * slow > deadline
            solved = (right[:, order] & ~late).mean(axis=1)
            kept = [i for i in range(len(fixed)) if late[i].mean() <= violation] or [int(late.mean(axis=1).argmin())]
            static = max(kept, key=lambda i: solved[i])
            cells = [
                f"{name} {np.mean([m for m, _ in rows]):5.1%} {np.mean([ok and not m for m, ok in rows]):.3f}"
                for name, rows in (("controller", ours[10:]), ("clairvoyant", best[10:]))
            ]
            print(f"  {shape:11} {cells[0]}  {cells[1]}  best fixed ({names[static]}) {late[static].mean():5.1%} "
                  f"{solved[static]:.3f}")  # fmt: skip


def _at(asked: dict[str, int]) -> dict[str, Any]:
    return {"difficulty": asked["difficulty"], "prompt": asked["prompt_tokens"], "unit": "us"}


def live(parts: dict[str, Table], prompts: int) -> None:
    """The run-time itself on some test prompts, and the replay of the same ones."""
    policy = policy_of(parts["calibration"], exact(parts["calibration"]))
    some = parts["test"].of(range(prompts))
    runs = Runs(some, 16, 8)
    played = Played(policy, some, runs)
    for limit in (5e6, 20e6):
        generator = AdaptiveGenerator(policy, EXAMPLE, answer_of, correct)
        results = [generator.run(prompt, mean_token_bytes=limit) for prompt in some.prompts]
        solved = np.mean([correct(p, r.text) for p, r in zip(some.prompts, results, strict=True)])
        spent = np.mean([r.token_bytes for r in results])
        again, cost = played.play(limit)
        error = (again * (1 - again) / prompts) ** 0.5
        print(
            f"live at {limit / 1e6:.0f} MB, {prompts} prompts: solved {solved:.3f} for {spent / 1e6:.2f} MB and "
            f"{np.mean([r.samples for r in results]):.1f} samples in "
            f"{np.mean([r.milliseconds for r in results]):.1f} ms; "
            f"replayed {again:.3f} (standard error {error:.3f}) for {cost / 1e6:.2f} MB"
        )


def main(given: list[str] | None = None) -> int:
    """Run the parts asked for, by default on the command line."""
    parser = argparse.ArgumentParser(description="Bench of the controller of generators.")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--problems", type=int, default=60, help="of every level, in each of calibration and test")
    parser.add_argument("--samples", type=int, default=64, help="of every problem and variant")
    parser.add_argument("--live", type=int, default=140, help="prompts of the part `live`")
    arguments = parser.parse_args(given)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    recorded = tables(arguments.problems, arguments.samples)
    if "budget" in arguments.parts:
        budget(recorded)
    if "verifier" in arguments.parts:
        verifier(recorded)
    if "traces" in arguments.parts:
        traces(recorded)
    if "live" in arguments.parts:
        live(recorded, arguments.live)
    return 0


if __name__ == "__main__":
    sys.exit(main())
