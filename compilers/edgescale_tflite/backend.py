"""The back end as edgescale sees it: a QDQ or float ONNX file in, a .tflite file out."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.files import sha256_file, sha256_tree, write_whole
from edgescale.core.memory import Memory
from edgescale.core.model import Model
from edgescale.core.target import Target
from edgescale.core.variant import Artifact, Variant
from edgescale.lower.ports import describe_port
from edgescale.lower.program import Program

MODEL = "model.tflite"
INSTALL_HINT = "pip install 'edgescale[tflite]'"
_TOOLS = ("ai-edge-litert", "flatbuffers")


class TfliteBackend:
    """Artifacts of kind "tflite": a file for LiteRT (TensorFlow Lite), on Linux, Android, or a microcontroller.

    The artifact's `meta`, also in artifact.json: `file`, `weights_bytes` (constants of layers in it),
    `operators` (for each of the file the layer and the kind), `reset_each_run` (variables are to be reset before every
    inference) and ports with shape, axes and quantization as the C back end describes them.
    """

    name = "edgescale_tflite"
    plans_memory = False

    def version(self) -> str:
        """A hash of everything here and of the lowering, and the versions of LiteRT and flatbuffers."""
        import edgescale.lower

        digest = hashlib.sha256()
        for folder in (Path(__file__).resolve().parent, Path(edgescale.lower.__file__).resolve().parent):
            for path in sorted(folder.rglob("*.py")):
                digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
        return " ".join([digest.hexdigest()[:16], *(f"{tool} {_version(tool)}" for tool in _TOOLS)])

    def missing(self) -> str | None:
        """None when LiteRT and flatbuffers are installed, else the command that installs them."""
        from importlib.util import find_spec

        return None if find_spec("ai_edge_litert") and find_spec("flatbuffers") else INSTALL_HINT

    def operators(self) -> list[tuple[str, str]]:
        """ONNX operators with their rules: those that lowering accepts. LiteRT has no GRU."""
        from edgescale.lower import operators

        return [(operator, rule) for operator, rule in operators() if operator != "GRU"]

    def check(self, model: Model) -> list[str]:
        """What keeps the model from being lowered and written; empty when nothing does."""
        from edgescale.lower import lower
        from edgescale_tflite.write import write_program

        try:
            write_program(lower(model.ir, model.name))
        except UnsupportedModelError as error:
            return str(error).splitlines()
        return []

    def compile(self, variant: Variant, target: Target, out: Path, memory: Memory = "balanced") -> Artifact:
        """Fill the directory `out`. Raises UnsupportedModelError for a layer that LiteRT has no operator for; LiteRT
        plans memory itself."""
        from edgescale.lower import lower_file

        meta = compile_program(lower_file(variant.path, variant.name), out)
        return Artifact(variant.name, target.name, self.name, "tflite", out, sha256_tree(out), meta)


def compile_program(program: Program, out: Path) -> dict[str, Any]:
    """Write model.tflite and artifact.json of `program` into `out`; returns the description."""
    from edgescale_tflite.write import write_program

    written = write_program(program)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / MODEL, written.data)
    meta = {
        "file": MODEL,
        "file_sha256": sha256_file(out / MODEL),
        "weights_bytes": written.weights_bytes,
        "operators": [list(pair) for pair in written.operators],
        "reset_each_run": written.reset_each_run,
        "inputs": [describe_port(program, port) for port in program.inputs],
        "outputs": [describe_port(program, port) for port in program.outputs],
    }
    write_whole(out / "artifact.json", json.dumps(meta, indent=1) + "\n")
    return meta


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


BACKEND = TfliteBackend()
