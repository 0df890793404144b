"""Emitters of slices, of the update of states and of their reset."""

from __future__ import annotations

import math

import numpy as np

from edgescale.lower.program import ITEM_BYTES, Program, Slice, State
from edgescale_c.constants import ConstantPool, Table
from edgescale_c.emission import REGISTRY, LayerCode, Scope
from edgescale_c.planner import Plan
from edgescale_c.states import slice_start

_HEADER = ("es_slice.h",)


@REGISTRY.register(Slice)
def slice_(scope: Scope, layer: Slice) -> LayerCode:
    """A shift where input and output share bytes, one copy where the part is in one piece, else pieces."""
    item = ITEM_BYTES[scope.out.dtype]
    if scope.source().dtype != scope.out.dtype:
        raise scope.refuse(f"needs input and output of one type, found {scope.source().dtype} and {scope.out.dtype}")
    start = slice_start(scope.program, layer)
    if start is not None:
        source = f"(const uint8_t *){scope.read()} + {start}"
        name = "es_shift" if scope.shares_bytes(0) else "es_copy"
        return LayerCode(
            (f"{name}({scope.write()}, {source}, {scope.out.nbytes});",), name.removeprefix("es_"), _HEADER
        )
    axes, first = _axes(scope, layer)
    if len(axes) > 4:
        raise scope.refuse(f"slices up to four axes that are cut apart, found {len(axes)}")
    # Whole elements side by side are one piece.
    piece = 1
    if axes[-1][1] == 1:
        piece = axes.pop()[0]
    axes = [[1, 0]] * (4 - len(axes)) + axes
    sizes = ", ".join(str(size) for size, _ in axes)
    steps = ", ".join(str(step * item) for _, step in axes)
    body = (
        f"const es_part p = {{{{{sizes}}}, {{{steps}}}, {piece * item}}};",
        f"es_slice((const uint8_t *){scope.read()} + {first * item}, {scope.write()}, &p);",
    )
    return LayerCode(body, "slice", _HEADER)


def _axes(scope: Scope, layer: Slice) -> tuple[list[list[int]], int]:
    """[elements, step in the input] of the axes of the output that cannot be joined, and the first element."""
    shape = scope.source().shape
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = sum(begin * step for begin, step in zip(layer.begin, steps, strict=True))
    joined: list[list[int]] = []
    for size, step, stride in zip(scope.out.shape, layer.step, steps, strict=True):
        if size == 1:
            continue
        if joined and joined[-1][1] == size * step * stride:
            joined[-1] = [joined[-1][0] * size, step * stride]
        else:
            joined.append([size, step * stride])
    return joined or [[1, 1]], first


def update(program: Program, placed: Plan, symbol: str, states: tuple[State, ...]) -> LayerCode:
    """The copy of every next value that is not at its state's place already."""
    arena = f"es_{symbol}_arena"
    body = tuple(
        f"es_copy(&{arena}[{placed.offset(state.input)}], &{arena}[{placed.offset(state.output)}], "
        f"{program.tensors[state.input].nbytes});"
        for state in states
    )
    return LayerCode(body, "copy", _HEADER)


def reset(program: Program, placed: Plan, symbol: str, pool: ConstantPool) -> tuple[str, ...]:
    """Statements that give every state its initial value."""
    return tuple(
        filled(
            f"&es_{symbol}_arena[{placed.offset(state.input)}]",
            state.initial,
            pool,
            f"es_{symbol}_state{number}_initial",
        )
        for number, state in enumerate(program.states)
    )


def filled(place: str, values: Table, pool: ConstantPool, name: str) -> str:
    """The statement that writes constants to the C address `place`."""
    octets = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    if (octets == octets[0]).all():
        return f"__builtin_memset({place}, {int(octets[0])}, {octets.size});"
    return f"__builtin_memcpy({place}, {pool.add(name, octets)}, {octets.size});"
