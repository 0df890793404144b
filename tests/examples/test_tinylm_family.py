"""The tracked tiny language family: the task's checker, the files, and what they solve (no torch)."""

from __future__ import annotations

import ast
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgescale.runtime.lm import LanguageModel, Options

FAMILY = Path(__file__).resolve().parents[2] / "examples" / "tinylm"
sys.path.insert(0, str(FAMILY))

from tinylm_shapes import SIZES  # noqa: E402
from tinylm_task import LEVELS, TOKENS, correct, problems  # noqa: E402

PARAMETERS = {"xs": 13_056, "s": 42_496, "m": 124_544, "l": 371_328, "xl": 1_233_280}
FLOAT_BYTES = 8 * 2**20


def turned(text: str) -> str:
    """The digits of every number in the usual order."""
    out, number = "", ""
    for character in text + " ":
        if character.isdigit():
            number = character + number
        else:
            out, number = out + number + character, ""
    return out[:-1]


def reachable(numbers: tuple[int, ...]) -> set[int]:
    """Every value of numbers combined by + - * in any order."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for left, right, *rest in permutations(numbers):
        for value in (left + right, left - right, left * right):
            found |= reachable((value, *rest))
    return found


def test_problems_are_what_they_say() -> None:
    for problem in problems(40, seed=1):
        assert set(problem.prompt + problem.solution) < set(TOKENS)
        assert correct(problem.prompt, problem.solution) and correct(problem.prompt, problem.solution + "\n1+1")
        prompt, solution = turned(problem.prompt), turned(problem.solution)
        if problem.level.startswith("sum"):
            steps = [prompt[:-1], *solution.split("=")]
            values = [sum(int(term) for term in step.split("+")) for step in steps]
            assert len(set(values)) == 1 and [step.count("+") for step in steps] == list(range(len(steps) - 1, -1, -1))
        else:
            numbers, target = prompt[:-1].split(">")
            assert int(target) in reachable(tuple(int(n) for n in numbers.split(",")))
            for step in solution.split(";"):
                left, right = step.split("=")
                assert eval(compile(ast.parse(left, mode="eval"), "step", "eval")) == int(right)  # digits and + - *
    assert problems(3, seed=1) == problems(3, seed=1) != problems(3, seed=2)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("43+7=", "24"),  # 42
        ("43+7=", ""),
        ("43+7=", "14="),
        ("4,7,2>51:", "4*2=8;8+7=61"),  # the target is missed
        ("4,7,2>51:", "4*2=8;8+7=51;1+1=2"),  # a number that is not at hand
        ("4,7,2>51:", "4+4=8;8+7=51"),  # one used twice
        ("4,7,2>51:", "4*2=9;9+6=51"),  # false arithmetic
        ("4,7>11:", "4+7=11;"),
        ("4,7,2>11:", "4+7=11"),  # one left over
        ("4,7>11:", "4+7"),
    ],
)
def test_wrong_completions_are_told(prompt: str, completion: str) -> None:
    assert not correct(prompt, completion)
    assert correct("4,7,2>51:", "4*2=8;8+7=51") and correct("43+7=", "14")


@pytest.mark.parametrize("size", SIZES)
def test_files_are_decoders_as_exporters_write_them(size: str) -> None:
    model = onnx.load(FAMILY / f"tinylm_{size}.onnx")
    onnx.checker.check_model(model, full_check=True)
    names = [value.name for value in model.graph.input]
    layers = SIZES[size].layers
    past = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    assert names == ["input_ids", "attention_mask", "position_ids", *past]
    assert [value.name for value in model.graph.output] == [
        "logits",
        *(name.replace("past_key_values", "present") for name in past),
    ]
    weights = [t for t in model.graph.initializer if t.name.endswith(".weight")]
    assert sum(int(np.prod(t.dims)) for t in weights) == PARAMETERS[size]
    bytes_of = {name: (FAMILY / f"tinylm_{size}{name}.onnx").stat().st_size for name in ("", "_int8", "_int4")}
    assert bytes_of["_int4"] < bytes_of["_int8"] < bytes_of[""]
    assert sum((FAMILY / f"tinylm_{each}.onnx").stat().st_size for each in SIZES) < FLOAT_BYTES


def solved(file: str, samples: int = 8) -> np.ndarray:
    """[problems, samples] whether right, 12 problems of every level."""
    model = LanguageModel(FAMILY / file)
    return np.array(
        [
            [
                correct(problem.prompt, c.text)
                for c in model.generate(problem.prompt, samples, Options(max_tokens=64, seed=number))
            ]
            for number, problem in enumerate(problems(12, seed=77))
        ]
    )


@pytest.mark.slow
def test_the_family_is_graded_and_coverage_grows() -> None:
    rate, covered = {}, {}
    for size in SIZES:
        right = solved(f"tinylm_{size}.onnx")
        rate[size], covered[size] = right.mean(), right.any(axis=1).mean()
        assert 0.1 <= rate[size] <= 0.8
        assert covered[size] > rate[size] + 0.05
        by_level = right.reshape(len(LEVELS), -1).mean(axis=1)
        assert by_level[0] > by_level[3] - 0.02 and by_level[4] > by_level[5] > by_level[6] - 0.02
    # The two sizes in the middle are all but equal, as they came out of training.
    assert rate["xs"] < rate["s"] < min(rate["m"], rate["l"]) and max(rate["m"], rate["l"]) < rate["xl"]


@pytest.mark.parametrize(("precision", "loss"), [("int8", 0.03), ("int4", 0.15)])
def test_few_bits_keep_most(precision: str, loss: float) -> None:
    floating, quantized = solved("tinylm_m.onnx", 4), solved(f"tinylm_m_{precision}.onnx", 4)
    assert quantized.mean() > floating.mean() - loss
