#!/usr/bin/env python3
"""The language-model runtime on the tiny family: speed of speculation, memory of caches, solved problems.

    tools/bench_lm.py speed                          tokens a second with and without n-gram drafts, taking turns
    tools/bench_lm.py family --problems 50           pass@1 and coverage of every file and level
    tools/bench_lm.py choose tinylm_m.onnx           what rules of choice make of N samples

`speed` solves problems one after the other, several samples each, as an application that reasons would: drafts learn
from the prompt, from the sample itself, from the samples before and from the problems before. It fails (exit 1) where
a text differs from the one without drafts. Times are of the process (CPU), so that other load disturbs little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "tinylm"
sys.path[:0] = [str(ROOT), str(EXAMPLE)]

from tinylm_task import LEVELS, Problem, answer_of, correct, problems  # noqa: E402

from edgescale.runtime import samples as rules  # noqa: E402
from edgescale.runtime.lm import (  # noqa: E402
    Completion,
    LanguageModel,
    NgramDraft,
    Options,
    Sampling,
    Speculation,
    Usage,
)

SEED = 2026
"""Seed of the problems; training draws from other ones."""
LONGEST = 64
SIZES = ("xs", "s", "m", "l", "xl")


def coverage(right: Sequence[int], drawn: int, count: int) -> float:
    """Mean probability that one of `count` samples is right, unbiased, from `right` of `drawn` of each problem."""
    miss = [np.prod([1 - count / k for k in range(drawn - c + 1, drawn + 1)]) for c in right]
    return float(1 - np.mean([m if drawn - c >= count else 0.0 for m, c in zip(miss, right, strict=True)]))


def independent(number: int) -> Options:
    """Options of problem `number`: a seed of its own, for under one seed all problems see the same random numbers."""
    return Options(max_tokens=LONGEST, seed=number)


def solve(
    model: LanguageModel, asked: Sequence[Problem], count: int, options: Options, drafts: NgramDraft | None
) -> tuple[list[Completion], list[Usage], float]:
    """All completions, usages and CPU seconds of `count` samples of every problem."""
    done: list[Completion] = []
    used = []
    start = time.process_time()
    for number, problem in enumerate(asked):
        generation = model.start(problem.prompt, count, replace(options, seed=number), drafts)
        done += sorted(generation.completions(), key=lambda completion: completion.sample)
        used.append(generation.usage)
    return done, used, time.process_time() - start


def speed(arguments: argparse.Namespace) -> int:
    """Plain and speculative runs in turns, of every file."""
    asked = problems(arguments.problems, SEED, tuple(arguments.levels))
    same = True
    print(f"{'file':22} {'T':>4} {'samples':>7} {'plain':>8} {'drafts':>8} {'gain':>6} {'accepted':>9} {'a pass':>6}")
    for file in arguments.files:
        model = LanguageModel(EXAMPLE / file)
        for temperature in arguments.temperature:
            plain = Options(max_tokens=LONGEST, sampling=Sampling(temperature), batch=1)
            drafted = replace(plain, speculation=Speculation())
            count = 1 if temperature == 0 else arguments.samples
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.turns):
                texts, used, spent = solve(model, asked, count, plain, None)
                seconds[0].append(spent)
                again, helped, spent = solve(model, asked, count, drafted, NgramDraft(6))
                seconds[1].append(spent)
                same &= [c.tokens for c in texts] == [c.tokens for c in again]
            tokens = sum(u.generated_tokens for u in used)
            rate, faster = (tokens / min(times) for times in seconds)
            share = sum(u.accepted_tokens for u in helped) / max(1, sum(u.drafted_tokens for u in helped))
            passes = sum(u.generated_tokens for u in helped) / sum(u.passes for u in helped)
            print(
                f"{file:22} {temperature:4.1f} {count:7} {rate:8.0f} {faster:8.0f} {faster / rate:5.2f}x "
                f"{share:9.0%} {passes:6.2f}",
                flush=True,
            )
    print("texts with drafts equal those without" if same else "TEXTS DIFFER")
    return 0 if same else 1


def family(arguments: argparse.Namespace) -> int:
    """pass@1 and coverage of every file and level."""
    asked = problems(arguments.problems, SEED)
    counts = [n for n in (1, 4, 16, 64) if n <= arguments.samples]
    print(f"{'file':22} {'level':11} " + " ".join(f"{f'pass@{n}':>8}" for n in counts))
    for file in arguments.files:
        model = LanguageModel(EXAMPLE / file)
        right: dict[str, list[int]] = {level: [] for level in LEVELS}
        for number, problem in enumerate(asked):
            done = model.generate(problem.prompt, arguments.samples, independent(number))
            right[problem.level].append(sum(correct(problem.prompt, c.text) for c in done))
        right["all"] = [number for level in LEVELS for number in right[level]]
        for level, numbers in right.items():
            figures = " ".join(f"{coverage(numbers, arguments.samples, n):8.3f}" for n in counts)
            print(f"{file:22} {level:11} {figures}", flush=True)
    return 0


def choose(arguments: argparse.Namespace) -> int:
    """Solved problems by rules of choice over the first N samples."""
    asked = problems(arguments.problems, SEED)
    named = ("majority", "weighted", "best-of-N", "best-of-majority", "verified")
    print(f"{'file':22} {'N':>3} " + " ".join(f"{name:>16}" for name in named))
    for file in arguments.files:
        model = LanguageModel(EXAMPLE / file)
        drawn = [model.generate(p.prompt, arguments.samples, independent(i)) for i, p in enumerate(asked)]
        for count in [n for n in (1, 4, 16, 64) if n <= arguments.samples]:
            solved = dict.fromkeys(named, 0)
            for problem, done in zip(asked, drawn, strict=True):
                some = done[:count]
                answers = [answer_of(problem.prompt, c.text) for c in some]
                means = [c.log_probability / len(c.tokens) for c in some]
                verdicts = [correct(problem.prompt, c.text) for c in some]
                chosen = {
                    "majority": rules.majority(answers),
                    "weighted": rules.weighted_majority(answers, [float(np.exp(m)) for m in means]),
                    "best-of-N": rules.best_of(answers, means),
                    "best-of-majority": rules.best_of_majority(answers, means, 0.15),
                    "verified": rules.verified(answers, verdicts),
                }
                for name, choice in chosen.items():
                    solved[name] += verdicts[choice.index]
            print(f"{file:22} {count:3} " + " ".join(f"{solved[n] / len(asked):16.3f}" for n in named), flush=True)
    return 0


def main() -> int:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description="Bench of the language-model runtime.")
    parser.add_argument("part", choices=("speed", "family", "choose"))
    parser.add_argument("files", nargs="*", help="files of examples/tinylm (default: the five float ones)")
    parser.add_argument("--problems", type=int, default=20, help="of every level")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--levels", nargs="+", default=["sum4", "sum5"], choices=LEVELS, help="of `speed`")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0], help="of `speed`")
    parser.add_argument("--turns", type=int, default=2, help="of `speed`; the best of each counts")
    arguments = parser.parse_args()
    arguments.files = arguments.files or [f"tinylm_{size}.onnx" for size in SIZES]
    return {"speed": speed, "family": family, "choose": choose}[arguments.part](arguments)


if __name__ == "__main__":
    sys.exit(main())
