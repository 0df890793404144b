"""Seeds for property tests of few examples, each a batch of many drawn things."""

from __future__ import annotations

from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1).filter(bool)
"""Never 0. The first example that hypothesis tries is the simplest in all its parts: a batch of equal, empty layers,
which would be the only one, or one of two. It has the seed 0, so that a test that draws one of these is spared it."""
