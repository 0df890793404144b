"""A battery that must last until a time, as the mean energy a call may take."""

from __future__ import annotations

from edgescale.control.fixed import U32_MAX
from edgescale.core.errors import UsageError


class Battery:
    """Energy to be spread over the calls that are still to come.

    Say how many calls there will be, or until when; then the interval between calls is followed, and `mean_uj` is the
    remaining energy over the calls that are expected in the remaining time. What is not spent by cheap calls is there
    for later ones, and nothing is promised that is not there.
    """

    def __init__(
        self, energy_uj: float, *, calls: int | None = None, until_s: float | None = None, reserve: float = 0.02
    ) -> None:
        """energy_uj: to be spent. Either `calls` that must be served, or `until_s`, the time on the caller's clock.
        reserve: share kept back for the calls that come unexpectedly. Raises UsageError."""
        if energy_uj <= 0 or not 0 <= reserve < 1 or (calls is None) == (until_s is None):
            raise UsageError(
                "a battery takes energy above 0, a reserve in [0, 1), and either the number of calls or a time"
            )
        if calls is not None and calls < 1:
            raise UsageError(f"a battery serves at least one call, not {calls}")
        self.remaining_uj = float(energy_uj)
        self._kept = reserve * energy_uj
        self._calls = calls
        self._until = until_s
        self._interval: float | None = None
        self._last: float | None = None

    def mean_uj(self, now_s: float = 0.0) -> int:
        """Microjoules that a call may take in the mean from now on, at least 1. now_s: the caller's clock, any zero."""
        if self._calls is not None:
            ahead = float(max(self._calls, 1))
        else:
            if self._last is not None and now_s > self._last:
                gap = now_s - self._last
                self._interval = gap if self._interval is None else 0.9 * self._interval + 0.1 * gap
            self._last = now_s
            assert self._until is not None
            left = max(self._until - now_s, 0.0)
            ahead = max(left / self._interval, 1.0) if self._interval else max(left, 1.0)
        free = max(self.remaining_uj - self._kept, 0.0)
        return int(min(max(free / ahead, 1.0), U32_MAX))

    def spend(self, energy_uj: float) -> None:
        """A call took this much."""
        self.remaining_uj -= energy_uj
        if self._calls is not None:
            self._calls -= 1
