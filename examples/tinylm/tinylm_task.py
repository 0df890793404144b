"""The graded task of the tiny language family: problems, worked solutions and an exact checker.

Two kinds, each in levels. `sum`: a number below 50 and 1 to 4 below 10 are added, the expression rewritten after
every addition. `countdown`: each of 2 to 4 numbers below 10 is used once, by + - *, to reach a target; every result
on the way is at most 20. Numbers are written least significant digit first, so that carries travel in reading
order: 34 is "43".

    43+7+8=14+8=94          34+7+8 = 41+8 = 49
    4,3,2>41:4*3=21;21+2=41

Needs the standard library only.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

END = "\n"
TOKENS = (END, *"0123456789+-*=;,>:")
"""The vocabulary, one character a token; token 0 ends a completion and pads."""
SUM_LEVELS = (2, 3, 4, 5)
COUNTDOWN_LEVELS = (2, 3, 4)
LEVELS = tuple(f"sum{n}" for n in SUM_LEVELS) + tuple(f"countdown{n}" for n in COUNTDOWN_LEVELS)
LARGEST = 20
"""The largest result in a countdown."""
_STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


@dataclass(frozen=True)
class Problem:
    """A prompt of one level with one right solution (END not included)."""

    level: str
    prompt: str
    solution: str


def digits(value: int) -> str:
    """`value` >= 0, least significant digit first."""
    return str(value)[::-1]


def value_of(text: str) -> int:
    """The number that `digits` wrote as `text`."""
    return int(text[::-1])


def make(level: str, rng: random.Random) -> Problem:
    """A random problem of `level`, one of LEVELS (ValueError otherwise)."""
    kind, count = level.rstrip("0123456789"), int(level[-1])
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is not one of {', '.join(LEVELS)}")
    return _sum(level, count, rng) if kind == "sum" else _countdown(level, count, rng)


def _sum(level: str, count: int, rng: random.Random) -> Problem:
    terms = [rng.randint(1, 49), *(rng.randint(1, 9) for _ in range(count - 1))]
    prompt = "+".join(map(digits, terms)) + "="
    steps = []
    while len(terms) > 1:
        terms = [terms[0] + terms[1], *terms[2:]]
        steps.append("+".join(map(digits, terms)))
    return Problem(level, prompt, "=".join(steps))


def _countdown(level: str, count: int, rng: random.Random) -> Problem:
    while True:
        numbers = [rng.randint(1, 9) for _ in range(count)]
        at_hand, steps = list(numbers), []
        while len(at_hand) > 1:
            rng.shuffle(at_hand)
            left, right = max(at_hand[:2]), min(at_hand[:2])
            sign = rng.choice("+-*")
            result = apply(left, sign, right)
            if not 1 <= result <= LARGEST:
                break
            steps.append(f"{digits(left)}{sign}{digits(right)}={digits(result)}")
            at_hand = [result, *at_hand[2:]]
        else:
            prompt = ",".join(map(digits, numbers)) + f">{digits(at_hand[0])}:"
            return Problem(level, prompt, ";".join(steps))


def apply(left: int, sign: str, right: int) -> int:
    """left `sign` right for + - *."""
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def answer_of(prompt: str, completion: str) -> str:
    """What a vote counts: the last number of a sum, the whole text of a countdown ("" where there is none)."""
    text = completion.split(END)[0]
    return text if ">" in prompt else text.rsplit("=", 1)[-1]


def correct(prompt: str, completion: str) -> bool:
    """Whether `completion` (END and what follows ignored) solves `prompt`: the last number of a sum is the
    sum; every step of a countdown is true arithmetic on two numbers at hand, all are used, the last is the target.
    """
    text = completion.split(END)[0]
    if ">" not in prompt:
        last = text.rsplit("=", 1)[-1]
        return last.isdigit() and value_of(last) == sum(map(value_of, prompt.rstrip("=").split("+")))
    numbers, target = prompt.rstrip(":").split(">")
    at_hand = [value_of(number) for number in numbers.split(",")]
    for step in text.split(";"):
        match = _STEP.fullmatch(step)
        if match is None:
            return False
        left, sign, right, result = value_of(match[1]), match[2], value_of(match[3]), value_of(match[4])
        for operand in (left, right):
            if operand not in at_hand:
                return False
            at_hand.remove(operand)
        if apply(left, sign, right) != result:
            return False
        at_hand.append(result)
    return at_hand == [value_of(target)]


def problems(count: int, seed: int, levels: tuple[str, ...] = LEVELS) -> list[Problem]:
    """`count` problems of every level, in the order of `levels`, the same for the same seed."""
    rng = random.Random(f"tinylm {seed}")
    return [make(level, rng) for level in levels for _ in range(count)]
