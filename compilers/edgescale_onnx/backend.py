"""Checking a variant in ONNX Runtime and describing it."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from edgescale.core.errors import EdgescaleError, UnsupportedModelError
from edgescale.core.files import sha256_file, sha256_tree, write_whole
from edgescale.core.memory import Memory
from edgescale.core.model import Model
from edgescale.core.target import Target
from edgescale.core.variant import Artifact, Variant
from edgescale_onnx.fused import unfused_weights

MODEL_FILE = "model.onnx"

SESSION: dict[str, Any] = {
    "intra_op_num_threads": 1,
    "graph_optimization_level": "ORT_ENABLE_ALL",
    "config": {"session.x64quantprecision": "auto", "session.qdq_matmulnbits_accuracy_level": "4"},
}


class OnnxBackend:
    """Artifacts of kind "onnx" for the host rig and for the Python runtime on Linux-class devices."""

    name = "edgescale_onnx"
    plans_memory = False

    def version(self) -> str:
        """Of this back end and of ONNX Runtime, which checks what it ships."""
        return f"{sha256_file(Path(__file__))[:16]} onnxruntime {metadata.version('onnxruntime')}"

    def missing(self) -> str | None:
        """None when ONNX Runtime is installed, else the command that installs it."""
        from importlib.util import find_spec

        return None if find_spec("onnxruntime") else "pip install onnxruntime"

    def operators(self) -> list[tuple[str, str]]:
        """One entry: ONNX Runtime decides, node by node, when the model is opened."""
        from onnx import defs

        return [("*", f"any operator of ONNX up to opset {defs.onnx_opset_version()} that ONNX Runtime's CPU runs")]

    def check(self, model: Model) -> list[str]:
        """What ONNX Runtime says when it refuses the model; empty when it opens it."""
        from tempfile import TemporaryDirectory

        from edgescale.frontend import save_model
        from edgescale.runtime.ort import open_session

        with TemporaryDirectory() as folder:
            save_model(model, Path(folder) / MODEL_FILE)
            try:
                open_session(Path(folder) / MODEL_FILE, SESSION)
            except EdgescaleError as error:
                return [str(error)]
        return []

    def compile(self, variant: Variant, target: Target, out: Path, memory: Memory = "balanced") -> Artifact:
        """Copy the variant's model to `out`, open it once, and describe it. ONNX Runtime plans memory as it sees fit.

        Raises UnsupportedModelError where ONNX Runtime refuses the model, in its words.
        """
        from edgescale.runtime.ort import open_session

        out.mkdir(parents=True, exist_ok=True)
        _copy_self_contained(variant.path, out / MODEL_FILE)
        session = open_session(out / MODEL_FILE, SESSION)
        meta = {
            "file": MODEL_FILE,
            "session": SESSION,
            "inputs": [_port(port) for port in session.get_inputs()],
            "outputs": [_port(port) for port in session.get_outputs()],
        }
        if unfused := unfused_weights(out / MODEL_FILE, SESSION):
            meta["unfused"] = unfused
        write_whole(out / "artifact.json", json.dumps(meta, indent=2) + "\n")
        return Artifact(variant.name, target.name, self.name, "onnx", out, sha256_tree(out), meta)


# ONNX Runtime's names of element types where they differ from NumPy's.
_NUMPY_NAMES = {"float": "float32", "double": "float64", "float16": "float16"}


def _copy_self_contained(source: Path, destination: Path) -> None:
    """Copy a model; weights that lie in files beside it are moved into it, so that it travels alone."""
    import onnx

    try:
        model = onnx.load(str(source), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no typed home
        raise UnsupportedModelError(f"{source.name}: not a readable ONNX file: {error}") from None
    external = onnx.TensorProto.EXTERNAL
    if not any(tensor.data_location == external for tensor in model.graph.initializer):
        shutil.copyfile(source, destination)
        return
    try:
        onnx.save(onnx.load(str(source)), str(destination))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise UnsupportedModelError(
            f"{source.name}: cannot bring its external weights into one file: {error}"
        ) from None


def _port(port: Any) -> dict[str, Any]:
    # A symbolic first dimension is the batch, run as 1; others take any size.
    shape = [d if isinstance(d, int) else (-1 if axis else 1) for axis, d in enumerate(port.shape)]
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    return {"name": port.name, "shape": shape, "dtype": _NUMPY_NAMES.get(kind, kind)}


BACKEND = OnnxBackend()
