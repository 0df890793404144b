"""Evaluation metrics: from a model's outputs, labels and the float model's outputs to one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.frontend.datasets import load_function
from edgescale.frontend.fingerprint import is_function_spec

Array = npt.NDArray[np.generic]
MetricFunction = Callable[[Array, Array | None, Array | None], float]


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    `function(outputs, labels, reference_outputs) -> float`: outputs [count, ...] float32; labels
    [count, ...] (not None where `needs_labels`); reference_outputs the float model's outputs, of the
    outputs' shape (not None where `needs_reference`).
    """

    name: str
    higher_is_better: bool
    needs_labels: bool
    function: MetricFunction
    needs_reference: bool = False

    def __call__(self, outputs: Array, labels: Array | None = None, reference_outputs: Array | None = None) -> float:
        """Evaluate. Raises UsageError where labels or outputs do not fit the metric, or the result is no number."""
        if self.needs_labels and labels is None:
            raise UsageError(f"metric {self.name} needs labels; the dataset has none")
        if self.needs_reference and reference_outputs is None:
            raise UsageError(f"metric {self.name} compares with the float model's outputs, which are missing")
        if len(outputs) == 0:
            raise UsageError(f"metric {self.name}: there are no outputs")
        if labels is not None and len(labels) != len(outputs):
            raise UsageError(f"metric {self.name}: {len(labels)} labels for {len(outputs)} outputs")
        return self.function(outputs, labels, reference_outputs)


def load_metric(spec: str) -> Metric:
    """A metric by name, or a function of yours as `package.module:function`.

    - top1, top5: share of samples whose label is the (one of the five) largest output(s); ties go to the
      lower index.
    - auc: area under the ROC curve of a score against 0/1 labels; the output is one score a sample, or
      two classes (their difference is the score). Reconstruction models: score them with a function.
    - mse: mean squared difference to y where y has the outputs' size (lower is better).
    - cosine: mean cosine similarity to the float model's outputs; needs no labels.
    - `package.module:function`: called with (outputs, labels, reference_outputs); larger is better unless it
      has an attribute `higher_is_better = False`; labels may be missing where `needs_labels = False`.

    Raises UsageError for an unknown name or a function that cannot be imported.
    """
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]
    if not is_function_spec(spec):
        known = ", ".join(_BUILT_IN)
        hint = " (give a function in it as module:function)" if Path(spec).suffix == ".py" else ""
        raise UsageError(f"unknown metric {spec!r}; known: {known}; or package.module:function{hint}")
    function = load_function(spec, "metric")

    def call(outputs: Array, labels: Array | None, reference: Array | None) -> float:
        try:
            value = float(function(outputs, labels, reference))
        except Exception as error:
            raise UsageError(f"metric {spec} raised {type(error).__name__}: {error}") from error
        if not np.isfinite(value):
            raise UsageError(f"metric {spec} returned {value}, which is no finite number")
        return value

    return Metric(
        spec,
        bool(getattr(function, "higher_is_better", True)),
        bool(getattr(function, "needs_labels", True)),
        call,
        bool(getattr(function, "needs_reference", False)),
    )


def _class_labels(labels: Any, count: int, classes: int, name: str) -> npt.NDArray[np.int64]:
    """Class indices as int64 [count]; one-hot rows are accepted."""
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == classes and classes > 1 and _is_one_hot(array):
        return np.asarray(array.argmax(axis=1), np.int64)
    flat = array.reshape(count, -1)
    if flat.shape[1] != 1:
        raise UsageError(
            f"metric {name}: labels have the shape {list(array.shape)}; one class index a sample is needed"
        )
    indices = flat[:, 0]
    if (indices != np.floor(indices)).any():
        raise UsageError(
            f"metric {name}: labels must be whole numbers, found {indices[indices != np.floor(indices)][0]}"
        )
    if indices.min() < 0 or indices.max() >= classes:
        raise UsageError(
            f"metric {name}: labels range from {indices.min()} to {indices.max()}, the model has {classes} outputs "
            f"(classes 0 to {classes - 1})"
        )
    return indices.astype(np.int64)


def _is_one_hot(array: Array) -> bool:
    return bool((np.isin(array, (0, 1)).all()) and (np.asarray(array, np.int64).sum(axis=1) == 1).all())


def _top(k: int) -> MetricFunction:
    def top(outputs: Array, labels: Array | None, reference: Array | None) -> float:
        scores = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
        if scores.shape[1] < 2:
            raise UsageError(f"metric top{k} needs one output a class; the model has {scores.shape[1]} output value")
        if k > 1 and scores.shape[1] <= k:
            raise UsageError(f"metric top{k} says nothing with {scores.shape[1]} classes; use top1")
        wanted = _class_labels(labels, len(scores), scores.shape[1], f"top{k}")
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return float((ranked == wanted[:, None]).any(axis=1).mean())

    return top


def _auc(outputs: Array, labels: Array | None, reference: Array | None) -> float:
    """Mann-Whitney statistic with mid-ranks: the chance that a positive scores above a negative, ties half."""
    flat = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    if flat.shape[1] > 2:
        raise UsageError(
            f"metric auc needs one score a sample (or two classes); the model gives {flat.shape[1]} values. "
            "For a reconstruction model write the score as package.module:function"
        )
    score = flat[:, 0] if flat.shape[1] == 1 else flat[:, 1] - flat[:, 0]
    wanted = _class_labels(labels, len(flat), 2, "auc") == 1
    positive, negative = int(wanted.sum()), int((~wanted).sum())
    if not positive or not negative:
        raise UsageError("metric auc needs labels of both classes, 0 and 1")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[wanted].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _mse(outputs: Array, labels: Array | None, reference: Array | None) -> float:
    found, wanted = np.asarray(outputs, np.float64), np.asarray(labels, np.float64)
    if found.size != wanted.size:
        raise UsageError(
            f"metric mse: outputs have the shape {list(found.shape)}, labels {list(wanted.shape)}; they must agree"
        )
    return float(np.mean((found.reshape(-1) - wanted.reshape(-1)) ** 2))


def _cosine(outputs: Array, labels: Array | None, reference: Array | None) -> float:
    """Mean over samples; two zero vectors agree (1), a zero against another vector does not (0)."""
    found = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    wanted = np.asarray(reference, np.float64)
    if wanted.size != found.size or len(wanted) != len(found):
        raise UsageError(f"metric cosine: {list(found.shape)} outputs against {list(wanted.shape)} of the float model")
    wanted = wanted.reshape(found.shape)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    both_zero = ~found.any(axis=1) & ~wanted.any(axis=1)
    dots = (found * wanted).sum(axis=1)
    cosines = np.divide(dots, norms, out=np.where(both_zero, 1.0, 0.0), where=norms > 0)
    return float(cosines.mean())


_BUILT_IN: dict[str, Metric] = {
    "top1": Metric("top1", True, True, _top(1)),
    "top5": Metric("top5", True, True, _top(5)),
    "auc": Metric("auc", True, True, _auc),
    "mse": Metric("mse", False, True, _mse),
    "cosine": Metric("cosine", True, False, _cosine, needs_reference=True),
}
METRICS: tuple[str, ...] = tuple(_BUILT_IN)
"""Names that `load_metric` knows."""
