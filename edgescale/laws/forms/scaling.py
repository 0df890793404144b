"""Loss against size and data: power law, Chinchilla and what was made of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgescale.laws.duals import Expression, Real, at_most, box_cox, exp, log, power
from edgescale.laws.form import Form, Input, Parameter, Terms

N = Input("N", "parameters", "size of the model")
D = Input("D", "tokens or samples", "training data")


def amplitude(name: str) -> Parameter:
    """A positive factor the form is linear in."""
    return Parameter(name, start=(1e-2, 1e4), amplitude=True)


def exponent(name: str, low: float = 0.05, high: float = 1.0) -> Parameter:
    """A positive exponent, kept below 8."""
    return Parameter(name, start=(low, high), low=1e-4, high=8.0)


def decay(factor: Expression, x: Expression | Real, rate: Expression) -> Expression:
    """factor * x^-rate."""
    return factor * exp(-rate * log(x))


def _power_law(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["E"] + decay(p["A"], x["n"], p["alpha"])


POWER_LAW = Form(
    "power-law",
    "y = E + A n^-alpha",
    "Hestness et al. 2017, arXiv:1712.00409",
    (Input("n", "any", "size, data or compute"),),
    (amplitude("E"), amplitude("A"), exponent("alpha")),
    _power_law,
)


def _growth(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["E"] + p["A"] * exp(p["b"] * log(x["n"]))


GROWTH = Form(
    "growth",
    "y = E + A n^b: a cost that grows with size",
    "Dollar et al. 2021, arXiv:2103.06877 (time as a power of activations)",
    (Input("n", "any", "MACs, activations, size"),),
    (amplitude("E"), amplitude("A"), exponent("b", 0.3, 1.5)),
    _growth,
    output="cost",
    unit="any",
    delta=1e-2,
)


def _chinchilla(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["E"] + decay(p["A"], x["N"], p["alpha"]) + decay(p["B"], x["D"], p["beta"])


CHINCHILLA = Form(
    "chinchilla",
    "L = E + A N^-alpha + B D^-beta",
    "Hoffmann et al. 2022, arXiv:2203.15556; Besiroglu et al. 2024, arXiv:2404.10102",
    (N, D),
    (amplitude("A"), amplitude("B"), amplitude("E"), exponent("alpha"), exponent("beta")),
    _chinchilla,
)


def _overtrained(p: Terms, x: Mapping[str, Real]) -> Expression:
    compute, ratio = 6 * x["N"] * x["D"], log(x["D"] / x["N"])
    return p["E"] + p["a"] * exp(p["eta"] * (ratio - log(compute))) + p["b"] * exp(-p["eta"] * (ratio + log(compute)))


OVERTRAINED = Form(
    "overtrained",
    "L = E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6 N D",
    "Gadre et al. 2024, arXiv:2403.08540",
    (N, D),
    (amplitude("a"), amplitude("b"), amplitude("E"), exponent("eta")),
    _overtrained,
)


def _shape(p: Terms, x: Mapping[str, Real]) -> Expression:
    base = p["E"] + decay(p["A"], x["N"], p["alpha"]) + decay(p["B"], x["D"], p["beta"])
    return base * (1 + p["epsilon"] * exp(p["gamma"] * log(x["R"])))


SHAPE = Form(
    "shape",
    "L = (E + A N^-alpha + B D^-beta)(1 + epsilon R^gamma), R = width/depth",
    "Bian et al. 2025, arXiv:2501.18107",
    (N, D, Input("R", "1", "width over depth")),
    (
        amplitude("A"),
        amplitude("B"),
        amplitude("E"),
        exponent("alpha"),
        exponent("beta"),
        Parameter("epsilon", start=(1e-4, 1e-1), high=1e2),
        Parameter("gamma", start=(0.1, 1.5), low=1e-3, high=4.0),
    ),
    _shape,
)


def _width_depth(p: Terms, x: Mapping[str, Real]) -> Expression:
    total: Expression = p["E"]
    for factor, name, rate in (("A", "width", "a"), ("B", "depth", "b"), ("P", "N", "alpha"), ("T", "D", "beta")):
        total = total + decay(p[factor], x[name], p[rate])
    return total


WIDTH_DEPTH = Form(
    "width-depth",
    "L = E + A width^-a + B depth^-b + P N^-alpha + T D^-beta",
    "McLeish et al. 2025, arXiv:2502.06857",
    (Input("width", "1", "hidden size"), Input("depth", "1", "layers"), N, D),
    (
        *(amplitude(name) for name in "ABPTE"),
        *(exponent(name) for name in ("a", "b", "alpha", "beta")),
    ),
    _width_depth,
    delta=1e-4,
)


FARSEER_SIZE = 1e8


def _farseer(p: Terms, x: Mapping[str, Real]) -> Expression:
    size = np.log(x["N"] / FARSEER_SIZE)
    rate, factor, floor = (p[f"v{i}"] + p[f"s{i}"] * box_cox(size, p[f"c{i}"]) for i in "123")
    return exp(floor) + exp(factor - at_most(exp(rate), 20.0) * log(x["D"]))


def farseer_values(a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...]) -> dict[str, float]:
    """Values of FARSEER from the printed a_i N^c_i + b_i, i = rate, factor, floor."""
    made: dict[str, float] = {}
    for index, (ai, bi, ci) in enumerate(zip(a, b, c, strict=True), 1):
        scale = ai * FARSEER_SIZE**ci
        made |= {f"v{index}": bi + scale, f"s{index}": scale * ci, f"c{index}": ci}
    return made


def _farseer_starts(rng: np.random.Generator, count: int, x: Mapping[str, Real], y: Real) -> dict[str, Real]:
    """The floor below the data, a rate, and the factor that meets the data at their mean size."""
    offset, data = float(np.log(x["N"] / FARSEER_SIZE).mean()), np.log(x["D"])
    floor = y.min() * rng.uniform(0.3, 0.99, count)
    rate = np.exp(rng.uniform(np.log(0.1), np.log(0.9), count))
    factor = np.log(np.maximum(np.median(y) - floor, 1e-3 * y.min())) + rate * data.mean()
    made: dict[str, Real] = {}
    for index, value, slopes in (
        ("1", np.log(rate), (-0.05, 0.1)),
        ("2", factor, (-1.5, 0.2)),
        ("3", np.log(floor), (-0.1, 0.02)),
    ):
        made[f"s{index}"] = rng.uniform(*slopes, count)
        made[f"v{index}"] = value - made[f"s{index}"] * offset
    return made


FARSEER = Form(
    "farseer",
    "L = exp(g3(N)) + exp(g2(N)) D^-exp(g1(N)), g_i = v_i + s_i ((N/1e8)^c_i - 1)/c_i (= a_i N^c_i + b_i)",
    "Li et al. 2025, arXiv:2506.10972",
    (N, D),
    tuple(
        parameter
        for i in "123"
        for parameter in (
            Parameter(f"v{i}", start=(-1.0, 1.0), positive=False),
            Parameter(f"s{i}", start=(-0.1, 0.1), positive=False),
            Parameter(f"c{i}", start=(-0.3, 0.3), positive=False, low=-1.0, high=1.0),
        )
    ),
    _farseer,
    draw=_farseer_starts,
)


def _parallel(p: Terms, x: Mapping[str, Real]) -> Expression:
    streams = p["k"] * log(x["P"]) + 1
    return p["E"] + exp(p["alpha"] * (log(p["A"]) - log(x["N"]) - log(streams)))


PARALLEL = Form(
    "parallel",
    "L = E + (A / (N (k ln P + 1)))^alpha",
    "Chen et al. 2025, arXiv:2505.10475 (ParScale)",
    (N, Input("P", "1", "parallel streams", low=1.0)),
    (
        amplitude("E"),
        Parameter("A", start=(1e-3, 1e1), like="N"),
        exponent("alpha"),
        Parameter("k", start=(0.05, 2.0), high=1e3),
    ),
    _parallel,
)


def _vision(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["E"] + p["A"] * exp(-p["alpha"] * log(x["N"]) - p["beta"] * log(x["T"]))


VISION_TOKENS = Form(
    "vision-tokens",
    "err = E + A N^-alpha T^-beta",
    "Li et al. 2024, arXiv:2411.03312",
    (N, Input("T", "1", "visual tokens")),
    (amplitude("E"), amplitude("A"), exponent("alpha", 0.02, 0.5), exponent("beta", 0.005, 0.5)),
    _vision,
    output="error",
    unit="1",
)


def _experts(p: Terms, x: Mapping[str, Real]) -> Expression:
    start, most = p["E_start"], p["E_max"]
    shifted = x["experts"] - 1 + 1 / (1 / start - 1 / most)
    size = log(1 / (1 / shifted + 1 / most))
    first = p["a"] * exp(-p["delta"] * size - (p["alpha"] + p["gamma"] * size) * log(x["N"]))
    return first + p["b"] * exp(-p["omega"] * size - (p["beta"] + p["zeta"] * size) * log(x["D"])) + p["c"]


EXPERTS = Form(
    "experts",
    "L = a e^-delta N^-(alpha + gamma ln e) + b e^-omega D^-(beta + zeta ln e) + c, "
    "1/e = 1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max; N = active parameters",
    "Ludziejewski et al. 2025, arXiv:2502.05172 (signs inferred: those printed let the loss rise)",
    (N, D, Input("experts", "1", "experts a layer", low=1.0)),
    (
        amplitude("a"),
        amplitude("b"),
        amplitude("c"),
        exponent("alpha"),
        exponent("beta"),
        *(Parameter(n, start=(-0.3, 0.3), positive=False) for n in ("delta", "gamma", "omega", "zeta")),
        Parameter("E_start", start=(1.2, 4.0), low=1.0001, high=100.0),
        Parameter("E_max", start=(100.0, 500.0), low=101.0, high=1e5),
    ),
    _experts,
)


def _attention(p: Terms, x: Mapping[str, Real]) -> Expression:
    return p["E"] + power(p["a"] / x["N"], p["b"])


HEADS = Form(
    "grouped-heads",
    "L = (a/N)^b + E, one fit for each (query heads, key-value heads)",
    "Chen et al. 2025, arXiv:2503.09579",
    (N,),
    (Parameter("a", start=(1e-3, 1e1), like="N"), exponent("b"), amplitude("E")),
    _attention,
)

FORMS = (
    POWER_LAW, GROWTH, CHINCHILLA, OVERTRAINED, SHAPE, WIDTH_DEPTH, FARSEER, PARALLEL, VISION_TOKENS, EXPERTS, HEADS,
)  # fmt: skip
