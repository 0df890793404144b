"""The recorded completions that policies over the tiny family are made from (calibration) and judged on (test)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "tinylm"
sys.path[:0] = [str(ROOT), str(EXAMPLE)]

from tinylm_task import LEVELS, answer_of, correct, problems  # noqa: E402

from edgescale.runtime.lm import Options  # noqa: E402
from edgescale.runtime.lm.table import Table, record  # noqa: E402

TEST_SEED, CALIBRATION_SEED = 2026, 1117
"""Seeds of the problems; training draws from others, and no test prompt is one of the calibration's."""
OPTIONS = Options(max_tokens=64)
MODELS = {
    f"{size}-{bits or 'fp32'}": EXAMPLE / f"tinylm_{size}{'_' if bits else ''}{bits}.onnx"
    for size in ("xs", "s", "m", "l", "xl")
    for bits in ("int4", "int8", "")
}


def split(count: int) -> dict[str, list[str]]:
    """Prompts of both parts, up to `count` of every level, none twice; level by level in turn."""
    parts: dict[str, list[str]] = {}
    seen: set[str] = set()
    for part, seed in (("calibration", CALIBRATION_SEED), ("test", TEST_SEED)):
        rows: dict[str, list[str]] = {level: [] for level in LEVELS}
        for problem in problems(3 * count, seed):
            if len(rows[problem.level]) < count and problem.prompt not in seen:
                seen.add(problem.prompt)
                rows[problem.level].append(problem.prompt)
        parts[part] = [row[i] for i in range(count) for row in rows.values() if i < len(row)]
    return parts


def tables(
    count: int = 60,
    samples: int = 64,
    folder: Path = ROOT / "build" / "lm_tables",
    say: Callable[[str], object] = print,
) -> dict[str, Table]:
    """Both tables, recorded where they are not yet."""
    return {
        part: record(folder / part, MODELS, prompts, correct, answer_of, samples, OPTIONS, say)
        for part, prompts in split(count).items()
    }


if __name__ == "__main__":
    tables()
