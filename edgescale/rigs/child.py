"""Measuring in a fresh interpreter: initialization is cold there and memory growth that of one artifact alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgescale.core.errors import RigError

STARTUP_SECONDS = 120.0


def run_child(
    module: str,
    request: Mapping[str, Any],
    what: str,
    seconds: float,
    scratch: Path,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `python -m module REQUEST` leaves as JSON in the file `result` that REQUEST names.

    seconds: what measuring may take; what: names the artifact in errors; environment: variables to add. Raises
    RigError where the process dies, reports an error, or does not end.
    """
    result_path = scratch / "result.json"
    (scratch / "request.json").write_text(json.dumps({**request, "result": str(result_path), "max_seconds": seconds}))
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, **(environment or {})}
    command = [sys.executable, "-m", module, str(scratch / "request.json")]
    limit = STARTUP_SECONDS + 4 * seconds
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RigError(f"{what}: measuring did not end within {limit:.0f} s") from None
    if not result_path.is_file():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RigError(f"{what}: the measuring process died: {last}")
    result: dict[str, Any] = json.loads(result_path.read_text())
    if "error" in result:
        raise RigError(f"{what}: measuring failed: {result['error']}")
    return result
