"""A fit as a JSON file: form, values, intervals, refits for predictions, checklist, seed and data hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgescale.core.files import write_whole
from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError
from edgescale.laws.form import Columns, Form, Law, refuse_beyond
from edgescale.laws.forms import form_named
from edgescale.laws.intervals import Band, Bootstrap, Interval, band_of
from edgescale.laws.problem import Loss

SCHEMA = 1
KEPT_REFITS = 400


@dataclass(frozen=True)
class SavedFit:
    """What a fit file holds, ready to predict. `ranges`: input -> (smallest, largest) of the data it was fitted to."""

    form: Form
    inner: Real
    refits: Real
    residuals: Real
    count: int
    free: int
    loss: Loss
    level: float
    intervals: Mapping[str, Interval]
    ranges: Mapping[str, tuple[float, float]]
    objective: float
    seed: int
    data_sha256: str
    warnings: tuple[str, ...]
    checklist: Mapping[str, Mapping[str, str]]

    @property
    def law(self) -> Law:
        """The law with the fitted values."""
        values = dict(zip(self.form.names, (float(v) for v in self.form.outer(self.inner)), strict=True))
        return Law(self.form, values, f"{self.form.cite}; fitted to data {self.data_sha256[:12]}")

    def band(self, data: Columns, level: float = 0.9, *, observation: bool = False) -> Band:
        """Predictions at `data` with intervals of the curve, or of a new observation."""
        columns = self.form.columns(data)
        refuse_beyond(self.form, self.law.params, columns)
        noise = self.residuals if observation else None
        return band_of(
            self.form, self.inner, self.refits, columns, level, logs=self.loss.space == "log", noise=noise,
            count=self.count, free=self.free,
        )  # fmt: skip

    def beyond(self, data: Columns) -> list[str]:
        """Inputs of `data` outside the data's ranges, as sentences."""
        said = []
        for name, values in self.form.columns(data).items():
            low, high = self.ranges[name]
            if values.max() > high * 1.001:
                said.append(
                    f"{name} up to {values.max():.4g} lies {_times(values.max(), high)} beyond the data ({high:.4g})"
                )
            if values.min() < low * 0.999:
                said.append(f"{name} down to {values.min():.4g} lies below the data ({low:.4g})")
        return said


def _times(value: float, edge: float) -> str:
    return f"{value / edge:.2g}x" if edge > 0 else "far"


def save(path: Path, refits: Bootstrap, checklist: Mapping[str, Mapping[str, str]], level: float = 0.9) -> None:
    """Write a fit with its refits, whole or not at all."""
    made = refits.fit
    loss = made.problem.loss
    document = {
        "edgescale": "law-fit",
        "schema": SCHEMA,
        "form": made.form.name,
        "equation": made.form.equation,
        "cite": made.form.cite,
        "params": made.params,
        "level": level,
        "intervals": {name: [i.low, i.high] for name, i in refits.intervals(level).items()},
        "objective": made.objective,
        "loss": {"space": loss.space, "delta": loss.delta if np.isfinite(loss.delta) else None, "mean": loss.mean},
        "points": int(made.problem.y.size),
        "free": made.free_count,
        "seed": made.seed,
        "data_sha256": made.data_sha256,
        "ranges": {name: [float(v.min()), float(v.max())] for name, v in made.problem.columns.items()},
        "warnings": list(made.warnings),
        "checklist": checklist,
        "inner": [float(v) for v in made.inner],
        "refits": [[float(f"{v:.10g}") for v in row] for row in refits.inner[:KEPT_REFITS]],
        "residuals": [float(f"{v:.6g}") for v in made.residuals],
    }
    write_whole(path, json.dumps(document, indent=1) + "\n")


def load(path: Path) -> SavedFit:
    """Read a fit file; raises FitError saying what is wrong with it."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FitError(f"{path} does not exist; `edgescale fit` writes such files") from None
    except (OSError, ValueError) as error:
        raise FitError(f"{path} is no fit file: {error}") from None
    if not isinstance(found, dict) or found.get("edgescale") != "law-fit":
        raise FitError(f"{path} is no fit file: `edgescale fit` writes those")
    if found.get("schema") != SCHEMA:
        raise FitError(f"{path}: schema {found.get('schema')} is not supported; this edgescale reads schema {SCHEMA}")
    try:
        form = form_named(found["form"])
        loss = found["loss"]
        saved = SavedFit(
            form=form,
            inner=np.array(found["inner"], dtype=np.float64),
            refits=np.array(found["refits"], dtype=np.float64),
            residuals=np.array(found["residuals"], dtype=np.float64),
            count=int(found["points"]),
            free=int(found["free"]),
            loss=Loss(loss["space"], np.inf if loss["delta"] is None else float(loss["delta"]), bool(loss["mean"])),
            level=float(found["level"]),
            intervals={name: Interval(*ends) for name, ends in found["intervals"].items()},
            ranges={name: (float(low), float(high)) for name, (low, high) in found["ranges"].items()},
            objective=float(found["objective"]),
            seed=int(found["seed"]),
            data_sha256=str(found["data_sha256"]),
            warnings=tuple(found["warnings"]),
            checklist=found["checklist"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FitError(f"{path} is a damaged fit file: {error!r}") from None
    count = len(form.parameters)
    if saved.inner.shape != (count,) or saved.refits.ndim != 2 or saved.refits.shape[1] != count:
        raise FitError(f"{path} does not hold the {count} parameters of {form.name!r}")
    return saved
