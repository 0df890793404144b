"""How a handler declines a node."""

from __future__ import annotations


class NodeError(Exception):
    """A handler declines a node: `found` is the offending value, `rule` overrides the handler's docstring."""

    def __init__(self, found: str, rule: str | None = None) -> None:
        super().__init__(found)
        self.found = found
        self.rule = rule
