"""Runs in the environment of onnxruntime-qnn: compiles a model into a context binary, or runs one in the emulator.

Started as `python -I qnn_child.py REQUEST`; see `edgescale_npu.spawn`. Nothing of edgescale is importable here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Request = dict[str, Any]

PROVIDER = "QNNExecutionProvider"


def session(model: str, chip: Request, context: Path | None = None) -> Any:
    """A session on the NPU alone: what it does not take is an error, not the CPU's."""
    import onnxruntime as ort
    import onnxruntime_qnn as qnn

    ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if context is not None:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(context))
        options.add_session_config_entry("ep.context_embed_mode", "0")
    backend = {"backend_path": qnn.get_qnn_htp_path(), "soc_model": str(chip["soc_model"])}
    options.add_provider_for_devices(devices[:1], backend)
    return ort.InferenceSession(model, options)


def compile_model(request: Request) -> Request:
    out = Path(request["out"])
    before = set(out.iterdir())
    session(request["model"], request["chip"], out / "context.onnx")
    files = sorted(path.name for path in set(out.iterdir()) - before)
    if "context.onnx" not in files or len(files) < 2:
        raise RuntimeError(f"no context binary was left, only {', '.join(files) or 'nothing'}")
    return {"entry": "context.onnx", "files": files}


def run(request: Request) -> Request:
    import numpy as np

    found = session(request["entry"], request["chip"])
    name, output = found.get_inputs()[0].name, found.get_outputs()[0].name
    outputs = [found.run([output], {name: sample})[0] for sample in np.load(request["samples"])]
    np.save(request["outputs"], np.stack([o[0] if o.ndim and o.shape[0] == 1 else o for o in outputs]))
    return {"samples": len(outputs)}


def main(path: str) -> None:
    request = json.loads(Path(path).read_text())
    answer: Request
    try:
        answer = {"compile": compile_model, "run": run}[request["task"]](request)
    except Exception as error:  # the parent turns it into a sentence
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(request["answer"]).write_text(json.dumps(answer))


main(sys.argv[1])
