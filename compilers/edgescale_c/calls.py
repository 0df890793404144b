"""The statements of a run: calls of layer functions, with loops for what repeats at addresses that move evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_REPEATS = 3
_LONGEST_BODY = 128


@dataclass(frozen=True)
class Call:
    """A call of `function` with pointers to these offsets (bytes) in the arena."""

    function: str
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Loop:
    """`length` calls, repeated `count` times."""

    length: int
    count: int

    @property
    def saved(self) -> int:
        return (self.count - 1) * self.length


def statements(calls: Sequence[Call], arena: str) -> list[str]:
    """C statements, without indentation, that make the calls in order; `arena` names the array."""
    found: list[str] = []
    at = 0
    while at < len(calls):
        loop = _best(calls, at)
        if loop is None:
            found.append(_text(calls[at], calls[at], arena))
            at += 1
            continue
        found.append(f"for (int32_t i = 0; i < {loop.count}; i++) {{")
        for call, following in zip(calls[at : at + loop.length], calls[at + loop.length :], strict=False):
            found.append("    " + _text(call, following, arena))
        found.append("}")
        at += loop.saved + loop.length
    return found


def _best(calls: Sequence[Call], at: int) -> _Loop | None:
    """The loop from `at` on that saves most calls."""
    best: _Loop | None = None
    for length in range(1, min(_LONGEST_BODY, (len(calls) - at) // _LEAST_REPEATS) + 1):
        if calls[at].function != calls[at + length].function:
            continue
        count = _repeats(calls, at, length)
        if count >= _LEAST_REPEATS and (best is None or (count - 1) * length > best.saved):
            best = _Loop(length, count)
    return best


def _repeats(calls: Sequence[Call], at: int, length: int) -> int:
    """How often calls[at : at + length] are made in a row, each repeat moved on by what the first one moved."""
    steps = []
    for first, second in zip(calls[at : at + length], calls[at + length : at + 2 * length], strict=False):
        if first.function != second.function:
            return 1
        steps.append([b - a for a, b in zip(first.offsets, second.offsets, strict=True)])
    if len(steps) < length:
        return 1
    count = 2
    while at + (count + 1) * length <= len(calls):
        for k, step in enumerate(steps):
            before, after = calls[at + (count - 1) * length + k], calls[at + count * length + k]
            if before.function != after.function:
                return count
            if any(b - a != d for a, b, d in zip(before.offsets, after.offsets, step, strict=True)):
                return count
        count += 1
    return count


def _text(call: Call, following: Call, arena: str) -> str:
    pointers = []
    for offset, later in zip(call.offsets, following.offsets, strict=True):
        moving = f" + {later - offset} * i" if later > offset else f" - {offset - later} * i" if later < offset else ""
        pointers.append(f"&{arena}[{offset}{moving}]")
    return f"{call.function}({', '.join(pointers)});"
