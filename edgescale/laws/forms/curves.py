"""Curves of one variable: bent power laws, loss to task error, turning points, families with shared slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgescale.laws.duals import Expression, Real, at_most, exp, log, logistic
from edgescale.laws.errors import FitError
from edgescale.laws.form import Form, Input, Parameter, Terms
from edgescale.laws.forms.scaling import amplitude, exponent

_SIZE = Input("n", "any", "size, data or compute")
_LOSS = Input("L", "nat", "loss")


def _real(name: str, low: float, high: float, *, least: float = -1e300, most: float = 1e300) -> Parameter:
    return Parameter(name, start=(low, high), positive=False, low=least, high=most)


def _piecewise(p: Terms, x: Mapping[str, Real]) -> Expression:
    beyond = log(x["n"]) - log(p["n_switch"])
    below = at_most(beyond, 0.0)
    return exp(p["level"] - p["slope"] * beyond + p["bend"] * below * below)


PIECEWISE = Form(
    "piecewise",
    "ln y = level - slope t + bend min(t, 0)^2, t = ln(n/n_switch): quadratic below the switch, a power law above",
    "Jain et al. 2023, arXiv:2303.01598 (PPL)",
    (_SIZE,),
    (
        _real("level", -5.0, 5.0),
        exponent("slope"),
        _real("bend", -0.5, 0.5, least=-10.0, most=10.0),
        Parameter("n_switch", start=(0.2, 5.0), like="n"),
    ),
    _piecewise,
    output="error",
    unit="1",
)


def _rectified(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["E"] + p["B"] / (p["D_pre"] + exp(p["beta"] * log(x["D"])))


RECTIFIED = Form(
    "rectified",
    "L = E + B / (D_pre + D^beta): D_pre is what pre-training was worth in data of the new task",
    "Lin et al. 2024, arXiv:2402.02314",
    (Input("D", "samples", "fine-tuning data"),),
    (amplitude("B"), amplitude("E"), Parameter("D_pre", start=(1e-1, 1e3), high=1e30), exponent("beta", 0.2, 1.5)),
    _rectified,
)


def _exponential_error(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["epsilon"] - p["k"] * exp(-p["gamma"] * x["L"])


LOSS_TO_ERROR = Form(
    "loss-to-error",
    "err = epsilon - k e^(-gamma L)",
    "Gadre et al. 2024, arXiv:2403.08540",
    (_LOSS,),
    (
        Parameter("epsilon", start=(0.3, 1.2), high=10.0),
        Parameter("k", start=(0.1, 10.0), high=1e6),
        Parameter("gamma", start=(0.1, 3.0), low=1e-3, high=50.0),
    ),
    _exponential_error,
    output="error",
    unit="1",
    space="linear",
    delta=5e-3,
)


def _sigmoid_error(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["low"] + (p["high"] - p["low"]) * logistic(p["slope"] * (x["L"] - p["middle"]))


SIGMOID_ERROR = Form(
    "sigmoid-error",
    "err = low + (high - low) / (1 + e^(-slope (L - middle)))",
    "Dubey et al. 2024, arXiv:2407.21783, section 3.2 (sigmoid from loss to accuracy)",
    (_LOSS,),
    (
        Parameter("low", start=(1e-3, 0.3), low=1e-9, high=1.0),
        Parameter("high", start=(0.4, 1.0), low=1e-6, high=1.0),
        Parameter("middle", start=(0.5, 2.0), like="L"),
        Parameter("slope", start=(0.5, 10.0), low=1e-2, high=1e3),
    ),
    _sigmoid_error,
    output="error",
    unit="1",
    space="linear",
    delta=1e-2,
)


def _turning(p: Terms, x: Mapping[str, Real]) -> Expression:
    offset = log(x["n"]) - log(p["n_turn"])
    return exp(p["level"] + p["bend"] * offset * offset)


TURNING = Form(
    "turning",
    "ln y = level + bend ln(n/n_turn)^2: falls to n_turn, then would rise; refuses to speak beyond it",
    "a second-order power law; its turning point is checked, not believed",
    (_SIZE,),
    (
        _real("level", -5.0, 5.0),
        _real("bend", -0.3, 0.3, least=-10.0, most=10.0),
        Parameter("n_turn", start=(0.1, 10.0), like="n"),
    ),
    _turning,
    limit=lambda values: {"n": values["n_turn"]},
)


def _coverage(p: Terms, x: Mapping[str, Real]) -> Expression:
    return exp(-p["a"] * exp(-p["b"] * log(x["k"])))


COVERAGE = Form(
    "coverage",
    "c(k) = exp(-a k^-b): share of problems solved by one of k samples",
    "Brown et al. 2024, arXiv:2407.21787",
    (Input("k", "samples", "samples a problem", low=1.0),),
    (Parameter("a", start=(0.1, 5.0), low=1e-9, high=100.0), exponent("b", 0.05, 1.0)),
    _coverage,
    output="coverage",
    unit="1",
    space="linear",
    delta=1e-2,
)

FORMS = (COVERAGE, PIECEWISE, RECTIFIED, LOSS_TO_ERROR, SIGMOID_ERROR, TURNING)


def family_index(form: Form, values: Sequence[object]) -> list[float]:
    """Index of every family named in `values` (numbers are taken as they are) in a form of shared slopes."""
    families = form.name.partition(":")[2].split(",")
    made = []
    for value in values:
        if str(value) in families:
            made.append(float(families.index(str(value))))
            continue
        try:
            made.append(float(str(value)))
        except ValueError:
            raise FitError(f"unknown family {value!r}; the law knows {', '.join(families)}") from None
    return made


def shared_slopes(families: Sequence[str]) -> Form:
    """Accuracy of several families on one task: slopes in log size and log data shared, an intercept a family.

    The column `family` holds indices into `families`: acc = c + (1 - c) sigma(alpha_f + b_s ln s + b_t ln t
    + b_st ln s ln t), with s and t in units the caller chooses (billions keep the logarithms small).
    """
    if len(families) < 1 or len(set(families)) != len(families):
        raise FitError("families must be distinct names, at least one")

    def expression(p: Terms, x: Mapping[str, Real]) -> Expression:
        size, data = np.log(x["s"]), np.log(x["t"])
        score: Expression = p["b_s"] * size + p["b_t"] * data + p["b_st"] * (size * data)
        for index, name in enumerate(families):
            score = score + p[f"alpha_{name}"] * (x["family"] == index).astype(np.float64)
        return p["c"] + (1 - p["c"]) * logistic(score)

    return Form(
        "shared-slopes:" + ",".join(families),
        "acc = c + (1-c) sigma(alpha_family + b_s ln s + b_t ln t + b_st ln s ln t)",
        "Polo et al. 2024, arXiv:2412.06540 (Sloth, one skill)",
        (
            Input("s", "any", "size"),
            Input("t", "any", "training data"),
            Input("family", "index", "which family", low=0.0, high=float(len(families) - 1)),
        ),
        (
            *(_real(f"alpha_{name}", -3.0, 3.0, least=-30.0, most=30.0) for name in families),
            _real("b_s", 0.0, 1.0, least=-10.0, most=10.0),
            _real("b_t", 0.0, 1.0, least=-10.0, most=10.0),
            _real("b_st", -0.1, 0.1, least=-5.0, most=5.0),
            Parameter("c", start=(1e-3, 0.3), low=1e-6, high=0.95),
        ),
        expression,
        output="accuracy",
        unit="1",
        space="linear",
        delta=1e-2,
    )
