"""Writes a small streaming .tflite file, finds the microWakeWord models, and runs either with LiteRT."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WAKE_WORDS = ("alexa", "hey_jarvis", "hey_mycroft", "okay_nabu")


def _files() -> Any:
    path = Path(__file__).with_name("tflite_files.py")
    spec = importlib.util.spec_from_file_location("state_tflite_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


files = _files()


def wake_word(name: str) -> Path | None:
    """A model of the package pymicro-wakeword, or of the folder EDGESCALE_MWW; None where there is neither."""
    folder = os.environ.get("EDGESCALE_MWW")
    if folder is None:
        found = importlib.util.find_spec("pymicro_wakeword")
        if found is None or found.origin is None:
            return None
        folder = str(Path(found.origin).parent / "models")
    path = Path(folder) / f"{name}.tflite"
    return path if path.is_file() else None


class Writer(files.Writer):
    """A writer of files with variables: `variable` before what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.initial: list[tuple[str, np.ndarray, Any]] = []

    def step(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], table: str = "", **options: Any) -> None:
        """An operator of any number of outputs."""
        self.operator(kind, inputs, 0, table, **options)
        self.operators[-1].outputs = np.array(outputs, np.int32)

    def call_once(self) -> None:
        """The operator that runs the graph which gives variables their initial values."""
        self.step("CALL_ONCE", [], [], "CallOnceOptions", initSubgraphIndex=1)

    def variable(self, name: str, initial: np.ndarray | None = None, units: Any = None) -> int:
        """A variable's handle; without `initial` nothing gives it a value."""
        handle = self.tensor((), kind="RESOURCE", name=name)
        self.step("VAR_HANDLE", [], [handle], "VarHandleOptions", sharedName=name, container="")
        if initial is not None:
            self.initial.append((name, initial, units))
        return handle

    def read(self, handle: int, shape: Sequence[int], units: Any) -> int:
        """What a variable holds."""
        made = self.tensor(shape, units)
        self.step("READ_VARIABLE", [handle], [made])
        return made

    def assign(self, handle: int, value: int) -> None:
        """Give a variable another value."""
        self.step("ASSIGN_VARIABLE", [handle, value], [])

    def slice(self, source: int, shape: Sequence[int], units: Any, begin: Sequence[int]) -> int:
        """Rows from begin[1] on, to the end, of everything else the whole."""
        ends = np.zeros(len(shape), np.int32)
        steps = self.const(np.ones(len(shape), np.int32))
        made, inputs = self.tensor(shape, units), [self.const(np.array(begin, np.int32)), self.const(ends), steps]
        options = {"beginMask": 0b1101, "endMask": 0b1111, "ellipsisMask": 0, "newAxisMask": 0, "shrinkAxisMask": 0}
        self.step("STRIDED_SLICE", [source, *inputs], [made], "StridedSliceOptions", **options)
        return made

    def data(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file's bytes: the main graph, then the one that CALL_ONCE runs."""
        import flatbuffers

        schema = self.schema
        main = schema.SubGraphT()
        main.tensors, main.operators = list(self.tensors), list(self.operators)
        main.inputs, main.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        self.tensors, self.operators = [], []
        for name, initial, units in self.initial:
            handle = self.tensor((), kind="RESOURCE", name=name)
            self.step("VAR_HANDLE", [], [handle], "VarHandleOptions", sharedName=name, container="")
            self.step("ASSIGN_VARIABLE", [handle, self.const(initial, units)], [])
        once = schema.SubGraphT()
        once.tensors, once.operators = self.tensors, self.operators
        once.inputs = once.outputs = np.zeros(0, np.int32)
        model = schema.ModelT()
        model.version, model.buffers, model.operatorCodes = 3, self.buffers, self.codes
        model.subgraphs = [main, once]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def stream(seed: int = 0) -> bytes:
    """Two rows of four numbers a frame through every kind of state: two histories (one of them read in parts), a sum,
    and what the sum was before. Input int8 [1, 2, 4], output uint8 [1, 3]."""
    rng = np.random.default_rng(seed)
    w = Writer()
    a, b, c, total = (0.05, -3), (0.06, -128), (0.04, 5), (0.11, 7)

    def initial(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    def weights(*shape: int) -> int:
        axis = 3 if shape[0] == 1 else 0
        scales = rng.uniform(0.01, 0.03, shape[axis])
        return w.const(rng.integers(-127, 128, shape).astype(np.int8), scales=scales, axis=axis)

    def bias(count: int) -> int:
        return w.const(rng.integers(-300, 300, count).astype(np.int32))

    def depthwise(source: int, rows: int, channels: int) -> int:
        made = w.tensor((1, 1, 1, channels), c)
        options = {"padding": 1, "strideH": 1, "strideW": 1, "depthMultiplier": 1}
        options |= {"dilationHFactor": 1, "dilationWFactor": 1}
        inputs = [source, weights(1, rows, 1, channels), bias(channels)]
        return w.operator("DEPTHWISE_CONV_2D", inputs, made, "DepthwiseConv2DOptions", 2, **options)

    def concat(inputs: list[int], shape: Sequence[int], units: Any, axis: int) -> int:
        return w.operator("CONCATENATION", inputs, w.tensor(shape, units), "ConcatenationOptions", 2, axis=axis)

    x = w.tensor((1, 2, 4), a, name="frame")
    w.call_once()
    handles = [
        w.variable("near", initial(1, 3, 1, 4), a), w.variable("far", initial(1, 4, 1, 6), b),
        w.variable("sum", initial(1, 1, 1, 6), total), w.variable("before", initial(1, 1, 1, 6), total),
    ]  # fmt: skip
    rows = w.operator("RESHAPE", [x, w.const(np.array([1, 2, 1, 4], np.int32))], w.tensor((1, 2, 1, 4), a))
    near = concat([w.read(handles[0], (1, 3, 1, 4), a), rows], (1, 5, 1, 4), a, 1)
    w.assign(handles[0], w.slice(near, (1, 3, 1, 4), a, (0, -3, 0, 0)))
    seen = w.tensor((1, 1, 1, 6), b)
    options = {"padding": 1, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    options |= {"fusedActivationFunction": 1}
    w.operator("CONV_2D", [near, weights(6, 5, 1, 4), bias(6)], seen, "Conv2DOptions", 3, **options)
    far = concat([w.read(handles[1], (1, 4, 1, 6), b), seen], (1, 5, 1, 6), b, 1)
    w.assign(handles[1], w.slice(far, (1, 4, 1, 6), b, (0, -4, 0, 0)))
    parts = [w.tensor((1, 5, 1, 2), b), w.tensor((1, 5, 1, 4), b)]
    sizes, axis = w.const(np.array([2, 4], np.int32)), w.const(np.array(-1, np.int32))
    w.step("SPLIT_V", [far, sizes, axis], parts, "SplitVOptions", numSplits=2)
    late = depthwise(w.slice(parts[0], (1, 2, 1, 2), b, (0, -2, 0, 0)), 2, 2)
    mixed = concat([late, depthwise(parts[1], 5, 4)], (1, 1, 1, 6), c, -1)
    old = w.read(handles[2], (1, 1, 1, 6), total)
    added = w.operator("ADD", [old, mixed], w.tensor((1, 1, 1, 6), total), "AddOptions", 2)
    before = w.read(handles[3], (1, 1, 1, 6), total)
    w.assign(handles[3], old)
    w.assign(handles[2], added)
    both = concat([before, added], (1, 1, 1, 12), total, 3)
    logits = w.tensor((1, 3), (0.3, 2))
    w.operator("FULLY_CONNECTED", [both, weights(3, 12), bias(3)], logits, "FullyConnectedOptions", 4)
    score = w.operator("LOGISTIC", [logits], w.tensor((1, 3), (1 / 256, -128)), version=2)
    made = w.tensor((1, 3), (1 / 256, 0), kind="UINT8", name="score")
    w.operator("QUANTIZE", [score], made, "QuantizeOptions", 2)
    return w.data([x], [made])


class LiteRT(files.LiteRT):
    """BUILTIN_REF with a look at the variables."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        schema = files.Writer().schema
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
        names: dict[int, str] = {}
        self.reads: dict[str, int] = {}
        for op in model.subgraphs[0].operators:
            if codes[op.opcodeIndex] == schema.BuiltinOperator.VAR_HANDLE:
                names[op.outputs[0]] = op.builtinOptions.sharedName.decode()
            if codes[op.opcodeIndex] == schema.BuiltinOperator.READ_VARIABLE:
                self.reads[names[op.inputs[0]]] = op.outputs[0]

    def stream(self, frames: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Outputs [n, ...] of consecutive frames [n, ...], and what each variable held before each frame."""
        outputs, held = [], {name: [] for name in self.reads}
        for frame in frames:
            self.feed(frame)
            outputs.append(self.tensor(self.outputs[0]["index"]).copy())
            for name, index in self.reads.items():
                held[name].append(self.tensor(index).copy())
        return np.concatenate(outputs), {name: np.concatenate(values) for name, values in held.items()}


def frames(data: bytes, count: int, seed: int = 0) -> np.ndarray:
    """Random frames for a file: noise, then slow waves, then the extremes of int8."""
    detail = files.LiteRT(data).inputs[0]
    shape = (count, *detail["shape"][1:])
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, shape)
    third = count // 3
    waves = np.cumsum(rng.normal(0, 12, shape), axis=0)
    x[third : 2 * third] = np.clip(waves, -128, 127)[third : 2 * third]
    x[2 * third :] = rng.choice([-128, 127], shape)[2 * third :]
    return x.astype(np.int8)
