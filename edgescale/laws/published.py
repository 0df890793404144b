"""Laws with the numbers their authors (or a re-analysis) fitted. Starting points, not truths: refit on own runs."""

from __future__ import annotations

import numpy as np

from edgescale.laws.errors import FitError
from edgescale.laws.form import Law
from edgescale.laws.forms import FORMS


def _law(form: str, cite: str, **values: float) -> Law:
    return FORMS[form].with_values(values, cite)


_HOFFMANN = {"A": 406.4, "B": 410.7, "E": 1.69}
_KUMAR = {"gamma_w": 2.6745, "n_w": 0.3037, "gamma_a": 2.2102, "n_a": 1.4072, "gamma_kv": 0.9578, "n_kv": 2.4185}


def _overtrained(size_factor: float, b: float, size_exponent: float, floor: float) -> Law:
    """The authors' code lists a and eta of the same law in N and D, and b in C and M: N = sqrt(C/(6M)) halves the
    exponent and turns the first factor into a 6^eta."""
    eta = size_exponent / 2
    return _law("overtrained", "arXiv:2403.08540", a=size_factor * 6**eta, b=b, eta=eta, E=floor)


PUBLISHED: dict[str, Law] = {
    "chinchilla-hoffmann": _law("chinchilla", "arXiv:2203.15556, rounded", **_HOFFMANN, alpha=0.34, beta=0.28),
    "chinchilla-hoffmann-unrounded": _law(
        "chinchilla", "arXiv:2203.15556, from its source", A=float(np.exp(6.0073404)), B=float(np.exp(6.0179186)),
        E=float(np.exp(0.5267228)), alpha=0.33917084, beta=0.2849083,
    ),
    "chinchilla-replication": _law(
        "chinchilla", "arXiv:2404.10102", A=482.01, B=2085.43, E=1.8172, alpha=0.3478, beta=0.3658
    ),
    "beyond-chinchilla": _law("chinchilla", "arXiv:2401.00448", **_HOFFMANN, alpha=0.336, beta=0.283),
    "precision": _law(
        "precision", "arXiv:2411.04330, table 2", A=4.299e3, B=1.806e4, alpha=0.4965, beta=0.4965, E=2.7648, **_KUMAR
    ),
    "quantization-loss": _law(
        "quantization-loss", "arXiv:2411.04330, table 2", C=float(0.0598 * np.exp(1.1277)), gamma_D=0.5068,
        gamma_N=0.3439, gamma_post=0.5907,
    ),
    "sparse-vit": _law(
        "sparse", "arXiv:2309.08520, ViT on JFT", a_S=2.94e2, b_S=0.821, c_S=4.68e2, b_N=0.392, a_D=2.37e8, b_D=0.890,
        c=4.517,
    ),
    "sparse-t5": _law(
        "sparse", "arXiv:2309.08520, T5 on C4", a_S=1.68e1, b_S=0.722, c_S=4.50e1, b_N=0.245, a_D=6.90e8, b_D=0.203,
        c=0.651,
    ),
    "parallel-stack": _law(
        "parallel", "arXiv:2505.10475, Stack-V2-Python", E=0.691238, A=1.1306e7, alpha=0.189371, k=0.393463
    ),
    "parallel-pile": _law("parallel", "arXiv:2505.10475, Pile", E=1.288766, A=1.9735e8, alpha=0.196333, k=0.334456),
    "overtrained-redpajama": _overtrained(166.2, 366.7, 0.27285, 1.8366),
    "overtrained-c4": _overtrained(113.7, 189.5, 0.24247, 1.5083),
    "overtrained-refinedweb": _overtrained(125.1, 246.2, 0.25439, 1.7345),
    "loss-to-error-redpajama": _law("loss-to-error", "arXiv:2403.08540", k=2.2065, gamma=0.7146, epsilon=0.8570),
    "vision-tokens": _law(
        "vision-tokens", "arXiv:2411.03312's table, refitted with a floor of 0.033", A=0.557, alpha=0.0756, beta=0.0161,
        E=0.033,
    ),
    "experts": _law(
        "experts", "arXiv:2502.05172, signs inferred", a=35.91, alpha=0.1889, delta=0.2285, gamma=-0.0098, b=35.98,
        beta=0.1775, omega=-0.5529, zeta=0.0259, c=1.3637, E_start=2.0732, E_max=290.4521,
    ),
}  # fmt: skip


def published(name: str) -> Law:
    """The published law called `name`."""
    if name not in PUBLISHED:
        raise FitError(f"no published law {name!r}; known: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
