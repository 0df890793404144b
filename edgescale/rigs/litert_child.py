"""The measuring process of the `litert` rig: one fresh interpreter a measurement.

Run as `python -m edgescale.rigs.litert_child REQUEST`, REQUEST being a JSON file with: model, samples (path of a .npy
of stored samples), result (path to write), max_seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(request_path: str) -> None:
    """Measure what the request names and write the figures as JSON."""
    request = json.loads(Path(request_path).read_text())
    try:
        result = _measure(request)
    except Exception as error:  # the parent turns it into a message
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(request["result"]).write_text(json.dumps(result))


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    from importlib import metadata

    import ai_edge_litert.interpreter  # noqa: F401  (imported before the clock and the memory are read)
    import numpy as np

    from edgescale.rigs.host_child import PeakMemory
    from edgescale.rigs.litert import open_interpreter
    from edgescale.rigs.timing import time_calls

    feeds = list(np.load(request["samples"])[:, None])
    memory = PeakMemory()
    start = time.perf_counter()
    interpreter = open_interpreter(Path(request["model"]), reference_kernels=False)
    init = time.perf_counter() - start
    port = interpreter.get_input_details()[0]["index"]

    def run(index: int) -> None:
        interpreter.set_tensor(port, feeds[index % len(feeds)])
        interpreter.invoke()

    start = time.perf_counter()
    run(0)
    first = time.perf_counter() - start
    growth, _ = memory.growth()
    timing = time_calls(run, max_seconds=request["max_seconds"])
    return {
        "init_ms": init * 1e3,
        "first_run_ms": first * 1e3,
        "ram_bytes": growth,
        "ram_how": "growth of resident memory from loading the file to the first inference",
        "version": metadata.version("ai-edge-litert"),
        "runs": timing.runs,
        "p50_ms": timing.p50_ms,
        "p95_ms": timing.p95_ms,
        "p99_ms": timing.p99_ms,
        "resolution_ms": timing.resolution_ms,
        "trustworthy": timing.trustworthy,
    }


if __name__ == "__main__":
    main(sys.argv[1])
