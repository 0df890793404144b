"""What compression costs within one's own family of models: sizes, bits and pruned shares together."""

from __future__ import annotations

from collections.abc import Mapping

from edgescale.laws.duals import Expression, Real, exp, log
from edgescale.laws.form import Form, Input, Parameter, Terms
from edgescale.laws.forms.scaling import N, amplitude, decay, exponent


def _family(p: Terms, x: Mapping[str, Real]) -> Expression:
    """The dense model's error, and what rounding and pruning add, each smaller for larger models."""
    dense = p["E"] + decay(p["A"], x["N"], p["alpha"])
    rounding = p["C"] * exp(-x["P_w"] / p["gamma_w"] - p["beta"] * log(x["N"]) - p["kappa"] * log(x["kept"]))
    pruning = p["F"] * exp(p["delta"] * log(1.0 / x["kept"] - 1.0 + 1e-9) - p["eta"] * log(x["N"]))
    return dense + rounding + pruning


FAMILY = Form(
    "family",
    "y = E + A N^-alpha + C N^-beta kept^-kappa e^(-P_w/gamma_w) + F N^-eta (1/kept - 1)^delta",
    "the loss added by quantization of Kumar et al. 2024, arXiv:2411.04330, beside a power of what is pruned",
    (
        N,
        Input("P_w", "bit", "weight bits after training", low=1.0, high=64.0),
        Input("kept", "1", "share of the multiply-accumulates left", low=1e-6, high=1.0),
    ),
    (
        amplitude("E"),
        amplitude("A"),
        exponent("alpha"),
        Parameter("C", start=(1e-3, 1e3), amplitude=True),
        Parameter("gamma_w", start=(0.3, 2.0), low=0.05, high=20.0, unit="bit"),
        exponent("beta"),
        Parameter("kappa", start=(0.1, 2.0), low=1e-3, high=8.0),
        Parameter("F", start=(1e-3, 1e3), amplitude=True),
        Parameter("delta", start=(0.5, 3.0), low=0.1, high=8.0),
        exponent("eta"),
    ),
    _family,
    output="error",
    unit="1",
    space="linear",
    delta=1e-2,
)
