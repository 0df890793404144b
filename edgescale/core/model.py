"""A model as the pipeline holds it: an onnx_ir graph with a name and a hash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir


PORTS_AS_GIVEN = ("edgescale.ports", "as given")
"""Entry of a graph's metadata: inputs and outputs are to be stored in the order of their own axes, since the
format the model came from is channels-last already. Without it, images at the ports are taken as channels-first."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, static shape (batch fixed to 1) and NumPy dtype name of a graph input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Model:
    """A checked, cleaned ONNX graph.

    `inputs` and `outputs` are what a user feeds and gets; pairs of them that hold state from one inference to the
    next are named in the graph's metadata instead (`core.state`). `name` is a C identifier taken from the file's
    stem; `sha256` is the hash of the source bytes (external data included). Transformations build a new Model; nobody
    edits `ir` of another's.
    """

    name: str
    ir: onnx_ir.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sha256: str
    quantized: bool
    """Whether the graph already holds QuantizeLinear/DequantizeLinear nodes."""
