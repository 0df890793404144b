"""The policy of a family of generators, made from a table of calibration completions.

Candidates are ladders of one variant and of several (`ladders`). Those stay that are worth most for their cost in some
bin of difficulty, at some price of cost: the corners of the upper hull of quality over token-bytes, and over time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgescale.control.generators import (
    MAX_LADDERS,
    MAX_STAGES,
    Generator,
    GeneratorPolicy,
    Ladder,
    Stage,
    Unit,
    VerifierFigures,
)
from edgescale.control.hull import front, hull
from edgescale.control.policy import DIFFICULTIES
from edgescale.core.errors import UsageError
from edgescale.laws.samples.stopping import Verifier
from edgescale.runtime.lm.table import Table
from edgescale.select.difficulty import fit_difficulty
from edgescale.select.ladders import COUNTS, MOST, STAYING, Plan, Scored, Verdicts, prefixes, voted
from edgescale.select.replay import Bools, Real, Runs

CORNERS = 24
"""Ladders kept of one hull."""
HANDING_ON = 8
"""Variants that a vote may begin with, and that it may hand on to."""
NOTHING = Ladder(rule="verified", stages=(), quality=(0.0,) * 4, low=(0.0,) * 4, high=(0.0,) * 4)
"""To ask nothing."""
PLANNED: tuple[Unit, ...] = ("bytes", "us")
LARGEST_K = 10_000


@dataclass(frozen=True)
class Checked:
    """A verifier as seen on the table: its verdicts by variant, [prompts, samples], and the worth of a wrong answer."""

    verdicts: Mapping[str, Bools]
    wrong_value: float = 0.0


def build_generators(
    table: Table,
    files: Mapping[str, str],
    verifier: Checked | None = None,
    family: str = "",
    metric: str = "solved",
    max_tokens: int = 256,
    power_mw: float = 0.0,
    rounds: int = 2,
) -> GeneratorPolicy:
    """The policy over a table's variants. Without a verifier answers are voted on, else the first accepted is taken.

    files: by variant, the model relative to where the policy will be. power_mw: active power of the device, 0 unknown.
    Raises UsageError for a table that is too small or has no file for a variant.
    """
    if missing := [name for name in table.drawn if name not in files]:
        raise UsageError(f"no file is named for variant {missing[0]} of the table")
    ease = np.mean([d.right.mean(axis=1) for d in table.drawn.values()], axis=0)
    rule, bins, _ = fit_difficulty(table.ids, ease)
    share = np.array([(bins == d) / max((bins == d).sum(), 1) for d in range(DIFFICULTIES)])
    lengths = np.array([len(ids) for ids in table.ids], np.float64)
    variants = _variants(table, files, share, power_mw)
    figures = None
    if verifier is None:
        kept = _voting(table, variants, share, share @ lengths, rounds)
        ladders = _finished_votes(table, variants, kept, bins, rounds)
    else:
        figures = _verifier_figures(table, verifier, bins)
        judge = Verdicts(table, [verifier.verdicts[v.name] for v in variants], verifier.wrong_value)
        kept = _verified(table, judge, variants, bins, share, lengths)
        ladders = [_finished(judge.score(one.plan), "verified", bins) for one in kept]
        if verifier.wrong_value < 0:
            ladders = [NOTHING, *ladders[: MAX_LADDERS - 1]]
    return GeneratorPolicy(
        family=family,
        metric=metric,
        variants=tuple(variants),
        ladders=tuple(ladders),
        difficulty=rule,
        shares=tuple(float(x) for x in np.bincount(bins, minlength=DIFFICULTIES) / len(bins)),
        prompt_tokens=tuple(map(float, share @ lengths)),
        max_tokens=max_tokens,
        verifier=figures,
        source=f"{len(table.prompts)} calibration prompts, {table.samples} samples each; times of this machine",
    ).check()


def costs(ladders: Sequence[Scored], variants: Sequence[Generator], prompt: Real, unit: Unit) -> Real:
    """Expected cost [ladders, bins], `unit` "bytes" (token-bytes) or "us"; prompt: its tokens by bin."""
    made = []
    for one in ladders:
        total = np.zeros(len(prompt))
        seen: set[int] = set()
        for (v, _, _), asked, reached in zip(one.plan, one.asked, one.reached, strict=True):
            variant = variants[v]
            first, each = variant.rates(unit)
            total = total + asked * np.array(variant.tokens) * each + (0 if v in seen else reached * prompt * first)
            seen.add(v)
        made.append(total)
    return np.array(made)


def _variants(table: Table, files: Mapping[str, str], share: Real, power_mw: float) -> list[Generator]:
    made = []
    for name, d in table.drawn.items():
        made.append(
            Generator(
                name=name,
                file=files[name],
                bytes=d.file_bytes,
                memory=d.file_bytes,
                prompt_us=d.prompt_us,
                token_us=d.token_us,
                load_us=round(d.load_us),
                tokens=tuple(map(float, share @ d.tokens.mean(axis=1))),
                spread=tuple(float(np.std(d.tokens[part > 0])) for part in share),
                vote=_vote(d.right, d.answers),
                power_mw=power_mw,
            )
        )
    return made


def _vote(right: Bools, answers: np.ndarray) -> float:
    """Weight of a vote: ln(p / ((1 - p) q)), p the chance that an answer is right, q that two wrong ones are equal.

    The log-odds that a vote adds for its answer, were all prompts alike; at least 0.1.
    """
    p = min(max(float(right.mean()), 1e-3), 1 - 1e-3)
    wrong = np.where(right, -np.arange(right.shape[1])[None] - 1, answers)  # right ones meet nobody
    half = wrong.shape[1] // 2
    met = (wrong[:, :half] == wrong[:, half : 2 * half]) & (wrong[:, :half] > 0)
    both = ~right[:, :half] & ~right[:, half : 2 * half]
    q = max(float(met.sum() / max(both.sum(), 1)), 1e-3)
    return max(float(np.log(p / ((1 - p) * q))), 0.1)


def _voting(table: Table, variants: Sequence[Generator], share: Real, prompt: Real, rounds: int) -> list[Scored]:
    votes = [v.vote for v in variants]
    value = np.array([d.right.mean() for d in table.drawn.values()])
    price = np.array([v.bytes for v in variants], float)
    ranked = sorted(range(len(votes)), key=lambda v: sum((value >= value[v]) & (price <= price[v])))
    some = sorted(ranked[:HANDING_ON])
    candidates = list(voted(Runs(table, rounds), votes, some, some, share))
    return _kept(candidates, variants, share, prompt, table)


def _verified(
    table: Table, judge: Verdicts, variants: Sequence[Generator], bins: np.ndarray, share: Real, lengths: Real
) -> list[Scored]:
    most = MOST * table.samples
    plans: dict[Plan, None] = {}
    for unit in PLANNED:
        first, each = np.array([v.rates(unit) for v in variants]).T
        sample = np.array([np.array(v.tokens)[bins] for v in variants]) * each[:, None]
        prompt = first[:, None] * lengths[None]
        for members in (*(bins == d for d in range(DIFFICULTIES)), bins >= 0):
            for staying in STAYING:
                plan = judge.greedy(members, sample, prompt, most, staying)
                plans.update(dict.fromkeys(prefixes(plan, MAX_STAGES)))
    for v in range(len(variants)):
        plans.update(dict.fromkeys(((v, count, 1.0),) for count in COUNTS if count <= table.samples))
    candidates = []
    for plan in plans:
        one = judge.score(plan)
        candidates.append(Scored(plan, share @ one.worth, one.asked @ share.T, one.reached @ share.T))
    return _kept(candidates, variants, share, share @ lengths, table)


def _kept(
    candidates: Sequence[Scored], variants: Sequence[Generator], share: Real, prompt: Real, table: Table
) -> list[Scored]:
    """For every bin and all, in token-bytes and time: corners of the hull by mean cost, the front by longest cost."""
    quality = np.array([one.worth for one in candidates])
    chosen: dict[int, None] = {}
    for unit in PLANNED:
        mean = costs(candidates, variants, prompt, unit)
        full = [Scored(o.plan, o.worth, *_full(o)) for o in candidates]
        longest = costs(full, variants, prompt, unit)
        # A mean budget is met by mixing corners of the hull; a limit of a call takes the best that fits, corner or not.
        for cost, best in ((mean, hull), (longest, front)):
            for group in (*range(DIFFICULTIES), slice(None)):
                x, y = (values[:, group].reshape(len(candidates), -1).mean(axis=1) for values in (cost, quality))
                chosen.update(dict.fromkeys(_thinned(best(x.tolist(), y.tolist()))))
    order = sorted(chosen, key=lambda i: float(costs([candidates[i]], variants, prompt, "bytes").mean()))
    return [candidates[i] for i in order[:MAX_LADDERS]]


def _full(one: Scored) -> tuple[Real, Real]:
    """Asked and reached where nothing settles before the end."""
    return np.array([[float(s)] * one.worth.size for _, s, _ in one.plan]), np.ones_like(one.reached)


def _thinned(corners: list[int]) -> Iterable[int]:
    places = np.unique(np.linspace(0, len(corners) - 1, CORNERS).round().astype(int))
    return [corners[i] for i in places]


def _finished_votes(
    table: Table, variants: Sequence[Generator], kept: Sequence[Scored], bins: np.ndarray, rounds: int
) -> list[Ladder]:
    """The kept plans once more, prompt by prompt, on orders of the samples they were not chosen on."""
    runs = Runs(table, 2 * rounds, seed=1)
    votes, made = [v.vote for v in variants], []
    for one in kept:
        groups = len(table.prompts)
        draft = _finished(
            Scored(one.plan, np.zeros(groups), *(np.zeros((len(one.plan), groups)),) * 2), "majority", bins
        )
        seen = runs.replay(draft, votes)
        right = seen.right.reshape(-1, groups).mean(axis=0)
        asked = seen.asked.T.reshape(len(one.plan), -1, groups)
        made.append(_finished(Scored(one.plan, right, asked.mean(axis=1), (asked > 0).mean(axis=1)), "majority", bins))
    return made


def _finished(one: Scored, rule: str, bins: np.ndarray) -> Ladder:
    """A ladder from what its plan comes to prompt by prompt."""
    groups = [bins == d for d in range(DIFFICULTIES)]
    centre = [float(one.worth[g].mean()) for g in groups]
    spread = [1.96 * float(one.worth[g].std(ddof=1)) / max(int(g.sum()), 1) ** 0.5 for g in groups]
    return Ladder(
        rule="verified" if rule == "verified" else "majority",
        stages=tuple(
            Stage(
                variant=variant,
                samples=samples,
                stop=stop,
                asked=tuple(float(asked[g].mean()) for g in groups),
                reached=tuple(float(reached[g].mean()) for g in groups),
            )
            for (variant, samples, stop), asked, reached in zip(one.plan, one.asked, one.reached, strict=True)
        ),
        quality=tuple(centre),
        low=tuple(c - s for c, s in zip(centre, spread, strict=True)),
        high=tuple(min(c + s, 1.0) for c, s in zip(centre, spread, strict=True)),
    )


def _verifier_figures(table: Table, verifier: Checked, bins: np.ndarray) -> VerifierFigures:
    """Completeness and soundness over all samples with an answer, and K* of each variant and bin."""
    right = np.concatenate([d.right[d.answers > 0] for d in table.drawn.values()])
    passed = np.concatenate([verifier.verdicts[name][d.answers > 0] for name, d in table.drawn.items()])
    complete = float(passed[right].mean()) if right.any() else 1.0
    wrong = int((~right).sum())
    sound = float((~passed[~right]).mean()) if wrong else 1.0
    most = []
    for d in table.drawn.values():
        row = []
        for group in (bins == g for g in range(DIFFICULTIES)):
            chance = d.right[group].mean(axis=1)
            law = Verifier(
                (1 / len(chance),) * len(chance), tuple(map(float, chance)), complete, sound, verifier.wrong_value
            )
            row.append(law.best(LARGEST_K))
        most.append(tuple(row))
    return VerifierFigures(
        completeness=complete,
        soundness=sound,
        soundness_low=_wilson(sound, wrong),
        wrong_value=verifier.wrong_value,
        most=tuple(most),
    )


def _wilson(share: float, count: int) -> float:
    """Lower end of the 95 % interval of a share seen in `count` cases."""
    z = 1.96
    if not count:
        return 0.0
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max((centre - spread) / (1 + z * z / count), 0.0)
