"""Controllers beside one another on the same trace: ours, fixed options, profile-trusting, ALERT's, clairvoyant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

from edgescale.control.controller import Controller
from edgescale.control.fixed import OCTAVE
from edgescale.control.policy import QUALITY_ONE, Option, Policy, quality_at
from edgescale.control.request import Request
from edgescale.control.traces import Trace

WARM_UP = 10
"""First calls, which do not count: profiles are corrected in them."""


@dataclass(frozen=True)
class Outcome:
    """Totals over a trace, without the first WARM_UP calls.

    misses: share of calls over the deadline, of those some option could have met. quality: mean expected quality
    of the options run. late_quality: the same with missed calls counted as nothing. mean_us, mean_uj: per call.
    switches: changes of option, share of calls. memory_broken: calls whose option had more than the free memory.
    """

    name: str
    misses: float
    quality: float
    late_quality: float
    mean_us: float
    mean_uj: float
    switches: float
    memory_broken: int


Chooser = Callable[[int, Request], int]
"""(call, request) -> option."""


class _World:
    """What a call really takes."""

    def __init__(self, policy: Policy, trace: Trace) -> None:
        self.policy = policy
        self.trace = trace

    def steps_us(self, option: Option, call: int) -> list[int]:
        slow = float(self.trace.slowdown[call])
        return [max(1, round(step.time_us * slow * float(self.trace.bias[step.variant]))) for step in option.steps]

    def best(self, call: int, request: Request) -> int:
        """The option a clairvoyant takes: the highest quality that meets all limits, else the fastest."""
        options = self.policy.options
        times = [sum(self.steps_us(option, call)) for option in options]
        free = request.memory or math.inf
        fits = [
            index
            for index, option in enumerate(options)
            if (not request.deadline_us or times[index] <= request.deadline_us) and option.memory <= free
        ]
        if not fits:
            roomy = [i for i, option in enumerate(options) if option.memory <= free] or list(range(len(options)))
            return min(roomy, key=lambda i: times[i])
        difficulty = request.difficulty
        return max(fits, key=lambda i: (quality_at(options[i].quality, difficulty), -times[i]))

    def possible(self, call: int, request: Request) -> bool:
        option = self.policy.options[self.best(call, request)]
        return not request.deadline_us or sum(self.steps_us(option, call)) <= request.deadline_us


def simulate(policy: Policy, trace: Trace, request: Request) -> list[Outcome]:
    """All controllers on one trace; `request` holds for every call, free memory and difficulty follow the trace."""
    world = _World(policy, trace)
    static = _best_static(world, request)
    names: list[tuple[str, Callable[[], tuple[Chooser, Callable[[list[int], int], object]]]]] = [
        ("edgescale", lambda: _ours(policy)),
        ("ALERT-like", lambda: _alert(policy)),
        ("largest that fits", lambda: (lambda call, asked: _largest(policy, asked), _deaf)),
        ("best static", lambda: (lambda call, asked: static, _deaf)),
        ("oracle", lambda: (world.best, _deaf)),
    ]
    return [_play(name, world, request, *make()) for name, make in names]


def _deaf(steps_us: list[int], total: int) -> None:
    """A controller that does not listen."""


def _asked(trace: Trace, call: int, request: Request) -> Request:
    memory = int(trace.memory[call]) or request.memory
    return replace(request, memory=memory, difficulty=int(trace.difficulty[call]))


def _play(
    name: str, world: _World, request: Request, choose: Chooser, tell: Callable[[list[int], int], object]
) -> Outcome:
    options, trace = world.policy.options, world.trace
    misses = counted = switches = broken = 0
    quality = late = spent = joules = 0.0
    previous = -1
    for call in range(len(trace)):
        asked = _asked(trace, call, request)
        index = choose(call, asked)
        option = options[index]
        times = world.steps_us(option, call)
        total = sum(times)
        tell(times, total)
        if call < WARM_UP:
            previous = index
            continue
        missed = bool(request.deadline_us) and total > request.deadline_us
        possible = world.possible(call, asked)
        counted += possible
        misses += missed and possible
        worth = quality_at(option.quality, asked.difficulty) / QUALITY_ONE
        quality += worth
        late += 0.0 if missed else worth
        spent += total
        joules += sum(step.energy_uj * us / step.time_us for step, us in zip(option.steps, times, strict=True))
        switches += index != previous
        broken += bool(asked.memory) and option.memory > asked.memory
        previous = index
    calls = len(trace) - WARM_UP
    return Outcome(
        name,
        misses / max(counted, 1),
        quality / calls,
        late / calls,
        spent / calls,
        joules / calls,
        switches / calls,
        broken,
    )


def _ours(policy: Policy) -> tuple[Chooser, Callable[[list[int], int], object]]:
    controller = Controller(policy)
    controller.resident = 0xFFFF
    return (lambda call, asked: controller.decide(asked).option), (lambda times, total: controller.report(times, total))


def _largest(policy: Policy, request: Request) -> int:
    """Trust the profiles: the highest quality whose profiled cost fits."""
    fits = [
        index
        for index, option in enumerate(policy.options)
        if (not request.deadline_us or sum(step.time_us for step in option.steps) <= request.deadline_us)
        and (not request.memory or option.memory <= request.memory)
    ]
    if not fits:
        return min(range(len(policy.options)), key=lambda i: policy.options[i].steps[0].time_us)
    return max(fits, key=lambda i: quality_at(policy.options[i].quality, request.difficulty))


def _best_static(world: _World, request: Request) -> int:
    """The option that, run throughout, has the highest quality among those that miss as seldom as asked; offline."""
    outcomes = [
        _play("", world, request, lambda call, asked, fixed=index: fixed, _deaf)  # type: ignore[misc]
        for index in range(len(world.policy.options))
    ]
    asked = request.violation / OCTAVE
    good = [i for i, o in enumerate(outcomes) if o.misses <= asked and not o.memory_broken]
    if not good:
        return min(range(len(outcomes)), key=lambda i: (outcomes[i].memory_broken, outcomes[i].misses))
    return max(good, key=lambda i: outcomes[i].quality)


def _alert(policy: Policy) -> tuple[Chooser, Callable[[list[int], int], object]]:
    """Kalman filter and choice of ALERT (Wan et al., USENIX ATC 2020), with the constants of the paper."""
    state = {"mean": 1.0, "variance": 0.1, "gain": 0.5, "drift": 0.1, "innovation": 0.0, "option": 0.0}

    def choose(call: int, asked: Request) -> int:
        z = NormalDist().inv_cdf(1 - asked.violation / OCTAVE)
        bound = state["mean"] + z * math.sqrt(state["variance"])
        slow = [replace_time(option, bound) for option in policy.options]
        fits = [
            i
            for i, option in enumerate(policy.options)
            if (not asked.deadline_us or slow[i] <= asked.deadline_us)
            and (not asked.memory or option.memory <= asked.memory)
        ]
        best = (
            max(fits, key=lambda i: quality_at(policy.options[i].quality, asked.difficulty))
            if fits
            else min(range(len(slow)), key=lambda i: slow[i])
        )
        state["option"] = float(best)
        return best

    def tell(steps_us: list[int], total: int) -> None:
        option = policy.options[int(state["option"])]
        seen = total / sum(step.time_us for step in option.steps)
        drift = max(0.1, 0.3 * state["drift"] + 0.7 * (state["gain"] * state["innovation"]) ** 2)
        wide = (1 - state["gain"]) * state["variance"] + drift
        gain = wide / (wide + 0.001)
        innovation = seen - state["mean"]
        state.update(
            mean=state["mean"] + gain * innovation, variance=wide, gain=gain, drift=drift, innovation=innovation
        )

    return choose, tell


def replace_time(option: Option, slowdown: float) -> float:
    """Microseconds of an option under a slowdown."""
    return slowdown * sum(step.time_us for step in option.steps)
