"""The rigs `tvm` and `tvm-rpc://host:port`: a TVM artifact on this machine, or on one that runs TVM's RPC server.

On the device: `python -m tvm.exec.rpc_server --host 0.0.0.0 --port 9090`. The library is sent there for each session.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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
from edgescale.rigs.host import machine_description
from edgescale.rigs.ports import check_stored, from_stored, single_input, to_stored
from edgescale.rigs.timing import MAX_SECONDS, percentile

INSTALL_HINT = "pip install 'edgescale[tvm]'"
SCHEME = "tvm-rpc://"
_STARTUP_SECONDS = 120.0
_NO_ENERGY = "the machine's power is not measured"
_RPC_CALLS = 10
_RPC_SECONDS = 60
_OPTIONS = {"max_seconds", "progress"}

Raw = Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]


def missing() -> str | None:
    """None where TVM is installed, else the command that installs it."""
    from importlib.util import find_spec

    return None if find_spec("tvm") and find_spec("tvm_ffi") else INSTALL_HINT


def is_rpc(name: str) -> bool:
    """Whether a rig's name is the address of an RPC server."""
    return name.startswith(SCHEME)


class TvmRig:
    """TVM's virtual machine in this process for executing, in a fresh one for measuring."""

    name = "tvm"

    def missing(self) -> str | None:
        """As `missing` of this module."""
        return missing()

    def raw_executor(self, artifact: Artifact, target: Target) -> Raw:
        """Stored samples [n, *stored_shape[1:]] -> stored first output, likewise."""
        return _runner(artifact, open_machine(library_of(artifact)), None)

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """Samples in ONNX layout -> first output in ONNX layout."""
        return _real(artifact, self.raw_executor(artifact, target))

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Latency percentiles after warm-up, loading and first run apart, memory.

        Options: `max_seconds`, `progress`.
        """
        _check_options(self.name, options)
        _require()
        seconds = float(options.get("max_seconds") or MAX_SECONDS)
        feed = to_stored(single_input(artifact), samples.x[:64])
        with tempfile.TemporaryDirectory(prefix="edgescale-tvm-") as scratch:
            found = _run_child(artifact, feed, seconds, Path(scratch))
        runs = f"{found['runs']} runs after warm-up, batch 1, stored units"
        metrics = {
            "init": Quantity(found["init_ms"], "ms", "measured", "loading the library, once"),
            "first_run": Quantity(found["first_run_ms"], "ms", "measured", "the first inference"),
            "ram": Quantity(found["ram_bytes"], "B", "measured", "growth of resident memory from loading the library"),
            **_sizes(artifact),
        }
        unavailable = {"energy": _NO_ENERGY}
        for metric, key, meaning in _TIMES:
            if found["trustworthy"]:
                metrics[metric] = Quantity(found[key], "ms", "measured", f"{meaning} of {runs}")
            else:
                unavailable[metric] = f"one inference is too short for a clock of {found['resolution_ms'] * 1e3:.3g} us"
        environment = {"runs": str(found["runs"]), **_environment(artifact), **machine_description()}
        return Measurement(artifact.sha256, target.name, self.name, metrics, (), unavailable, environment)


class TvmRpcRig:
    """The same on another machine, through TVM's RPC server there."""

    def __init__(self, name: str) -> None:
        found = re.fullmatch(re.escape(SCHEME) + r"(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):(\d{1,5})", name)
        if found is None or not 0 < int(found[2]) < 65536:
            raise UsageError(f"rig {name!r}: an RPC rig is {SCHEME}host:port with a port in 1..65535")
        self.name = name
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def missing(self) -> str | None:
        """As `missing` of this module; whether the server answers shows when it is used."""
        return missing()

    def raw_executor(self, artifact: Artifact, target: Target) -> Raw:
        """Stored samples [n, *stored_shape[1:]] -> stored first output, likewise. Raises RigError without a server."""
        machine, device = self._open(artifact)
        return _runner(artifact, machine, device)

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """Samples in ONNX layout -> first output in ONNX layout."""
        return _real(artifact, self.raw_executor(artifact, target))

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Latency on the device, by its own clock. Options: `max_seconds`, `progress`."""
        import time

        import tvm

        _check_options(self.name, options)
        machine, device = self._open(artifact)
        feed = to_stored(single_input(artifact), samples.x[:1])
        value = tvm.runtime.tensor(check_stored(single_input(artifact), feed), device)
        start = time.perf_counter()
        machine["main"](value)
        one = max(time.perf_counter() - start, 1e-6)  # with the way there: an upper bound
        seconds = float(options.get("max_seconds") or MAX_SECONDS)
        repeats = int(min(50, max(3, seconds / (2 * one * _RPC_CALLS))))
        try:
            machine.set_input("main", value)
            timer = machine.module.time_evaluator("invoke_stateful", device, number=_RPC_CALLS, repeat=repeats)
            times = sorted(float(t) * 1e3 for t in timer("main").results)
        except Exception as error:
            raise _failed(self.name, error) from None
        note = f"{repeats} times {_RPC_CALLS} runs on the device, mean of each {_RPC_CALLS}"
        metrics = {
            metric: Quantity(percentile(times, percent), "ms", "measured", f"{meaning} of {note}")
            for (metric, _, meaning), percent in zip(_TIMES, (50, 95, 99), strict=True)
        } | _sizes(artifact)
        unavailable = {"energy": _NO_ENERGY, "ram": "TVM's RPC server does not tell what a library uses"}
        return Measurement(artifact.sha256, target.name, self.name, metrics, (), unavailable, _environment(artifact))

    def _open(self, artifact: Artifact) -> tuple[Any, Any]:
        _require()
        from tvm import relax, rpc

        library = library_of(artifact)
        try:
            session = rpc.connect(self.host, self.port, session_timeout=_RPC_SECONDS)
            # Servers keep what they were sent: one name a content.
            name = f"{artifact.sha256[:16]}.so"
            session.upload(str(library), name)
            device = session.cpu()
            return relax.VirtualMachine(session.load_module(name), device), device
        except Exception as error:
            raise _failed(self.name, error) from None


_TIMES = (("latency", "p50_ms", "median"), ("latency_p95", "p95_ms", "p95"), ("latency_p99", "p99_ms", "p99"))


def library_of(artifact: Artifact) -> Path:
    """The artifact's shared library; raises RigError for an artifact of another kind, or where it has changed:
    loading a truncated one would end the process."""
    if artifact.kind != "tvm":
        raise RigError(f"the tvm rigs run TVM artifacts, not {artifact.kind!r} ({artifact.variant})")
    library = (artifact.path / str(artifact.meta["library"])).resolve()
    if not library.is_file() or sha256_file(library) != artifact.meta["library_sha256"]:
        raise RigError(f"{artifact.variant}: {library.name} is missing or not what was compiled; compile it again")
    return library


def open_machine(library: Path) -> Any:
    """TVM's virtual machine with the library. Raises MissingDependencyError without TVM, RigError where it refuses."""
    _require()
    import tvm
    from tvm import relax

    try:
        return relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    except Exception as error:  # TVM has no type of error for a library it cannot load
        raise _failed(library.name, error) from None


def _runner(artifact: Artifact, machine: Any, device: Any) -> Raw:
    import tvm

    port_in, port_out = single_input(artifact), artifact.meta["outputs"][0]
    several = len(artifact.meta["outputs"]) > 1
    main = machine["main"]

    def run(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        given = check_stored(port_in, samples)
        outputs = np.empty((len(given), *port_out["stored_shape"][1:]), port_out["dtype"])
        for sample, output in zip(given, outputs, strict=True):
            made = main(tvm.runtime.tensor(sample[None], device if device is not None else tvm.cpu()))
            output[...] = (made[0] if several else made).numpy().reshape(output.shape)
        return outputs

    return run


def _real(artifact: Artifact, run: Raw) -> Executor:
    port_in, port_out = single_input(artifact), artifact.meta["outputs"][0]

    def execute(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        return from_stored(port_out, run(to_stored(port_in, x)))

    return execute


def _run_child(artifact: Artifact, feed: npt.NDArray[np.generic], seconds: float, scratch: Path) -> dict[str, Any]:
    """Measure in a fresh interpreter; raises RigError where it fails."""
    np.save(scratch / "samples.npy", feed)
    request = {
        "library": str(library_of(artifact)),
        "samples": str(scratch / "samples.npy"),
        "result": str(scratch / "result.json"),
        "max_seconds": seconds,
    }
    (scratch / "request.json").write_text(json.dumps(request))
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "TVM_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgescale.rigs.tvm_child", str(scratch / "request.json")]
    limit = _STARTUP_SECONDS + 4 * seconds
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RigError(f"{artifact.variant}: measuring did not end within {limit:.0f} s") from None
    if not (scratch / "result.json").is_file():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RigError(f"{artifact.variant}: the measuring process died: {last}")
    result: dict[str, Any] = json.loads((scratch / "result.json").read_text())
    if "error" in result:
        raise RigError(f"{artifact.variant}: measuring failed: {result['error']}")
    return result


def _sizes(artifact: Artifact) -> dict[str, Quantity]:
    size = library_of(artifact).stat().st_size
    return {
        "flash": Quantity(size, "B", "measured", "the shared library, stripped; TVM's run time is apart"),
        "weights": Quantity(int(artifact.meta["weights_bytes"]), "B", "measured", "weights, biases and scales in it"),
    }


def _environment(artifact: Artifact) -> dict[str, str]:
    from importlib import metadata

    return {
        "apache-tvm": metadata.version("apache-tvm"),
        "triple": str(artifact.meta["triple"]),
        "instructions": str(artifact.meta["instructions"]),
        "kernels": " ".join(artifact.meta["kernels"]),
        "threads": "1",
    }


def _check_options(name: str, options: dict[str, Any]) -> None:
    if unknown := set(options) - _OPTIONS:
        raise UsageError(f"{name} has no option {', '.join(sorted(unknown))}; known: {', '.join(sorted(_OPTIONS))}")


def _require() -> None:
    if (hint := missing()) is not None:
        raise MissingDependencyError("TVM", hint)


def _failed(what: str, error: Exception) -> RigError:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return RigError(f"{what}: TVM refuses: {lines[-1].strip() if lines else type(error).__name__}")
