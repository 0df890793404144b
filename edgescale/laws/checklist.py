"""What a published fit should say and most do not: the (Mis)Fitting checklist, filled in from the fit itself.

After Li et al. 2025, "(Mis)Fitting: a survey of scaling laws" (arXiv:2502.18969). What only the user knows (how the
models were trained, how parameters were counted) is asked for through `notes` and marked as not stated otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgescale.laws.fit import Fit
from edgescale.laws.intervals import Bootstrap
from edgescale.laws.validate import Holdout

NOT_STATED = "not stated"
USER_FIELDS = {
    "models": "which models, of which family, were measured",
    "parameter_count": "how parameters are counted (embeddings in or out)",
    "training": "data, schedule, batch size, precision of training",
    "selection": "which runs or checkpoints were left out, and why",
}


def checklist(
    made: Fit,
    refits: Bootstrap | None = None,
    holdouts: Sequence[Holdout] = (),
    notes: Mapping[str, str] | None = None,
) -> dict[str, dict[str, str]]:
    """Section -> entry -> answer, for people and for the fit file."""
    problem, form = made.problem, made.form
    held = [name for name, free in zip(form.names, problem.free, strict=True) if not free]
    told = {**dict.fromkeys(USER_FIELDS, NOT_STATED), **dict(made.notes), **(notes or {})}
    spans = {
        name: f"{values.min():.4g} to {values.max():.4g} {_unit(made, name)}, {np.unique(values).size} distinct"
        for name, values in problem.columns.items()
    }
    delta = problem.loss.delta
    kind = f"Huber, delta {delta:g}" if np.isfinite(delta) else "squared"
    boot = "none" if refits is None else f"{refits.inner.shape[0]} resamples of rows, seed {refits.seed}"
    return {
        "form": {
            "equation": form.equation,
            "source": form.cite,
            "variables": ", ".join(f"{i.name} ({i.meaning}, {i.unit})" for i in form.inputs),
            "free parameters": f"{made.free_count}: {', '.join(n for n in form.names if n not in held)}",
            "held": ", ".join(held) or "none",
        },
        "set-up": {name: told[name] for name in ("models", "parameter_count", "training")},
        "data": {
            "points": str(problem.y.size),
            **{f"range of {name}": text for name, text in spans.items()},
            f"range of {form.output}": f"{problem.y.min():.4g} to {problem.y.max():.4g} {form.unit}",
            "left out": told["selection"],
            "sha256": made.data_sha256,
        },
        "optimisation": {
            "loss": f"{kind}, {'mean' if problem.loss.mean else 'sum'} over {problem.loss.space} residuals",
            "optimiser": "batched Levenberg-Marquardt with exact derivatives, all starts to convergence",
            "starts": f"{made.starts}, seed {made.seed}; {made.agreement:.0%} reached the best objective",
            "objective": f"{made.objective:.9g}",
        },
        "validation": {
            "R squared": f"{made.r_squared:.6f} (in sample, {problem.loss.space} space)",
            "bootstrap": boot,
            **{f"without {h.rule}": f"{h.relative:.3%} mean error over {h.count} rows" for h in holdouts},
            **({} if holdouts else {"hold-out": "none"}),
            "warnings": "; ".join(made.warnings) or "none",
        },
    }


def _unit(made: Fit, name: str) -> str:
    return next(i.unit for i in made.form.inputs if i.name == name)
