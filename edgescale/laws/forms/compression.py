"""Loss against precision, sparsity and any other compressed representation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgescale.laws.duals import Expression, Real, at_least, exp, log, tanh
from edgescale.laws.form import Form, Input, Parameter, Terms
from edgescale.laws.forms.scaling import D, N, amplitude, decay, exponent

FULL_PRECISION = 32.0
SMALLEST_FACTOR = 1e-6
"""Below this share of its parameters a model counts as having none: the law diverges at zero."""


def _bits(name: str, meaning: str) -> Input:
    return Input(name, "bit", meaning, low=1.0, high=64.0, default=FULL_PRECISION)


def _sensitivity(name: str) -> tuple[Parameter, Parameter]:
    gamma = Parameter(f"gamma_{name}", start=(0.5, 4.0), low=0.05, high=20.0, unit="bit")
    return gamma, Parameter(f"n_{name}", start=(0.0, 2.5), positive=False, low=-5.0, high=10.0)


def factor(bits: Expression | Real, gamma: Expression, offset: Expression) -> Expression:
    """The share 1 - e^(-bits/gamma + offset) of the parameters that count, at least 1e-6."""
    return at_least(1 - exp(offset - bits / gamma), SMALLEST_FACTOR)


def _precision(p: Terms, x: Mapping[str, Real]) -> Expression:
    count: Expression = x["N"]
    for name in ("w", "a", "kv"):
        count = factor(x[f"P_{name}"], p[f"gamma_{name}"], p[f"n_{name}"]) * count
    return p["E"] + decay(p["A"], count, p["alpha"]) + decay(p["B"], x["D"], p["beta"])


PRECISION = Form(
    "precision",
    "L = E + A (N prod_x (1 - e^(-P_x/gamma_x + n_x)))^-alpha + B D^-beta, x = w, a, kv",
    "Kumar et al. 2024, arXiv:2411.04330",
    (N, D, _bits("P_w", "weight bits"), _bits("P_a", "activation bits"), _bits("P_kv", "key-value cache bits")),
    (
        amplitude("A"),
        amplitude("B"),
        amplitude("E"),
        exponent("alpha"),
        exponent("beta"),
        *_sensitivity("w"),
        *_sensitivity("a"),
        *_sensitivity("kv"),
    ),
    _precision,
)


def _weight_precision(p: Terms, x: Mapping[str, Real]) -> Expression:
    count = factor(x["P_w"], p["gamma_w"], p["n_w"]) * x["N"]
    return p["E"] + decay(p["A"], count, p["alpha"]) + decay(p["B"], x["D"], p["beta"])


WEIGHT_PRECISION = Form(
    "weight-precision",
    "L = E + A (N (1 - e^(-P_w/gamma_w + n_w)))^-alpha + B D^-beta",
    "Kumar et al. 2024, arXiv:2411.04330",
    (N, D, _bits("P_w", "weight bits")),
    (
        amplitude("A"),
        amplitude("B"),
        amplitude("E"),
        exponent("alpha"),
        exponent("beta"),
        *_sensitivity("w"),
    ),
    _weight_precision,
)


def _after_training(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["C"] * exp(p["gamma_D"] * log(x["D"]) - p["gamma_N"] * log(x["N"]) - x["P_post"] / p["gamma_post"])


QUANTIZATION_LOSS = Form(
    "quantization-loss",
    "delta = C D^gamma_D N^-gamma_N e^(-P_post/gamma_post)",
    "Kumar et al. 2024, arXiv:2411.04330 (C = C_T e^b)",
    (N, D, Input("P_post", "bit", "weight bits after training", low=1.0, high=64.0)),
    (
        Parameter("C", start=(1e-3, 1e2), amplitude=True),
        exponent("gamma_D"),
        exponent("gamma_N"),
        Parameter("gamma_post", start=(0.2, 3.0), low=0.02, high=20.0, unit="bit"),
    ),
    _after_training,
    output="loss added",
)


def _sparse(p: Terms, x: Mapping[str, Real]) -> Expression:
    kept = p["a_S"] * exp(p["b_S"] * log(1 - x["S"])) + p["c_S"]
    return decay(kept, x["N"], p["b_N"]) + exp(p["b_D"] * (log(p["a_D"]) - log(x["D"]))) + p["c"]


SPARSE = Form(
    "sparse",
    "L = (a_S (1-S)^b_S + c_S) N^-b_N + (a_D/D)^b_D + c; N = non-zero parameters",
    "Frantar et al. 2023, arXiv:2309.08520",
    (Input("S", "1", "share of zero weights", low=0.0, high=1 - 1e-6), N, D),
    (
        amplitude("a_S"),
        Parameter("b_S", start=(0.3, 2.0), low=1e-3, high=20.0),
        amplitude("c_S"),
        exponent("b_N"),
        Parameter("a_D", start=(1e-3, 1e1), like="D"),
        exponent("b_D"),
        amplitude("c"),
    ),
    _sparse,
)


def _dense_sparse(p: Terms, x: Mapping[str, Real]) -> Expression:
    dense = log(1 - x["S"])
    size = p["a"] * exp(p["alpha"] * dense) + p["c"] * x["S"]
    return p["e"] * exp(p["gamma"] * dense) + decay(size, x["N"], p["alpha"]) + decay(p["b"], x["D"], p["beta"])


DENSE_AND_SPARSE = Form(
    "dense-and-sparse",
    "L = e (1-S)^gamma + (a (1-S)^alpha + c S) N^-alpha + b D^-beta",
    "Hossain et al. 2025, arXiv:2508.06617",
    (Input("S", "1", "share of zero weights", low=0.0, high=1 - 1e-6), N, D),
    (
        amplitude("e"),
        Parameter("gamma", start=(-0.2, 0.5), positive=False, low=-3.0, high=5.0),
        amplitude("a"),
        amplitude("c"),
        exponent("alpha"),
        amplitude("b"),
        exponent("beta"),
    ),
    _dense_sparse,
)

_EXACT = 1e-12


def _capacity(p: Terms, x: Mapping[str, Real]) -> Expression:
    count: Expression = x["N"]
    for name in ("gmse", "gmse_sparse", "gmse_act"):
        depth = -np.log(np.maximum(x[name], _EXACT)) / np.log(4.0)
        count = count * tanh(p["F"] * exp(p["C"] * log(depth)))
    return p["E"] + decay(p["A"], count, p["alpha"]) + decay(p["B"], x["D"], p["beta"])


def _gmse(name: str, meaning: str) -> Input:
    return Input(name, "1", meaning, low=0.0, high=1 - 1e-9, default=0.0)


CAPACITY = Form(
    "capacity",
    "L = E + A (N rho)^-alpha + B D^-beta, rho = prod tanh(F (log_1/4 GMSE)^C)",
    "Panferov et al. 2025, arXiv:2506.01863 (rho's constants are to be fitted on own runs)",
    (
        N,
        D,
        _gmse("gmse", "Gaussian mean square error of the weights' format"),
        _gmse("gmse_sparse", "of the sparsity"),
        _gmse("gmse_act", "of the activations' format"),
    ),
    (
        amplitude("A"),
        amplitude("B"),
        amplitude("E"),
        exponent("alpha"),
        exponent("beta"),
        Parameter("F", start=(0.1, 1.5), low=1e-3, high=50.0),
        Parameter("C", start=(0.3, 2.0), low=0.02, high=6.0),
    ),
    _capacity,
)

FORMS = (PRECISION, WEIGHT_PRECISION, QUANTIZATION_LOSS, SPARSE, DENSE_AND_SPARSE, CAPACITY)
