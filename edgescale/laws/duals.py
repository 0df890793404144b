"""Exact derivatives by forward accumulation, over many parameter vectors at once.

A `Dual` is a value [starts, points] with its derivative by each parameter it depends on. Arrays keep whatever
broadcastable shape they have ([starts, 1] for a parameter, [points] for an input), so that a term costs only the
parameters in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Real: TypeAlias = npt.NDArray[np.float64]
LARGEST_EXPONENT = 690.0
"""Arguments of exp are cut here: beyond, a wild start would turn into infinities that no step leads back from."""


class Dual:
    """`value` and `parts`: parameter index -> derivative, both broadcastable to [starts, points]."""

    __slots__ = ("parts", "value")
    __array_ufunc__ = None  # arrays on the left give way to __radd__ and its kin

    def __init__(self, value: Real, parts: dict[int, Real]) -> None:
        self.value = value
        self.parts = parts

    def chain(self, value: Real, slope: Real) -> Dual:
        """The function with this `value` whose derivative by self is `slope`."""
        return Dual(value, {index: slope * part for index, part in self.parts.items()})

    def __neg__(self) -> Dual:
        return Dual(-self.value, {index: -part for index, part in self.parts.items()})

    def __add__(self, other: Expression) -> Dual:
        if not isinstance(other, Dual):
            return Dual(self.value + other, self.parts)
        parts = dict(self.parts)
        for index, part in other.parts.items():
            parts[index] = parts[index] + part if index in parts else part
        return Dual(self.value + other.value, parts)

    __radd__ = __add__

    def __sub__(self, other: Expression) -> Dual:
        return self.__add__(-other)

    def __rsub__(self, other: Expression) -> Dual:
        return (-self).__add__(other)

    def __mul__(self, other: Expression) -> Dual:
        if not isinstance(other, Dual):
            return Dual(self.value * other, {index: part * other for index, part in self.parts.items()})
        parts = {index: part * other.value for index, part in self.parts.items()}
        for index, part in other.parts.items():
            scaled = part * self.value
            parts[index] = parts[index] + scaled if index in parts else scaled
        return Dual(self.value * other.value, parts)

    __rmul__ = __mul__

    def __truediv__(self, other: Expression) -> Dual:
        return self.__mul__(reciprocal(other))

    def __rtruediv__(self, other: Expression) -> Dual:
        inverse = reciprocal(self)
        assert isinstance(inverse, Dual)
        return inverse.__mul__(other)


Expression: TypeAlias = Dual | Real | float


def _apply(x: Expression, function: Callable[[Real], Real], slope: Callable[[Real, Real], Real]) -> Expression:
    if not isinstance(x, Dual):
        return function(np.asarray(x, dtype=np.float64))
    value = function(x.value)
    return x.chain(value, slope(x.value, value))


def exp(x: Expression) -> Expression:
    """e^x, its argument cut at +-690."""

    def function(v: Real) -> Real:
        return np.asarray(np.exp(np.clip(v, -LARGEST_EXPONENT, LARGEST_EXPONENT)))

    return _apply(x, function, lambda v, y: y)


def log(x: Expression) -> Expression:
    """Natural logarithm; arguments below 1e-300 count as 1e-300."""
    return _apply(x, lambda v: np.log(np.maximum(v, 1e-300)), lambda v, y: 1 / np.maximum(v, 1e-300))


def tanh(x: Expression) -> Expression:
    """Hyperbolic tangent."""
    return _apply(x, np.tanh, lambda v, y: 1 - y * y)


def logistic(x: Expression) -> Expression:
    """1 / (1 + e^-x)."""
    from scipy.special import expit

    return _apply(x, lambda v: np.asarray(expit(v)), lambda v, y: y * (1 - y))


def reciprocal(x: Expression) -> Expression:
    """1 / x."""
    return _apply(x, lambda v: 1 / v, lambda v, y: -y * y)


def at_least(x: Expression, floor: float) -> Expression:
    """max(x, floor), with no slope where the floor holds."""
    return _apply(x, lambda v: np.maximum(v, floor), lambda v, y: (v > floor).astype(np.float64))


def at_most(x: Expression, ceiling: float) -> Expression:
    """min(x, ceiling), with no slope where the ceiling holds."""
    return _apply(x, lambda v: np.minimum(v, ceiling), lambda v, y: (v < ceiling).astype(np.float64))


def power(base: Expression, exponent: Expression) -> Expression:
    """base ** exponent for a positive base."""
    return exp(log(base) * exponent)


def box_cox(t: Real, bend: Expression) -> Expression:
    """(e^(bend t) - 1)/bend: t at bend 0, a power of e^t elsewhere, smooth through both."""

    def ratio(z: Real) -> tuple[Real, Real]:
        z = np.clip(z, -LARGEST_EXPONENT, LARGEST_EXPONENT)
        near = np.abs(z) < 1e-3
        safe = np.where(near, 1.0, z)
        value = np.where(near, 1 + z / 2 + z * z / 6, np.expm1(safe) / safe)
        slope = np.where(near, 0.5 + z / 3 + z * z / 8, (np.exp(safe) - value) / safe)
        return value, slope

    if not isinstance(bend, Dual):
        return t * ratio(np.asarray(bend, dtype=np.float64) * t)[0]
    value, slope = ratio(bend.value * t)
    return bend.chain(t * value, t * t * slope)
