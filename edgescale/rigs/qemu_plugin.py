"""The QEMU plug-in `qemu_plugin.c`: built for this machine and QEMU, configured for an image, its results read."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import RigError
from edgescale.core.files import sha256_file
from edgescale.rigs.cachedir import cached_build
from edgescale.rigs.toolchain import build_shared, host_compiler

CONFIG, COUNTS, EVENTS = "plugin.txt", "counts.bin", "events.txt"
ARGUMENTS = f"config={CONFIG},counts={COUNTS},events={EVENTS}"


@dataclass(frozen=True)
class Guarded:
    """Accesses to a guarded range during one run: [low, high) was touched, first by `counter` in `layer`."""

    run: int
    guard: int
    low: int
    high: int
    counter: int
    layer: int


@dataclass(frozen=True)
class Stopped:
    """Why the plug-in ended QEMU: reason "limit", or "access" with the address, its size and direction."""

    reason: str
    counter: int
    layer: int
    address: int = 0
    size: int = 0
    store: bool = False


@dataclass(frozen=True)
class Watch:
    """What a run may touch: (begin, end, writable) memories, and ranges whose use is noted."""

    memories: Sequence[tuple[int, int, bool]]
    guards: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Observed:
    """Counts [runs, layers + 1], column 0 outside layers, and what happened."""

    counts: npt.NDArray[np.uint64]
    guarded: list[Guarded] = field(default_factory=list)
    stopped: Stopped | None = None


def interface_version(qemu: tuple[int, int]) -> int:
    """The plug-in interface to declare to a QEMU of this version: 1 up to 8.x; from 9.0 on at least 2."""
    return 1 if qemu < (9, 0) else 2


def build_plugin(qemu: tuple[int, int]) -> Path:
    """The plug-in as a shared library, built once. Raises RigError or MissingDependencyError without a compiler."""
    source = Path(__file__).with_suffix(".c")
    version = interface_version(qemu)
    key = "\n".join([sha256_file(source), str(version), host_compiler().description, platform.machine()])
    flags = [f"-DQEMU_PLUGIN_VERSION={version}", "-D_GNU_SOURCE"]
    name = "plugin.so"
    folder = cached_build(
        "qemu_plugin", key, lambda out: build_shared([source], out / name, flags, what="QEMU plug-in")
    )
    return folder / name


def configuration(
    layers: int,
    mark: int,
    limit: int,
    ranges: Sequence[tuple[int, int, int]],
    harness: tuple[int, int],
    watch: Watch | None,
) -> str:
    """The text of CONFIG: `ranges` as CodeMap gives them, `harness` the code that is not counted."""
    lines = [f"layers {layers}", f"mark {mark}", f"limit {limit}", f"harness {harness[0]} {harness[1]}"]
    lines += [f"range {begin} {end} {number}" for begin, end, number in ranges]
    if watch is not None:
        lines += [f"memory {begin} {end} {int(writable)}" for begin, end, writable in watch.memories]
        lines += [f"guard {index} {begin} {end}" for index, (begin, end) in enumerate(watch.guards) if begin < end]
    return "\n".join(lines) + "\n"


def read_observed(folder: Path, layers: int) -> Observed:
    """What the plug-in left in QEMU's working directory. Raises RigError where it left nothing."""
    try:
        counts = np.frombuffer((folder / COUNTS).read_bytes(), np.uint64)
        events = (folder / EVENTS).read_text().splitlines()
    except OSError:
        raise RigError("QEMU's plug-in left no counts") from None
    guarded: list[Guarded] = []
    stopped: Stopped | None = None
    for kind, *values in (line.split() for line in events):
        if kind == "guard":
            guarded.append(Guarded(*map(int, values)))
        else:
            counter, layer, address, size, store = (*map(int, values[1:]), 0, 0, 0)[:5]
            stopped = Stopped(values[0], counter, layer, address, size, bool(store))
    return Observed(counts.reshape(-1, layers + 1), guarded, stopped)
