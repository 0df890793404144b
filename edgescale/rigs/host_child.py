"""The measuring process of the `host` rig: one fresh interpreter a measurement.

Run as `python -m edgescale.rigs.host_child REQUEST`, REQUEST being a JSON file with: model (path), session
(options), inputs (names), samples (path of an .npz with port0, port1, ... [n, *sample_shape], in the inputs' order),
result (path to write), max_seconds, folder (for scratch files). A fresh process makes initialization cold and memory
growth that of this model alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

# An ONNX model that returns its float[1] input: its session pays, before anything is measured, what ONNX
# Runtime spends once a process.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201695a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a001011"
)
_MEMORY_RUNS = 3
_PROFILE_RUNS = 30
_PROFILE_SECONDS = 2.0


def main(request_path: str) -> None:
    """Measure what the request names and write the figures as JSON."""
    request = json.loads(Path(request_path).read_text())
    try:
        result = _measure(request)
    except Exception as error:  # the parent turns it into a message
        result = {"error": f"{type(error).__name__}: {error}", "kind": type(error).__name__}
    Path(request["result"]).write_text(json.dumps(result))


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    from edgescale.rigs.timing import time_calls
    from edgescale.runtime.ort import open_session

    with np.load(request["samples"]) as stored:
        arrays = {name: stored[f"port{index}"] for index, name in enumerate(request["inputs"])}
    count = len(next(iter(arrays.values())))
    feeds = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(count)]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    identity = ort.InferenceSession(_IDENTITY, options, providers=["CPUExecutionProvider"])
    identity.run(None, {"x": np.zeros(1, np.float32)})

    memory = PeakMemory()
    start = time.perf_counter()
    session = open_session(Path(request["model"]), request["session"])
    init = time.perf_counter() - start
    start = time.perf_counter()
    session.run(None, feeds[0])
    first = time.perf_counter() - start
    for index in range(_MEMORY_RUNS):
        session.run(None, feeds[index % len(feeds)])
    growth, how = memory.growth()

    timing = time_calls(lambda i: session.run(None, feeds[i % len(feeds)]), max_seconds=request["max_seconds"])
    profile = _profile(request, feeds)
    return {
        "init_ms": init * 1e3,
        "first_run_ms": first * 1e3,
        "runs": timing.runs,
        "p50_ms": timing.p50_ms,
        "p95_ms": timing.p95_ms,
        "p99_ms": timing.p99_ms,
        "resolution_ms": timing.resolution_ms,
        "trustworthy": timing.trustworthy,
        "ram_bytes": growth,
        "ram_how": how,
        "onnxruntime": ort.__version__,
        "providers": session.get_providers(),
        "profile": profile,
    }


def _profile(request: dict[str, Any], feeds: list[dict[str, Any]]) -> str:
    """A separate, profiled session; returns the path of ONNX Runtime's profile."""
    from edgescale.runtime.ort import open_session

    prefix = Path(request["folder"]) / "profile"
    session = open_session(Path(request["model"]), request["session"], profile_prefix=prefix)
    start = time.perf_counter()
    for index in range(_PROFILE_RUNS):
        session.run(None, feeds[index % len(feeds)])
        if time.perf_counter() - start > _PROFILE_SECONDS:
            break
    return str(session.end_profiling())


class PeakMemory:
    """Growth of this process's resident memory, from now to the highest point reached later."""

    def __init__(self) -> None:
        self._status = Path("/proc/self/status")
        self._reset = False
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the present size
            self._reset = True
        except OSError:
            pass
        self._baseline = self._read("VmRSS" if self._reset else "VmHWM")

    def growth(self) -> tuple[int, str]:
        """(bytes, how it was measured)."""
        peak = self._read("VmHWM")
        how = "peak resident memory above that of a process with ONNX Runtime and a trivial session"
        if not self._reset:
            how += "; the kernel's peak could not be reset, so growth below an earlier peak is not seen"
        return max(0, peak - self._baseline), how

    def _read(self, key: str) -> int:
        """Bytes of a /proc/self/status entry; where there is no /proc, the peak the C library reports."""
        try:
            text = self._status.read_text()
        except OSError:
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        for line in text.splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        return 0


if __name__ == "__main__":
    main(sys.argv[1])
