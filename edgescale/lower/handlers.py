"""Imports every module that registers handlers; one import fills the registry."""

from __future__ import annotations

from edgescale.lower import (
    ops_activation,
    ops_arithmetic,
    ops_conv,
    ops_dense,
    ops_pool,
    ops_recurrent,
    ops_shape,
    ops_slice,
    qdq,
)

__all__ = [
    "ops_activation", "ops_arithmetic", "ops_conv", "ops_dense", "ops_pool", "ops_recurrent", "ops_shape", "ops_slice",
    "qdq",
]  # fmt: skip
