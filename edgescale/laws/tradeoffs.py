"""What follows from a law: the best precision, the best sparsity, the size a compressed model is worth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError
from edgescale.laws.form import Law

DENSITY_SHARE = 0.625
"""Mean density of a cubic schedule from 25 to 75 % of training to sparsity S is 1 - 0.625 S."""
DENSE_BITS = 16.0


def _require(law: Law, *forms: str) -> None:
    if law.form.name not in forms:
        raise FitError(f"this follows from {' or '.join(forms)}, not from {law.form.name!r}")


def precision_factor(
    law: Law, weight: npt.ArrayLike | None = None, act: npt.ArrayLike | None = None, kv: npt.ArrayLike | None = None
) -> Real:
    """N_eff/N of the precision law at the bits given (None: not quantized): prod (1 - e^(-P/gamma + n)), at least 0."""
    _require(law, "precision", "weight-precision")
    share: Real = np.ones(())
    for name, bits in (("w", weight), ("a", act), ("kv", kv)):
        if bits is None:
            continue
        if f"gamma_{name}" not in law.params:
            raise FitError(f"{law.form.name!r} knows nothing of {name} bits")
        gamma, offset = law.params[f"gamma_{name}"], law.params[f"n_{name}"]
        share = share * np.maximum(1 - np.exp(offset - np.asarray(bits, dtype=np.float64) / gamma), 0.0)
    return np.asarray(share)


def vanishing_bits(law: Law, which: str) -> float:
    """The precision at which the factor of `which` ("w", "a", "kv") is zero: gamma * n; training diverges below."""
    _require(law, "precision", "weight-precision")
    return float(law.params[f"gamma_{which}"] * law.params[f"n_{which}"])


def best_training_precision(law: Law, bounds: tuple[float, float] = (1.0, 32.0)) -> float:
    """Bits for weights, activations and cache alike that minimise the loss at any training cost C ~ N D P.

    With N and D free only N_eff D = C (N_eff/N)/P matters, so the optimum does not depend on C.
    """
    from scipy.optimize import minimize_scalar

    _require(law, "precision")
    grid = np.linspace(*bounds, 2000)
    worth = precision_factor(law, grid, grid, grid) / grid
    at = int(np.argmax(worth))
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, grid.size - 1)]
    found = minimize_scalar(
        lambda b: -float(precision_factor(law, b, b, b)) / b,
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return float(found.x)


def critical_data(law: Law, added: Law, n: float, post_bits: float) -> float:
    """Training data beyond which more data makes the quantized model worse.

    D_crit = (beta B N^gamma_N e^(P/gamma_post) / (gamma_D C))^(1/(gamma_D + beta)) of a law with a B D^-beta term
    and a quantization loss.
    """
    _require(law, "chinchilla", "precision", "weight-precision")
    _require(added, "quantization-loss")
    p, q = law.params, added.params
    top = np.log(p["beta"] * p["B"]) + q["gamma_N"] * np.log(n) + post_bits / q["gamma_post"]
    return float(np.exp((top - np.log(q["gamma_D"] * q["C"])) / (q["gamma_D"] + p["beta"])))


def sparse_multiplier(law: Law, sparsity: npt.ArrayLike) -> Real:
    """How many times its non-zero parameters a dense model needs for the same loss."""
    _require(law, "sparse")
    p = law.params
    kept = p["a_S"] * (1 - np.asarray(sparsity, dtype=np.float64)) ** p["b_S"] + p["c_S"]
    return np.asarray(((p["a_S"] + p["c_S"]) / kept) ** (1 / p["b_N"]))


def best_sparsity(law: Law, n: npt.ArrayLike, compute: npt.ArrayLike) -> Real:
    """The sparsity of least loss at `n` non-zero parameters and a dense training cost C = 6 N D/(1-S) FLOP."""
    _require(law, "sparse")
    p = law.params
    size, cost = np.asarray(n, dtype=np.float64), np.asarray(compute, dtype=np.float64)
    total = p["b_D"] + p["b_S"]
    first = np.log(p["b_D"] / (p["a_S"] * p["b_S"])) + p["b_D"] * np.log(p["a_D"]) + p["b_N"] * np.log(size)
    return np.asarray(np.maximum(0.0, 1 - np.exp((first - p["b_D"] * np.log(cost / (6 * size))) / total)))


def pruning_cost(n: float, d: float, sparsity: float) -> float:
    """FLOP of training to `n` non-zero parameters with gradual pruning: 6 N D (1 - 0.625 S)/(1 - S)."""
    return 6 * n * d * (1 - DENSITY_SHARE * sparsity) / (1 - sparsity)


def mean_size(dense: float, sparsity: float) -> float:
    """Mean parameter count over a training with gradual pruning (arXiv:2501.12486)."""
    return dense * (1 - DENSITY_SHARE * sparsity)


def optimal_split(law: Law, compute: float, exponents: tuple[str, str] = ("alpha", "beta")) -> tuple[float, float]:
    """(N, D) that minimise a Chinchilla law at C = 6 N D."""
    _require(law, "chinchilla")
    p = law.params
    alpha, beta = p[exponents[0]], p[exponents[1]]
    ratio = (alpha * p["A"] / (beta * p["B"])) ** (1 / (alpha + beta))
    size = ratio * (compute / 6) ** (beta / (alpha + beta))
    return float(size), float(compute / 6 / size)
