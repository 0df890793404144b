"""The back end as edgescale sees it: a QDQ or float ONNX file in, a shared library for TVM's run time out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.files import cache_root, sha256_file, sha256_tree, write_whole
from edgescale.core.memory import Memory
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
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
    (the vector instructions of its kernels), `kernels`, `weights_bytes` (weights and parameters in it), `tuning` where
    it was tuned, and ports with shape, axes and quantization as `lower.ports` describes them.
    """

    name = "edgescale_tvm"
    plans_memory = False
    tunes = True

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

    def compile(
        self,
        variant: Variant,
        target: Target,
        out: Path,
        memory: Memory = "balanced",
        *,
        tune: int = 0,
        progress: Progress = SILENT,
    ) -> Artifact:
        """Fill the directory `out`. tune: candidates of the kernels' tile to time (see `tune`).

        Raises UnsupportedModelError for a layer without a kernel, for a target without Linux, and for tuning a target
        that is not this machine; TVM's run time plans memory as it sees fit.
        """
        from edgescale.lower import lower_file

        program = lower_file(variant.path, variant.name)
        if tune:
            key = hashlib.sha256(f"{variant.sha256} {target.sha256} {self.version()}".encode()).hexdigest()[:40]
            records = cache_root() / "tvm-tune" / f"{key}.jsonl"
            meta = tuned_program(program, target, out, tune, records, progress)
        else:
            meta = compile_program(program, target, out)
        return Artifact(variant.name, target.name, self.name, "tvm", out, sha256_tree(out), meta)


def compile_program(program: Program, target: Target, out: Path, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Write the library and artifact.json of `program` into `out`; returns the description. flags: for the kernels."""
    from edgescale_tvm.library import build_library, machine_of
    from edgescale_tvm.relax_module import build_module

    machine = machine_of(target)
    built = build_module(program, machine.offset)
    out.mkdir(parents=True, exist_ok=True)
    build_library(built.module, built.kernels, machine, out / LIBRARY, flags)
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


def tuned_program(
    program: Program, target: Target, out: Path, count: int, records: Path, progress: Progress = SILENT
) -> dict[str, Any]:
    """As `compile_program`, with the best of `count` tiles; `tuning` in the description says how each did."""
    from edgescale_tvm import tune
    from edgescale_tvm.library import machine_of

    if target.toolchain is not None:
        raise UnsupportedModelError(
            f"target {target.name}: --tune times candidates on this machine, which it is not; compile it without"
        )

    def build(tile: tune.Tile, folder: Path) -> Path:
        compile_program(program, target, folder, tile.flags)
        return folder / LIBRARY

    candidates = (tune.WIDE if machine_of(target).offset else tune.NARROW)[:count]
    best, shares = tune.choose(program, build, candidates, records, progress)
    meta = compile_program(program, target, out, best.flags)
    meta["tuning"] = {"flags": list(best.flags), "time_by_default": shares}
    write_whole(out / "artifact.json", json.dumps(meta, indent=1) + "\n")
    return meta


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


BACKEND = TvmBackend()
