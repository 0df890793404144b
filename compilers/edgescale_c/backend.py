"""The back end as edgescale sees it: a QDQ or float ONNX file in, a folder of C99 out."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.files import firmware_root, sha256_file, sha256_tree, write_whole
from edgescale.core.memory import Memory
from edgescale.core.model import Model
from edgescale.core.target import Target
from edgescale.core.variant import Artifact, Variant
from edgescale_c.names import identifier


class CBackend:
    """Generated C99: constants in read-only memory, a verified static memory plan, kernels specialised by inlining.

    The artifact's `meta`, also in artifact.json, names the symbols (`symbol`, accessors, the functions of
    `layers`), the files, `arena_bytes`, `weights_bytes`, ports with shape, axes and quantization, the memory
    plan, its `peak`, and in `memory` the mode and the regions that run in stripes.
    """

    name = "edgescale_c"
    plans_memory = True

    def version(self) -> str:
        """Package version and a hash of everything that shapes the output: kernels, generator, lowering."""
        digest = hashlib.sha256()
        here = Path(__file__).resolve().parent
        root = firmware_root()
        import edgescale.lower

        lower = Path(edgescale.lower.__file__).resolve().parent
        for folder, pattern in ((root / "include", "*.h"), (root / "kernels", "*.h"), (here, "*.py"), (lower, "*.py")):
            for path in sorted(folder.rglob(pattern)):
                digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
        return f"{metadata.version('edgescale')}+{digest.hexdigest()[:16]}"

    def missing(self) -> str | None:
        """None: writing C needs nothing that edgescale does not bring."""
        return None

    def operators(self) -> list[tuple[str, str]]:
        """ONNX operators with their rules: those that lowering accepts."""
        from edgescale.lower import operators

        return operators()

    def check(self, model: Model) -> list[str]:
        """What keeps the model from being lowered and emitted: one sentence a node; empty when nothing does."""
        from edgescale.lower import lower
        from edgescale_c.generate import generate

        try:
            generate(lower(model.ir, model.name), identifier(model.name), firmware_root(), "scalar")
        except UnsupportedModelError as error:
            return str(error).splitlines()
        return []

    def compile(self, variant: Variant, target: Target, out: Path, memory: Memory = "balanced") -> Artifact:
        """Fill the directory `out`. Raises UnsupportedModelError for a layer without a kernel, UsageError for a
        target whose kernel family does not exist."""
        from edgescale.lower import lower_file
        from edgescale_c.generate import generate
        from edgescale_c.staging import flash_of

        program = lower_file(variant.path, variant.name)
        # Not shortened: models of one image must not share a symbol.
        symbol = identifier(variant.name, len(variant.name))
        made = generate(program, symbol, firmware_root(), target.core.kernels, memory=memory, flash=flash_of(target))
        for name, text in made.files.items():
            write_whole(out / name, text)
        write_whole(out / "artifact.json", json.dumps(made.meta, indent=1) + "\n")
        return Artifact(variant.name, target.name, self.name, "c", out, sha256_tree(out), dict(made.meta))


BACKEND = CBackend()
