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
    """Name, shape (batch fixed to 1) and NumPy dtype name of a graph input or output.

    -1 stands for a dimension that takes any size, such as the length of a text.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def static(self) -> bool:
        """Whether every dimension is a number."""
        return all(side >= 0 for side in self.shape)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether samples of `shape` (without the batch) fit."""
        wanted = self.shape[1:]
        return len(wanted) == len(shape) and all(w in (-1, s) for w, s in zip(wanted, shape, strict=True))


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

    @property
    def sequence(self) -> bool:
        """Whether the model takes more than one float input of fixed shape (see `takes_sequences`)."""
        return takes_sequences(self.inputs)


INDEX_TYPES = ("int64", "int32", "bool")
"""Element types of inputs that are looked up or compared, not multiplied."""


def takes_sequences(inputs: tuple[TensorSpec, ...]) -> bool:
    """Whether inputs are those of a transformer or the like: several, token ids, masks, caches, any length."""
    return len(inputs) != 1 or not inputs[0].static or inputs[0].dtype in INDEX_TYPES
