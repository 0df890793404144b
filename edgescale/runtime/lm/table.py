"""A table of completions: what every variant answers to calibration prompts, many times; recorded once, resumable.

Policies of generators are made from one such table and judged on another, of other prompts, without running a model.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.core.files import write_whole
from edgescale.runtime.lm.model import LanguageModel
from edgescale.runtime.lm.sequence import Options

TIMED = 12
"""Prompts that are timed, one sample each, nothing else in the batch."""


@dataclass(frozen=True)
class Drawn:
    """What one variant answered. Arrays are [prompts, samples].

    answers: the prompt's number of the answer, the same in all variants of a table, 0 where there is none. right:
    whether it is right. tokens: generated, end token included. scores: mean log-probability of a token. file_bytes:
    of the model. prompt_us, token_us: microseconds of a token of the prompt and of a generated one (see `TIMED`).
    load_us: to open the model.
    """

    answers: npt.NDArray[np.int32]
    right: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    file_bytes: int
    prompt_us: float
    token_us: float
    load_us: float


@dataclass(frozen=True)
class Table:
    """Prompts with their token ids, and what each variant drew, by name in the order given."""

    prompts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    drawn: Mapping[str, Drawn]

    @property
    def samples(self) -> int:
        """Samples of every prompt that all variants have."""
        return min(int(d.answers.shape[1]) for d in self.drawn.values())

    def of(self, prompts: Sequence[int]) -> Table:
        """The table of some prompts, by number."""
        rows = np.asarray(prompts, np.int64)

        def cut(d: Drawn) -> Drawn:
            return replace(
                d, answers=d.answers[rows], right=d.right[rows], tokens=d.tokens[rows], scores=d.scores[rows]
            )

        return Table(
            tuple(self.prompts[i] for i in rows),
            tuple(self.ids[i] for i in rows),
            {name: cut(d) for name, d in self.drawn.items()},
        )


def seed_of(prompt: str, variant: str, seed: int = 0) -> int:
    """The seed of a variant's samples of a prompt: with a common one, variants would repeat each other's luck."""
    return zlib.crc32(f"{seed} {variant} {prompt}".encode())


def record(
    folder: Path,
    models: Mapping[str, Path],
    prompts: Sequence[str],
    correct: Callable[[str, str], bool],
    answer: Callable[[str, str], str],
    samples: int,
    options: Options,
    say: Callable[[str], object] = lambda text: None,
) -> Table:
    """Draw `samples` completions of every prompt from every model; what `folder` holds already is not drawn again.

    correct, answer: (prompt, completion) -> whether it is right, and what of it a vote counts ("" for nothing).
    A model, its options or prompts that changed are drawn anew. Raises UsageError for no prompts or no models.
    """
    if not prompts or not models or samples < 1:
        raise UsageError(f"a table needs prompts, models and samples: {len(prompts)}, {len(models)}, {samples}")
    folder.mkdir(parents=True, exist_ok=True)
    raw = {}
    for name, path in models.items():
        key = _key(path, prompts, samples, options)
        file = folder / f"{name}-{key}.npz"
        if not file.is_file():
            start = perf_counter()
            _draw(file, name, path, prompts, correct, answer, samples, options)
            say(f"{name}: {len(prompts)} prompts x {samples} samples in {perf_counter() - start:.0f} s")
        with np.load(file) as data:
            raw[name] = {part: data[part] for part in data.files}
    tokenizer = LanguageModel(next(iter(models.values()))).tokenizer
    ids = tuple(tuple(tokenizer.encode(prompt)) for prompt in prompts)
    numbers: list[dict[str, int]] = [{"": 0} for _ in prompts]
    drawn = {}
    for name, parts in raw.items():
        texts = parts["answers"]
        codes = np.array(
            [
                [number.setdefault(str(text), len(number)) for text in row]
                for number, row in zip(numbers, texts, strict=True)
            ],
            np.int32,
        )
        drawn[name] = Drawn(
            codes,
            parts["right"],
            parts["tokens"].astype(np.int32),
            parts["scores"],
            int(parts["costs"][0]),
            *map(float, parts["costs"][1:]),
        )
    return Table(tuple(prompts), ids, drawn)


def _key(path: Path, prompts: Sequence[str], samples: int, options: Options) -> str:
    if not path.is_file():
        raise UsageError(f"model file {path} does not exist")
    content = json.dumps([hashlib.sha256(path.read_bytes()).hexdigest(), list(prompts), samples, repr(options)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _draw(
    file: Path,
    name: str,
    path: Path,
    prompts: Sequence[str],
    correct: Callable[[str, str], bool],
    answer: Callable[[str, str], str],
    samples: int,
    options: Options,
) -> None:
    import io

    start = perf_counter()
    model = LanguageModel(path)
    load_us = (perf_counter() - start) * 1e6
    prompt_us, token_us = timed(model, prompts, options)
    answers, right, tokens, scores = [], [], [], []
    for prompt in prompts:
        done = model.generate(prompt, samples, replace(options, seed=seed_of(prompt, name)))
        answers.append([answer(prompt, c.text) for c in done])
        right.append([correct(prompt, c.text) for c in done])
        tokens.append([len(c.tokens) for c in done])
        scores.append([c.log_probability / len(c.tokens) for c in done])
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        answers=np.array(answers, np.str_),
        right=np.array(right, np.bool_),
        tokens=np.array(tokens, np.int32),
        scores=np.array(scores, np.float32),
        costs=np.array([model.decoder.file_bytes, prompt_us, token_us, load_us]),
    )
    write_whole(file, buffer.getvalue())


def timed(model: LanguageModel, prompts: Sequence[str], options: Options) -> tuple[float, float]:
    """Microseconds of a token of the prompt, and of a generated one, samples one after another: medians."""
    step = max(1, len(prompts) // TIMED)
    alone = replace(options, batch=1)
    before, after = [], []
    for prompt in prompts[::step][:TIMED]:
        model.start(prompt, 1, alone).prefill()
        generation = model.start(prompt, 1, alone)
        generation.prefill()
        first = generation.usage.seconds
        before.append(first / generation.usage.prompt_tokens)
        generation = model.start(prompt, 1, alone)
        for _ in generation:
            pass
        after.append((generation.usage.seconds - first) / generation.usage.generated_tokens)
    return float(np.median(before)) * 1e6, max(float(np.median(after)) * 1e6, 1e-3)
