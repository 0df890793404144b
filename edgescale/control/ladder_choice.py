"""Which ladder answers a prompt: size, precision and number of samples, within limits and by what past calls took."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgescale.control.controller import FIRST_WAIT, MOST_FAILURES
from edgescale.control.fixed import OCTAVE, ONE, U32_MAX, exp2, log2
from edgescale.control.generators import UNITS, GeneratorPolicy, Ladder, Unit
from edgescale.control.hull import share_out
from edgescale.control.policy import DIFFICULTIES
from edgescale.control.request import Limit, deviations
from edgescale.control.tracker import Tracker
from edgescale.core.errors import UsageError

HORIZON = 64
"""Calls over which what was spent too much or too little is evened out."""
STEADY = 64
"""Calls' worth of a mean budget that a policy's expected cost counts for beside what calls really took."""
CREDIT = 16
"""Calls' worth of a mean budget that one call may take before it is saved up: hard prompts cost many easy ones'."""
PRIOR = 50
"""Calls that the policy's shares of the difficulties count for beside those seen."""


@dataclass(frozen=True, slots=True)
class GeneratorRequest:
    """Limits of one prompt; 0 means none.

    token_bytes: of this call, at most: tokens (of prompts and completions) times the bytes of the variant's weights;
    `Limit.ENERGY` names it too. us: deadline, to be missed in at most `violation` of the calls. uj: energy of this
    call. memory: bytes of the ladder's variants together. mean: over the calls, in `unit`. quality: least expected
    quality; cheapest: the least expected cost (in `unit`) that reaches it, instead of the highest quality.
    """

    difficulty: int
    prompt_tokens: int
    token_bytes: float = 0
    us: float = 0
    uj: float = 0
    violation: float = 0.05
    memory: int = 0
    mean: float = 0
    unit: Unit = "bytes"
    quality: float = 0
    cheapest: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of range."""
        if not 0 <= self.difficulty < DIFFICULTIES:
            raise UsageError(f"difficulty is {self.difficulty}; it must be from 0 to {DIFFICULTIES - 1}")
        for name in ("prompt_tokens", "token_bytes", "us", "uj", "memory", "mean"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} of a request is {getattr(self, name)}; it must not be negative")
        if not 0 < self.violation <= 0.5:
            raise UsageError(f"violation is {self.violation}; it must lie in (0, 0.5]")


@dataclass(frozen=True, slots=True)
class LadderDecision:
    """held: every limit is expected to hold with the asked probability; binding: what cannot be met, or keeps a better
    ladder out. slowdown: times are multiplied by it to hold a deadline."""

    ladder: int
    held: bool
    binding: Limit
    slowdown: float


class LadderController:
    """Chooses ladders of one policy. For each prompt: `decide`, climb, `report` (or `failed`)."""

    def __init__(self, policy: GeneratorPolicy) -> None:
        """Raises UsageError for a policy that breaks a rule."""
        self.policy = policy.check()
        self.tracker = Tracker()
        self.calls = 0
        self.surplus: dict[Unit, float] = {"bytes": 0.0, "us": 0.0, "uj": 0.0}
        self._taken: dict[Unit, list[float]] = {unit: [0.0, 0.0] for unit in UNITS}
        """What calls took under a mean budget, and what was expected of them, in calls' worth of it."""
        self.resident: set[int] = set()
        """Variants that are loaded."""
        self._seen = [PRIOR * share for share in policy.shares]
        self._waits = [0] * len(policy.variants)
        self._failures = [0] * len(policy.variants)
        self._shared: dict[tuple[object, ...], list[int]] = {}
        self._costs = {
            (unit, longest): [
                [_cost(policy, ladder, d, unit, longest) for ladder in policy.ladders] for d in range(DIFFICULTIES)
            ]
            for unit in UNITS
            for longest in (False, True)
        }
        self._used = [{stage.variant for stage in ladder.stages} for ladder in policy.ladders]
        self._decision = LadderDecision(0, False, Limit.NONE, 1.0)
        self._request = GeneratorRequest(0, 0)
        self._bound = 0

    def cost(self, ladder: int, difficulty: int, prompt: float, unit: Unit, longest: bool = False) -> float:
        """Expected cost of a ladder at profiled speed, or that of all its samples. prompt: its tokens."""
        each, rest = self._costs[unit, longest][difficulty][ladder]
        return prompt * each + rest

    def decide(self, request: GeneratorRequest) -> LadderDecision:
        """The ladder for a prompt; where no ladder keeps every limit, the one that asks for least."""
        ladders, d = self.policy.ladders, request.difficulty
        self._bound = self.tracker.bound(deviations(max(round(request.violation * OCTAVE), 1)))
        slow = exp2(self._bound + self.tracker.margin()) / ONE
        fails = [self._limits(index, request, slow) for index in range(len(ladders))]
        good = [index for index, fail in enumerate(fails) if not fail]
        if good:
            chosen = self._best(good, request)
            better = [i for i, o in enumerate(ladders) if o.quality[d] > ladders[chosen].quality[d]]
            top = max(better, key=lambda i: ladders[i].quality[d], default=chosen)
            binding = fails[top] or (Limit.MEAN if better and request.mean else Limit.NONE)
            held = True
        else:
            short = [i for i, fail in enumerate(fails) if fail == Limit.QUALITY]
            if short:
                chosen = max(short, key=lambda i: ladders[i].quality[d])
            else:
                # Least of what is scarce, leaving out what failed lately and what memory has no room for, if possible.
                unit: Unit = "us" if request.us else "uj" if request.uj else "bytes"
                hopeless = Limit.DEMOTED | Limit.MEMORY
                chosen = min(
                    range(len(ladders)),
                    key=lambda i: (int(fails[i] & hopeless), self.cost(i, d, request.prompt_tokens, unit, True)),
                )
            binding, held = fails[chosen], False
        self._request, self._decision = request, LadderDecision(chosen, held, Limit(binding), slow)
        return self._decision

    def allowance(self, request: GeneratorRequest) -> float:
        """What the call may take of its mean budget's unit."""
        return CREDIT * request.mean + self.surplus[request.unit]

    def report(self, spent: Mapping[Unit, float], profiled_us: float, computed_us: float) -> None:
        """What the call took in each unit; what its tokens take at profiled speed, and took in this call."""
        request = self._request
        ratio = log2(min(max(round(computed_us), 1), U32_MAX)) - log2(min(max(round(profiled_us), 1), U32_MAX))
        if profiled_us > 0:
            self.tracker.observe(ratio)
        if self._decision.held and request.us:
            violation = max(round(request.violation * OCTAVE), 1)
            self.tracker.judge(spent["us"] > request.us, violation, ratio - self._bound)
        if request.mean:
            self.surplus[request.unit] += request.mean - spent[request.unit]
            taken = self._taken[request.unit]
            taken[0] += spent[request.unit] / request.mean
            d, prompt = request.difficulty, request.prompt_tokens
            taken[1] += self.cost(self._decision.ladder, d, prompt, request.unit) / request.mean
        for variant in self._used[self._decision.ladder]:
            if self._waits[variant] <= self.calls:
                self._failures[variant] = 0
        self._seen[request.difficulty] += 1
        self.calls += 1

    def failed(self, variant: int) -> None:
        """A variant crashed or could not be loaded: it is left out for some calls, longer each time."""
        self.resident.discard(variant)
        self.calls += 1
        self._waits[variant] = self.calls + (FIRST_WAIT << self._failures[variant])
        self._failures[variant] = min(self._failures[variant] + 1, MOST_FAILURES)

    def _limits(self, index: int, request: GeneratorRequest, slow: float) -> Limit:
        """Limits that a ladder breaks."""
        ladder, d, prompt = self.policy.ladders[index], request.difficulty, request.prompt_tokens
        variants, used = self.policy.variants, self._used[index]
        fail = Limit.NONE
        if any(self._waits[v] > self.calls for v in used):
            fail |= Limit.DEMOTED
        if request.memory and sum(variants[v].memory for v in used) > request.memory:
            fail |= Limit.MEMORY
        if request.us:
            loading = sum(variants[v].load_us for v in used - self.resident)
            if (self.cost(index, d, prompt, "us", True) + loading) * slow > request.us:
                fail |= Limit.TIME
        if request.uj and self.cost(index, d, prompt, "uj", True) * slow > request.uj:
            fail |= Limit.ENERGY
        if request.token_bytes and self.cost(index, d, prompt, "bytes", True) > request.token_bytes:
            fail |= Limit.ENERGY
        if ladder.quality[d] < request.quality:
            fail |= Limit.QUALITY
        if request.mean and self._mean_cost(index, d, prompt, request.unit) > self.allowance(request):
            fail |= Limit.MEAN
        return fail

    def _mean_cost(self, index: int, difficulty: int, prompt: float, unit: Unit) -> float:
        slow = 1.0 if unit == "bytes" else exp2(self.tracker.mean) / ONE
        return slow * self.cost(index, difficulty, prompt, unit)

    def _best(self, good: list[int], request: GeneratorRequest) -> int:
        ladders, d, prompt = self.policy.ladders, request.difficulty, request.prompt_tokens
        if request.cheapest:
            return min(good, key=lambda i: self._mean_cost(i, d, prompt, request.unit))
        if not request.mean:
            return max(good, key=lambda i: (ladders[i].quality[d], -self.cost(i, d, prompt, request.unit)))
        target = request.mean + self.surplus[request.unit] / HORIZON
        took, expected = self._taken[request.unit]
        dear = (STEADY + took) / (STEADY + expected)
        # A plan for all difficulties at once, of which this prompt takes its part; kept while little changes.
        step = round(max(target, 0.0) / dear / request.mean * 64)
        key = (tuple(good), request.unit, request.mean, step, self.calls // PRIOR)
        if key not in self._shared:
            if len(self._shared) > 4096:
                self._shared.clear()
            prompts = self.policy.prompt_tokens
            cost = [[self.cost(i, b, prompts[b], request.unit) for i in good] for b in range(DIFFICULTIES)]
            quality = [[ladders[i].quality[b] for i in good] for b in range(DIFFICULTIES)]
            whole = sum(self._seen)
            self._shared[key] = share_out(cost, quality, [s / whole for s in self._seen], step * request.mean / 64)
        return good[self._shared[key][d]]


def _cost(policy: GeneratorPolicy, ladder: Ladder, difficulty: int, unit: Unit, longest: bool) -> tuple[float, float]:
    """A ladder's cost as (for each token of the prompt, beside it). A variant asked twice reads the prompt once.

    The longest time is one standard deviation above that of completions of mean length: a completion that a deadline
    cuts off is lost, while token-bytes and energy are counted as they come.
    """
    each_prompt = rest = variance = 0.0
    seen = set()
    for stage in ladder.stages:
        variant = policy.variants[stage.variant]
        first, each = variant.rates(unit)
        rest += (stage.samples if longest else stage.asked[difficulty]) * variant.tokens[difficulty] * each
        if longest and unit == "us":
            variance += stage.samples * (variant.spread[difficulty] * each) ** 2
        if stage.variant not in seen:
            each_prompt += first * (1.0 if longest else stage.reached[difficulty])
        seen.add(stage.variant)
    return each_prompt, rest + math.sqrt(variance)
