"""An ONNX graph as a PyTorch module whose parameters are the graph's float initializers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgescale.core.errors import UnsupportedModelError
from edgescale.finetune.operators import OPERATORS
from edgescale.frontend.graph import (
    DEFAULT_DOMAINS,
    add_initializer,
    constant,
    input_at,
    is_op,
    only_consumer,
    shape_of,
)
from edgescale.quantize.rules import WEIGHTED, weight_axis

Tensor = Any
Array = npt.NDArray[np.generic]

_TRAINED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "Gemm", "LayerNormalization"), (1, 2)),
    **dict.fromkeys(("MatMul", "Add", "Sub", "Mul", "Div"), (0, 1)),
    "Gather": (0,),
}
"""Inputs of operators whose constants are parameters; of Concat all are. Single numbers are not, but as weights."""


class TorchGraph(torch.nn.Module):  # type: ignore[misc]
    """Runs the graph on batches: x [B, *sample shape] float32 -> {value: [B, ...]}.

    The graph has one input of batch 1, static shapes and constant weights (as `frontend.load_model` and
    `quantize.prepare` give it). `names[i]` is the initializer that `weights[i]` came from. Raises UnsupportedModelError
    naming the first node that has no PyTorch form.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self.model = model
        self.nodes = list(model.graph)
        check(self.nodes)
        inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        if len(inputs) != 1 or inputs[0].dtype != ir.DataType.FLOAT:
            raise UnsupportedModelError(f"training takes one float32 input; {model.graph.name or 'this'} has another")
        self.source = inputs[0]
        self.twins: dict[str, ir.Value] = {str(v.name): v for node in self.nodes for v in node.outputs}
        """Every computed value by its name."""
        self.names: list[str] = []
        self.weights = torch.nn.ParameterList()
        self._trained: dict[ir.Value, int] = {}
        self._fixed: dict[ir.Value, Tensor] = {}
        for node in self.nodes:
            for index, value in enumerate(node.inputs):
                array = constant(value)
                if value is not None and array is not None and array.dtype == np.float32:
                    self._register(node, index, value, array)
        # Weights that are parameters by one reader are not constants to another.
        self._fixed = {value: tensor for value, tensor in self._fixed.items() if value not in self._trained}

    def _register(self, node: ir.Node, index: int, value: ir.Value, array: Array) -> None:
        tensor = torch.from_numpy(np.array(array))
        number = array.size == 1 and node.op_type not in WEIGHTED
        if not number and (node.op_type == "Concat" or index in _TRAINED.get(node.op_type, ())):
            if value not in self._trained:
                self._trained[value] = len(self.names)
                self.names.append(str(value.name))
                self.weights.append(torch.nn.Parameter(tensor))
        else:
            self._fixed[value] = tensor

    def parameter_of(self, value: ir.Value | None) -> Tensor | None:
        """The parameter that stands for an initializer, in its shape; None where there is none."""
        return self.weights[self._trained[value]] if value in self._trained else None

    def weight_of(self, node: ir.Node) -> Tensor:
        """The parameter behind the weights of a Conv, Gemm or MatMul."""
        found = self.parameter_of(node.inputs[1])
        if found is None:
            raise ValueError(f"{node.name}: its weights are computed")
        return found

    def weighted(self) -> list[ir.Node]:
        """The Conv, Gemm and MatMul nodes whose weights are parameters, in order."""
        return [n for n in self.nodes if n.op_type in WEIGHTED and self.parameter_of(input_at(n, 1)) is not None]

    def inner(self) -> list[tuple[ir.Node, ir.Value]]:
        """(weighted node, what it gives behind its clamp), first to last."""
        found = []
        for node in self.weighted():
            after = only_consumer(node.outputs[0])
            value = after.outputs[0] if after is not None and is_op(after, "Relu", "Clip") else node.outputs[0]
            found.append((node, value))
        return found

    def trained(self) -> dict[str, Array]:
        """{initializer: its present values, float32}."""
        return {n: w.detach().numpy().copy() for n, w in zip(self.names, self.weights, strict=True)}

    def forward(self, x: Tensor, wanted: Sequence[ir.Value] = ()) -> dict[ir.Value, Tensor]:
        """{value: [B * first axis, ...]} of the graph's outputs and of the values `wanted`."""
        held: dict[ir.Value, Tensor] = {self.source: x.unsqueeze(1)}
        self.begin()
        for node in self.nodes:
            args = [None if v is None else self.operand(node, i, v, held.get(v)) for i, v in enumerate(node.inputs)]
            results = OPERATORS[node.op_type](node, args)
            for value, result in zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=False):
                held[value] = result
        outputs = {value: self.result(value, held[value]) for value in self.model.graph.outputs}
        outputs |= {value: held[value] for value in wanted if value not in outputs}
        return {value: self._rows(found, len(x)) for value, found in outputs.items()}

    @staticmethod
    def _rows(value: Tensor, count: int) -> Tensor:
        value = value.expand(count, *value.shape[1:]) if value.shape[0] != count else value
        return value.flatten(0, 1) if value.dim() > 1 else value

    def begin(self) -> None:
        """Called before each pass."""

    def operand(self, node: ir.Node, index: int, value: ir.Value, found: Tensor | None) -> Tensor | None:
        """What input `index` of a node reads: [B, *shape]; None for integer constants."""
        if found is not None:
            return found
        trained = self.parameter_of(value)
        fixed = trained if trained is not None else self._fixed.get(value)
        return None if fixed is None else fixed.unsqueeze(0)

    def result(self, value: ir.Value, found: Tensor) -> Tensor:
        """What the graph returns of an output."""
        return found


def check(nodes: Sequence[ir.Node]) -> None:
    """Raise UnsupportedModelError, by name, for the first node that has no PyTorch form."""
    for node in nodes:
        if node.domain not in DEFAULT_DOMAINS or node.op_type not in OPERATORS:
            known = ", ".join(sorted(OPERATORS))
            raise UnsupportedModelError(
                f"node {node.name!r} ({node.op_type}) has no PyTorch form here, so the model cannot be trained; "
                f"known operators: {known}"
            )
        if len(node.outputs) > 1 and node.op_type != "Split" and any(v.uses() for v in node.outputs[1:]):
            raise UnsupportedModelError(f"node {node.name!r} ({node.op_type}): training computes its first output only")
        if any(shape_of(value) is None for value in node.outputs if value.uses() or value.is_graph_output()):
            raise UnsupportedModelError(f"node {node.name!r} ({node.op_type}): its output has no static shape")


def give_biases(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """A bias of zeros for every Conv and Gemm of `nodes` without one: training moves what compression shifted."""
    for node in nodes:
        if node.op_type not in ("Conv", "Gemm") or input_at(node, 2) is not None:
            continue
        count = (shape_of(node.inputs[1]) or (0,))[weight_axis(node)]
        bias = add_initializer(graph, f"{node.name}.bias", np.zeros(count, np.float32))
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
