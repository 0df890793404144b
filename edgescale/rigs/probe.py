"""Counting what an emulated core executes, at native speed.

`probe.c` is built once for this machine and attached to unicorn by function pointer: its hooks run
without entering Python, so exact counts, cache behaviour and memory limits cost little time. This
module declares its structures, attaches it, and returns what it counted.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import RigError
from edgescale.core.files import sha256_file
from edgescale.core.target import MemoryRegion
from edgescale.rigs.cachedir import cached_build
from edgescale.rigs.toolchain import build_shared, host_compiler

TABLE = 1 << 16
WAYS = 4
KEEP_LAYER = 0xFFFF
"""Code that belongs to no layer and to no caller of layers: it is charged to the layer that runs."""

STOP_LIMIT, STOP_TABLE, STOP_ALIGNMENT = 1, 2, 3

# unicorn's hook kinds (UC_HOOK_BLOCK, UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE); importing unicorn is slow.
_BLOCK, _READ, _WRITE = 1 << 3, 1 << 10, 1 << 11

RECORD = np.dtype(
    [
        ("address", "<u4"),
        ("size", "<u4"),
        ("layer", "<u4"),
        ("predictor", "<u4"),
        ("entries", "<u8"),
        ("taken", "<u8"),
        ("wide_unaligned", "<u8"),
        ("mispredicted", "<u8"),
        ("jump_misses", "<u8"),
        ("stream_misses", "<u8"),
        ("data_misses", "<u8"),
        ("next_hint", "<u8"),
    ]
)
"""One (layer, block) pair and what happened to it; `layer` 0 is outside layers, k + 1 is layer k."""


class _Cache(ctypes.Structure):
    _fields_ = [("sets", ctypes.c_uint64), ("last", ctypes.c_uint64), ("set", ctypes.c_void_p)]


class _Probe(ctypes.Structure):
    _fields_ = [
        ("stop_function", ctypes.c_uint64),
        ("register_read", ctypes.c_uint64),
        ("register_write", ctypes.c_uint64),
        ("code_begin", ctypes.c_uint64),
        ("code_end", ctypes.c_uint64),
        ("code", ctypes.c_uint64),
        ("layer_of", ctypes.c_uint64),
        ("line_shift", ctypes.c_uint64),
        ("detailed", ctypes.c_uint64),
        ("byte_budget", ctypes.c_int64),
        ("instruction", _Cache),
        ("data", _Cache),
        ("records", ctypes.c_void_p),
        ("used", ctypes.c_uint64),
        ("current", ctypes.c_uint64),
        ("layer", ctypes.c_uint64),
        ("previous_end", ctypes.c_uint64),
        ("stop_reason", ctypes.c_uint64),
        ("fault_address", ctypes.c_uint64),
        ("fault_size", ctypes.c_uint64),
    ]


class _Guard(ctypes.Structure):
    _fields_ = [
        ("probe", ctypes.c_void_p),
        ("low", ctypes.c_uint64),
        ("high", ctypes.c_uint64),
        ("hits", ctypes.c_uint64),
        ("block", ctypes.c_uint64),
        ("layer", ctypes.c_uint64),
        ("wrote", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Violation:
    """Accesses to a guarded range: addresses [low, high) touched, layer (as in RECORD) of the first one."""

    name: str
    low: int
    high: int
    layer: int
    before: int
    """The first access happened in the block of code that ends at this address."""


@cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("probe.c")
    key = "\n".join([sha256_file(source), host_compiler().description, platform.machine(), platform.system()])
    folder = cached_build("probe", key, lambda out: build_shared([source], out / "probe.so", what="emulator probe"))
    library = ctypes.CDLL(str(folder / "probe.so"))
    library.probe_sizes.restype = ctypes.c_uint32
    expected = RECORD.itemsize << 20 | ctypes.sizeof(_Probe) << 8 | ctypes.sizeof(_Guard)
    if library.probe_sizes() != expected:
        raise RigError("emulator probe: the compiler laid out its structures differently from this Python's ctypes")
    library.probe_begin.argtypes = [ctypes.POINTER(_Probe), ctypes.c_int64]
    library.probe_begin.restype = None
    library.probe_end.argtypes = [ctypes.POINTER(_Probe)]
    library.probe_end.restype = None
    return library


class Probe:
    """Observes one unicorn engine.

    code: the bytes from `code_begin` on that hold all executable code; layer_of: uint16 per halfword of
    them (0 outside layers, k + 1 layer k, KEEP_LAYER inherits). `flash` sets line and cache sizes.
    """

    def __init__(self, code_begin: int, code: bytes, layer_of: npt.NDArray[np.uint16], flash: MemoryRegion) -> None:
        self._library = _library()
        self._code = ctypes.create_string_buffer(code, len(code))
        self._layer_of = np.ascontiguousarray(layer_of)
        self._records = np.zeros(TABLE, RECORD)
        self._guards: list[tuple[str, _Guard]] = []
        self._state = _Probe(
            code_begin=code_begin,
            code_end=code_begin + len(code),
            code=ctypes.addressof(self._code),
            layer_of=self._layer_of.ctypes.data,
            line_shift=flash.line_bytes.bit_length() - 1 if flash.line_bytes else 0,
            records=self._records.ctypes.data,
        )
        self._flash = flash
        self._caches = []
        for name, size in (("instruction", flash.instruction_cache), ("data", flash.data_cache)):
            sets = size // (flash.line_bytes * WAYS) if flash.line_bytes else 0
            storage = np.zeros((max(sets, 1), WAYS), np.uint64)
            self._caches.append(storage)
            setattr(self._state, name, _Cache(sets, 0, storage.ctypes.data))

    def attach(self, engine: Any, *, check_alignment: bool, memory: Sequence[MemoryRegion]) -> None:
        """Hook block execution of a `unicorn.Uc`, and alignment of accesses to `memory` where asked."""
        self._native = ctypes.CDLL(_unicorn_library_path())
        self._engine = engine
        for field, name in (
            ("stop_function", "uc_emu_stop"),
            ("register_read", "uc_reg_read"),
            ("register_write", "uc_reg_write"),
        ):
            setattr(self._state, field, ctypes.cast(getattr(self._native, name), ctypes.c_void_p).value or 0)
        self._hook(_BLOCK, self._library.probe_block, ctypes.addressof(self._state), 1, 0)
        if check_alignment:
            for part in memory:
                end = part.origin + part.length - 1
                self._hook(
                    _READ | _WRITE, self._library.probe_alignment, ctypes.addressof(self._state), part.origin, end
                )

    def count(self) -> None:
        """From now on keep records and play the flash caches (several times slower than running bare)."""
        if not self._state.detailed:
            self._state.detailed = 1
            end = self._flash.origin + self._flash.length - 1
            reader = self._library.probe_flash_read
            self._hook(_READ, reader, ctypes.addressof(self._state), self._flash.origin, end)

    def guard(self, name: str, begin: int, end: int) -> None:
        """Report any access to [begin, end) as a violation called `name`."""
        if begin >= end:
            return
        guard = _Guard(probe=ctypes.addressof(self._state))
        self._guards.append((name, guard))
        self._hook(_READ | _WRITE, self._library.probe_guard, ctypes.addressof(guard), begin, end - 1)

    def begin(self, instruction_limit: int) -> None:
        """Start a run with cold caches that stops after `instruction_limit` instructions at the latest x 2.

        The limit counts bytes of code, four an instruction, so narrow ones may reach twice the number.
        """
        for _, guard in self._guards:
            guard.hits = 0
        self._library.probe_begin(ctypes.byref(self._state), min(instruction_limit * 4, 2**62))

    def end(self) -> None:
        """Account for the return that ends a run."""
        self._library.probe_end(ctypes.byref(self._state))

    @property
    def stop_reason(self) -> int:
        """Why the probe stopped the engine: 0 it did not, else STOP_*."""
        return int(self._state.stop_reason)

    @property
    def fault(self) -> tuple[int, int]:
        """(address, size) of the access behind STOP_ALIGNMENT."""
        return int(self._state.fault_address), int(self._state.fault_size)

    @property
    def where(self) -> tuple[int, int]:
        """(end of the block that ran last, its layer as in RECORD), while counting."""
        return int(self._state.previous_end), int(self._state.layer)

    def violations(self) -> list[Violation]:
        """What touched guarded ranges since `begin`."""
        return [
            Violation(name, guard.low, guard.high, guard.layer, guard.block)
            for name, guard in self._guards
            if guard.hits
        ]

    def take_records(self) -> npt.NDArray[np.void]:
        """Every record with entries since the last call, and forget them."""
        taken = self._records[self._records["entries"] > 0].copy()
        self._records[...] = 0
        self._state.used = 0
        return taken

    def _hook(self, kind: int, function: Any, user: int, begin: int, end: int) -> None:
        handle = ctypes.c_size_t()
        status = self._native.uc_hook_add(
            self._engine._uch,
            ctypes.byref(handle),
            ctypes.c_int(kind),
            ctypes.cast(function, ctypes.c_void_p),
            ctypes.c_void_p(user),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
        )
        if status:
            raise RigError(f"unicorn refused a hook (error {status})")


def _unicorn_library_path() -> str:
    import unicorn.unicorn_py3.unicorn as binding

    return str(binding.uclib._name)
