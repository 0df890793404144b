"""Target profiles: one TOML file a device, `profiles/*.toml`, or a user's own by path."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgescale.core.errors import UsageError
from edgescale.core.files import shipped

SCHEMA = 1
COMPILERS = ("zig", "gcc")


@dataclass(frozen=True)
class MemoryRegion:
    """A memory of the device: `origin` and `length` in bytes; `wait_states` in CPU cycles per access.

    `line_bytes` is what one access to the array delivers (0: a 32-bit word); `instruction_cache` and
    `data_cache` are the bytes of cache in front of it (0: none).
    """

    name: str
    origin: int
    length: int
    wait_states: int = 0
    line_bytes: int = 0
    instruction_cache: int = 0
    data_cache: int = 0


@dataclass(frozen=True)
class Core:
    """The processor: `cpu` such as "cortex-m4" or "host", clock in Hz, `kernels` the C kernel family."""

    cpu: str
    clock_hz: int
    kernels: str = "scalar"
    fpu: bool = False


@dataclass(frozen=True)
class Toolchain:
    """How C is built for the core: zig's target triple and -mcpu name, and extra compiler flags.

    `compiler` is "zig" or "gcc" (the GNU toolchains for bare metal); GCC's names are derived from zig's.
    """

    triple: str
    mcpu: str
    flags: tuple[str, ...] = ()
    compiler: str = "zig"


@dataclass(frozen=True)
class Power:
    """Active power while an inference runs, in mW, and where the figure comes from."""

    active_mw: float
    origin: str


@dataclass(frozen=True)
class Npu:
    """An accelerator as its compiler is told of it: `accelerator` such as "ethos-u55-128" or "rk3588".

    For Vela also the names of a system configuration and of a memory mode in `config`, its own .ini file or one by
    path.
    """

    accelerator: str
    system_config: str = ""
    memory_mode: str = ""
    config: str = "Arm/vela.ini"


@dataclass(frozen=True)
class Target:
    """A device profile. `memory` holds at least "flash" and "ram" for microcontrollers, may be empty for hosts."""

    name: str
    title: str
    rig: str
    backends: tuple[str, ...]
    core: Core
    memory: Mapping[str, MemoryRegion] = field(default_factory=dict)
    toolchain: Toolchain | None = None
    power: Power | None = None
    npu: Npu | None = None
    notes: str = ""
    sha256: str = ""


def profile_names() -> list[str]:
    """Names of the profiles that come with edgescale, sorted."""
    return sorted(path.stem for path in shipped("profiles").glob("*.toml"))


def load_target(name_or_path: str) -> Target:
    """Load a shipped profile by name or any profile by path (a name ending in .toml).

    Raises UsageError naming the file and key that is wrong, or the names that exist.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UsageError(f"target profile {name_or_path} does not exist")
    else:
        path = shipped("profiles") / f"{name_or_path}.toml"
        if "/" in name_or_path or not path.is_file():
            known = ", ".join(profile_names())
            raise UsageError(f"unknown target {name_or_path!r}; known: {known}; or give the path of a .toml profile")
    return parse_target(path.read_bytes(), str(path))


def parse_target(data: bytes, where: str) -> Target:
    """Parse the bytes of a profile; `where` names it in errors."""
    import hashlib

    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: not valid TOML: {error}") from None
    reader = _Reader(table, where)
    if (schema := reader.take("schema", int)) != SCHEMA:
        raise UsageError(f"{where}: schema {schema} is not supported; this edgescale reads schema {SCHEMA}")
    core = reader.table("core")
    memory = reader.table("memory", {})
    toolchain = reader.table("toolchain", {})
    power = reader.table("power", {})
    npu = reader.table("npu", {})
    target = Target(
        name=reader.take("name", str),
        title=reader.take("title", str),
        rig=reader.take("rig", str),
        backends=reader.strings("backends"),
        notes=reader.take("notes", str, ""),
        core=Core(
            cpu=core.take("cpu", str),
            clock_hz=core.take("clock_hz", int, 0),
            kernels=core.take("kernels", str, "scalar"),
            fpu=core.take("fpu", bool, False),
        ),
        memory={name: _region(name, memory.table(name)) for name in list(memory.entries)},
        toolchain=_toolchain(toolchain) if toolchain.entries else None,
        power=Power(float(power.take("active_mw", (int, float))), power.take("origin", str)) if power.entries else None,
        npu=_npu(npu) if npu.entries else None,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    for part in (reader, core, toolchain, power, npu):
        part.refuse_rest()
    if target.core.clock_hz < 0:
        raise UsageError(f"{core.where}: clock_hz must not be negative")
    if target.power is not None and not 0 <= target.power.active_mw < math.inf:
        raise UsageError(f"{power.where}: active_mw must be finite and not negative")
    return target


def _toolchain(table: _Reader) -> Toolchain:
    chain = Toolchain(
        table.take("triple", str),
        table.take("mcpu", str),
        table.strings("flags", []),
        table.take("compiler", str, "zig"),
    )
    if chain.compiler not in COMPILERS:
        raise UsageError(f"{table.where}: unknown compiler {chain.compiler!r}; known: {', '.join(COMPILERS)}")
    return chain


def _npu(table: _Reader) -> Npu:
    accelerator = table.take("accelerator", str)
    configuration, mode = (table.take(key, str, "") for key in ("system_config", "memory_mode"))
    return Npu(accelerator, configuration, mode, table.take("config", str, Npu.config))


def _region(name: str, table: _Reader) -> MemoryRegion:
    region = MemoryRegion(
        name,
        table.take("origin", int),
        table.take("length", int),
        *(table.take(key, int, 0) for key in ("wait_states", "line_bytes", "instruction_cache", "data_cache")),
    )
    table.refuse_rest()
    if region.length <= 0 or region.origin < 0 or region.wait_states < 0:
        raise UsageError(f"{table.where}: length must be above 0, origin and wait_states not negative")
    if (
        region.line_bytes & (region.line_bytes - 1)
        or min(region.line_bytes, region.instruction_cache, region.data_cache) < 0
    ):
        raise UsageError(f"{table.where}: line_bytes must be 0 or a power of two, caches not negative")
    if (region.instruction_cache or region.data_cache) and not region.line_bytes:
        raise UsageError(f"{table.where}: a cache needs line_bytes")
    return region


class _Reader:
    """Typed, exhaustive access to one TOML table: an unknown key is an error, not silence."""

    def __init__(self, entries: Mapping[str, Any], where: str) -> None:
        self.entries = dict(entries)
        self.where = where

    def take(self, key: str, kind: Any, default: Any = None) -> Any:
        if key not in self.entries:
            if default is None:
                raise UsageError(f"{self.where}: missing key {key!r}")
            return default
        value = self.entries.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{self.where}: {key!r} has the wrong type {type(value).__name__}")
        return value

    def strings(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        values = self.take(key, list, default)
        if not all(isinstance(value, str) for value in values):
            raise UsageError(f"{self.where}: {key!r} must hold strings only")
        return tuple(values)

    def table(self, key: str, default: Mapping[str, Any] | None = None) -> _Reader:
        return _Reader(self.take(key, dict, default), f"{self.where} [{key}]")

    def refuse_rest(self) -> None:
        if self.entries:
            raise UsageError(f"{self.where}: unknown key(s) {', '.join(sorted(self.entries))}")
