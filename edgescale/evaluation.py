"""How good an artifact is: the evaluation metric and the drop against the float model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgescale.bundle.options import Answers, answers_of
from edgescale.core.errors import UsageError
from edgescale.core.measurement import Measurement
from edgescale.core.quantity import Quantity
from edgescale.core.recipe import Recipe
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.runtime.views import View
from edgescale.sources import DataSource, LoadedModel, RandomSource, ViewedSource
from edgescale.stages import AUTOMATIC_METRIC, Stages

_QUALITY = ("accuracy", "error", "drop")

NO_DATA = "no evaluation data: give --eval (or --calib, to compare with the float model)"


@dataclass(frozen=True)
class Evaluation:
    """The data artifacts are judged and measured on, the metric (None: nothing to judge by), the views declared."""

    data: DataSource
    role: str
    metric: str | None
    views: tuple[View, ...] = ()

    def add_score(
        self, measurement: Measurement, stages: Stages, loaded: LoadedModel, artifact: Artifact, target: Target
    ) -> Measurement:
        """The measurement with `accuracy` (or `error` where smaller is better) and `drop`, over all samples.

        Outputs come from the artifact's own code run on this machine: ONNX Runtime, or the host build
        of the generated C, whose equality with the device is checked apart; of other artifacts on their rig.
        """
        if self.metric is None:
            missing = {"accuracy": NO_DATA, "drop": NO_DATA}
            return replace(measurement, unavailable={**measurement.unavailable, **missing})
        samples = self.data.for_model(loaded)
        reference = stages.reference_outputs(loaded.variant, samples)
        quality = stages.evaluate(stages.outputs(artifact, target, samples), reference, samples, self.metric)
        base = stages.evaluate(reference, reference, samples, self.metric)
        known = {"onnx": "ONNX Runtime", "c": "host build of the same C", "tvm": f"TVM on {target.rig}"}
        how = known.get(artifact.kind, f"rig {target.rig}")
        note = f"{quality.metric} on {quality.samples} {self.role} samples, {how}"
        name, sign = ("accuracy", 1.0) if quality.higher_is_better else ("error", -1.0)
        # 0.858 - 0.848 is 0.010000000000000009: a drop of exactly one point is to meet a limit of one point.
        drop = round(sign * (base.value - quality.value), 12)
        figures = {
            name: Quantity(quality.value, "1", "measured", note),
            "drop": Quantity(drop, "1", "measured", f"against the model as given, {base.value:.4f}; {note}"),
        }
        return replace(
            measurement,
            metrics={**measurement.metrics, **figures},
            environment={**measurement.environment, "metric": quality.metric},
        )

    def counted(self, loaded: LoadedModel) -> int | None:
        """How many samples the metric is a share of; None where it is no share."""
        samples = self.data.for_model(loaded)
        automatic = self.metric == AUTOMATIC_METRIC and samples.load().y is not None
        return len(samples.load()) if automatic or self.metric in ("top1", "top5") else None

    def answers(self, stages: Stages, loaded: LoadedModel, artifact: Artifact, target: Target) -> Answers | None:
        """A classifier's answer on each sample, where the metric is top-1; None elsewhere."""
        samples = self.data.for_model(loaded)
        if self.metric not in (AUTOMATIC_METRIC, "top1") or (labels := samples.load().y) is None:
            return None
        viewed = []
        if artifact.kind == "onnx":  # elsewhere it is the firmware that would have to make the views
            for view in self.views:
                changed = ViewedSource(self.data.spec, view=view).for_model(loaded)
                viewed.append(np.load(stages.outputs(artifact, target, changed)))
        return answers_of(np.load(stages.outputs(artifact, target, samples)), np.asarray(labels), viewed)


def without_cost(measurement: Measurement, recipe: Recipe) -> Measurement:
    """The measurement of a simulated recipe with its quality alone: what it cost is the cost of float stand-ins."""
    if recipe.simulated is None:
        return measurement
    kept = {name: figure for name, figure in measurement.metrics.items() if name in _QUALITY}
    reason = f"simulated: {recipe.simulated}"
    missing = {name: reason for name in measurement.metrics if name not in _QUALITY}
    unavailable = {**measurement.unavailable, **missing}
    return replace(measurement, metrics=kept, layers=(), unavailable=unavailable)


def evaluation_of(
    evaluation: str | None, calibration: DataSource | None, metric: str | None, views: tuple[View, ...] = ()
) -> Evaluation:
    """Judge on the evaluation data; without it by cosine on the calibration data; without either, not at all.

    Raises UsageError for views without labelled data that show what they are worth.
    """
    if views and (not evaluation or metric not in (None, AUTOMATIC_METRIC, "top1")):
        raise UsageError(
            "views are offered where they pay in top-1 accuracy: give --eval with labels, and no other metric"
        )
    if evaluation:
        return Evaluation(DataSource(evaluation), "evaluation", metric or AUTOMATIC_METRIC, views)
    if calibration:
        if metric not in (None, "cosine", "mse"):
            raise UsageError(f"metric {metric!r} needs labelled data: give --eval")
        return Evaluation(calibration, "calibration", metric or "cosine")
    if metric:
        raise UsageError(f"metric {metric!r} needs data: give --eval")
    return Evaluation(RandomSource("random"), "random", None)
