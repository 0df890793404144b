"""The controller: which option answers a call, given limits and what past calls have shown.

One algorithm with two bodies, this one and firmware/controller/es_controller.c; docs/controller.md is the
specification of both. Everything is integer arithmetic, so the two agree decision for decision.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgescale.control.fixed import OCTAVE, ONE, U32_MAX, exp2, log2, scaled
from edgescale.control.policy import Policy, quality_at
from edgescale.control.request import Decision, Limit, Request, deviations
from edgescale.control.tracker import Tracker
from edgescale.core.errors import UsageError

MOST_CORRECTION = 2 * OCTAVE
MISSES_IN_A_ROW = 3
"""Misses of a variant, one after another, by which it is demoted."""
FIRST_WAIT = 8
MOST_FAILURES = 9

MOST_PRICE = 15 * OCTAVE
MOST_RATIO = 1 << 16
MOST_COST = 0xFFFFFF
MOST_SURPLUS = 64
"""Unspent mean cost that is kept, in calls."""
I32_MAX = (1 << 31) - 1

_MEMORY, _TIME, _ENERGY = int(Limit.MEMORY), int(Limit.TIME), int(Limit.ENERGY)
_QUALITY, _MEAN, _DEMOTED = int(Limit.QUALITY), int(Limit.MEAN), int(Limit.DEMOTED)


class Controller:
    """Chooses options of one policy. Not thread-safe: one controller a thread of calls.

    For each call: `decide`, run the option, `report` what it took (or `failed`).
    """

    def __init__(self, policy: Policy) -> None:
        """Raises UsageError for a policy that breaks a rule."""
        self.policy = policy.check()
        count = len(policy.variants)
        self.tracker = Tracker()
        self.calls = 0
        self.resident = 0
        """Bit v is set where variant v is loaded. Set it to what is loaded before the first call, else 0."""
        self.free_memory = 0
        """Bytes the device has left for the model; 0: not known."""
        self.current = -1
        self.correction = [0] * count
        """Octaves Q16 by which a variant is slower than its profile when the others are not."""
        self.runs = [0] * count
        self.failures = [0] * count
        self.misses = [0] * count
        self.waits = [0] * count
        self.price = 0
        self.surplus = 0
        self._request = Request()
        self._decision = Decision(0, False, Limit.NONE, 0)
        self._wanted = 256
        self._factors = [ONE] * count
        self._slow = ONE
        self._tables = [_table(policy, difficulty) for difficulty in range(4)]

    def decide(self, request: Request) -> Decision:
        """The option for a call under `request`; the smallest cost where nothing holds."""
        z = deviations(request.violation)
        base = self.tracker.bound(z)
        self._slow = exp2(base + self.tracker.margin())
        slow = min((self._slow * request.work) >> 8, U32_MAX)
        scales = [s if (s := (factor * slow) >> 12) < U32_MAX else U32_MAX for factor in self._factors]
        mean_slow = min((exp2(self.tracker.mean) * request.work) >> 8, U32_MAX)
        factors, waits = self._factors, self.waits
        calls, resident = self.calls, self.resident
        deadline, energy, least = request.deadline_us, request.energy_uj, request.quality
        memory = min(m for m in (request.memory, self.free_memory, U32_MAX + 1) if m)
        limit = request.mean_us or request.mean_uj
        by_energy, cheapest, difficulty = request.mean_uj > 0, request.cheapest, request.difficulty
        allowance, price = limit + self.surplus, exp2(self.price) >> 12
        current, extra = self.current, self.policy.hysteresis
        by_time = deadline > 0 or energy == 0
        best, best_rank, best_value, best_fail, common = 0, 9, 0, 0, -1
        wanted, wanted_value, wanted_index = 256, -(1 << 62) if limit else 1 << 62, 0
        table = self._tables[difficulty]
        first_fail = -1
        for index, quality, v, time, joules, v2, time2, joules2, mean_us, mean_uj, bytes_ in table:
            # Cost only lowers the value, so what follows cannot reach what was found.
            if best_rank == 0 and quality + extra < best_value and quality < wanted_value and not cheapest:
                break
            # `scaled`, written out and saturated once at the end: this loop is what a decision takes.
            scale = scales[v]
            worst, spent = (time * scale) >> 12, (joules * scale) >> 12
            fail = _DEMOTED if waits[v] > calls else 0
            if not resident >> v & 1:
                worst += self._load_us(v)
            if v2 >= 0:
                scale = scales[v2]
                worst += (time2 * scale) >> 12
                spent += (joules2 * scale) >> 12
                if waits[v2] > calls:
                    fail = _DEMOTED
                if not resident >> v2 & 1:
                    worst += self._load_us(v2)
            if worst > U32_MAX:
                worst = U32_MAX
            if spent > U32_MAX:
                spent = U32_MAX
            if bytes_ > memory:
                fail |= _MEMORY
            if deadline and worst > deadline:
                fail |= _TIME
            if energy and spent > energy:
                fail |= _ENERGY
            if quality < least:
                fail |= _QUALITY
            value = quality
            if limit or cheapest:
                scale = (factors[v] * mean_slow) >> 12
                cost = ((mean_uj if by_energy else mean_us) * (scale if scale < U32_MAX else U32_MAX)) >> 12
                if cost > U32_MAX:
                    cost = U32_MAX
                if cheapest:
                    value = -cost
                elif limit:
                    ratio = ((cost if cost < MOST_COST else MOST_COST) << 8) // limit
                    if ratio > MOST_RATIO:
                        ratio = MOST_RATIO
                    value -= price * ratio >> 8
                    if not fail and (value > wanted_value or (value == wanted_value and index < wanted_index)):
                        wanted, wanted_value, wanted_index = ratio, value, index
                    if cost > allowance:
                        fail |= _MEAN
            if index == current and not cheapest:
                value += extra
            if not fail:
                rank = 0
            elif fail == _QUALITY:
                rank = 1
            elif fail & _MEMORY:
                rank, value = 4, -bytes_
            else:
                rank, value = (3 if fail & _DEMOTED else 2), -(worst if by_time else spent)
            common &= fail
            if first_fail < 0:
                first_fail = fail
            if rank < best_rank or (
                rank == best_rank and (value > best_value or (value == best_value and index < best))
            ):
                best, best_rank, best_value, best_fail = index, rank, value, fail
        held = best_rank == 0
        if not held:
            binding = common or best_fail
        elif table[0][1] <= quality_at(self.policy.options[best].quality, difficulty):
            binding = 0
        else:
            # What keeps the best option of all from being chosen.
            binding = first_fail or (_MEAN if limit > 0 else 0)
        self._wanted = wanted
        self._request = request
        self._decision = Decision(best, held, Limit(binding), base)
        self.current = best
        return self._decision

    def report(self, steps_us: Sequence[int], total_us: int | None = None, energy_uj: int | None = None) -> int:
        """What the decided option took: microseconds of each step that ran, and of the whole call.

        total_us: with loading and all else; by default the sum. energy_uj: where it was measured; else it is
        estimated from the policy. Returns the energy of the call, microjoules. Raises UsageError for more steps than
        the option has.
        """
        decision, request = self._decision, self._request
        steps = self.policy.options[decision.option].steps
        if not 1 <= len(steps_us) <= len(steps):
            raise UsageError(f"option {decision.option} has {len(steps)} steps, {len(steps_us)} were reported")
        beyond, estimated, last = -OCTAVE * 16, 0, 0
        for step, us in zip(steps, steps_us, strict=False):
            v = last = step.variant
            nominal = min((step.time_us * request.work) >> 8, U32_MAX)
            ratio = log2(min(max(us, 1), U32_MAX)) - log2(nominal)
            seen = ratio - self.correction[v]
            beyond = max(beyond, seen - decision.bound)
            estimated += scaled(min((step.energy_uj * request.work) >> 8, U32_MAX), exp2(ratio))
            self.tracker.observe(seen)
            rest = (seen - self.tracker.mean) >> (2 if self.runs[v] < 4 else 5)
            self.correction[v] = min(max(self.correction[v] + rest, -MOST_CORRECTION), MOST_CORRECTION)
            self._factors[v] = exp2(self.correction[v])
            self.runs[v] = min(self.runs[v] + 1, 255)
            self.failures[v] = 0
            self.resident |= 1 << v
        total = min(sum(steps_us) if total_us is None else total_us, U32_MAX)
        if decision.held and request.deadline_us:
            missed = total > request.deadline_us
            self.tracker.judge(missed, request.violation, beyond)
            self.misses[last] = self.misses[last] + 1 if missed else 0
            if self.misses[last] >= MISSES_IN_A_ROW:
                self.misses[last] = 0
                self._demote(last)
        spent = min(estimated if energy_uj is None else energy_uj, U32_MAX)
        self._pace(total, spent)
        self.calls = min(self.calls + 1, U32_MAX)
        return spent

    def settled(self, confidence: int, spent_us: int) -> bool:
        """Whether the first answer of a cascade stands.

        It is confident enough (Q15), there is no second step, or the second would no longer fit the deadline
        after the `spent_us` of this call.
        """
        decision, request = self._decision, self._request
        option = self.policy.options[decision.option]
        if len(option.steps) < 2 or confidence >= option.confidence:
            return True
        v = option.steps[1].variant
        slow = min((self._slow * request.work) >> 8, U32_MAX)
        us = scaled(option.steps[1].time_us, scaled(self._factors[v], slow))
        if not self.resident >> v & 1:
            us += self._load_us(v)
        return request.deadline_us != 0 and min(spent_us + us, U32_MAX) > request.deadline_us

    def failed(self, variant: int) -> None:
        """A variant crashed or could not be loaded: it is left out for some calls, longer each time."""
        if not 0 <= variant < len(self.waits):
            raise UsageError(f"the policy has variants 0 to {len(self.waits) - 1}, not {variant}")
        self.resident &= ~(1 << variant)
        self.calls = min(self.calls + 1, U32_MAX)
        self._demote(variant)

    def _demote(self, variant: int) -> None:
        self.waits[variant] = min(self.calls + (FIRST_WAIT << self.failures[variant]), U32_MAX)
        self.failures[variant] = min(self.failures[variant] + 1, MOST_FAILURES)

    def _load_us(self, v: int) -> int:
        return scaled(self.policy.variants[v].load_us, scaled(self._factors[v], self._slow))

    def _pace(self, us: int, microjoules: int) -> None:
        """Keep account of the mean cost: what is unspent, and the price of cost in quality."""
        request = self._request
        limit = request.mean_us or request.mean_uj
        if not limit:
            return
        spent = us if request.mean_us else microjoules
        most = min(limit * MOST_SURPLUS, I32_MAX)
        self.surplus = min(max(self.surplus + limit - spent, -I32_MAX), most)
        step = (min(self._wanted, 2048) - 256) * 16
        self.price = min(max(self.price + step, 0), MOST_PRICE)


def _table(policy: Policy, difficulty: int) -> list[tuple[int, ...]]:
    """Each option as a decision reads it, the best of this difficulty first: index, quality, costs, memory."""
    rows = []
    for index, option in enumerate(policy.options):
        step, *others = option.steps
        second = (others[0].variant, others[0].time_us, others[0].energy_uj) if others else (-1, 0, 0)
        costs = (step.variant, step.time_us, step.energy_uj, *second, option.mean_us, option.mean_uj, option.memory)
        rows.append((index, quality_at(option.quality, difficulty), *costs))
    return sorted(rows, key=lambda row: (-row[1], row[0]))
