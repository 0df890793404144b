"""The back end as edgescale sees it: a QDQ or float ONNX file in, a shared library for TVM's run time out."""

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

LIBRARY = "model.so"
INSTALL_HINT = "pip install 'edgescale[tvm]'"
_TOOLS = ("apache-tvm", "apache-tvm-ffi", "ziglang")


class TvmBackend:
    """Artifacts of kind "tvm": a library whose function `main` maps stored inputs to stored outputs.

    The artifact's `meta`, also in artifact.json: `library` (its file) and `library_sha256`, `triple`, `instructions`
    (the vector instructions of its kernels), `kernels`, `weights_bytes` (weights and parameters in it), and ports
    with shape, axes and quantization as the C back end describes them.
    """

    name = "edgescale_tvm"
    plans_memory = False

    def version(self) -> str:
        """A hash of everything here and of the lowering, the versions of TVM and the C compiler, and this processor:
        a library for this machine uses every instruction it has."""
        import edgescale.lower
        from edgescale.rigs.host import machine_description

        digest = hashlib.sha256()
        for folder in (Path(__file__).resolve().parent, Path(edgescale.lower.__file__).resolve().parent):
            for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".h", ".c")):
                digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
        processor = machine_description()["cpu"]
        return " ".join([digest.hexdigest()[:16], processor, *(f"{tool} {_version(tool)}" for tool in _TOOLS)])

    def missing(self) -> str | None:
        """None when TVM and zig are installed, else the command that installs them."""
        from importlib.util import find_spec

        # `tvm` alone is another package on PyPI; tvm_ffi comes only with Apache TVM.
        return None if all(find_spec(name) for name in ("tvm", "tvm_ffi", "ziglang")) else INSTALL_HINT

    def operators(self) -> list[tuple[str, str]]:
        """ONNX operators with their rules: those that lowering accepts."""
        from edgescale.lower import operators

        return operators()

    def check(self, model: Model) -> list[str]:
        """What keeps the model from being lowered and compiled; empty when nothing does."""
        from edgescale.lower import lower
        from edgescale_tvm.relax_module import check

        try:
            check(lower(model.ir, model.name))
        except UnsupportedModelError as error:
            return str(error).splitlines()
        return []

    def compile(self, variant: Variant, target: Target, out: Path, memory: Memory = "balanced") -> Artifact:
        """Fill the directory `out`. Raises UnsupportedModelError for a layer without a kernel and for a target
        without Linux; TVM's run time plans memory as it sees fit."""
        from edgescale.lower import lower_file

        meta = compile_program(lower_file(variant.path, variant.name), target, out)
        return Artifact(variant.name, target.name, self.name, "tvm", out, sha256_tree(out), meta)


def compile_program(program: Program, target: Target, out: Path) -> dict[str, Any]:
    """Write the library and artifact.json of `program` into `out`; returns the description."""
    from edgescale_tvm.library import build_library, machine_of
    from edgescale_tvm.relax_module import build_module

    machine = machine_of(target)
    built = build_module(program, machine.offset)
    out.mkdir(parents=True, exist_ok=True)
    build_library(built.module, built.kernels, machine, out / LIBRARY)
    meta = {
        "library": LIBRARY,
        "library_sha256": sha256_file(out / LIBRARY),
        "triple": machine.triple,
        "instructions": machine.instructions,
        "kernels": list(built.kernels),
        "weights_bytes": built.weights_bytes,
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


BACKEND = TvmBackend()
