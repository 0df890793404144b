"""Synthetic worlds, one for every form: true parameters, a design of measurements, and a point 4x beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgescale.laws.form import Form
from edgescale.laws.forms import FORMS, shared_slopes
from edgescale.laws.forms.scaling import farseer_values


@dataclass(frozen=True)
class World:
    """`design` draws inputs of n measurements; `beyond` holds inputs 4x outside the design; `noise` is the spread of
    residuals in the form's own space."""

    form: Form
    truth: dict[str, float]
    ranges: dict[str, tuple[float, float]]
    beyond: dict[str, float]
    noise: float = 0.003
    count: int = 120
    choices: dict[str, tuple[float, ...]] | None = None

    def inputs(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        columns = {k: np.exp(rng.uniform(np.log(a), np.log(b), self.count)) for k, (a, b) in self.ranges.items()}
        for name, values in (self.choices or {}).items():
            columns[name] = rng.choice(np.array(values), self.count)
        return columns

    def clean(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        return self.form.with_values(self.truth).predict(columns)

    def observe(self, columns: dict[str, np.ndarray], rng: np.random.Generator, outliers: float = 0.05) -> np.ndarray:
        error = rng.normal(0, self.noise, self.count)
        wild = rng.random(self.count) < outliers
        error = np.where(
            wild, error + rng.choice([-1, 1], self.count) * self.noise * rng.uniform(5, 20, self.count), error
        )
        clean = self.clean(columns)
        return clean * np.exp(error) if self.form.space == "log" else clean + error


ND = {"N": (1e6, 1e9), "D": (1e8, 1e11)}
CHIN = {"A": 400.0, "B": 2000.0, "E": 1.8, "alpha": 0.35, "beta": 0.36}
BITS = (3.0, 4.0, 5.0, 6.0, 8.0, 12.0)
FAR = {"N": 4e9, "D": 4e11}

WORLDS: dict[str, World] = {
    w.form.name: w
    for w in (
        World(FORMS["power-law"], {"E": 0.08, "A": 3.0, "alpha": 0.4}, {"n": (1e2, 1e5)}, {"n": 4e5}),
        World(FORMS["growth"], {"E": 0.5, "A": 2e-5, "b": 0.95}, {"n": (1e4, 1e8)}, {"n": 4e8}),
        World(FORMS["chinchilla"], CHIN, ND, FAR),
        World(FORMS["overtrained"], {"a": 150.0, "b": 300.0, "E": 1.8, "eta": 0.27}, ND, FAR),
        World(FORMS["shape"], {**CHIN, "epsilon": 0.004, "gamma": 0.6}, {**ND, "R": (4, 400)}, {**FAR, "R": 400.0}),
        World(
            FORMS["width-depth"],
            {"A": 4.0, "B": 0.8, "P": 500.0, "T": 2000.0, "E": 1.7, "a": 0.3, "b": 0.5, "alpha": 0.38, "beta": 0.38},
            {**ND, "width": (64, 4096), "depth": (3, 80)},
            {**FAR, "width": 16384.0, "depth": 320.0},
            count=200,
        ),
        World(
            FORMS["farseer"],
            farseer_values((-0.124, 88.01, -0.021), (0.424, -6.287, -0.091), (0.123, -0.1, 0.169)),
            ND,
            FAR,
            count=300,
        ),
        World(
            FORMS["parallel"],
            {"E": 0.69, "A": 1.13e7, "alpha": 0.19, "k": 0.39},
            {"N": (5e8, 5e9)},
            {"N": 2e10, "P": 8.0},
            noise=0.001,
            choices={"P": (1.0, 2.0, 4.0, 8.0)},
        ),
        World(
            FORMS["vision-tokens"],
            {"E": 0.03, "A": 0.6, "alpha": 0.08, "beta": 0.03},
            {"N": (1e6, 1e10), "T": (1, 600)},
            {"N": 4e10, "T": 600.0},
        ),
        World(
            FORMS["experts"],
            {"a": 35.91, "alpha": 0.1889, "delta": 0.2285, "gamma": -0.0098, "b": 35.98, "beta": 0.1775,
             "omega": -0.5529, "zeta": 0.0259, "c": 1.3637, "E_start": 2.0732, "E_max": 290.4521},
            ND,
            {**FAR, "experts": 32.0},
            choices={"experts": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)},
            count=300,
        ),
        World(FORMS["grouped-heads"], {"a": 1e7, "b": 0.3, "E": 2.0}, {"N": (1e6, 1e9)}, {"N": 4e9}),
        World(
            FORMS["precision"],
            {**CHIN, "gamma_w": 2.67, "n_w": 0.3, "gamma_a": 2.2, "n_a": 0.6, "gamma_kv": 0.96, "n_kv": 1.6},
            ND,
            {**FAR, "P_w": 6.0, "P_a": 8.0, "P_kv": 8.0},
            choices={"P_w": BITS, "P_a": BITS, "P_kv": BITS},
            count=200,
        ),
        World(
            FORMS["weight-precision"],
            {**CHIN, "gamma_w": 2.67, "n_w": 0.3},
            ND,
            {**FAR, "P_w": 4.0},
            choices={"P_w": BITS},
        ),
        World(
            FORMS["quantization-loss"],
            {"C": 0.2, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.6},
            ND,
            {**FAR, "P_post": 4.0},
            choices={"P_post": (2.0, 3.0, 4.0, 5.0, 6.0)},
        ),
        World(
            FORMS["sparse"],
            {"a_S": 16.8, "b_S": 0.722, "c_S": 45.0, "b_N": 0.245, "a_D": 6.9e8, "b_D": 0.203, "c": 0.651},
            {"N": (1e6, 1e9), "D": (1e9, 1e12)},
            {"N": 4e9, "D": 4e12, "S": 0.75},
            choices={"S": (0.0, 0.5, 0.75, 0.875)},
        ),
        World(
            FORMS["dense-and-sparse"],
            {"e": 1.7, "gamma": -0.03, "a": 400.0, "c": 150.0, "alpha": 0.35, "b": 2000.0, "beta": 0.36},
            ND,
            {**FAR, "S": 0.75},
            choices={"S": (0.0, 0.25, 0.5, 0.75, 0.875)},
        ),
        World(
            FORMS["capacity"],
            {**CHIN, "F": 0.6, "C": 1.1},
            ND,
            {**FAR, "gmse": 0.0115, "gmse_sparse": 0.0713, "gmse_act": 0.0},
            choices={"gmse": (0.0, 0.00104, 0.0115, 0.0374, 0.1188), "gmse_sparse": (0.0, 0.0713, 0.2764)},
        ),
        World(
            FORMS["piecewise"],
            {"level": -1.5, "slope": 0.35, "bend": -0.06, "n_switch": 3e3},
            {"n": (1e2, 1e5)},
            {"n": 4e5},
        ),
        World(FORMS["rectified"], {"B": 50.0, "E": 0.5, "D_pre": 30.0, "beta": 0.7}, {"D": (10, 1e5)}, {"D": 4e5}),
        World(FORMS["loss-to-error"], {"epsilon": 0.857, "k": 2.2, "gamma": 0.71}, {"L": (2.0, 6.0)}, {"L": 1.8}),
        World(
            FORMS["sigmoid-error"],
            {"low": 0.05, "high": 0.8, "middle": 3.0, "slope": 2.5},
            {"L": (1.0, 6.0)},
            {"L": 12.0},
            0.003,
        ),
        World(FORMS["turning"], {"level": -1.0, "bend": 0.03, "n_turn": 1e6}, {"n": (1e2, 1e5)}, {"n": 4e5}),
        World(
            shared_slopes(("a", "b", "c")),
            {"alpha_a": -1.0, "alpha_b": -0.4, "alpha_c": 0.1, "b_s": 0.35, "b_t": 0.2, "b_st": 0.01, "c": 0.2},
            {"s": (0.1, 20.0), "t": (0.1, 20.0)},
            {"s": 80.0, "t": 80.0, "family": 1.0},
            0.003,
            choices={"family": (0.0, 1.0, 2.0)},
        ),
    )
}  # fmt: skip
