"""What compression costs within one's own family of models: sizes, bits and pruned shares together.

`FAMILY` is the whole law. `family_form` is the same law for candidates that do not differ in all of its inputs: a term
whose input stands still cannot be told from a constant, so it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Expression, Real, exp, log
from edgescale.laws.errors import FitError
from edgescale.laws.form import Form, Input, Parameter, Terms
from edgescale.laws.forms.scaling import N, amplitude, decay, exponent

_CITE = "the loss added by quantization of Kumar et al. 2024, arXiv:2411.04330, beside a power of what is pruned"
_INPUTS = {
    "N": N,
    "P_w": Input("P_w", "bit", "weight bits after training", low=1.0, high=64.0),
    "kept": Input("kept", "1", "share of the multiply-accumulates left", low=1e-6, high=1.0),
}
_PARAMETERS = {
    "E": amplitude("E"),
    "A": amplitude("A"),
    "alpha": exponent("alpha"),
    "C": Parameter("C", start=(1e-3, 1e3), amplitude=True),
    "gamma_w": Parameter("gamma_w", start=(0.3, 2.0), low=0.05, high=20.0, unit="bit"),
    "beta": exponent("beta"),
    "kappa": Parameter("kappa", start=(0.1, 2.0), low=1e-3, high=8.0),
    "F": Parameter("F", start=(1e-3, 1e3), amplitude=True),
    "delta": Parameter("delta", start=(0.5, 3.0), low=0.1, high=8.0),
    "eta": exponent("eta"),
}
_PIECES: tuple[tuple[frozenset[str], str, tuple[str, ...]], ...] = (
    (frozenset(), "E", ("E",)),
    (frozenset({"N"}), "A N^-alpha", ("A", "alpha")),
    (frozenset({"P_w"}), "C{N: N^-beta}{kept: kept^-kappa} e^(-P_w/gamma_w)", ("C", "gamma_w", "beta", "kappa")),
    (frozenset({"kept"}), "F{N: N^-eta} (1/kept - 1)^delta", ("F", "delta", "eta")),
)
_BELONGS = {"beta": "N", "kappa": "kept", "eta": "N"}
"""Parameters that a term has only where this input varies."""


def family_form(varying: Collection[str]) -> Form:
    """The law in those of N, P_w and kept that vary. Raises FitError for none or an unknown one."""
    if not varying or not set(varying) <= set(_INPUTS):
        raise FitError(f"the law of a family has the inputs {', '.join(_INPUTS)}; got {', '.join(varying) or 'none'}")
    among = frozenset(varying)
    pieces = [
        (text, [p for p in owned if _BELONGS.get(p, "") in {"", *among}])
        for needs, text, owned in _PIECES
        if needs <= among
    ]
    parameters = [name for _, owned in pieces for name in owned]
    equation = " + ".join(_written(text, among) for text, _ in pieces)

    def expression(p: Terms, x: Mapping[str, Real]) -> Expression:
        total: Expression = p["E"]
        if "N" in among:
            total = total + decay(p["A"], x["N"], p["alpha"])
        if "P_w" in among:
            inside: Expression = -x["P_w"] / p["gamma_w"]
            if "N" in among:
                inside = inside - p["beta"] * log(x["N"])
            if "kept" in among:
                inside = inside - p["kappa"] * log(x["kept"])
            total = total + p["C"] * exp(inside)
        if "kept" in among:
            inside = p["delta"] * log(1.0 / x["kept"] - 1.0 + 1e-9)
            total = total + p["F"] * exp(inside - p["eta"] * log(x["N"]) if "N" in among else inside)
        return total

    whole = among == set(_INPUTS)
    return Form(
        "family" if whole else f"family in {' and '.join(name for name in _INPUTS if name in among)}",
        f"y = {equation}",
        _CITE,
        tuple(given for name, given in _INPUTS.items() if name in among),
        tuple(given for name, given in _PARAMETERS.items() if name in parameters),
        expression,
        output="error",
        unit="1",
        space="linear",
        delta=1e-2,
    )


def family_holds(columns: Mapping[str, npt.ArrayLike]) -> tuple[dict[str, float], dict[str, float]]:
    """(parameters to hold, and at what; those to hold while measurements cannot tell them apart).

    Held is what the values of an input cannot show: two sizes give a slope but no floor, one pruned share no exponent.
    Each bit halves the rounding error, so its power falls by four (gamma_w = 1/(2 ln 2)).
    """
    distinct = {
        name: len(set(np.asarray(values, dtype=np.float64).ravel().tolist())) for name, values in columns.items()
    }
    usual = {"gamma_w": 1 / (2 * math.log(2))} if "P_w" in columns else {}
    if "kept" in columns:
        usual |= {"delta": 1.0} | ({"kappa": 1.0} if "P_w" in columns else {})
    needs = {"gamma_w": "P_w", "delta": "kept", "kappa": "kept"}
    held = {name: value for name, value in usual.items() if distinct[needs[name]] == 2}
    if distinct.get("N") == 2:
        held["E"] = 0.0
    return held, usual


def _written(text: str, among: frozenset[str]) -> str:
    """A piece of the equation with the factors of inputs that vary."""
    for name in ("N", "kept"):
        start = text.find(f"{{{name}:")
        if start >= 0:
            end = text.index("}", start)
            factor = text[start + len(name) + 2 : end]
            text = text[:start] + (factor if name in among else "") + text[end + 1 :]
    return text


FAMILY = family_form(_INPUTS)
