"""What the device does to the profiled times: a Kalman filter of the slowdown, with a margin that learns from misses.

The slowdown is followed in octaves (log2 of measured over profiled time), so contention and throttling by
the same factor are the same step at any speed. After Kalman filtering of a global slowdown as in ALERT
(Wan et al., USENIX ATC 2020; there in the linear ratio), with three differences: one deviating time only
widens the uncertainty and two in a row move the estimate at once; the noise of the measurements is learnt;
and a margin is added that follows the misses themselves (adaptive conformal inference, Gibbs and Candes,
2021), so the rate of misses approaches the rate asked for whatever the distribution is.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgescale.control.fixed import OCTAVE, square_root

LEAST_NOISE = 40
"""Variance of measured times, octaves^2 in Q16: a standard deviation of 1.7 %."""
LEAST_DRIFT = 20
MOST_VARIANCE = 1 << 20
MOST_SIGMA = 2 * OCTAVE
FIRST_VARIANCE = 1 << 14
FARTHEST = 8 * OCTAVE
"""Largest slowdown, and speed-up, in octaves Q16."""

LEAST_BREACH = OCTAVE // 16
CREDIT = -2 * OCTAVE
"""Misses saved up, in misses Q16: so many are forgiven before the margin grows."""
MOST_DEBT = 4 * OCTAVE


@dataclass(slots=True)
class Tracker:
    """State of the filter. All numbers Q16: octaves, octaves^2; `debt` in misses."""

    mean: int = 0
    variance: int = FIRST_VARIANCE
    drift: int = LEAST_DRIFT
    noise: int = LEAST_NOISE
    sigma: int = square_root((FIRST_VARIANCE + LEAST_DRIFT + LEAST_NOISE) << 8) << 4
    streak: int = 0
    debt: int = 0
    breach: int = LEAST_BREACH

    def margin(self) -> int:
        """Octaves added to the bound because of misses."""
        return (max(self.debt, 0) >> 8) * self.breach >> 8

    def bound(self, z: int) -> int:
        """Slowdown that is exceeded with the probability of `z` (standard deviations, Q8), octaves Q16; no margin."""
        return self.mean + ((z * self.sigma) >> 8)

    def observe(self, seen: int) -> None:
        """One measured slowdown, octaves Q16."""
        innovation = min(max(seen - self.mean, -FARTHEST), FARTHEST)
        predicted = min(self.variance + self.drift, MOST_VARIANCE)
        total = predicted + self.noise
        gain = (predicted << 10) // total
        limit = 3 * self.sigma + OCTAVE // 16
        sign = 1 if innovation > limit else -1 if innovation < -limit else 0
        pulled = (gain * innovation) >> 10
        if sign == 0:
            step = pulled
            square = (innovation * innovation) >> 16
            self.noise = min(max(self.noise + ((square - total) >> 4), LEAST_NOISE), MOST_VARIANCE)
        elif sign == self.streak:
            step = innovation
        else:
            step = (gain * limit * sign) >> 10
        self.streak = sign
        self.mean = min(max(self.mean + step, -FARTHEST), FARTHEST)
        self.variance = predicted - ((gain * predicted) >> 10)
        self.drift = min(max((77 * self.drift + 179 * ((step * step) >> 16)) >> 8, LEAST_DRIFT), MOST_VARIANCE)
        width = min(self.variance + self.drift + self.noise, 3 * MOST_VARIANCE)
        self.sigma = min(square_root(width << 8) << 4, MOST_SIGMA)

    def judge(self, missed: bool, violation: int, beyond: int) -> None:
        """Whether a call that was promised within its deadline missed it.

        violation: share of misses asked for, Q16; beyond: by how many octaves Q16 the slowdown exceeded the
        bound without margin (only read where `missed`).
        """
        if missed:
            self.debt = min(self.debt + OCTAVE - violation, MOST_DEBT)
            self.breach = min(max(self.breach + ((beyond - self.breach) >> 1), LEAST_BREACH), FARTHEST)
        else:
            self.debt = max(self.debt - violation, CREDIT)
            self.breach = max(self.breach - (self.breach >> 8), LEAST_BREACH)
