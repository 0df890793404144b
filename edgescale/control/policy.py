"""The policy: what each option of a target is worth and costs, as integers that Python and C read alike.

An option is a plan for one call: a variant run once or several times (`samples`), or a cascade, where a
second variant answers unless the first is confident enough. Its quality may depend on the difficulty of the
input, a bin the application (or an earlier stage) names.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgescale.control.fixed import U32_MAX
from edgescale.core.errors import UsageError

FORMAT = "edgescale-policy"
SCHEMA = 1
MAX_VARIANTS = 16
MAX_OPTIONS = 64
DIFFICULTIES = 4
QUALITY_ONE = 1 << 15
"""A quality of 1.0."""
CERTAIN = 1 << 15
"""A confidence of 1.0."""


class PolicyVariant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A variant: its name in the bundle, and what it takes to have it ready where it is not (microseconds)."""

    name: str
    load_us: int = 0


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant of an option: its index, the profiled time of all its samples, and the energy.

    views: runs of declared views of the input, the first so many, whose answers are averaged with the variant's on
    the input itself (which a step runs too, unless the step before was the same variant).
    """

    variant: int
    time_us: int
    energy_uj: int = 0
    views: int = 0


class Option(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan for one call.

    quality: expected quality for each difficulty, Q15 (32768 is 1.0), one number where difficulty does not
    matter. confidence: of the first step's answer, Q15, from which the second is not run. mean_us, mean_uj:
    expected cost on profiled speed. memory: peak bytes of all that must be in memory. samples: runs of the
    first step.
    """

    quality: tuple[int, ...]
    steps: tuple[Step, ...]
    mean_us: int
    mean_uj: int = 0
    memory: int = 0
    confidence: int = 0
    samples: int = 1


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options of one target. Sources of the figures: `source`, in words.

    hysteresis: quality, Q15, that another option must be better by before the controller leaves the current one.
    views: of an image, as `runtime.views` reads them, in the order in which steps run them.
    """

    target: str
    metric: str
    variants: tuple[PolicyVariant, ...]
    options: tuple[Option, ...]
    hysteresis: int = 0
    source: str = ""
    views: tuple[str, ...] = ()
    format: str = FORMAT
    schema: int = SCHEMA

    def check(self) -> Policy:
        """This policy. Raises UsageError that names the first thing wrong."""
        if self.format != FORMAT or self.schema != SCHEMA:
            raise UsageError(f"a policy has format {FORMAT!r} and schema {SCHEMA}, not {self.format!r}, {self.schema}")
        _within("variants", len(self.variants), 1, MAX_VARIANTS)
        _within("options", len(self.options), 1, MAX_OPTIONS)
        _within("hysteresis", self.hysteresis, 0, QUALITY_ONE)
        for variant in self.variants:
            _within(f"load_us of {variant.name}", variant.load_us, 0, U32_MAX)
        for index, option in enumerate(self.options):
            _check_option(f"option {index}", option, len(self.variants))
            for step in option.steps:
                _within(f"views of option {index}", step.views, 0, len(self.views))
        return self


def decode_policy(data: bytes, where: str) -> Policy:
    """Read a policy from JSON. Raises UsageError naming `where`."""
    try:
        return msgspec.json.decode(data, type=Policy).check()
    except (msgspec.MsgspecError, RecursionError, UsageError) as error:
        raise UsageError(f"{where} is no policy this edgescale reads: {error}") from None


def encode_policy(policy: Policy) -> bytes:
    """A policy as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(policy), indent=1) + b"\n"


def _check_option(name: str, option: Option, variants: int) -> None:
    if len(option.quality) not in (1, DIFFICULTIES):
        raise UsageError(f"{name} has {len(option.quality)} qualities; it takes 1 or {DIFFICULTIES}")
    for quality in option.quality:
        _within(f"quality of {name}", quality, 0, QUALITY_ONE)
    _within(f"steps of {name}", len(option.steps), 1, 2)
    for step in option.steps:
        _within(f"variant of {name}", step.variant, 0, variants - 1)
        _within(f"time_us of {name}", step.time_us, 1, U32_MAX)
        _within(f"energy_uj of {name}", step.energy_uj, 0, U32_MAX)
    for field in ("mean_us", "mean_uj", "memory"):
        _within(f"{field} of {name}", getattr(option, field), 0, U32_MAX)
    _within(f"confidence of {name}", option.confidence, 0, CERTAIN)
    _within(f"samples of {name}", option.samples, 1, 255)


def _within(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{what} is {value}; it must be from {least} to {most}")


def quality_at(quality: Sequence[int], difficulty: int) -> int:
    """The quality of a difficulty bin; a single one is that of every bin."""
    return quality[difficulty] if len(quality) > 1 else quality[0]
