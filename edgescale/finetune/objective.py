"""What training minimises: distance to the float model's answers and inner activations, and the labels' loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.nn import functional

from edgescale.core.errors import UsageError
from edgescale.finetune.graph import TorchGraph
from edgescale.finetune.settings import Settings
from edgescale.frontend.graph import int_attribute, is_op, shape_of

Tensor = Any
Array = npt.NDArray[np.generic]

MOST_FEATURES = 8
MOST_ANSWERS = 1 << 24
"""Numbers up to which the teacher's answers to all samples are kept, so that it runs once."""


class Objective:
    """loss(x, y) of the student on a batch; y None without labels.

    The answer is the graph's first output, or what its closing Softmax reads. Answers of two columns or more are
    compared by KL divergence, class labels by cross-entropy; numbers as labels, and answers of one column, by squared
    error. Inner activations are compared with those of the same names in `inner` (default: the teacher), where it has
    them in the same shape; `kept` {value: channels of it that the student still has} picks them from one that has
    more. Raises UsageError for labels that fit neither.
    """

    def __init__(
        self,
        teacher: TorchGraph,
        student: TorchGraph,
        labels: Array | None,
        settings: Settings,
        inner: TorchGraph | None = None,
        kept: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._teacher, self._student, self._settings = teacher, student, settings
        self._inner = inner or teacher
        self._answers: Tensor | None = None
        self._output = student.model.graph.outputs[0]
        shape = shape_of(self._output) or (1,)
        self._answer, self._goal = _answer(student), _answer(teacher)
        self._columns = int(np.prod(shape[1:]))
        self._classes = shape[-1] if self._columns == shape[-1] else 0
        self.targets = None if labels is None else self._checked(labels)
        every = _comparable(student, self._inner, kept or {}) if settings.features else {}
        values = list(every)
        count = min(MOST_FEATURES, len(values))
        spread = [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]
        self._features = {value: every[value] for value in spread}

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

    def remember(self, x: Tensor, batch: int) -> None:
        """Have the teacher answer all samples x now, where nothing else of it is compared and there is room.

        Batches are then named by their places in x.
        """
        alone = self._inner is not self._teacher or not self._features
        if not alone or len(x) * self._columns > MOST_ANSWERS:
            return
        with torch.no_grad():
            self._answers = torch.cat([self._taught(x[i : i + batch], ())[0] for i in range(0, len(x), batch)])

    def _taught(self, x: Tensor, features: Sequence[ir.Value]) -> tuple[Tensor, dict[ir.Value, Tensor]]:
        """The teacher's answers, and its inner activations by the student's values."""
        found = self._teacher(x, [self._goal, *(_twin(self._teacher, value) for value in features)])
        return found[self._goal], {v: found[_twin(self._teacher, v)] for v in features}

    def __call__(self, x: Tensor, y: Tensor | None, at: Tensor | slice | None = None) -> Tensor:
        """Mean loss of a batch, a scalar with gradients; `at`: its places among the samples of `remember`."""
        features = list(self._features)
        with torch.no_grad():
            if self._inner is self._teacher and features:
                target, inner = self._taught(x, features)
            else:
                known = self._answers
                target = self._taught(x, ())[0] if known is None or at is None else known[at]
                other = self._inner(x, [_twin(self._inner, v) for v in features]) if features else {}
                inner = {v: other[_twin(self._inner, v)] for v in features}
        made = self._student(x, [self._answer, self._output, *features])
        answer = made[self._answer]
        taught = self._distance(answer, target)
        loss = taught
        if y is not None:
            told = functional.cross_entropy(answer.flatten(1), y) if y.dtype == torch.int64 else None
            if told is None:
                told = _relative(made[self._output].flatten(1), y)
            loss = (1 - self._settings.labels) * taught + self._settings.labels * told
        if features:
            errors = [_relative(made[value], pick(inner[value])) for value, pick in self._features.items()]
            loss = loss + self._settings.features * torch.stack(errors).mean()
        return loss

    def _distance(self, answer: Tensor, target: Tensor) -> Tensor:
        if self._classes < 2:
            return _relative(answer, target)
        one, other = (functional.log_softmax(v.flatten(0, -2), -1) for v in (answer, target))
        return functional.kl_div(one, other, reduction="batchmean", log_target=True)


def _answer(net: TorchGraph) -> ir.Value:
    """The first output, or what a Softmax along its last axis that closes the graph reads."""
    output = net.model.graph.outputs[0]
    last, shape = output.producer(), shape_of(output) or (1,)
    closing = last if is_op(last, "Softmax") and _axis(last, shape) == len(shape) - 1 else None
    return output if closing is None or closing.inputs[0] is None else closing.inputs[0]


def _twin(net: TorchGraph, value: ir.Value) -> ir.Value:
    """The value of the same name in another net."""
    return net.twins[str(value.name)]


def _comparable(
    student: TorchGraph, inner: TorchGraph, kept: Mapping[str, Sequence[int]]
) -> dict[ir.Value, Callable[[Tensor], Tensor]]:
    """{inner activation of the student: how that of the other net, [B, ...], becomes one of the same shape}."""
    found: dict[ir.Value, Callable[[Tensor], Tensor]] = {}
    for node, value in student.inner():
        twin = inner.twins.get(str(value.name))
        own, other = shape_of(value), shape_of(twin)
        if own is None or other is None or value.is_graph_output():
            continue
        axis = 1 if node.op_type == "Conv" else len(own) - 1
        channels = kept.get(str(node.name))
        if own == other:
            found.setdefault(value, _whole)
        elif channels is not None and (*other[:axis], len(channels), *other[axis + 1 :]) == own:
            index = torch.tensor(channels, dtype=torch.int64)
            found.setdefault(value, partial(torch.index_select, dim=axis, index=index))
    return found


def _whole(value: Tensor) -> Tensor:
    return value


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error relative to the wanted values' power."""
    return functional.mse_loss(found, wanted) / (wanted.square().mean() + 1e-12)


def _axis(node: ir.Node | None, shape: Sequence[int]) -> int:
    return -1 if node is None else int_attribute(node, "axis", -1) % len(shape)
