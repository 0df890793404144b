"""Coverage: the share of problems some of k samples solves, estimated and extrapolated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError


def _counts(successes: npt.ArrayLike, draws: npt.ArrayLike) -> tuple[Real, Real]:
    c = np.atleast_1d(np.asarray(successes, dtype=np.float64))
    n = np.broadcast_to(np.asarray(draws, dtype=np.float64), c.shape)
    if (
        not c.size
        or not (np.isfinite(c).all() and np.isfinite(n).all())
        or (n < 1).any()
        or (c < 0).any()
        or (c > n).any()
    ):
        raise FitError("successes must lie between 0 and the draws of each problem, with at least 1 draw")
    return c, n


def miss_at_k(successes: npt.ArrayLike, draws: npt.ArrayLike, k: int) -> Real:
    """C(n-c, k)/C(n, k) for each problem: the unbiased chance that k samples all fail."""
    from scipy.special import gammaln

    c, n = _counts(successes, draws)
    if k < 0 or (k > n).any():
        raise FitError(f"pass@{k} needs at least {k} draws of every problem; the fewest are {int(n.min())}")
    left = n - c - k
    safe = np.maximum(left, 0.0)
    logs = gammaln(n - c + 1) - gammaln(safe + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return np.where(left < 0, 0.0, np.exp(np.minimum(logs, 0.0)))


def pass_at_k(successes: npt.ArrayLike, draws: npt.ArrayLike, k: int) -> float:
    """Unbiased pass@k: mean over problems of 1 - C(n-c, k)/C(n, k)."""
    return float(1 - miss_at_k(successes, draws, k).mean())


@dataclass(frozen=True)
class PowerCoverage:
    """c(k) = exp(-a k^-b)."""

    a: float
    b: float

    def predict(self, k: npt.ArrayLike) -> Real:
        """Coverage at k samples."""
        return np.asarray(np.exp(-self.a * np.asarray(k, dtype=np.float64) ** -self.b))


def fit_power_coverage(successes: npt.ArrayLike, draws: npt.ArrayLike, points: int = 24) -> PowerCoverage:
    """Fit c(k) to the unbiased pass@k at k = 1 .. the fewest draws (arXiv:2407.21787)."""
    from edgescale.laws.fit import fit
    from edgescale.laws.forms import FORMS

    c, n = _counts(successes, draws)
    most = int(n.min())
    ks = np.unique(np.rint(np.geomspace(1, most, points)).astype(int))
    if ks.size < 4:
        raise FitError(f"{most} draws a problem give {ks.size} points of pass@k: at least 4 are needed")
    observed = np.array([pass_at_k(c, n, int(k)) for k in ks])
    made = fit(FORMS["coverage"], {"k": ks}, observed, starts=40, delta=np.inf)
    return PowerCoverage(made.params["a"], made.params["b"])


@dataclass(frozen=True)
class BetaCoverage:
    """Success probabilities of problems as Beta(alpha, beta), fitted to `draws` of each (SABER, arXiv:2601.22636).

    `seen` is the coverage measured at `draws`, the anchor.
    """

    alpha: float
    beta: float
    draws: int
    seen: float

    def plug_in(self, k: npt.ArrayLike) -> Real:
        """1 - Gamma(a+b) Gamma(b+k)/(Gamma(b) Gamma(a+b+k)): the coverage of the fitted population."""
        from scipy.special import betaln

        count = np.asarray(k, dtype=np.float64)
        return np.asarray(1 - np.exp(betaln(self.alpha, self.beta + count) - betaln(self.alpha, self.beta)))

    def predict(self, k: npt.ArrayLike) -> Real:
        """Anchored: 1 - (1 - seen)(draws/k)^alpha from `draws` on; below, the plug-in scaled to meet the anchor."""
        count = np.asarray(k, dtype=np.float64)
        beyond = 1 - (1 - self.seen) * (self.draws / np.maximum(count, self.draws)) ** self.alpha
        at = float(self.plug_in(self.draws))
        below = 1 - (1 - self.plug_in(count)) * ((1 - self.seen) / max(1 - at, 1e-300))
        return np.where(count >= self.draws, beyond, np.clip(below, 0.0, 1.0))

    def samples_for(self, coverage: float) -> float:
        """Samples at which the anchored coverage reaches `coverage`: n ((1 - seen)/(1 - coverage))^(1/alpha)."""
        if not 0 <= coverage < 1:
            raise FitError(f"a coverage lies in [0, 1), not {coverage:g}")
        return float(self.draws * ((1 - self.seen) / (1 - coverage)) ** (1 / self.alpha))


def fit_beta_coverage(successes: npt.ArrayLike, draws: npt.ArrayLike) -> BetaCoverage:
    """Maximum likelihood of the Beta-Binomial over problems; every problem drawn equally often, or the fewest count.

    Raises FitError where no problem or every problem always succeeded: the tail is then not observed.
    """
    from scipy.optimize import minimize
    from scipy.special import betaln, psi

    c, n = _counts(successes, draws)
    if c.size < 3:
        raise FitError(f"{c.size} problems cannot determine a distribution: give at least 3")
    if not c.any() or (c == n).all():
        raise FitError("all samples failed, or all succeeded: the distribution of difficulty is not observed")

    def loss(u: Real) -> tuple[float, Real]:
        a, b = np.exp(u)
        value = -(betaln(c + a, n - c + b) - betaln(a, b)).sum()
        shared = psi(n + a + b) - psi(a + b)
        by_a = -(psi(c + a) - psi(a) - shared).sum() * a
        by_b = -(psi(n - c + b) - psi(b) - shared).sum() * b
        return float(value), np.array([by_a, by_b])

    bounds = [(-9.0, 9.0)] * 2
    begins = [np.log([a, b]) for a in (0.1, 0.5, 2.0) for b in (0.3, 2.0)]
    found = min((minimize(loss, u, jac=True, bounds=bounds, method="L-BFGS-B") for u in begins), key=lambda r: r.fun)
    a, b = np.exp(found.x)
    least = int(n.min())
    return BetaCoverage(float(a), float(b), least, pass_at_k(c, n, least))


def pass_until(successes: int, draws: int) -> float:
    """Unbiased success rate when sampling stopped at the `successes`-th success: (r-1)/(K-1) (arXiv:2310.03262).

    With one success the only unbiased statement is r/K's, which is returned.
    """
    if successes < 1 or draws < successes:
        raise FitError("sampling until success ends with at least 1 success and as many draws")
    return 1 / draws if successes == 1 else (successes - 1) / (draws - 1)


def fit_pass_until(sizes: npt.ArrayLike, rates: npt.ArrayLike) -> tuple[float, float]:
    """(c, alpha) of -ln PU = c N^-alpha over model sizes."""
    from edgescale.laws.fit import fit
    from edgescale.laws.forms import FORMS

    rate = np.asarray(rates, dtype=np.float64)
    if ((rate <= 0) | (rate >= 1)).any():
        raise FitError("success rates must lie strictly between 0 and 1")
    made = fit(FORMS["power-law"], {"n": sizes}, -np.log(rate), starts=20, fixed={"E": 0.0}, delta=0.05)
    return made.params["A"], made.params["alpha"]
