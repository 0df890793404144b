"""From Vela's files to figures: who executes what, by operators, MACs and cycles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgescale.frontend.tflite.reader import File, read
from edgescale.lower.program import Program, macs
from edgescale_tflite.ethosu.placement import Fallback
from edgescale_tflite.ethosu.vela import Report
from edgescale_tflite.write import Written

NPU_OPERATOR = "CUSTOM ethos-u"


@dataclass(frozen=True)
class Placement:
    """summary: JSON-ready figures of the whole network; layers: of each layer of the program; fallbacks: operators
    that the compiled file leaves to the CPU."""

    summary: dict[str, Any]
    layers: list[dict[str, Any]]
    fallbacks: tuple[Fallback, ...]


def report_of(
    program: Program, written: Written, source: File, made: Report, predicted: Sequence[Fallback]
) -> Placement:
    """What the compiled file and Vela's report say. The compiled file decides who executes an operator: what is not
    inside one of the NPU's command streams stands in it by itself.

    Of the summary: `npu_ops`, `npu_macs` (shares of operators and MACs on the NPU), `npu_cycles_share` (of the cycles
    Vela estimates; None where operators run on the CPU, of which it estimates none), cycles, seconds, bytes.
    """
    compiled = read(made.compiled.read_bytes(), made.compiled.name)
    on_cpu = {
        (op.kind, compiled.tensors[op.outputs[0]].name if op.outputs else "")
        for op in compiled.operators
        if op.kind != NPU_OPERATOR
    }
    outputs = [source.tensors[op.outputs[0]].name if op.outputs else "" for op in source.operators]
    left = [index for index, op in enumerate(source.operators) if (op.kind, outputs[index]) in on_cpu]
    known = {fallback.index: fallback for fallback in predicted}
    found = tuple(
        known.get(index)
        or Fallback(
            index,
            source.operators[index].kind,
            outputs[index],
            made.reasons.get(outputs[index], "Vela left it there"),
            "",
        )
        for index in left
    )
    layers = _layers(program, written, made, outputs, set(left))
    total = sum(layer["macs"] for layer in layers)
    count = len(source.operators)
    summary: dict[str, Any] = {
        "operators": count,
        "cpu_operators": len(left),
        "npu_ops": 1 - len(left) / count if count else 1.0,
        "npu_macs": 1 - sum(layer["macs"] for layer in layers if layer["on_cpu"]) / total if total else 1.0,
        "npu_cycles_share": None if left else 1.0,
        "cycles": made.cycles,
        "npu_cycles": made.npu_cycles,
        "seconds": made.seconds,
        "clock_hz": made.clock_hz,
        "sram_bytes": made.sram_bytes,
        "dram_bytes": made.dram_bytes,
        "flash_bytes": made.flash_bytes,
        "encoded_weights_bytes": made.encoded_weights_bytes,
        "predicted": sorted(known) == left,
    }
    return Placement(summary, layers, found)


def _layers(
    program: Program, written: Written, made: Report, outputs: Sequence[str], left: set[int]
) -> list[dict[str, Any]]:
    """For each layer of the program: Vela's cycles, MACs, and whether one of its operators is on the CPU."""
    owner = {outputs[index]: layer for index, (layer, _) in enumerate(written.operators) if outputs[index]}
    cycles = dict.fromkeys((layer.name for layer in program.layers), 0)
    last = ""
    for row in made.rows:
        # Vela names what it derives from an operator after that operator's output, or not at all: then it belongs to
        # the operator before.
        matches = [name for name in owner if row.name == name or row.name.startswith(f"{name}_")]
        last = owner[max(matches, key=len)] if matches else last
        if last in cycles:
            cycles[last] += row.cycles
    on_cpu = {written.operators[index][0] for index in left}
    return [
        {
            "name": layer.name,
            "op": layer.op,
            "macs": macs(program, layer),
            "cycles": cycles[layer.name],
            "on_cpu": layer.name in on_cpu,
        }
        for layer in program.layers
    ]
