"""What a law refuses: data that cannot carry a fit, and questions outside what it knows."""

from __future__ import annotations

from edgescale.core.errors import UsageError


class FitError(UsageError):
    """The data cannot determine the law: too few points, no variation, collinear inputs, values out of range."""


class ExtrapolationError(UsageError):
    """The law does not hold where it was asked: past a turning point, or outside an input's range."""
