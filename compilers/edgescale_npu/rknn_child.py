"""Runs in the environment of rknn-toolkit2: converts a model to .rknn, or simulates one.

Started as `python -I rknn_child.py REQUEST`; see `edgescale_npu.spawn`. Nothing of edgescale is importable here. The
simulator runs only what the same process has built, so that running builds again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Request = dict[str, Any]


def built(request: Request) -> Any:
    from rknn.api import RKNN

    rknn = RKNN(verbose=False)
    rknn.config(target_platform=request["chip"]["platform"])
    if rknn.load_onnx(model=request["model"]) != 0:
        raise RuntimeError("load_onnx failed")
    if rknn.build(do_quantization=False) != 0:  # the model brings its own scales
        raise RuntimeError("build failed")
    return rknn


def compile_model(request: Request) -> Request:
    out = Path(request["out"]) / "model.rknn"
    if built(request).export_rknn(str(out)) != 0 or not out.is_file():
        raise RuntimeError("export_rknn failed")
    return {"entry": out.name, "files": [out.name]}


def run(request: Request) -> Request:
    import numpy as np

    rknn = built(request)
    if rknn.init_runtime() != 0:
        raise RuntimeError("init_runtime failed")
    outputs = [rknn.inference(inputs=[sample], data_format="nchw")[0] for sample in np.load(request["samples"])]
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
