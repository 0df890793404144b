"""A form with the data it is to be fitted to, checked: residuals, the loss, and descents on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError
from edgescale.laws.form import Columns, Form
from edgescale.laws.solver import Minimum, huber, minimise


@dataclass(frozen=True)
class Loss:
    """How misfit is counted: residuals in `space`, Huber's loss of `delta`; `mean` only scales what is reported."""

    space: str
    delta: float
    mean: bool = False


@dataclass(frozen=True)
class Problem:
    """A form with its data: everything a refit needs. `y` [points]; `free` [parameters]; `held` their coordinates."""

    form: Form
    columns: Mapping[str, Real]
    y: Real
    loss: Loss
    free: np.ndarray
    held: Real

    @property
    def bounds(self) -> tuple[Real, Real]:
        """Bounds of the coordinates, [parameters] each."""
        pairs = [p.bounds for p in self.form.parameters]
        return np.array([low for low, _ in pairs]), np.array([high for _, high in pairs])

    def targets(self, y: Real) -> Real:
        """Observations as residuals see them."""
        return np.log(y) if self.loss.space == "log" else y

    def residuals(self, inner: Real, target: Real) -> tuple[Real, Real]:
        """Residuals [k, n] and slopes [k, P, n] against `target` [n] or [k, n]."""
        value, slopes = self.form.derivatives(inner, self.columns)
        if self.loss.space == "linear":
            return value - target, slopes
        safe = np.clip(np.nan_to_num(value, nan=0.0), 1e-300, 1e300)
        with np.errstate(all="ignore"):
            return np.log(safe) - target, slopes / safe[:, None, :]

    def minimise(
        self,
        start: Real,
        *,
        weights: Real | None = None,
        y: Real | None = None,
        free: np.ndarray | None = None,
        delta: float | None = None,
        iterations: int = 150,
        tolerance: float = 1e-9,
        patience: int = 3,
    ) -> Minimum:
        """Descend from `start` [S, P]; `weights` and `y` may differ by start ([S, n])."""
        target = self.targets(self.y if y is None else y)

        def of(inner: Real, rows: np.ndarray) -> tuple[Real, Real]:
            return self.residuals(inner, target[rows] if target.ndim == 2 else target)

        start = np.where(self.free, start, self.held)
        return minimise(
            of,
            start,
            delta=self.loss.delta if delta is None else delta,
            bounds=self.bounds,
            weights=weights,
            free=self.free if free is None else free,
            iterations=iterations,
            tolerance=tolerance,
            patience=patience,
        )

    def cost(self, inner: Real) -> float:
        """The loss at coordinates [P]: sum, or mean where the loss says so."""
        r, _ = self.residuals(inner[None], self.targets(self.y))
        total = float(huber(r, self.loss.delta).sum())
        return total / self.y.size if self.loss.mean else total


def problem_of(
    form: Form,
    data: Columns,
    y: npt.ArrayLike,
    *,
    space: str | None = None,
    delta: float | None = None,
    mean: bool = False,
    fixed: Mapping[str, float] | None = None,
) -> Problem:
    """Data checked against the form; raises FitError with what is missing or wrong."""
    columns = form.columns(data)
    try:
        observed = np.asarray(y, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        raise FitError(f"the observations ({form.output}) hold something that is no number") from None
    count = observed.size
    for name, values in columns.items():
        if values.size not in (1, count):
            raise FitError(f"column {name!r} has {values.size} rows, {form.output} has {count}")
    columns = {name: np.broadcast_to(values, (count,)).copy() for name, values in columns.items()}
    loss = Loss(space or form.space, form.delta if delta is None else delta, mean)
    if loss.space not in ("log", "linear"):
        raise FitError(f"space {loss.space!r} is unknown: residuals are taken in log or linear space")
    if not loss.delta > 0:
        raise FitError(f"delta must be above 0 (inf for plain least squares), not {loss.delta:g}")
    if not np.isfinite(observed).all():
        raise FitError(f"{form.output}, row {int(np.argmin(np.isfinite(observed)))}: not a finite number")
    if loss.space == "log" and (observed <= 0).any():
        raise FitError(
            f"{form.output}, row {int(np.argmin(observed > 0))}: {observed.min():g} has no logarithm; "
            "fit in linear space or leave it out"
        )
    fixed = dict(fixed or {})
    if unknown := set(fixed) - set(form.names):
        raise FitError(f"{form.name} has no parameter {', '.join(sorted(unknown))}; it has {', '.join(form.names)}")
    free = np.array([name not in fixed for name in form.names])
    held = np.array([p.inner(fixed[p.name]) if p.name in fixed else 0.0 for p in form.parameters])
    if not free.any():
        raise FitError("every parameter is held: nothing to fit")
    _require_information(form, columns, observed, int(free.sum()))
    return Problem(form, columns, observed, loss, free, held)


def _require_information(form: Form, columns: Mapping[str, Real], y: Real, free: int) -> None:
    if y.size < free + 1:
        raise FitError(
            f"{y.size} points cannot determine the {free} parameters of {form.name!r} and its error: "
            f"give at least {free + 1}, better three times as many, or hold some with fixed="
        )
    rows = np.column_stack([*columns.values()])
    distinct = np.unique(rows, axis=0).shape[0]
    if distinct < free:
        raise FitError(f"only {distinct} distinct input points for {free} parameters of {form.name!r}: vary the inputs")
    if np.ptp(y) <= 1e-12 * np.abs(y).max():
        raise FitError(f"{form.output} is the same in all {y.size} rows: there is nothing to explain")
