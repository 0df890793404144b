"""A law's form as an object: its inputs, its parameters, its expression, its source; and a law with numbers in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Dual, Expression, Real
from edgescale.laws.errors import ExtrapolationError, FitError

Columns: TypeAlias = Mapping[str, npt.ArrayLike]
Terms: TypeAlias = Mapping[str, Expression]
FLOOR, CEILING = 1e-300, 1e300


@dataclass(frozen=True)
class Input:
    """A variable of the law. Values must lie in [low, high]; `default` stands in for a column that is absent."""

    name: str
    unit: str
    meaning: str
    low: float = FLOOR
    high: float = CEILING
    default: float | None = None


@dataclass(frozen=True)
class Parameter:
    """A number to fit, within [low, high]; positive ones are fitted as their logarithm.

    Starts are drawn from `start` = (low, high), log-uniformly for positive parameters; an `amplitude` is solved for
    (the form is linear in it) instead of drawn; with `like` the start is in units of that input's geometric mean;
    `share` marks a floor whose start lies between 0 and the smallest observation.
    """

    name: str
    start: tuple[float, float] = (0.05, 1.5)
    positive: bool = True
    amplitude: bool = False
    like: str | None = None
    low: float = -CEILING
    high: float = CEILING
    unit: str = "1"

    def inner(self, value: float) -> float:
        """The fitted coordinate of a value."""
        return float(np.log(max(value, FLOOR))) if self.positive else value

    @property
    def bounds(self) -> tuple[float, float]:
        """[low, high] of the fitted coordinate."""
        if not self.positive:
            return self.low, self.high
        return float(np.log(max(self.low, FLOOR))), float(np.log(self.high))


@dataclass(frozen=True)
class Form:
    """y = expression(parameters, inputs). `space` is where residuals are taken ("log" or "linear"), `delta` the
    residual beyond which the Huber loss grows linearly, `equation` what people read, `cite` where it comes from.

    `limit`: parameters -> highest value of an input up to which the law holds. `draw`: starts (parameter -> [count])
    where independent draws would rarely be near any data: (generator, count, columns, observations)."""

    name: str
    equation: str
    cite: str
    inputs: tuple[Input, ...]
    parameters: tuple[Parameter, ...]
    expression: Callable[[Terms, Mapping[str, Real]], Expression]
    output: str = "loss"
    unit: str = "nat"
    space: str = "log"
    delta: float = 1e-3
    limit: Callable[[Mapping[str, float]], Mapping[str, float]] | None = field(default=None)
    draw: Callable[[np.random.Generator, int, Mapping[str, Real], Real], dict[str, Real]] | None = field(default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in order."""
        return tuple(p.name for p in self.parameters)

    def columns(self, data: Columns) -> dict[str, Real]:
        """The form's inputs out of `data`, each [points], checked; a missing column or a wrong value is an error."""
        made: dict[str, Real] = {}
        given = [np.size(data[i.name]) for i in self.inputs if i.name in data]
        count = max(given, default=1)
        for i in self.inputs:
            if i.name not in data:
                if i.default is None:
                    raise FitError(
                        f"the law {self.name!r} needs a column {i.name!r} ({i.meaning}, {i.unit}); "
                        f"it reads {', '.join(v.name for v in self.inputs)}"
                    )
                made[i.name] = np.full(count, i.default)
                continue
            try:
                values = np.atleast_1d(np.asarray(data[i.name], dtype=np.float64)).ravel()
            except (TypeError, ValueError):
                raise FitError(f"column {i.name!r} holds something that is no number") from None
            bad = ~np.isfinite(values) | (values < i.low) | (values > i.high)
            if bad.any():
                first = int(np.argmax(bad))
                raise FitError(
                    f"column {i.name!r}, row {first}: {values[first]:g} is outside "
                    f"[{i.low:g}, {i.high:g}] {i.unit} ({i.meaning})"
                )
            if values.size not in (1, count):
                raise FitError(f"column {i.name!r} has {values.size} rows, others {count}")
            made[i.name] = np.broadcast_to(values, (count,)).copy()
        return made

    def inner(self, values: Mapping[str, float]) -> Real:
        """Fitted coordinates [parameters] of named values."""
        missing = set(self.names) - set(values)
        if missing:
            raise FitError(f"the law {self.name!r} needs values of {', '.join(sorted(missing))}")
        return np.array([p.inner(float(values[p.name])) for p in self.parameters])

    def outer(self, inner: Real) -> Real:
        """Values [..., parameters] of fitted coordinates."""
        positive = np.array([p.positive for p in self.parameters])
        return np.where(positive, np.exp(np.where(positive, inner, 0.0)), inner)

    def values(self, inner: Real, columns: Mapping[str, Real]) -> Real:
        """y [starts, points] at coordinates [starts, parameters]."""
        outer = self.outer(np.atleast_2d(inner))
        terms = {p.name: outer[:, i : i + 1] for i, p in enumerate(self.parameters)}
        count = next(iter(columns.values())).size
        with np.errstate(all="ignore"):
            result = self.expression(terms, columns)
        return np.broadcast_to(np.asarray(result), (outer.shape[0], count))

    def derivatives(self, inner: Real, columns: Mapping[str, Real]) -> tuple[Real, Real]:
        """y [starts, points] and dy/d(coordinate) [starts, parameters, points]."""
        outer = self.outer(inner)
        one = np.ones((1, 1))
        terms: dict[str, Expression] = {}
        for i, p in enumerate(self.parameters):
            column = outer[:, i : i + 1]
            terms[p.name] = Dual(column, {i: column if p.positive else one})
        count = next(iter(columns.values())).size
        with np.errstate(all="ignore"):
            result = self.expression(terms, columns)
        assert isinstance(result, Dual)
        slopes = np.zeros((inner.shape[0], len(self.parameters), count))
        for i, part in result.parts.items():
            slopes[:, i, :] = part
        return np.broadcast_to(result.value, (inner.shape[0], count)), slopes

    def with_values(self, values: Mapping[str, float], cite: str = "") -> Law:
        """The law with these numbers."""
        self.inner(values)
        return Law(self, dict(values), cite or self.cite)


@dataclass(frozen=True)
class Law:
    """A form with numbers: `predict` needs no fit."""

    form: Form
    params: Mapping[str, float]
    cite: str

    def predict(self, data: Columns | None = None, **inputs: npt.ArrayLike) -> Real:
        """y [points] at the inputs given as columns or keywords; past a turning point an ExtrapolationError."""
        columns = self.form.columns({**(data or {}), **inputs})
        refuse_beyond(self.form, self.params, columns)
        return np.array(self.form.values(self.form.inner(self.params), columns)[0])


def refuse_beyond(form: Form, params: Mapping[str, float], columns: Mapping[str, Real]) -> None:
    """Raise ExtrapolationError where the form says, from its parameters, that it does not hold."""
    if form.limit is None:
        return
    for name, highest in form.limit(params).items():
        if (columns[name] > highest).any():
            raise ExtrapolationError(
                f"the law {form.name!r} turns at {name} = {highest:.4g}; it says nothing of {columns[name].max():.4g}. "
                "Measure there, or fit a form that rises again"
            )
