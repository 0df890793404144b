"""Errors a user can act on; each class carries the exit code of the command line."""

from __future__ import annotations


class EdgescaleError(Exception):
    """Base of every error raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(EdgescaleError):
    """The request itself is wrong: an option, a budget, a profile, a dataset."""

    exit_code = 2


class InfeasibleError(EdgescaleError):
    """No variant meets the budget; the best attempt has been kept."""

    exit_code = 3


class UnsupportedModelError(EdgescaleError):
    """The model is broken or holds something no chosen back end executes."""

    exit_code = 4


class RigError(EdgescaleError):
    """A device, an emulator or a compiler failed."""

    exit_code = 5


class MissingDependencyError(RigError):
    """An optional package or tool is absent. `hint` is the command that installs it."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what} is not installed. Install it with: {hint}")
        self.hint = hint
