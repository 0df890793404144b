"""A program becomes C text: arrange, verify, emit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.memory import PACKING, Memory
from edgescale.lower.program import Program, State
from edgescale_c import emit_slice, skeleton
from edgescale_c.arrange import arrange
from edgescale_c.choice import Choice
from edgescale_c.constants import ConstantPool
from edgescale_c.emission import C_TYPES
from edgescale_c.firmware import needed_headers
from edgescale_c.liveness import scratch_name
from edgescale_c.planner import Plan
from edgescale_c.staging import Flash
from edgescale_c.states import copied
from edgescale_c.steps import emit_steps
from edgescale_c.verifier import Workspace, verify


@dataclass(frozen=True)
class Generated:
    """Files by path relative to the artifact, and the artifact's description."""

    files: Mapping[str, str]
    meta: Mapping[str, Any]
    plan: Plan


def generate(
    program: Program,
    symbol: str,
    firmware: Path,
    family: str = "scalar",
    alignment: int = 1,
    overlap: bool = True,
    memory: Memory = "balanced",
    flash: Flash | None = None,
) -> Generated:
    """C99 of `program` under the name `symbol` (a C identifier), with the headers it needs.

    alignment: bytes to which buffers are aligned in the arena; overlap: whether outputs may reach into
    inputs that die; memory: what the arrangement is to be good at; flash: that of the device, which
    "fastest" has to know. Raises UnsupportedModelError naming node, rule
    and value for a layer without a kernel.
    """
    _check(program)
    arranged = arrange(program, family, memory, alignment, overlap, flash)
    program, choices, placed = arranged.program, arranged.choices, arranged.plan
    offsets = {name: placed.offset(name) for name in program.tensors}
    workspaces = {
        index: Workspace(choice.order, placed.offset(scratch_name(index)) if choice.scratch else 0, choice.scratch)
        for index, choice in enumerate(choices)
    }
    verify(program, offsets, placed.arena_bytes, alignment, workspaces)
    pool = ConstantPool()
    steps = emit_steps(arranged, symbol, pool)
    if moved := copied(program, offsets):
        steps.add_update(emit_slice.update(program, placed, symbol, moved), len(program.layers))
    reset = emit_slice.reset(program, placed, symbol, pool)
    text = skeleton.source(program, placed, symbol, steps.functions, steps.calls, pool.definitions(), reset)
    files = {
        f"es_{symbol}.c": text,
        f"es_{symbol}.h": skeleton.header(program, placed, symbol, pool.nbytes),
        **{f"edgescale/{name}": body for name, body in needed_headers(text, firmware, family).items()},
    }
    meta = {
        "symbol": symbol,
        "sources": [f"es_{symbol}.c"],
        "header": f"es_{symbol}.h",
        "arena_bytes": placed.arena_bytes,
        "arena_lower_bound": placed.lower_bound,
        "weights_bytes": pool.nbytes,
        "inputs": [_describe(port) for port in skeleton.ports(program, placed, symbol, "input")],
        "outputs": [_describe(port) for port in skeleton.ports(program, placed, symbol, "output")],
        "layers": steps.details,
        **_packing(program.name, choices, memory, pool.nbytes),
        "memory": arranged.describe(),
        "peak": _peak(program, placed),
        "plan": _plan_rows(placed),
        "states": [_describe_state(program, placed, state) for state in program.states],
    }
    if program.states:
        meta["reset"] = f"es_{symbol}_reset"
    return Generated(files, meta, placed)


_NOTED = 0.02
"""Share of all constants from which on what packing saves is worth a note."""


def _packing(name: str, choices: Sequence[Choice], memory: Memory, constants: int) -> dict[str, Any]:
    """`packing`: bytes that packed weights save, instructions they cost, whether they are; and a note on it."""
    found = [choice.packing for choice in choices if choice.packing is not None]
    if not found:
        return {}
    nbytes, instructions = sum(p.nbytes for p in found), sum(p.instructions for p in found)
    packed = memory in PACKING
    made: dict[str, Any] = {"packing": {"bytes": nbytes, "instructions": instructions, "packed": packed}}
    if nbytes > _NOTED * constants:
        verb = "packed weights save" if packed else "--memory packed would save"
        made["notes"] = [
            f"{name}: {verb} {nbytes:,} B of flash for {instructions:,} more instructions, by the kernels' own tables"
        ]
    return made


def _check(program: Program) -> None:
    for ports, kind in ((program.inputs, "input"), (program.outputs, "output")):
        if not ports:
            raise UnsupportedModelError(f"{program.name}: a compiled model needs at least one {kind}")
    for tensor in program.tensors.values():
        if tensor.dtype not in C_TYPES:
            raise UnsupportedModelError(
                f"value {tensor.name!r}: the C back end stores {', '.join(C_TYPES)}, found {tensor.dtype}"
            )
        if tensor.size < 1:
            raise UnsupportedModelError(f"value {tensor.name!r}: shape {list(tensor.shape)} holds no element")


def _describe(port: skeleton.PortCode) -> dict[str, Any]:
    return {
        "name": port.port.name,
        "accessor": port.accessor,
        "bytes": port.tensor.nbytes,
        "dtype": port.tensor.dtype,
        "value_dtype": port.port.dtype,
        "scale": port.tensor.scale,
        "zero_point": port.tensor.zero_point,
        "shape": list(port.port.shape),
        "axes": list(port.port.axes),
        "stored_shape": list(port.tensor.shape),
    }


def _describe_state(program: Program, placed: Plan, state: State) -> dict[str, Any]:
    return {
        "name": state.name,
        "tensor": state.input,
        "offset": placed.offset(state.input),
        "bytes": program.tensors[state.input].nbytes,
        "in_place": placed.offset(state.input) == placed.offset(state.output),
    }


def _peak(program: Program, placed: Plan) -> dict[str, Any]:
    """The layer during which most bytes are live, and how many."""
    spans = [
        (piece.first, piece.last, offset + piece.low, offset + piece.high)
        for buffer, offset in zip(placed.buffers, placed.offsets, strict=True)
        for piece in buffer.pieces
    ]

    def live(index: int) -> int:
        total, end = 0, 0
        for low, high in sorted((low, high) for first, last, low, high in spans if first <= index <= last):
            total += max(0, high - max(low, end))
            end = max(end, high)
        return total

    fullest = max(range(len(program.layers)), key=live, default=None)
    return {} if fullest is None else {"layer": program.layers[fullest].name, "bytes": live(fullest)}


def _plan_rows(placed: Plan) -> list[dict[str, Any]]:
    """What lies where, from which layer to which: tensors and scratch, in parts where rows come and go apart."""
    return [
        {
            "tensor": piece.tensor,
            "offset": offset + piece.low,
            "bytes": piece.high - piece.low,
            "first": piece.first,
            "last": piece.last,
        }
        for buffer, offset in zip(placed.buffers, placed.offsets, strict=True)
        for piece in buffer.pieces
    ]
