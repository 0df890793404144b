"""How long work tells where it stands, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """A listener: the command line shows bars, a script may pass `SILENT`."""

    def start(self, label: str, total: int | None) -> int:
        """Open a task of `total` steps (None: unknown); returns its handle."""

    def advance(self, task: int, steps: int = 1) -> None:
        """Record `steps` finished steps of a task."""

    def finish(self, task: int) -> None:
        """Close a task."""


class _Silent:
    def start(self, label: str, total: int | None) -> int:
        return 0

    def advance(self, task: int, steps: int = 1) -> None:
        return None

    def finish(self, task: int) -> None:
        return None


SILENT: Progress = _Silent()


def track(items: Iterable[T], progress: Progress, label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, advancing a task of `progress` after each."""
    task = progress.start(label, total)
    try:
        for item in items:
            yield item
            progress.advance(task)
    finally:
        progress.finish(task)
