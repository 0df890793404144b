"""Back ends by name, found through the entry-point group `edgescale.compilers`.

The entry point's name is the back end's name; packages outside edgescale may add their own.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from edgescale.core.errors import MissingDependencyError, RigError, UsageError
from edgescale.core.protocols import Backend

GROUP = "edgescale.compilers"


def backend_names() -> list[str]:
    """Names of the installed back ends, sorted."""
    return sorted(_entries())


@cache
def load_backend(name: str) -> Backend:
    """Import the back end called `name`, whether or not its tools are installed.

    Raises UsageError for an unknown name, RigError for a package that fails to import.
    """
    if name not in _entries():
        raise UsageError(f"unknown back end {name!r}; installed: {', '.join(backend_names()) or 'none'}")
    try:
        backend: Backend = _entries()[name].load()
    except (ImportError, AttributeError) as error:
        raise RigError(f"back end {name} is installed but does not import: {error}; reinstall its package") from None
    return backend


def get_backend(name: str) -> Backend:
    """The back end called `name`, ready to compile.

    Raises as `load_backend`, and MissingDependencyError where its tools are not installed.
    """
    backend = load_backend(name)
    if (hint := backend.missing()) is not None:
        raise MissingDependencyError(f"what back end {name} needs", hint)
    return backend


def tunes(backend: Backend) -> bool:
    """Whether the back end can time candidates: `compile` then takes `tune` and `progress` (see `Backend`)."""
    return bool(getattr(backend, "tunes", False))


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
