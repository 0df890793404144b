"""Choosing the tile of the dot products by timing: a few candidates, each in turn with the default on this machine.

What is left to TVM in an integer net has nothing to tune, so candidates are shapes of our kernels' tile, not schedules.
Records lie in a file, one line a candidate, and are read again: an interrupted or longer search goes on where it was.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgescale.core.progress import Progress, track
from edgescale.lower.program import LIMITS, Program

ROUNDS = 12
SECONDS_A_TURN = 0.02
GAIN = 0.99
"""A candidate is chosen where its time is below this share of the default's."""


@dataclass(frozen=True)
class Tile:
    """Positions and vectors of 16 channels that a kernel sums at a time. 0: as the kernels have it by default."""

    rows: int = 0
    columns: int = 0

    @property
    def flags(self) -> tuple[str, ...]:
        """What the C compiler is told."""
        named = (("ES_ROWS", self.rows), ("ES_COLUMNS", self.columns))
        return tuple(f"-D{name}={value}" for name, value in named if value)


DEFAULT = Tile()
WIDE = (Tile(4, 2), Tile(8, 2), Tile(12, 2), Tile(8, 1), Tile(12, 1), Tile(5, 2), Tile(6, 3), Tile(4, 4), Tile(6, 4))
"""For vectors of 512 bits, the most promising first."""
NARROW = (Tile(2), Tile(6), Tile(8), Tile(1), Tile(3))

Build = Callable[[Tile, Path], Path]
"""Compiles the program with a tile into an empty folder; the library's path."""


def choose(
    program: Program, build: Build, candidates: tuple[Tile, ...], records: Path, progress: Progress
) -> tuple[Tile, dict[str, float]]:
    """The best tile, and the time of every candidate as a share of the default's."""
    known = _read(records)
    wanted = [tile for tile in candidates if _name(tile) not in known]
    if wanted:
        inputs = _inputs(program)
        with tempfile.TemporaryDirectory(prefix="edgescale-tune-") as folder:
            default = _opened(build(DEFAULT, Path(folder) / "default"))
            for tile in track(wanted, progress, f"tune {program.name}", len(wanted)):
                other = _opened(build(tile, Path(folder) / _name(tile)))
                known[_name(tile)] = _share(default, other, inputs)
                _append(records, _name(tile), known[_name(tile)])
    shares = {_name(tile): known[_name(tile)] for tile in candidates}
    best = min(candidates, key=lambda tile: shares[_name(tile)])
    return (best if shares[_name(best)] < GAIN else DEFAULT), shares


def _name(tile: Tile) -> str:
    return f"{tile.rows}x{tile.columns}"


def _read(records: Path) -> dict[str, float]:
    """Shares by candidate; a line that was cut short is left out."""
    found: dict[str, float] = {}
    for line in records.read_text().splitlines() if records.is_file() else []:
        try:
            entry = json.loads(line)
            found[str(entry["tile"])] = float(entry["share"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _append(records: Path, name: str, share: float) -> None:
    records.parent.mkdir(parents=True, exist_ok=True)
    with records.open("a") as stream:
        stream.write(json.dumps({"tile": name, "share": share}) + "\n")


def _opened(library: Path) -> Any:
    from edgescale.rigs.tvm import open_machine

    return open_machine(library)["main"]


def _inputs(program: Program) -> list[Any]:
    import tvm

    rng = np.random.default_rng(0)
    made = []
    for port in program.inputs:
        tensor = program.tensors[port.tensor]
        if tensor.dtype in LIMITS:
            least, most = LIMITS[tensor.dtype]
            values = rng.integers(least, most + 1, tensor.shape).astype(tensor.dtype)
        else:
            values = rng.standard_normal(tensor.shape).astype(np.float32)
        made.append(tvm.runtime.tensor(values))
    return made


def _share(default: Any, other: Any, inputs: list[Any]) -> float:
    """Median time of `other` by that of `default`, the two in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for run, taken in ((default, times[0]), (other, times[1])):
            run(*inputs)
            end = time.perf_counter() + SECONDS_A_TURN
            while True:
                start = time.perf_counter()
                run(*inputs)
                done = time.perf_counter()
                taken.append(done - start)
                if done > end:
                    break
    return statistics.median(times[1]) / statistics.median(times[0])
