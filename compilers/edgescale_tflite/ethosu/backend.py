"""The back end as edgescale sees it: a QDQ ONNX file in, a .tflite file compiled by Vela out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.files import sha256_file, sha256_tree, write_whole
from edgescale.core.memory import Memory
from edgescale.core.model import Model
from edgescale.core.target import Npu, Target
from edgescale.core.variant import Artifact, Variant
from edgescale.frontend.tflite.reader import read
from edgescale.lower.ports import describe_port
from edgescale.lower.program import Program
from edgescale_tflite.backend import BACKEND as TFLITE
from edgescale_tflite.backend import MODEL
from edgescale_tflite.emission import Dialect
from edgescale_tflite.ethosu import vela
from edgescale_tflite.ethosu.placement import Fallback, fallbacks, family_of
from edgescale_tflite.ethosu.report import report_of
from edgescale_tflite.write import Written, write_program

COMPILED = "model_vela.tflite"
DIALECT = Dialect(int4=False)
"""Vela takes weights of eight bits; it compresses narrow ones itself."""


class EthosUBackend:
    """Artifacts of kind "ethosu": the file that was given to Vela, and what Vela made of it.

    The artifact's `meta`, also in artifact.json: what `edgescale_tflite` notes of `file`; `compiled`, Vela's file;
    `npu` (accelerator, system configuration, memory mode); `vela`, its report (see `report.report_of`); `fallbacks`,
    operators on the CPU with reason and rewrite; `notes`, the same in sentences.
    """

    name = "edgescale_ethosu"
    plans_memory = False

    def version(self) -> str:
        """That of `edgescale_tflite`, a hash of everything here, and Vela's version."""
        digest = hashlib.sha256()
        for path in sorted(Path(__file__).resolve().parent.glob("*.py")):
            digest.update(f"{path.name}\0{sha256_file(path)}\n".encode())
        return f"{TFLITE.version()} {digest.hexdigest()[:16]} vela {vela.version()}"

    def missing(self) -> str | None:
        """None when LiteRT and Vela are installed, else the command that installs them."""
        return TFLITE.missing() or (None if vela.command() else vela.INSTALL_HINT)

    def operators(self) -> list[tuple[str, str]]:
        """ONNX operators with their rules: those of `edgescale_tflite`. What an NPU does not take the CPU executes."""
        return TFLITE.operators()

    def check(self, model: Model) -> list[str]:
        """What keeps the model from being lowered and written; empty when nothing does."""
        return TFLITE.check(model)

    def notes(self, model: Model, target: Target) -> list[str]:
        """Operators that this target's NPU will not execute, a sentence each with reason and rewrite."""
        from edgescale.lower import lower

        written = write_program(lower(model.ir, model.name), DIALECT)
        found = fallbacks(read(written.data, model.name), family_of(_npu(target).accelerator))
        return sentences(written, found, target)

    def compile(self, variant: Variant, target: Target, out: Path, memory: Memory = "balanced") -> Artifact:
        """Fill the directory `out`. Raises UnsupportedModelError for a layer that LiteRT has no operator for and for a
        target without an NPU, RigError where Vela fails."""
        from edgescale.lower import lower_file

        meta = compile_program(lower_file(variant.path, variant.name), target, out)
        return Artifact(variant.name, target.name, self.name, "ethosu", out, sha256_tree(out), meta)


def compile_program(program: Program, target: Target, out: Path) -> dict[str, Any]:
    """Write both files and artifact.json of `program` into `out`; returns the description."""
    npu = _npu(target)
    written = write_program(program, DIALECT)
    source = read(written.data, program.name)
    predicted = fallbacks(source, family_of(npu.accelerator))
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / MODEL, written.data)
    made = vela.run(out / MODEL, npu, out)
    report = report_of(program, written, source, made, predicted)
    for left in out.glob("*.csv"):
        left.unlink()  # they name the folder they were made in; what they say is in artifact.json
    meta = {
        "file": MODEL,
        "file_sha256": sha256_file(out / MODEL),
        "compiled": COMPILED,
        "weights_bytes": written.weights_bytes,
        "operators": [list(pair) for pair in written.operators],
        "reset_each_run": written.reset_each_run,
        "npu": asdict(npu),
        "vela": {**report.summary, "version": vela.version()},
        "layers": report.layers,
        "fallbacks": [asdict(fallback) for fallback in report.fallbacks],
        "notes": sentences(written, report.fallbacks, target),
        "inputs": [describe_port(program, port) for port in program.inputs],
        "outputs": [describe_port(program, port) for port in program.outputs],
    }
    write_whole(out / "artifact.json", json.dumps(meta, indent=1) + "\n")
    return meta


def sentences(written: Written, found: Sequence[Fallback], target: Target) -> list[str]:
    """A line for the user about each operator on the CPU; one for several that want the same change."""
    groups: dict[str, list[Fallback]] = {}
    for fallback in found:
        groups.setdefault(fallback.rewrite or fallback.reason, []).append(fallback)
    lines = []
    for group in groups.values():
        first = group[0]
        layer = written.operators[first.index][0] or first.output
        others = f" and {len(group) - 1} more of {len(written.operators)} operators" if len(group) > 1 else ""
        verb = "run" if others else "runs"
        rewrite = f"; instead: {first.rewrite}" if first.rewrite else ""
        where = f"{verb} on the CPU of {target.name}, not on its NPU"
        lines.append(f"{layer!r} ({first.kind}){others} {where}: {first.reason}{rewrite}")
    return lines


def _npu(target: Target) -> Npu:
    if target.npu is None:
        raise UnsupportedModelError(f"target {target.name} has no [npu] table: Vela needs to know the accelerator")
    for key in ("system_config", "memory_mode"):
        if not getattr(target.npu, key):
            raise UnsupportedModelError(f"target {target.name}: [npu] has no {key}, which Vela needs to know")
    return target.npu


BACKEND = EthosUBackend()
