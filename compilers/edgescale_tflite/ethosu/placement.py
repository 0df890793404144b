"""Which operators of a .tflite file an Ethos-U takes, and why not.

Rules are those that Vela states of its operators for Ethos-U55 and U65 (one set) and U85 (another), for the operators
that the back end writes. Each verdict has a reason with the offending value and, where there is one, the change to the
model that keeps the operator on the NPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgescale.frontend.tflite.reader import File, Operator

Family = Literal["u55", "u85"]
"""u55: Ethos-U55 and U65."""

VALID = 1
MOST_ABSOLUTE_WEIGHTS = 8_323_072
MOST_ABSOLUTE_WEIGHTS_WIDE = 2_130_706_432
"""Sum over one output channel; the second for 16-bit inputs on U85."""

_EVERYWHERE = {
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXP", "FULLY_CONNECTED", "HARD_SWISH",
    "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PAD", "PADV2", "QUANTIZE", "RELU",
    "RELU6", "RESHAPE", "REVERSE_V2", "SOFTMAX", "STRIDED_SLICE", "SUB", "TANH", "TRANSPOSE",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
}  # fmt: skip
SUPPORTED: dict[Family, set[str]] = {
    "u55": _EVERYWHERE,
    "u85": _EVERYWHERE | {"ASSIGN_VARIABLE", "CALL_ONCE", "CAST", "DIV", "GATHER", "READ_VARIABLE", "VAR_HANDLE"},
}

_QUANTIZE = "quantize the model (recipe w8a8)"
_STATE = "feed the state as an input and take it as an output instead, or use an Ethos-U85"
_REWRITES = {
    "GATHER": "a function with an operator of its own: Sigmoid with the output in units 1/256, zero-point -128, Tanh "
    "in 1/128, zero-point 0, HardSwish, LeakyRelu",
    "CAST": "the same as for the GATHER behind it",
    "DEQUANTIZE": _QUANTIZE, "EXP": _QUANTIZE, "DIV": _QUANTIZE,
    "VAR_HANDLE": _STATE, "READ_VARIABLE": _STATE, "ASSIGN_VARIABLE": _STATE, "CALL_ONCE": _STATE,
}  # fmt: skip


@dataclass(frozen=True)
class Fallback:
    """An operator that the CPU will execute: its place in the file, its kind, its output's name."""

    index: int
    kind: str
    output: str
    reason: str
    rewrite: str


Verdict = tuple[str, str]
"""Reason and rewrite."""


def family_of(accelerator: str) -> Family:
    """The set of rules of an accelerator such as ethos-u55-128."""
    return "u85" if accelerator.startswith("ethos-u85") else "u55"


def fallbacks(file: File, family: Family) -> list[Fallback]:
    """Operators of the main graph that stay on the CPU, in order."""
    found = []
    for op in file.operators:
        verdict = next(_verdicts(file, op, family), None)
        if verdict is not None:
            output = file.tensors[op.outputs[0]].name if op.outputs else ""
            found.append(Fallback(op.index, op.kind, output, *verdict))
    return found


def _verdicts(file: File, op: Operator, family: Family) -> Iterator[Verdict]:
    if op.kind not in SUPPORTED[family]:
        yield f"{_title(family)} has no {op.kind}", _REWRITES.get(op.kind, "")
    if op.kind in ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"):
        return
    maps = [file.tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0 and file.tensors[i].data is None]
    for tensor in maps:
        if tensor.kind not in ("INT8", "UINT8", "INT16", "INT32"):
            yield f"feature maps hold integers, {tensor.name!r} is {tensor.kind.lower()}", _QUANTIZE
    check = _RULES.get(op.kind)
    if check is not None:
        yield from check(file, op, family)


def _title(family: Family) -> str:
    return "an Ethos-U85" if family == "u85" else "an Ethos-U55 or U65"


def _weighted(file: File, op: Operator, family: Family) -> Iterator[Verdict]:
    source, weights = file.tensors[op.inputs[0]], file.tensors[op.inputs[1]]
    if weights.kind not in ("INT8", "UINT8"):
        yield f"weights have 8 bits, {weights.name!r} is {weights.kind.lower()}", "keep them in int8"
    if weights.data is not None:
        axis = 3 if op.kind == "DEPTHWISE_CONV_2D" else 0
        others = tuple(a for a in range(weights.data.ndim) if a != axis)
        largest = int(np.abs(weights.data.astype(np.int64)).sum(axis=others).max())
        wide = family == "u85" and source.kind == "INT16"
        most = MOST_ABSOLUTE_WEIGHTS_WIDE if wide else MOST_ABSOLUTE_WEIGHTS
        if largest > most:
            yield f"absolute weights of a channel add up to at most {most}, found {largest}", "split the layer"
    yield from _strides(file, op, family)


def _strides(file: File, op: Operator, family: Family) -> Iterator[Verdict]:
    strides = (int(op.options.get("StrideH", 1)), int(op.options.get("StrideW", 1)))
    if family == "u85" or max(strides) <= 3:
        return
    dilations = (int(op.options.get("DilationHFactor", 1)), int(op.options.get("DilationWFactor", 1)))
    shown = f"{strides[0]}x{strides[1]}"
    if op.kind == "DEPTHWISE_CONV_2D":
        yield f"strides are at most 3, found {shown}", "two layers of smaller strides"
    elif max(dilations) > 1 or int(op.options.get("Padding", 0)) != VALID:
        yield (
            f"strides above 3 need VALID padding and no dilation, found stride {shown}",
            "drop the padding, or two layers of smaller strides",
        )


def _pool(file: File, op: Operator, family: Family) -> Iterator[Verdict]:
    kernel = (int(op.options.get("FilterHeight", 1)), int(op.options.get("FilterWidth", 1)))
    shown = f"{kernel[0]}x{kernel[1]}"
    if op.kind == "AVERAGE_POOL_2D" and int(op.options.get("Padding", 0)) != VALID:
        if max(kernel) > 8:
            yield f"kernels of a padded average are at most 8x8, found {shown}", "a pool without padding"
    elif kernel[0] * kernel[1] > 65536 or kernel[0] > 256:
        yield f"kernels are at most 256 high and 65536 in all, found {shown}", "two pools in a row"
    yield from _strides(file, op, family)


def _mean(file: File, op: Operator, family: Family) -> Iterator[Verdict]:
    source = file.tensors[op.inputs[0]]
    reduced = [int(size) for size in source.shape[1:3]]
    most = 65536 if source.kind == "INT16" else 2**24
    if max(reduced, default=0) >= 4096 or np.prod(reduced, dtype=np.int64) > most:
        yield f"fewer than 4096 along an axis and at most {most} in all are reduced, found {reduced}", "a pool before"


def _softmax(file: File, op: Operator, family: Family) -> Iterator[Verdict]:
    shape = file.tensors[op.inputs[0]].shape
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    if rows >= 65536:
        yield f"fewer than 65536 rows, found {rows}", "leave the Softmax to the application"


def _reverse(file: File, op: Operator, family: Family) -> Iterator[Verdict]:
    if family == "u55":
        yield "an Ethos-U55 or U65 reverses no axis", "an LSTM that runs forward"


def _slice(file: File, op: Operator, family: Family) -> Iterator[Verdict]:
    steps = file.tensors[op.inputs[3]].data
    if steps is not None and len(steps) > 1 and int(steps.reshape(-1)[-1]) > 1:
        yield f"no step along the channels, found {steps.reshape(-1).tolist()}", "a convolution that picks channels"


_RULES: dict[str, Callable[[File, Operator, Family], Iterator[Verdict]]] = {
    "CONV_2D": _weighted,
    "DEPTHWISE_CONV_2D": _weighted,
    "FULLY_CONNECTED": _weighted,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "MEAN": _mean,
    "SOFTMAX": _softmax,
    "REVERSE_V2": _reverse,
    "STRIDED_SLICE": _slice,
}
