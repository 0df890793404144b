"""The rig `litert`: a .tflite file on this machine, in LiteRT's interpreter.

Two sets of kernels are in play. What is timed and scored are the default ones (XNNPACK), which users run; what is
compared with the reference, bit for bit, are LiteRT's reference kernels, whose arithmetic the integer contract is.
Where the two differ on the measured samples, the measurement says by how many steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset
from edgescale.core.errors import MissingDependencyError, RigError, UsageError
from edgescale.core.files import sha256_file
from edgescale.core.measurement import Measurement
from edgescale.core.protocols import Executor
from edgescale.core.quantity import Quantity
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs.child import run_child
from edgescale.rigs.host import machine_description
from edgescale.rigs.ports import check_stored, from_stored, single_input, to_stored
from edgescale.rigs.timing import MAX_SECONDS

INSTALL_HINT = "pip install 'edgescale[tflite]'"
_OPTIONS = {"max_seconds", "progress"}
_NO_ENERGY = "the machine's power is not measured"
_TIMES = (("latency", "p50_ms", "median"), ("latency_p95", "p95_ms", "p95"), ("latency_p99", "p99_ms", "p99"))

Raw = Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]


class LiteRtRig:
    """LiteRT's interpreter, one thread: in this process for executing, in a fresh one for measuring."""

    name = "litert"

    def missing(self) -> str | None:
        """None where LiteRT is installed, else the command that installs it."""
        from importlib.util import find_spec

        return None if find_spec("ai_edge_litert") else INSTALL_HINT

    def raw_executor(self, artifact: Artifact, target: Target) -> Raw:
        """Stored samples [n, *stored_shape[1:]] -> stored first output, likewise, by the reference kernels.

        Samples of a model with states are one stream, from a reset.
        """
        return runner(artifact, reference_kernels=True)

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """Samples in ONNX layout -> first output in ONNX layout, by the default kernels."""
        port_in, port_out = single_input(artifact), artifact.meta["outputs"][0]
        run = runner(artifact, reference_kernels=False)

        def execute(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
            return from_stored(port_out, run(to_stored(port_in, x)))

        return execute

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Latency percentiles after warm-up, loading and first run apart, memory.

        Options: `max_seconds`, `progress`.
        """
        if unknown := set(options) - _OPTIONS:
            raise UsageError(f"litert has no option {', '.join(sorted(unknown))}; known: {', '.join(sorted(_OPTIONS))}")
        _require()
        feed = to_stored(single_input(artifact), samples.x[:64])
        seconds = float(options.get("max_seconds") or MAX_SECONDS)
        with tempfile.TemporaryDirectory(prefix="edgescale-litert-") as folder:
            scratch = Path(folder)
            np.save(scratch / "samples.npy", feed)
            request = {"model": str(file_of(artifact)), "samples": str(scratch / "samples.npy")}
            found = run_child("edgescale.rigs.litert_child", request, artifact.variant, seconds, scratch)
        runs = f"{found['runs']} runs after warm-up, batch 1, one thread, stored units"
        metrics = {
            "init": Quantity(found["init_ms"], "ms", "measured", "loading the file and allocating, once"),
            "first_run": Quantity(found["first_run_ms"], "ms", "measured", "the first inference"),
            "ram": Quantity(found["ram_bytes"], "B", "measured", found["ram_how"]),
            "flash": Quantity(file_of(artifact).stat().st_size, "B", "measured", "the model file"),
            "weights": Quantity(int(artifact.meta["weights_bytes"]), "B", "measured", "constants of layers in it"),
        }
        unavailable = {"energy": _NO_ENERGY}
        for metric, key, meaning in _TIMES:
            if found["trustworthy"]:
                metrics[metric] = Quantity(found[key], "ms", "measured", f"{meaning} of {runs}")
            else:
                unavailable[metric] = f"one inference is too short for a clock of {found['resolution_ms'] * 1e3:.3g} us"
        environment = {
            "runs": str(found["runs"]),
            "ai-edge-litert": found["version"],
            "kernels": "LiteRT's default ones",
            "threads": "1",
            "default_kernels_differ_by": self._difference(artifact, feed),
            **machine_description(),
        }
        return Measurement(artifact.sha256, target.name, self.name, metrics, (), unavailable, environment)

    def _difference(self, artifact: Artifact, feed: npt.NDArray[np.generic]) -> str:
        """How far the default kernels are from the reference ones on these samples."""
        one, other = (runner(artifact, reference_kernels=kind)(feed).astype(np.float64) for kind in (True, False))
        gap = float(np.abs(one - other).max())
        unit = "" if artifact.meta["outputs"][0]["dtype"] == "float32" else " step" if gap == 1 else " steps"
        return f"{gap:g}{unit} on {len(feed)} sample{'' if len(feed) == 1 else 's'}"


def file_of(artifact: Artifact) -> Path:
    """The artifact's .tflite file; raises RigError for an artifact of another kind, or where the file has changed:
    the interpreter trusts what a file says of itself."""
    if artifact.kind != "tflite":
        raise RigError(f"the litert rig runs TensorFlow Lite artifacts, not {artifact.kind!r} ({artifact.variant})")
    path = (artifact.path / str(artifact.meta["file"])).resolve()
    if not path.is_file() or sha256_file(path) != artifact.meta["file_sha256"]:
        raise RigError(f"{artifact.variant}: {path.name} is missing or not what was compiled; compile it again")
    return path


def open_interpreter(path: Path, *, reference_kernels: bool) -> Any:
    """LiteRT's interpreter with its tensors allocated. Raises MissingDependencyError without LiteRT, RigError where it
    refuses the file."""
    _require()
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_REF if reference_kernels else OpResolverType.AUTO
    try:
        made = Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=kind)
        made.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RigError(f"{path.name}: LiteRT refuses: {lines[0] if lines else type(error).__name__}") from None
    return made


def runner(artifact: Artifact, *, reference_kernels: bool) -> Raw:
    """Stored samples -> stored first output. Each call starts models with states from a reset."""
    path, port_in, port_out = file_of(artifact), single_input(artifact), artifact.meta["outputs"][0]
    reset = bool(artifact.meta["reset_each_run"])
    _require()

    def run(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        given = check_stored(port_in, samples)
        interpreter = open_interpreter(path, reference_kernels=reference_kernels)
        source, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        outputs = np.empty((len(given), *port_out["stored_shape"][1:]), port_out["dtype"])
        for sample, output in zip(given, outputs, strict=True):
            if reset:
                interpreter.reset_all_variables()
            interpreter.set_tensor(source, sample[None])
            interpreter.invoke()
            output[...] = interpreter.get_tensor(made).reshape(output.shape)
        return outputs

    return run


def _require() -> None:
    if (hint := LiteRtRig().missing()) is not None:
        raise MissingDependencyError("LiteRT", hint)
