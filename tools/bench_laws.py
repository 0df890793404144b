"""Benchmark of the fitting engine: `python tools/bench_laws.py [DATA.csv]`.

Fits the Chinchilla form to 240 points (a CSV with columns N, D, loss, or a synthetic set of the same shape) from 500
starts, refits 4,000 bootstrap resamples, and times the plain alternative: SciPy's BFGS started once for each, from a
part of the starts and resamples, scaled up. Prints objective, times and ratios.

`--coverage N` instead draws N synthetic sets with noise and outliers from every form (the worlds of `tests/laws`) and
prints the share of the true curve that 90 % intervals cover, at a point beyond the data too, and the error there.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.optimize import minimize

from edgescale.laws.fit import Fit, fit
from edgescale.laws.forms import FORMS
from edgescale.laws.intervals import bootstrap
from edgescale.laws.problem import problem_of
from edgescale.laws.starts import draw
from edgescale.laws.table import read_table

TRUTH = {"A": 477.8, "B": 2143.0, "E": 1.817, "alpha": 0.347, "beta": 0.367}
DELTA = 1e-3
T = TypeVar("T")


def synthetic(rows: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, D, loss): compute from 3e18 to 6e21, sizes around the optimum, heavy-tailed residuals of .4 %."""
    rng = np.random.default_rng(seed)
    compute = 10 ** rng.uniform(18.5, 21.8, rows)
    n = np.sqrt(compute / 120) * np.exp(rng.normal(0, 0.9, rows))
    d = compute / 6 / n
    loss = FORMS["chinchilla"].with_values(TRUTH).predict(N=n, D=d)
    return n, d, loss * np.exp(0.004 * rng.standard_t(3, rows))


def plain_loss(u: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> float:
    """The Huber loss by log-sum-exp, as a script would write it; scaled so that BFGS does not stop at once."""
    terms = [u[0] - u[3] * np.log(n), u[1] - u[4] * np.log(d), np.full(n.size, u[2])]
    r = np.abs(np.logaddexp.reduce(terms) - np.log(loss))
    q = np.minimum(r, DELTA)
    return float(1e3 * (weight * q * (r - q / 2)).sum())


def clock(label: str, call: Callable[[], T]) -> tuple[T, float]:
    """Run `call`, print and return what it gives and its seconds."""
    begun, processor = time.perf_counter(), time.process_time()
    result = call()
    spent = time.perf_counter() - begun
    print(f"{label:<50}{spent:8.2f} s  (processor {time.process_time() - processor:.2f} s)")
    return result, spent


def coverage(repeats: int) -> None:
    """How often intervals hold the truth, form by form."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "laws"))
    from law_worlds import WORLDS

    print(f"{'form':22}{'inside':>8}{'beyond':>8}{'error beyond, median':>22}{'largest':>9}")
    for name, world in WORLDS.items():
        inside, beyond, errors = [], [], []
        for seed in range(repeats):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            columns = world.inputs(rng)
            made = fit(world.form, columns, world.observe(columns, rng), starts=60, seed=seed)
            refits = bootstrap(made, 200, seed)
            points = {key: values[:30] for key, values in world.inputs(rng).items()}
            far = {key: np.array([value]) for key, value in world.beyond.items()}
            for where, found in ((points, inside), (far, beyond)):
                truth, band = world.clean(where), refits.band(where)
                found.append(float(np.mean((band.low <= truth) & (truth <= band.high))))
            errors.append(abs(float(refits.band(far).value[0]) / float(world.clean(far)[0]) - 1))
        print(
            f"{name:22}{np.mean(inside):8.3f}{np.mean(beyond):8.3f}{np.median(errors):22.4f}{max(errors):9.4f}",
            flush=True,
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="CSV with columns N, D, loss")
    parser.add_argument("--starts", type=int, default=500)
    parser.add_argument("--refits", type=int, default=4000)
    parser.add_argument("--sample", type=int, default=20, help="starts and resamples given to the plain loop")
    parser.add_argument("--coverage", type=int, metavar="N", help="sets drawn from each form")
    chosen = parser.parse_args()
    if chosen.coverage:
        coverage(chosen.coverage)
        return
    if chosen.data:
        table = read_table(chosen.data)
        n, d, loss = (table.numbers(name) for name in ("N", "D", "loss"))
    else:
        n, d, loss = synthetic()
    form, columns = FORMS["chinchilla"], {"N": n, "D": d}
    made: Fit
    made, ours_fit = clock(f"fit, {chosen.starts} starts", lambda: fit(form, columns, loss, starts=chosen.starts))
    refits, ours_boot = clock(f"bootstrap, {chosen.refits} refits", lambda: bootstrap(made, chosen.refits))
    begins = draw(problem_of(form, columns, loss), chosen.sample, 0)
    ones = np.ones(loss.size)
    arguments = (n, d, loss)
    found, plain_fit = clock(
        f"SciPy BFGS, {chosen.sample} of those starts",
        lambda: [minimize(plain_loss, u, args=(*arguments, ones), method="BFGS") for u in begins],
    )
    weights = np.random.default_rng(0).multinomial(loss.size, ones / loss.size, size=chosen.sample)
    _, plain_boot = clock(
        f"SciPy BFGS, {chosen.sample} resamples from the best fit",
        lambda: [minimize(plain_loss, made.inner, args=(*arguments, w), method="BFGS") for w in weights],
    )
    best = min(r.fun for r in found) / 1e3
    print(f"objective {made.objective:.10g}, {made.agreement:.0%} of the starts; SciPy's best: {best:.10g}")
    print("values", {k: float(f"{v:.5g}") for k, v in made.params.items()})
    print("std. errors", {k: float(f"{v:.4g}") for k, v in refits.standard_errors().items()})
    print(f"ratio to the plain loop: fit {plain_fit / chosen.sample * chosen.starts / ours_fit:.0f}x, "
          f"bootstrap {plain_boot / chosen.sample * chosen.refits / ours_boot:.0f}x")  # fmt: skip


if __name__ == "__main__":
    main()
