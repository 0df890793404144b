"""What one call may cost, and what was decided about it, in the integers of docs/controller.md."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from edgescale.control.fixed import OCTAVE, U32_MAX
from edgescale.control.policy import DIFFICULTIES, QUALITY_ONE
from edgescale.core.errors import UsageError

WORK_ONE = 256

# (share of violations Q16, standard deviations Q8 a Gaussian exceeds with it), from seldom to often.
_QUANTILES = (
    (7, 952),
    (66, 791),
    (131, 737),
    (328, 659),
    (655, 596),
    (1311, 526),
    (3277, 421),
    (6554, 328),
    (16384, 173),
    (32768, 0),
)


class Limit(IntFlag):
    """Limits an option can break. `MEAN` is the mean cost, `DEMOTED` a variant that failed lately."""

    NONE = 0
    MEMORY = 1
    TIME = 2
    ENERGY = 4
    QUALITY = 8
    MEAN = 16
    DEMOTED = 32


@dataclass(frozen=True, slots=True)
class Request:
    """Limits of one call; 0 means none.

    deadline_us: of the whole call, loading included, to be missed in at most `violation` (Q16) of the calls.
    memory: bytes. energy_uj: of this call at most. mean_us or mean_uj: mean over the calls, at most one of
    them. quality: least expected quality, Q15. difficulty: the input's bin. work: size of the input relative
    to the profiled one, Q8. cheapest: take the least expected cost that reaches `quality`, instead of the
    highest quality.
    """

    deadline_us: int = 0
    violation: int = 3277
    memory: int = 0
    energy_uj: int = 0
    mean_us: int = 0
    mean_uj: int = 0
    quality: int = 0
    difficulty: int = 0
    work: int = WORK_ONE
    cheapest: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of range."""
        for name in ("deadline_us", "memory", "energy_uj", "mean_us", "mean_uj"):
            _within(name, getattr(self, name), 0, U32_MAX)
        _within("violation", self.violation, 1, OCTAVE // 2)
        _within("quality", self.quality, 0, QUALITY_ONE)
        _within("difficulty", self.difficulty, 0, DIFFICULTIES - 1)
        _within("work", self.work, 1, 1 << 20)
        if self.mean_us and self.mean_uj:
            raise UsageError("a request has a mean time or a mean energy, not both")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to run. `held`: every limit holds with the asked probability.

    binding: where it holds, what keeps the next better option out; else what cannot be met. bound: slowdown,
    octaves Q16 without margin, that times were judged by.
    """

    option: int
    held: bool
    binding: Limit
    bound: int


def deviations(violation: int) -> int:
    """Standard deviations, Q8, that a Gaussian exceeds with at most the share `violation` (Q16)."""
    found = _QUANTILES[0][1]
    for share, z in _QUANTILES:
        if share <= violation:
            found = z
    return found


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{name} of a request is {value}; it must be from {least} to {most}")
