"""What training minimises: distance to the float model's answers and inner activations, and the labels' loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.nn import functional

from edgescale.core.errors import UsageError
from edgescale.finetune.graph import TorchGraph
from edgescale.finetune.network import QuantizedGraph
from edgescale.finetune.settings import Settings
from edgescale.frontend.graph import int_attribute, is_op, shape_of

Tensor = Any
Array = npt.NDArray[np.generic]

MOST_FEATURES = 8


class Objective:
    """loss(student, x, y) on a batch; y None without labels.

    The answer is the graph's first output, or what its closing Softmax reads. Answers of two columns or more are
    compared by KL divergence, class labels by cross-entropy; numbers as labels, and answers of one column, by squared
    error. Raises UsageError for labels that fit neither.
    """

    def __init__(self, teacher: TorchGraph, student: QuantizedGraph, labels: Array | None, settings: Settings) -> None:
        self._teacher, self._student, self._settings = teacher, student, settings
        output = student.model.graph.outputs[0]
        shape = shape_of(output) or (1,)
        self._output = output
        last = output.producer()
        closing = last if is_op(last, "Softmax") and _axis(last, shape) == len(shape) - 1 else None
        self._answer = output if closing is None or closing.inputs[0] is None else closing.inputs[0]
        self._columns = int(np.prod(shape[1:]))
        self._classes = shape[-1] if self._columns == shape[-1] else 0
        self.targets = None if labels is None else self._checked(labels)
        self._features = _features(student)

    def _checked(self, labels: Array) -> Tensor:
        if labels.dtype.kind in "iub" and (labels.ndim == 1 or int(np.prod(labels.shape[1:])) == 1):
            classes = labels.reshape(-1).astype(np.int64)
            if self._classes < 2 or classes.min() < 0 or classes.max() >= self._classes:
                raise UsageError(
                    f"training labels are class indices from {classes.min()} to {classes.max()}, and the model has "
                    f"{self._classes or self._columns} outputs"
                )
            return torch.from_numpy(classes)
        if int(np.prod(labels.shape[1:])) != self._columns:
            raise UsageError(
                f"training labels have the shape {list(labels.shape[1:])} a sample, the model's output has "
                f"{self._columns} values"
            )
        return torch.from_numpy(labels.reshape(len(labels), -1).astype(np.float32))

    def __call__(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Mean loss of a batch, a scalar with gradients."""
        wanted = [self._answer, self._output, *self._features]
        with torch.no_grad():
            goal = self._teacher(x, [self._twin(value) for value in wanted])
        made = self._student(x, wanted)
        answer, target = made[self._answer], goal[self._twin(self._answer)]
        taught = self._distance(answer, target)
        loss = taught
        if y is not None:
            given = functional.cross_entropy(answer.flatten(1), y) if y.dtype == torch.int64 else None
            if given is None:
                given = _relative(made[self._output].flatten(1), y)
            loss = (1 - self._settings.labels) * taught + self._settings.labels * given
        if self._features and self._settings.features:
            inner = [_relative(made[value], goal[self._twin(value)]) for value in self._features]
            loss = loss + self._settings.features * torch.stack(inner).mean()
        return loss

    def _distance(self, answer: Tensor, target: Tensor) -> Tensor:
        if self._classes < 2:
            return _relative(answer, target)
        one, other = (functional.log_softmax(v.flatten(0, -2), -1) for v in (answer, target))
        return functional.kl_div(one, other, reduction="batchmean", log_target=True)

    def _twin(self, value: ir.Value) -> ir.Value:
        """The same value in the float model; both modules run graphs of the same nodes."""
        return self._teacher.twins[str(value.name)]


def _features(student: QuantizedGraph) -> list[ir.Value]:
    """Up to MOST_FEATURES outputs of weighted layers (behind their clamp), evenly spread over the depth."""
    found: dict[ir.Value, None] = {}
    for node in student.layers:
        value = node.outputs[0]
        if value in student.prepared.plan.inner:
            value = next(iter(value.uses())).node.outputs[0]
        if not value.is_graph_output():
            found.setdefault(value)
    values = list(found)
    count = min(MOST_FEATURES, len(values))
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error relative to the wanted values' power."""
    return functional.mse_loss(found, wanted) / (wanted.square().mean() + 1e-12)


def _axis(node: ir.Node | None, shape: Sequence[int]) -> int:
    return -1 if node is None else int_attribute(node, "axis", -1) % len(shape)
