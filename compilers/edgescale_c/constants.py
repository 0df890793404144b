"""Constant tables of a generated file: each distinct content once, in the order first asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.generic]

_C_TYPES = {
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float32": "float",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
}


def float_literal(value: float) -> str:
    """A C constant of type float with exactly the value of float32(value)."""
    single = np.float32(value)
    if math.isnan(single):
        return '__builtin_nanf("")'
    if math.isinf(single):
        return "__builtin_inff()" if single > 0 else "-__builtin_inff()"
    text = f"{float(single):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def int_literal(value: int) -> str:
    """A C constant of an integer type; the least int32_t cannot be written as a plain literal of its type."""
    return "(-2147483647 - 1)" if value == -(2**31) else str(value)


_LITERALS: dict[str, Callable[[Any], str]] = {"float32": float_literal, "uint32": lambda word: f"0x{word:x}u"}


@dataclass
class ConstantPool:
    """Collects tables."""

    _bytes: int = 0
    _fills: dict[tuple[str, int], int] = field(default_factory=dict)
    _names: dict[tuple[str, bytes], str] = field(default_factory=dict)
    _definitions: list[str] = field(default_factory=list)

    def add(self, name: str, values: Table) -> str:
        """C name of a table with the content of `values`, flattened in C order: `name`, or that of an equal one.

        Raises TypeError for a dtype that has no table.
        """
        kind = str(values.dtype)
        if kind not in _C_TYPES:
            raise TypeError(f"constant {name}: no table of {kind}")
        flat = np.ascontiguousarray(values).reshape(-1)
        key = (kind, flat.tobytes())
        if key in self._names:
            return self._names[key]
        self._names[key] = name
        self._bytes += flat.nbytes
        items = map(_LITERALS.get(kind, int_literal), flat.tolist())
        self._definitions.append(f"static const {_C_TYPES[kind]} {name}[{flat.size}] = {{\n{_wrapped(items)}\n}};\n")
        return name

    @property
    def nbytes(self) -> int:
        """What the tables take in read-only memory."""
        return self._bytes + sum(self._fills.values())

    def fill(self, prefix: str, value: int, count: int) -> str:
        """C name of an int8 table with at least `count` times `value`, shared by all that ask; NULL for none."""
        if count == 0:
            return "NULL"
        key = (f"{prefix}_fill_{'m' if value < 0 else ''}{abs(value)}", value)
        self._fills[key] = max(count, self._fills.get(key, 0))
        return key[0]

    def definitions(self) -> str:
        """All tables as C text."""
        fills = [
            f"static const int8_t {name}[{count}] = {{\n{_wrapped([str(value)] * count)}\n}};\n"
            for (name, value), count in self._fills.items()
        ]
        return "\n".join([*self._definitions, *fills])


def _wrapped(items: Iterable[str]) -> str:
    lines: list[str] = []
    line: list[str] = []
    width = 0
    for item in items:
        if line and width + len(item) + 2 > 112:
            lines.append("    " + ", ".join(line) + ",")
            line, width = [], 0
        line.append(item)
        width += len(item) + 2
    lines.append("    " + ", ".join(line))
    return "\n".join(lines)
