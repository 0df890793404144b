"""The steps of a run: a function for every layer, shared by stripes that do the same at different places."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgescale.lower.program import Layer, Program, macs
from edgescale_c import emit_elementwise, emit_recurrent, emit_s16, emit_slice, emit_spatial, emit_weighted
from edgescale_c.arranged import Arranged
from edgescale_c.calls import Call
from edgescale_c.constants import ConstantPool
from edgescale_c.emission import REGISTRY, LayerCode, Scope
from edgescale_c.kernels import density
from edgescale_c.names import layer_symbol
from edgescale_c.skeleton import EmittedLayer

# Importing them fills the registry.
EMITTERS = (emit_elementwise, emit_recurrent, emit_s16, emit_slice, emit_spatial, emit_weighted)


@dataclass
class Steps:
    """functions: in order of first use; calls: those of a run; details: of each function, for artifact.json
    (`calls` how often it runs, `steps` as which layers of the plan; `macs` and `bytes` of all its calls; of layers with
    weights `density`, the share that is not zero, and `exploited`, what comes of the zeros)."""

    symbol: str
    functions: list[EmittedLayer] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    def add(self, function: EmittedLayer, detail: dict[str, Any]) -> None:
        """A function of its own."""
        self.functions.append(function)
        self.details.append({"symbol": function.symbol, "name": function.name, "op": function.op, **detail})

    def add_update(self, code: LayerCode, index: int) -> None:
        """The copies that bring states to their places at the end of a run."""
        name = layer_symbol(self.symbol, index, "states")
        detail = {"macs": 0, "bytes": 0, "kernel": code.kernel, "reason": "", "nodes": [], "calls": 1, "steps": [index]}
        self.add(EmittedLayer(name, "states", "StateUpdate", code), detail)
        self.calls.append(Call(name))


def emit_steps(arranged: Arranged, symbol: str, pool: ConstantPool) -> Steps:
    """Code of every layer that does something. Raises UnsupportedModelError for one without a kernel."""
    program = arranged.program
    working = [i for i in range(len(program.layers)) if not arranged.moves_nothing(i)]
    stripes = Counter((arranged.striped.origin[i], program.layers[i].op) for i in working)
    steps = Steps(symbol)
    known: dict[tuple[int, tuple[str, ...]], int] = {}
    for index in working:
        layer, choice, origin = program.layers[index], arranged.choices[index], arranged.striped.origin[index]
        shared = stripes[origin, layer.op] > 1
        name = layer_symbol(symbol, index, layer.name)
        scope = Scope(program, arranged.plan, pool, symbol, layer, name, choice, index, by_pointer=shared)
        code = REGISTRY.emit(scope)
        code = replace(code, body=(*scope.prelude, *code.body))
        arguments = scope.arguments(code.body) if shared else ()
        if (origin, code.body) not in known:
            known[origin, code.body] = len(steps.functions)
            function = EmittedLayer(name, layer.name, layer.op, code, tuple(parameter for parameter, _ in arguments))
            empty: dict[str, Any] = {"kernel": code.kernel, "reason": choice.reason, "nodes": list(layer.nodes)}
            if (share := density(layer)) is not None:
                empty |= {"density": round(share, 4), "exploited": choice.exploits}
            steps.add(function, {**empty, "macs": 0, "bytes": 0, "calls": 0, "steps": []})
        position = known[origin, code.body]
        detail = steps.details[position]
        detail["macs"] += macs(program, layer)
        detail["bytes"] += _traffic(program, layer)
        detail["calls"] += 1
        detail["steps"].append(index)
        steps.calls.append(Call(steps.functions[position].symbol, tuple(offset for _, offset in arguments)))
    return steps


def _traffic(program: Program, layer: Layer) -> int:
    """Bytes of a layer's inputs, output and weights, each once: what it cannot do without moving."""
    held = sum(program.tensors[name].nbytes for name in (*layer.inputs, layer.output))
    for name in ("weights", "recurrent"):
        weights = getattr(layer, name, None)
        if weights is not None:
            bits = int(getattr(layer, "weight_bits", 8)) if weights.dtype == np.int8 else 8 * int(weights.itemsize)
            held += -(-int(weights.size) * bits // 8)
    return held + sum(int(getattr(layer, name).nbytes) for name in ("bias", "recurrent_bias") if hasattr(layer, name))
