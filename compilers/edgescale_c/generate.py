"""A program becomes C text: plan, verify, emit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.program import Program, State, macs
from edgescale_c import emit_elementwise, emit_recurrent, emit_slice, emit_spatial, emit_weighted, skeleton
from edgescale_c.constants import ConstantPool
from edgescale_c.emission import C_TYPES, REGISTRY, Scope
from edgescale_c.firmware import needed_headers
from edgescale_c.kernels import choose
from edgescale_c.liveness import moves_nothing, scratch_name
from edgescale_c.names import layer_symbol
from edgescale_c.planner import Plan, plan
from edgescale_c.states import copied
from edgescale_c.verifier import Workspace, verify

# Importing them fills the registry.
EMITTERS = (emit_elementwise, emit_recurrent, emit_slice, emit_spatial, emit_weighted)


@dataclass(frozen=True)
class Generated:
    """Files by path relative to the artifact, and the artifact's description."""

    files: Mapping[str, str]
    meta: Mapping[str, Any]
    plan: Plan


def generate(
    program: Program, symbol: str, firmware: Path, family: str = "scalar", alignment: int = 1, overlap: bool = True
) -> Generated:
    """C99 of `program` under the name `symbol` (a C identifier), with the headers it needs.

    alignment: bytes to which buffers are aligned in the arena; overlap: whether outputs may reach into
    inputs that die. Raises UnsupportedModelError naming node, rule and value for a layer without a kernel.
    """
    _check(program)
    choices = choose(program, family)
    placed = plan(program, alignment, overlap, choices)
    offsets = {name: placed.offset(name) for name in program.tensors}
    workspaces = {
        index: Workspace(choice.order, placed.offset(scratch_name(index)) if choice.scratch else 0, choice.scratch)
        for index, choice in enumerate(choices)
    }
    verify(program, offsets, placed.arena_bytes, alignment, workspaces)
    pool = ConstantPool()
    layers: list[skeleton.EmittedLayer] = []
    details: list[dict[str, Any]] = []
    for index, layer in enumerate(program.layers):
        if moves_nothing(program, layer):
            continue
        name = layer_symbol(symbol, index, layer.name)
        choice = choices[index]
        code = REGISTRY.emit(Scope(program, placed, pool, symbol, layer, name, choice, index))
        layers.append(skeleton.EmittedLayer(index, name, layer.name, layer.op, code))
        details.append(
            {
                "symbol": name,
                "name": layer.name,
                "op": layer.op,
                "macs": macs(program, layer),
                "kernel": code.kernel,
                "reason": choice.reason,
                "nodes": list(layer.nodes),
            }
        )
    if moved := copied(program, offsets):
        code = emit_slice.update(program, placed, symbol, moved)
        name = layer_symbol(symbol, len(program.layers), "states")
        layers.append(skeleton.EmittedLayer(len(program.layers), name, "states", "StateUpdate", code))
        details.append({"symbol": name, "name": "states", "op": "StateUpdate", "macs": 0, "kernel": code.kernel})
        details[-1] |= {"reason": "", "nodes": []}
    reset = emit_slice.reset(program, placed, symbol, pool)
    text = skeleton.source(program, placed, symbol, layers, pool.definitions(), reset)
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
        "layers": details,
        "plan": _plan_rows(program, placed),
        "states": [_describe_state(program, placed, state) for state in program.states],
    }
    if program.states:
        meta["reset"] = f"es_{symbol}_reset"
    return Generated(files, meta, placed)


def _check(program: Program) -> None:
    for ports, kind in ((program.inputs, "input"), (program.outputs, "output")):
        if not ports:
            raise UnsupportedModelError(f"{program.name}: a compiled model needs at least one {kind}")
    for tensor in program.tensors.values():
        if tensor.dtype not in C_TYPES:
            raise UnsupportedModelError(
                f"value {tensor.name!r}: the C back end stores {' and '.join(C_TYPES)}, found {tensor.dtype}"
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


def _plan_rows(program: Program, placed: Plan) -> list[dict[str, Any]]:
    return [
        {
            "tensor": name,
            "offset": offset + buffer.start(name),
            "bytes": program.tensors[name].nbytes if name in program.tensors else buffer.nbytes,
            "first": buffer.first,
            "last": buffer.last,
        }
        for buffer, offset in zip(placed.buffers, placed.offsets, strict=True)
        for name in buffer.tensors
    ]
