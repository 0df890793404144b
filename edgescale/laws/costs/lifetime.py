"""Training and a lifetime of use together (arXiv:2401.00448): the size to train for a quality and a demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgescale.laws.errors import FitError
from edgescale.laws.form import Law


@dataclass(frozen=True)
class LifetimePlan:
    """`n` parameters and `d` training tokens; `flops` of training and use; `saving` against the `reference` plan."""

    n: float
    d: float
    flops: float
    saving: float
    reference: tuple[float, float]


def data_for(law: Law, n: float, loss: float) -> float:
    """Training tokens with which `n` parameters reach `loss`; infinite where they never do."""
    p = law.params
    rest = loss - p["E"] - p["A"] * n ** -p["alpha"]
    return float((rest / p["B"]) ** (-1 / p["beta"])) if rest > 0 else float("inf")


def plan_lifetime(law: Law, n_reference: float, demand: float) -> LifetimePlan:
    """The cheapest (N, D) as good as the compute-optimal model of `n_reference`, for `demand` tokens of use.

    Minimises 6 N D + 2 N demand at L(N, D) = L(reference); at the optimum
    eps_N/eps_D = 1 + demand/(3 D), eps_N = alpha A N^-alpha, eps_D = beta B D^-beta.
    """
    from scipy.optimize import brentq

    if law.form.name != "chinchilla":
        raise FitError(f"a lifetime is planned with a chinchilla law, not {law.form.name!r}")
    if not (n_reference > 0 and demand >= 0):
        raise FitError("the reference size must be above 0 and the demand not negative")
    p = law.params
    d_reference = float((p["beta"] * p["B"] / (p["alpha"] * p["A"]) * n_reference ** p["alpha"]) ** (1 / p["beta"]))
    loss = p["E"] + p["A"] * n_reference ** -p["alpha"] + p["B"] * d_reference ** -p["beta"]

    def condition(log_n: float) -> float:
        n = float(np.exp(log_n))
        d = data_for(law, n, loss)
        if not np.isfinite(d):
            return 1e9
        size, data = p["alpha"] * p["A"] * n ** -p["alpha"], p["beta"] * p["B"] * d ** -p["beta"]
        return float(np.log(size / data) - np.log1p(demand / (3 * d)))

    smallest = (p["A"] / (loss - p["E"])) ** (1 / p["alpha"])
    n = float(np.exp(brentq(condition, np.log(smallest) + 1e-9, np.log(n_reference) + 1e-9, xtol=1e-13)))
    d = data_for(law, n, loss)
    cost = 6 * n * d + 2 * n * demand
    before = 6 * n_reference * d_reference + 2 * n_reference * demand
    return LifetimePlan(n, d, cost, 1 - cost / before, (n_reference, d_reference))
