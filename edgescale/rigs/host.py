"""The rig `host`: an ONNX artifact in ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset, Fed
from edgescale.core.errors import RigError, UsageError
from edgescale.core.measurement import Measurement
from edgescale.core.protocols import Executor
from edgescale.core.quantity import Quantity
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs.ort_profile import layer_figures
from edgescale.rigs.timing import MAX_SECONDS
from edgescale.rigs.units import output_units, real_values
from edgescale.runtime.ort import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_STARTUP_SECONDS = 120.0
_NO_ENERGY = "this machine's power is not measured"


class HostRig:
    """ONNX Runtime, in a fresh process for measuring and in this one for executing."""

    name = "host"

    def missing(self) -> str | None:
        """None: ONNX Runtime is a dependency of edgescale itself; else the command that installs it."""
        from importlib.util import find_spec

        return None if find_spec("onnxruntime") else "pip install onnxruntime"

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """Runs samples one by one (batch 1) through the artifact's session."""
        return session_executor(_open(artifact), output_units(_model_path(artifact)))

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Latency percentiles after warm-up, initialization and first run apart, memory, nodes.

        Options: `threads` (default: the artifact's), `max_seconds` of steady-state timing, `progress`
        (accepted as every rig does; one short measurement has no steps to report).
        """
        known = {"threads", "max_seconds", "progress"}
        if unknown := set(options) - known:
            raise UsageError(f"host has no option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
        session = dict(artifact.meta["session"])
        if options.get("threads") is not None:
            session["intra_op_num_threads"] = options["threads"]
        seconds = float(options.get("max_seconds") or MAX_SECONDS)
        feed = _samples_for(open_session(_model_path(artifact), session), samples.head(64).fed())
        before = _load_average()
        with tempfile.TemporaryDirectory(prefix="edgescale-host-") as scratch:
            result = _run_child(_model_path(artifact), session, feed, seconds, Path(scratch))
            layers = layer_figures(Path(result["profile"]), _model_path(artifact))
        metrics, unavailable = _metrics(result, _model_path(artifact))
        environment = {
            "onnxruntime": result["onnxruntime"],
            "providers": " ".join(result["providers"]),
            "threads": str(session.get("intra_op_num_threads", 1)),
            "session": json.dumps(session, sort_keys=True),
            "runs": str(result["runs"]),
            "clock_resolution_ms": f"{result['resolution_ms']:.6f}",
            "input_crc32": _checksum(feed),
            "loadavg": before,
            **machine_description(),
        }
        if unfused := artifact.meta.get("unfused"):
            # The back end names layers whose weights are dequantized on every run: they cost more than float ones.
            environment["unfused"] = ", ".join(unfused)
        return Measurement(artifact.sha256, target.name, self.name, metrics, layers, unavailable, environment)


def _metrics(result: Mapping[str, Any], model: Path) -> tuple[dict[str, Quantity], dict[str, str]]:
    runs = f"{result['runs']} runs after warm-up, batch 1"
    metrics = {
        "init": Quantity(result["init_ms"], "ms", "measured", "opening the session, once"),
        "first_run": Quantity(result["first_run_ms"], "ms", "measured", "the first inference"),
        "flash": Quantity(model.stat().st_size, "B", "measured", "the model file"),
        "ram": Quantity(result["ram_bytes"], "B", "measured", result["ram_how"]),
    }
    unavailable = {"energy": _NO_ENERGY}
    times = {"latency": ("p50_ms", "median"), "latency_p95": ("p95_ms", "p95"), "latency_p99": ("p99_ms", "p99")}
    for metric, (key, meaning) in times.items():
        if result["trustworthy"]:
            metrics[metric] = Quantity(result[key], "ms", "measured", f"{meaning} of {runs}")
        else:
            unavailable[metric] = (
                f"one inference takes {result['p50_ms'] * 1e3:.3g} us and the clock steps by "
                f"{result['resolution_ms'] * 1e3:.3g} us: too coarse to measure it"
            )
    return metrics, unavailable


def _model_path(artifact: Artifact) -> Path:
    if artifact.kind != "onnx":
        raise RigError(f"the host rig runs ONNX artifacts, not {artifact.kind!r} ({artifact.variant})")
    return artifact.path / str(artifact.meta["file"])


def _open(artifact: Artifact) -> InferenceSession:
    return open_session(_model_path(artifact), artifact.meta["session"])


_INPUT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def _samples_for(session: InferenceSession, x: Fed) -> dict[str, npt.NDArray[np.generic]]:
    """{input: samples as the session takes them}; raises UsageError where they do not fit."""
    inputs = session.get_inputs()
    if not isinstance(x, Mapping):
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise UsageError(f"the model has {len(inputs)} inputs ({names}); samples can feed only one")
        return {inputs[0].name: _for_port(inputs[0], x)}
    missing = [port.name for port in inputs if port.name not in x]
    if missing:
        raise UsageError(f"the samples hold no {', '.join(missing)}, which the model takes")
    return {port.name: _for_port(port, x[port.name]) for port in inputs}


def _checksum(feed: Mapping[str, npt.NDArray[np.generic]]) -> str:
    value = 0
    for array in feed.values():
        value = zlib.crc32(array.tobytes(), value)
    return f"{value:08x}"


def _for_port(port: Any, x: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    fixed = [(want, got) for want, got in zip(port.shape[1:], x.shape[1:], strict=False) if isinstance(want, int)]
    if len(port.shape) != x.ndim or any(want != got for want, got in fixed):
        raise UsageError(f"input {port.name!r} takes samples of shape {tuple(port.shape[1:])}, not {x.shape[1:]}")
    if port.type not in _INPUT_TYPES:
        raise UsageError(f"input {port.name!r} is a {port.type}, which samples cannot feed")
    return x.astype(_INPUT_TYPES[port.type], copy=False)


def session_executor(session: InferenceSession, units: tuple[float, int] | None = None) -> Executor:
    """Samples [n, *sample_shape] one by one (batch 1) -> first output [n, *output_shape], float32.

    units: scale and zero-point of a quantized output (`output_units`), which is given out dequantized.
    """
    output = session.get_outputs()[0].name

    def execute(x: Fed) -> npt.NDArray[np.float32]:
        feed = _samples_for(session, x)
        count = len(next(iter(feed.values())))
        samples = ({name: array[i : i + 1] for name, array in feed.items()} for i in range(count))
        outputs = [real_values(np.asarray(session.run([output], sample)[0]), units) for sample in samples]
        # A graph that drops the batch dimension (a scalar score) still gives one row a sample.
        return np.stack([o[0] if o.ndim and o.shape[0] == 1 else o for o in outputs])

    return execute


def _run_child(
    model: Path, session: Mapping[str, Any], feed: Mapping[str, npt.NDArray[np.generic]], seconds: float, scratch: Path
) -> dict[str, Any]:
    """Measure in a fresh interpreter; raises RigError where it fails."""
    ports: dict[str, Any] = dict(feed)
    np.savez(scratch / "samples.npz", **{f"port{index}": array for index, array in enumerate(ports.values())})
    request = {
        "model": str(model.resolve()),
        "session": dict(session),
        "inputs": list(ports),
        "samples": str(scratch / "samples.npz"),
        "result": str(scratch / "result.json"),
        "folder": str(scratch),
        "max_seconds": seconds,
    }
    (scratch / "request.json").write_text(json.dumps(request))
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "edgescale.rigs.host_child", str(scratch / "request.json")]
    limit = _STARTUP_SECONDS + 4 * seconds
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RigError(f"{model.name}: measuring did not end within {limit:.0f} s") from None
    if not (scratch / "result.json").is_file():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RigError(f"{model.name}: the measuring process died: {last}")
    result: dict[str, Any] = json.loads((scratch / "result.json").read_text())
    if "error" in result:
        raise RigError(f"{model.name}: measuring failed: {result['error']}")
    return result


def _load_average() -> str:
    try:
        return " ".join(f"{load:.2f}" for load in os.getloadavg())
    except (OSError, AttributeError):
        return "unknown"


def machine_description() -> dict[str, str]:
    """CPU model, logical CPUs, frequency governor and system of this machine."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": model,
        "cpus": str(os.cpu_count() or 1),
        "governor": governor.read_text().strip() if governor.is_file() else "unknown",
        "system": f"{platform.system()} {platform.machine()}",
    }
