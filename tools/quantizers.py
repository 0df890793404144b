"""The quantizers that tools/bench_quantize.py compares, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "compilers")]

NNCF_OPSET = 20
"""Newest opset NNCF 3.4 writes runnable files in: from 21 on its output types and zero-points disagree."""


@dataclass(frozen=True)
class Job:
    """A tool to run: `tool` is a key of TOOLS, `setting` what it is to do."""

    tool: str
    setting: str
    activations: str = "uint8"

    @property
    def label(self) -> str:
        """As the table names it."""
        return f"{self.tool} {self.setting}" + ("" if self.activations == "uint8" else " s8s8")

    @property
    def bits(self) -> int:
        """Of the weights, 4 or 8; 0 where the tool chooses for each layer."""
        if self.tool == "edgescale":
            return 0 if self.setting.startswith("auto") else int(self.setting[1])
        return 4 if self.setting.endswith("-w4") else 8


@dataclass(frozen=True)
class Spent:
    """What a run cost: wall seconds, peak memory of the process and what it held before, in MB; `tried`: how many
    whole quantizations were evaluated on the way."""

    seconds: float
    peak: float
    before: float
    tried: int


Runner = Callable[[], int]
"""Quantizes and writes the file; says how many attempts it evaluated."""


def ours(source: Path, x: Any, name: str, job: Job, out: Path) -> Runner:
    """edgescale under a recipe."""
    from edgescale.core.dataset import Dataset
    from edgescale.core.recipe import parse_recipe
    from edgescale.frontend import load_model, save_model
    from edgescale.quantize import mixed, quantize

    model = load_model(source)
    data = Dataset("calibration", x, None, "")
    tried = [0]
    attempt = mixed.attempt

    def counted(*given: Any) -> Any:
        tried[0] += 1
        return attempt(*given)

    mixed.attempt = counted

    def run() -> int:
        save_model(quantize(model, data, parse_recipe(job.setting)), out)
        return tried[0]

    return run


def onnxruntime_static(source: Path, x: Any, name: str, job: Job, out: Path) -> Runner:
    """`quantize_static`, QDQ, per channel; setting: <calibrator>-w8 or -w4."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(x)

        def get_next(self) -> Any:
            row = next(self._rows, None)
            return None if row is None else {name: row[None]}

    method, bits = job.setting.split("-")
    kind = QuantType.QUInt8 if job.activations == "uint8" else QuantType.QInt8

    def run() -> int:
        quantize_static(
            source, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=kind,
            weight_type=QuantType.QInt8 if bits == "w8" else QuantType.QInt4,
            calibrate_method=getattr(CalibrationMethod, method),
        )  # fmt: skip
        return 1

    return run


def nncf_ptq(source: Path, x: Any, name: str, job: Job, out: Path) -> Runner:
    """`nncf.quantize`; setting: fast-bias or full-bias correction."""
    import nncf
    import onnx
    from onnx import version_converter

    model = onnx.load(source)
    if model.opset_import[0].version > NNCF_OPSET:
        model = version_converter.convert_version(model, NNCF_OPSET)
    rows = nncf.Dataset(list(x), lambda row: {name: row[None]})

    def run() -> int:
        made = nncf.quantize(model, rows, subset_size=len(x), fast_bias_correction=job.setting == "fast-bias")
        onnx.save(made, out)
        return 1

    return run


def ai_edge(source: Path, x: Any, name: str, job: Job, out: Path) -> Runner:
    """AI Edge Quantizer on a float .tflite, static, weights a channel; setting: <algorithm>-w8 or -w4."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    signed = _signed(source, out.with_suffix(".signed.tflite"))
    interpreter = Interpreter(str(signed))
    key, ports = next(iter(interpreter.get_signature_list().items()))
    shape = interpreter.get_input_details()[0]["shape"]
    algorithm, bits = job.setting.split("-")
    rows = [{ports["inputs"][0]: row.reshape(shape)} for row in x]

    def run() -> int:
        tool = quantizer.Quantizer(str(signed))
        kind = {"minmax": AlgorithmName.MIN_MAX_UNIFORM_QUANT, "octav": AlgorithmName.OCTAV}[algorithm]
        tool.add_static_config(".*", TFLOperationName.ALL_SUPPORTED, 8, int(bits[1:]), algorithm_key=kind)
        out.write_bytes(tool.quantize(tool.calibrate({key: rows})).quantized_model)
        return 1

    return run


def _signed(source: Path, copy: Path) -> Path:
    """The file, or a copy in the form AI Edge Quantizer takes: its ports named in a signature, by which it calibrates,
    operator codes where new files have them, and the integers of a hybrid file as the float weights they stand for."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(source))
    graph = model.subgraphs[0]
    hybrid = [tensor for tensor in graph.tensors if _is_stored_integer(model, tensor)]
    if model.signatureDefs and not hybrid:
        return source

    def ports(indices: Any, label: str) -> list[Any]:
        maps = []
        for place, index in enumerate(indices):
            port = schema.TensorMapT()
            port.name, port.tensorIndex = f"{label}{place}".encode(), index
            maps.append(port)
        return maps

    for code in model.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    for tensor in hybrid:
        _dequantize(model, tensor)
    if not model.signatureDefs:
        signature = schema.SignatureDefT()
        signature.signatureKey = b"serving_default"
        signature.inputs = ports(graph.inputs, "input")
        signature.outputs = ports(graph.outputs, "output")
        model.signatureDefs = [signature]
    flatbuffer_utils.write_model(model, str(copy))
    return copy


def _is_stored_integer(model: Any, tensor: Any) -> bool:
    """Whether it is a constant of int8 with a scale."""
    from ai_edge_litert import schema_py_generated as schema

    data, units = model.buffers[tensor.buffer].data, tensor.quantization
    scaled = units is not None and units.scale is not None and len(units.scale) > 0
    return tensor.type == schema.TensorType.INT8 and data is not None and scaled


def _dequantize(model: Any, tensor: Any) -> None:
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    units = tensor.quantization
    shape = tuple(-1 if axis == units.quantizedDimension else 1 for axis in range(len(tensor.shape)))
    scale, zero = (np.asarray(part, np.float32).reshape(shape) for part in (units.scale, units.zeroPoint))
    stored = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.int8).reshape(tensor.shape)
    model.buffers.append(schema.BufferT())
    model.buffers[-1].data = np.frombuffer(((stored - zero) * scale).astype(np.float32).tobytes(), np.uint8)
    tensor.type, tensor.buffer, tensor.quantization = schema.TensorType.FLOAT32, len(model.buffers) - 1, None


TOOLS: dict[str, Callable[[Path, Any, str, Job, Path], Runner]] = {
    "edgescale": ours,
    "onnxruntime": onnxruntime_static,
    "nncf": nncf_ptq,
    "ai-edge-quantizer": ai_edge,
}


def jobs_for(recipes: list[str], *, tflite: bool) -> list[Job]:
    """What to run here; prints which tools are absent."""
    jobs = [Job("edgescale", recipe) for recipe in recipes]
    widths = [8, *([4] if any(job.bits == 4 for job in jobs) else [])]
    for bits in widths:
        jobs += [Job("onnxruntime", f"{method}-w{bits}") for method in ("MinMax", "Entropy", "Percentile")]
        jobs.append(Job("onnxruntime", f"MinMax-w{bits}", "int8"))
    if find_spec("nncf"):
        jobs += [Job("nncf", "fast-bias"), Job("nncf", "full-bias")]
    else:
        print("nncf is not installed here: left out")
    if not find_spec("ai_edge_quantizer"):
        print("ai-edge-quantizer is not installed here: left out")
    elif tflite:
        jobs += [Job("ai-edge-quantizer", f"{method}-w{bits}") for bits in widths for method in ("minmax", "octav")]
    else:
        print("ai-edge-quantizer takes .tflite models only: left out")
    return jobs


def run_job(source: Path, x: Any, name: str, job: Job, out: Path) -> Spent | str:
    """Quantize in a fresh process, so that time and memory are this tool's alone; the first line of its error.

    x: the calibration samples, or the path of a .npy that is mapped, not read, where both sides must hold little.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, source, x, name, job, out))
    process.start()
    there.close()
    try:
        answer: Spent | str = here.recv()
    except EOFError:
        answer = "the process died"
    process.join()
    return answer


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB. getrusage counts what its parent held when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(pipe: Any, source: Path, x: Any, name: str, job: Job, out: Path) -> None:
    import numpy as np

    try:
        rows = np.load(x, mmap_mode="r") if isinstance(x, Path) else x
        run = TOOLS[job.tool](source, rows, name, job, out)
        before = peak_memory()
        start = time.perf_counter()
        tried = run()
        seconds = time.perf_counter() - start
        pipe.send(Spent(seconds, peak_memory(), before, tried))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
