"""The controller's options for one target: every variant, and the cascades of two that pay.

A cascade runs a small variant and asks a larger one where the small one is not confident enough. Which
confidence is enough is chosen on the evaluation data, its quality estimated on the other half of them each
time (two-fold), so that the choice does not flatter itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import msgspec
import numpy as np
import numpy.typing as npt

from edgescale.bundle.manifest import EntryRecord
from edgescale.bundle.policy import quality, value_of
from edgescale.control.fixed import U32_MAX
from edgescale.control.policy import (
    CERTAIN,
    MAX_OPTIONS,
    MAX_VARIANTS,
    QUALITY_ONE,
    Option,
    Policy,
    PolicyVariant,
    Step,
)
from edgescale.core.quantity import Quantity
from edgescale.core.recipe import SIMULATED

ESCALATED = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55)
"""Shares of inputs that a cascade hands on to its second variant."""
HYSTERESIS = 33
"""Quality, Q15, a change of option must gain: 0.1 %."""
FEWEST_SAMPLES = 100
"""Evaluation samples below which no cascade is proposed, and no views."""
PAYS = 2.0
"""Standard errors above which the answers that views win are no chance."""


@dataclass(frozen=True)
class Answers:
    """A classifier's answers on the evaluation data: confidence [n] in [0, 1] of each, and whether it was right."""

    confidence: npt.NDArray[np.float32]
    correct: npt.NDArray[np.bool_]
    views: tuple[npt.NDArray[np.bool_], ...] = ()
    """Whether the mean answer of the sample and its first 1, 2, ... declared views was right, [n] each."""


def answers_of(
    outputs: npt.NDArray[np.generic],
    labels: npt.NDArray[np.generic],
    views: Sequence[npt.NDArray[np.generic]] = (),
) -> Answers | None:
    """Answers from outputs [n, classes] (scores or probabilities) and labels [n]; None for other shapes.

    views: outputs of each declared view of the samples.
    """
    scores = outputs.reshape(len(outputs), -1).astype(np.float64)
    if scores.shape[1] < 2 or labels.shape != (len(scores),) or labels.dtype.kind not in "iu":
        return None
    total, averaged = probabilities(scores), []
    for view in views:
        total = total + probabilities(view.reshape(len(view), -1).astype(np.float64))
        averaged.append(np.asarray(total.argmax(axis=1) == labels))
    return Answers(confidences(scores), np.asarray(scores.argmax(axis=1) == labels), tuple(averaged))


def probabilities(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows [n, classes] that are no probabilities through a softmax."""
    sums = scores.sum(axis=1, keepdims=True)
    if scores.size and (scores.min() < 0 or abs(sums - 1).max() > 0.02):
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return scores


def confidences(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest probability of each row."""
    return np.asarray(probabilities(scores).max(axis=1), np.float32)


def build_policy(
    target: str,
    metric: str,
    records: Sequence[EntryRecord],
    answers: Mapping[str, Answers],
    views: Sequence[str] = (),
) -> Policy | None:
    """The policy over a target's entries, cheapest option first.

    answers: by entry id, of entries judged by top-1 on the same samples. views: declared, those of the answers. None
    where no entry has both a latency and a quality, as without evaluation data.
    """
    figures = {r.id: r.quantities() for r in records if not r.recipe.name.endswith(SIMULATED)}
    known = {name: f for name, f in figures.items() if quality(f) is not None and (value_of(f, "latency") or 0) > 0}
    if not known:
        return None
    names = sorted(known, key=lambda name: (_us(known[name]), name))[:MAX_VARIANTS]
    worth = _qualities({name: known[name] for name in names})
    options = [
        Option(
            quality=(worth[name],),
            steps=(_step(index, known[name]),),
            mean_us=_us(known[name]),
            mean_uj=_uj(known[name]),
            memory=_bytes(known[name]),
        )
        for index, name in enumerate(names)
    ]
    for first, second in combinations(range(len(names)), 2):
        small, large = (answers.get(names[i]) for i in (first, second))
        if small is not None and large is not None and len(small.correct) == len(large.correct) >= FEWEST_SAMPLES:
            options += _cascades(options[first], options[second], small, large)
    for index, name in enumerate(names):
        if name in answers and len(answers[name].correct) >= FEWEST_SAMPLES:
            options += _viewed(options[index], answers[name])
    sources = sorted({f[m].source for f in known.values() for m in ("latency",) if m in f})
    return Policy(
        target=target,
        metric=metric,
        variants=tuple(PolicyVariant(name=n, load_us=_load(known[n])) for n in names),
        options=tuple(_worth_keeping(options)),
        hysteresis=HYSTERESIS,
        views=tuple(views),
        source=f"latency {', '.join(sources)}; quality on the evaluation data",
    )


def _cascades(first: Option, second: Option, small: Answers, large: Answers) -> list[Option]:
    """Cascades of two variants, one for each share of ESCALATED."""
    made = []
    for share in ESCALATED:
        confidence = _threshold(small.confidence, share)
        right = _two_fold(small, large, share)
        asked = float((small.confidence < confidence).mean())
        made.append(
            Option(
                quality=(round(right * QUALITY_ONE),),
                steps=(*first.steps, *second.steps),
                mean_us=min(first.mean_us + round(asked * second.mean_us), U32_MAX),
                mean_uj=min(first.mean_uj + round(asked * second.mean_uj), U32_MAX),
                memory=min(first.memory + second.memory, U32_MAX),
                confidence=min(math.ceil(confidence * CERTAIN), CERTAIN),
            )
        )
    return made


def _viewed(alone: Option, answers: Answers) -> list[Option]:
    """A variant with views of its input, always, or where it is not confident enough on the input itself.

    Offered where the views win answers beyond chance: what they set right less what they spoil is above PAYS standard
    errors of that difference.
    """
    made, (step,) = [], alone.steps
    for count, right in enumerate(answers.views, start=1):
        won, lost = int((right & ~answers.correct).sum()), int((answers.correct & ~right).sum())
        if won - lost <= PAYS * math.sqrt(won + lost):
            continue
        more = Step(variant=step.variant, time_us=_times(step.time_us, count), energy_uj=_times(step.energy_uj, count),
                    views=count)  # fmt: skip
        always = msgspec.structs.replace(
            more, time_us=_times(step.time_us, count + 1), energy_uj=_times(step.energy_uj, count + 1)
        )
        made.append(
            msgspec.structs.replace(
                alone,
                quality=(round(float(right.mean()) * QUALITY_ONE),),
                steps=(always,),
                mean_us=always.time_us,
                mean_uj=_times(alone.mean_uj, count + 1),
                samples=count + 1,
            )
        )
        second = msgspec.structs.replace(
            alone, steps=(more,), mean_us=more.time_us, mean_uj=_times(alone.mean_uj, count), memory=0
        )
        made += _cascades(alone, second, answers, Answers(answers.confidence, right))
    return made


def _times(value: int, count: int) -> int:
    return min(value * count, U32_MAX)


def _threshold(confidence: npt.NDArray[np.float32], share: float) -> float:
    return float(np.quantile(confidence, share))


def _two_fold(small: Answers, large: Answers, share: float) -> float:
    """Share of right answers, the threshold for each half of the samples taken from the other half."""
    right = 0
    for part in (0, 1):
        mine, other = slice(part, None, 2), slice(1 - part, None, 2)
        keep = small.confidence[mine] >= _threshold(small.confidence[other], share)
        right += int(np.where(keep, small.correct[mine], large.correct[mine]).sum())
    return right / len(small.correct)


def _worth_keeping(options: Sequence[Option]) -> list[Option]:
    """Options that no other beats in quality, mean cost, longest time and memory at once, cheapest first."""
    costs = [(-o.quality[0], o.mean_us, sum(s.time_us for s in o.steps), o.memory) for o in options]
    kept = []
    for index, (option, mine) in enumerate(zip(options, costs, strict=True)):
        beaten = any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or place < index)
            for place, other in enumerate(costs)
            if place != index
        )
        # Every variant stays: it is what remains when another fails.
        if not beaten or _plain(option):
            kept.append(option)
    kept.sort(key=lambda o: (o.mean_us, -o.quality[0]))
    singles = [o for o in kept if _plain(o)]
    while len(kept) > MAX_OPTIONS:
        kept.remove(min((o for o in kept if o not in singles), key=lambda o: _gain(o, singles)))
    return kept


def _plain(option: Option) -> bool:
    """Whether an option is a variant alone, on the input as it is."""
    return len(option.steps) == 1 and not option.steps[0].views


def _gain(option: Option, singles: Sequence[Option]) -> float:
    """Quality of an option above the best single variant of no greater mean cost."""
    return option.quality[0] - max((s.quality[0] for s in singles if s.mean_us <= option.mean_us), default=0)


def _qualities(figures: Mapping[str, Mapping[str, Quantity]]) -> dict[str, int]:
    """Quality in Q15: accuracy as it is, an error as the smallest error over its own."""
    values = {name: quality(f) or 0.0 for name, f in figures.items()}
    if any("accuracy" not in f for f in figures.values()):
        best = max(values.values())  # minus the smallest error
        values = {name: 1.0 if value == best else best / value for name, value in values.items()}
    return {name: round(min(max(value, 0.0), 1.0) * QUALITY_ONE) for name, value in values.items()}


def _step(index: int, figures: Mapping[str, Quantity]) -> Step:
    return Step(variant=index, time_us=_us(figures), energy_uj=_uj(figures))


def _us(figures: Mapping[str, Quantity]) -> int:
    return _whole((value_of(figures, "latency") or 0.0) * 1e3, 1)


def _uj(figures: Mapping[str, Quantity]) -> int:
    return _whole(value_of(figures, "energy") or 0.0)


def _load(figures: Mapping[str, Quantity]) -> int:
    """Opening a variant and its slow first run; nothing where variants are linked into the firmware."""
    opening, first = value_of(figures, "init") or 0.0, value_of(figures, "first_run") or 0.0
    return _whole((opening + max(first - (value_of(figures, "latency") or 0.0), 0.0)) * 1e3)


def _bytes(figures: Mapping[str, Quantity]) -> int:
    return _whole(value_of(figures, "ram") or 0.0)


def _whole(value: float, least: int = 0) -> int:
    return min(max(round(value), least), U32_MAX)
