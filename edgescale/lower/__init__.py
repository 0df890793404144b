"""QDQ or float ONNX -> a program of fused layers, and the program's NumPy reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgescale.lower.lowering import lower, lower_file, operators

__all__ = ["lower", "lower_file", "operators"]


def __getattr__(name: str) -> Any:
    # The lowering pulls in more than whoever only reads programs needs.
    if name in __all__:
        from edgescale.lower import lowering

        return getattr(lowering, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
