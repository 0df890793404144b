"""Which targets `--emit` means: those asked for that use a back end, else the back end's own on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgescale.backends import backend_names, load_backend
from edgescale.core.errors import UsageError
from edgescale.core.target import Target, load_target

PREFIX = "edgescale_"
DEFAULT_TARGETS = {
    "edgescale_onnx": "host",
    "edgescale_tvm": "host-tvm",
    "edgescale_tflite": "host-litert",
    "edgescale_c": "cortex-m4-stm32l4r5",
    "edgescale_ethosu": "ethos-u55-128",
}
"""Where a back end's artifacts run when no target asked for uses it: this machine, an emulated core, a model."""


def emitted_targets(emit: Sequence[str], given: Sequence[Target]) -> tuple[Target, ...]:
    """The targets of a compile that emits by the back ends `emit` (names, with or without `edgescale_`).

    Targets asked for keep of their back ends those that are named. A back end of another package names its profile in
    an attribute `profile`. Raises UsageError for an unknown back end, one without a target, and a target whose back
    ends are none of those named.
    """
    names = list(dict.fromkeys(_full(name) for name in emit))
    kept = []
    for target in given:
        backends = tuple(name for name in target.backends if name in names)
        if not backends:
            raise UsageError(
                f"--emit {','.join(emit)}: target {target.name} uses {', '.join(target.backends)}, none of those"
            )
        kept.append(replace(target, backends=backends))
    used = {name for target in kept for name in target.backends}
    return (*kept, *(_default(name) for name in names if name not in used))


def _full(name: str) -> str:
    known = backend_names()
    for candidate in (name, PREFIX + name):
        if candidate in known:
            return candidate
    short = ", ".join(found.removeprefix(PREFIX) for found in known)
    raise UsageError(f"--emit: unknown back end {name!r}; installed: {short}")


def _default(name: str) -> Target:
    profile = DEFAULT_TARGETS.get(name) or getattr(load_backend(name), "profile", None)
    if profile is None:
        raise UsageError(f"--emit: back end {name} has no target of its own; name one with --target")
    target = load_target(str(profile))
    return replace(target, backends=(name,))
