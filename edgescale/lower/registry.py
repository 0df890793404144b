"""Which ONNX operators can be lowered: a table of handlers whose docstrings are the rules users read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

    from edgescale.lower.context import Context

    Handler = Callable[[Context, onnx_ir.Node], None]

HANDLERS: dict[str, Handler] = {}
"""ONNX operator -> handler(context, node), which adds layers and binds the node's outputs."""


def handles(*operators: str) -> Callable[[Handler], Handler]:
    """Register a handler for ONNX operators of the default domain."""

    def register(handler: Handler) -> Handler:
        for operator in operators:
            HANDLERS[operator] = handler
        return handler

    return register


def rule_of(handler: Handler) -> str:
    """The handler's docstring on one line."""
    return " ".join(inspect.getdoc(handler).split()) if handler.__doc__ else ""  # type: ignore[union-attr]
