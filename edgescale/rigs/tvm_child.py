"""The measuring process of the `tvm` rig: one fresh interpreter a measurement.

Run as `python -m edgescale.rigs.tvm_child REQUEST`, REQUEST being a JSON file with: library, samples (path of a
.npy of stored samples), result (path to write), max_seconds.
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
    import numpy as np
    import tvm

    from edgescale.rigs.host_child import PeakMemory
    from edgescale.rigs.timing import time_calls
    from edgescale.rigs.tvm import open_machine

    device = tvm.cpu()
    feeds = [tvm.runtime.tensor(sample[None], device) for sample in np.load(request["samples"])]
    memory = PeakMemory()
    start = time.perf_counter()
    run = open_machine(Path(request["library"]))["main"]
    init = time.perf_counter() - start
    start = time.perf_counter()
    run(feeds[0])
    first = time.perf_counter() - start
    growth, _ = memory.growth()
    timing = time_calls(lambda i: run(feeds[i % len(feeds)]), max_seconds=request["max_seconds"])
    return {
        "init_ms": init * 1e3,
        "first_run_ms": first * 1e3,
        "ram_bytes": growth,
        "runs": timing.runs,
        "p50_ms": timing.p50_ms,
        "p95_ms": timing.p95_ms,
        "p99_ms": timing.p99_ms,
        "resolution_ms": timing.resolution_ms,
        "trustworthy": timing.trustworthy,
    }


if __name__ == "__main__":
    main(sys.argv[1])
