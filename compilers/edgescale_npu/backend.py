"""The back end of a spawned compiler: a QDQ or float ONNX file in, what the vendor's compiler makes of it out."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.files import sha256_file, sha256_tree, write_whole
from edgescale.core.memory import Memory
from edgescale.core.model import Model
from edgescale.core.target import Target
from edgescale.core.variant import Artifact, Variant
from edgescale_npu.spawn import Tool

GIVEN = "model.onnx"


class SpawnedBackend:
    """Artifacts of the tool's kind: the ONNX file that the compiler was given, and what it made of it.

    The artifact's `meta`, also in artifact.json: `file` (the ONNX file), `compiled` (files the compiler left, by
    name), `entry` (the one to load), `chip` (what it was told of the chip), `tool` (its version), `inputs` (name,
    shape, dtype).
    """

    plans_memory = False

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.name = tool.name
        self.profile = tool.profile

    def version(self) -> str:
        """A hash of everything here, and the compiler's version."""
        digest = hashlib.sha256()
        for path in sorted(Path(__file__).resolve().parent.glob("*.py")):
            digest.update(f"{path.name}\0{sha256_file(path)}\n".encode())
        return f"{digest.hexdigest()[:16]} {self.tool.package} {self.tool.version()}"

    def missing(self) -> str | None:
        """None when its environment is there, else the commands that make it."""
        return self.tool.missing()

    def operators(self) -> list[tuple[str, str]]:
        """One entry: the vendor's compiler decides, model by model."""
        return [("*", f"whatever {self.tool.title} compiles; int8 by QuantizeLinear and DequantizeLinear")]

    def check(self, model: Model) -> list[str]:
        """What keeps the model from being given to the compiler; the compiler itself is not asked."""
        from edgescale.frontend import save_model

        with tempfile.TemporaryDirectory() as folder:
            save_model(model, Path(folder) / GIVEN)
            try:
                self.tool.prepare(Path(folder) / GIVEN, Path(folder) / "prepared.onnx")
            except UnsupportedModelError as error:
                return str(error).splitlines()
        return []

    def compile(self, variant: Variant, target: Target, out: Path, memory: Memory = "balanced") -> Artifact:
        """Fill the directory `out`. Raises UnsupportedModelError for what the compiler is known not to take and for an
        unknown chip, RigError where the compiler fails."""
        chip = dict(self.tool.chip(target))
        out.mkdir(parents=True, exist_ok=True)
        self.tool.prepare(variant.path, out / GIVEN)
        answer = self.tool.run("compile", {"model": str(out / GIVEN), "out": str(out), "chip": chip}, variant.name)
        meta = {
            "file": GIVEN,
            "entry": answer["entry"],
            "compiled": sorted(answer["files"]),
            "chip": chip,
            "tool": f"{self.tool.package} {self.tool.version()}",
            "inputs": _inputs(out / GIVEN),
            "outputs": [],
        }
        write_whole(out / "artifact.json", json.dumps(meta, indent=1) + "\n")
        return Artifact(variant.name, target.name, self.name, self.tool.kind, out, sha256_tree(out), meta)


def _inputs(path: Path) -> list[dict[str, Any]]:
    import onnx
    from onnx import helper

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    ports = []
    for port in graph.input:
        if port.name not in constants:
            kind = port.type.tensor_type
            dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type))
            shape = [int(d.dim_value) or 1 for d in kind.shape.dim]
            ports.append({"name": port.name, "shape": shape, "dtype": dtype, "value_dtype": dtype})
    return ports
