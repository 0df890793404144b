"""State that a streaming model keeps from one inference to the next, as ONNX files carry it.

ONNX has no variables, so a state is a pair of a graph input and a graph output, and an entry of the model's
metadata that says which two belong together and what the input holds before the first inference:

    edgescale.state.<name> = {"input": ..., "output": ..., "shape": [...], "dtype": ..., "initial": ...}

`initial` is one number for all elements, or the base64 of the values' little-endian bytes. The file stays
standard: any runtime runs it by feeding each output back into its input.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError

Array = npt.NDArray[np.generic]

PREFIX = "edgescale.state."
DTYPES = ("float32", "int8", "uint8", "int16")


@dataclass(frozen=True)
class StateSpec:
    """One state: the ONNX graph input `input` is the last inference's output `output`, at first `initial`.

    initial: an array in the input's ONNX shape and dtype (float32, int8, uint8 or int16).
    """

    name: str
    input: str
    output: str
    initial: Array


def encode_states(states: Iterable[StateSpec]) -> dict[str, str]:
    """Metadata entries of an ONNX model."""
    entries = {}
    for state in states:
        flat = np.ascontiguousarray(state.initial).reshape(-1)
        uniform = flat.size > 0 and bool((flat == flat[0]).all())
        little = flat.astype(flat.dtype.newbyteorder("<"))
        entries[PREFIX + state.name] = json.dumps(
            {
                "input": state.input,
                "output": state.output,
                "shape": list(state.initial.shape),
                "dtype": str(state.initial.dtype),
                "initial": flat[0].item() if uniform else base64.b64encode(little.tobytes()).decode(),
            }
        )
    return entries


def decode_states(metadata: Mapping[str, str], where: str = "the model") -> tuple[StateSpec, ...]:
    """The states that an ONNX model's metadata names; empty for a model without.

    Raises UnsupportedModelError for a broken entry, and for two that share an input.
    """
    found = tuple(_decode(key, text, where) for key, text in metadata.items() if key.startswith(PREFIX))
    inputs = [state.input for state in found]
    for name in inputs:
        if inputs.count(name) > 1:
            raise UnsupportedModelError(f"{where}: two states of its metadata share the input {name!r}")
    return found


def _decode(key: str, text: str, where: str) -> StateSpec:
    try:
        entry = json.loads(text)
        shape = tuple(int(size) for size in entry["shape"])
        if entry["dtype"] not in DTYPES or min(shape, default=1) < 1:
            raise ValueError(entry["dtype"])
        dtype = np.dtype(entry["dtype"])
        if isinstance(entry["initial"], str):
            raw = base64.b64decode(entry["initial"], validate=True)
            if len(raw) != math.prod(shape) * dtype.itemsize:
                raise ValueError("initial")
            initial = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
        else:
            initial = np.full(shape, entry["initial"], dtype)
        return StateSpec(key.removeprefix(PREFIX), str(entry["input"]), str(entry["output"]), initial)
    except (ValueError, KeyError, TypeError, OverflowError, binascii.Error):
        raise UnsupportedModelError(
            f"{where}: the metadata entry {key!r} is broken; it names input, output, shape, dtype "
            f"({', '.join(DTYPES)}) and initial value of a state"
        ) from None
