"""Intervals mean what they say: coverage over synthetic worlds with noise and outliers, one world a form."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from law_worlds import WORLDS

from edgescale.laws.fit import fit
from edgescale.laws.intervals import bootstrap

REPEATS = 10


def _one(name: str, seed: int) -> tuple[float, float, float]:
    """(share of curve points covered, covered at the far point, relative error there)."""
    world = WORLDS[name]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    columns = world.inputs(rng)
    made = fit(world.form, columns, world.observe(columns, rng), starts=40, seed=seed)
    refits = bootstrap(made, 150, seed)
    inside = {key: values[:30] for key, values in world.inputs(rng).items()}
    truth, band = world.clean(inside), refits.band(inside)
    far = {key: np.array([value]) for key, value in world.beyond.items()}
    far_truth, far_band = world.clean(far), refits.band(far)
    covered = (band.low <= truth) & (truth <= band.high)
    far_covered = (far_band.low <= far_truth) & (far_truth <= far_band.high)
    return float(covered.mean()), float(far_covered[0]), float(abs(far_band.value / far_truth - 1)[0])


@pytest.mark.slow
def test_ninety_percent_intervals_cover_85_to_95_percent():
    inside, far, errors = [], [], {}
    for name in WORLDS:
        results = np.array([_one(name, seed) for seed in range(REPEATS)])
        inside.append(results[:, 0].mean())
        far.append(results[:, 1].mean())
        errors[name] = float(np.median(results[:, 2]))
    assert 0.85 <= np.mean(inside) <= 0.95, dict(zip(WORLDS, inside, strict=True))
    assert 0.85 <= np.mean(far) <= 0.97, dict(zip(WORLDS, far, strict=True))
    assert min(inside) > 0.75, dict(zip(WORLDS, inside, strict=True))
    assert max(errors.values()) < 0.01, errors
