"""The pipeline's arrows as cached stages: each is one function with typed ends.

Every stage is keyed by the content of its inputs, so the same compile again does no work and an
interrupted one resumes. Models and datasets are decoded only by a stage that has to run.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgescale.backends import get_backend, tunes
from edgescale.compress import CompressStages, Prices
from edgescale.core.errors import UsageError
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.core.measurement import Measurement
from edgescale.core.memory import Memory
from edgescale.core.model import TensorSpec
from edgescale.core.progress import track
from edgescale.core.target import Target
from edgescale.core.variant import Artifact, Recipe, Variant
from edgescale.sources import DataSource, LoadedModel, ModelSource, RandomSource, Samples

AUTOMATIC_METRIC = "auto"
"""The metric chosen by the data: top-1 where there are labels, else cosine to the float model."""

VERIFY_SAMPLES = 4
"""Inputs on which every compile compares a device's output with the reference, bit for bit."""


@dataclass(frozen=True)
class Quality:
    """The evaluation metric of one artifact: `value` by `metric` on `samples` samples."""

    metric: str
    value: float
    higher_is_better: bool
    samples: int


class Stages(CompressStages):
    """The arrows, sharing a store of finished stages and a progress listener."""

    def load(self, source: ModelSource) -> LoadedModel:
        """Check and clean a model; its float (or already quantized) variant starts everything."""

        def build(directory: Path) -> Mapping[str, Any]:
            from edgescale.frontend import save_model
            from edgescale.frontend.graph import stored_bits

            save_model(source.model, directory / "model.onnx")
            model = source.model
            return {
                "name": model.name,
                "quantized": model.quantized,
                "stored_bits": stored_bits(model.ir.graph),
                "inputs": [vars(spec) for spec in model.inputs],
                "outputs": [vars(spec) for spec in model.outputs],
            }

        parts = {"model": source.fingerprint, "stem": source.path.stem}
        stage = self.store.run("load", parts, build)
        recipe = Recipe(*stage.result["stored_bits"]) if stage.result["quantized"] else Recipe()
        path = stage.path / "model.onnx"
        return LoadedModel(
            source,
            Variant(stage.result["name"], recipe, path, sha256_file(path)),
            _specs(stage.result["inputs"]),
            _specs(stage.result["outputs"]),
            stage.result["quantized"],
        )

    def prices(self, loaded: LoadedModel, target: Target, calibration: DataSource | None) -> Prices:
        """What each layer of the int8 model takes on the target, in instructions a multiply-accumulate.

        Raises UsageError for a target whose rig does not count instructions by layer.
        """
        variant = self.compress(loaded, Recipe(8, 8), calibration)
        artifact = self.compile(variant, target, target.backends[0])
        found = self.profile(artifact, target, RandomSource("random").for_model(loaded), 1)
        counts = {
            e.name: (e.metrics["instructions"].value, e.macs) for e in found.layers if "instructions" in e.metrics
        }
        prices = {name: float(count) / macs for name, (count, macs) in counts.items() if macs}
        if not prices:
            raise UsageError(
                f"target {target.name} does not count instructions by layer; a share of them (ch0.5i) is kept for an "
                "emulated one, such as cortex-m4-stm32l4r5"
            )
        return prices

    def compile(
        self, variant: Variant, target: Target, backend_name: str, memory: Memory = "balanced", tune: int = 0
    ) -> Artifact:
        """Have a back end turn a variant into an artifact for a target. tune: candidates to time, where it tunes."""
        backend = get_backend(backend_name)
        extra: dict[str, Any] = {"tune": tune, "progress": self.progress} if tune and tunes(backend) else {}

        def build(directory: Path) -> Mapping[str, Any]:
            artifact = backend.compile(variant, target, directory / "artifact", memory, **extra)
            return {"kind": artifact.kind, "meta": dict(artifact.meta)}

        parts = {
            "variant": [variant.name, variant.sha256],
            "target": target.sha256,
            "backend": [backend.name, backend.version()],
            "memory": memory if backend.plans_memory else "",
            **({"tune": tune} if extra else {}),
        }
        stage = self.store.run("compile", parts, build)
        path = stage.path / "artifact"
        return Artifact(
            variant.name, target.name, backend.name, stage.result["kind"], path, sha256_tree(path), stage.result["meta"]
        )

    def profile(self, artifact: Artifact, target: Target, samples: Samples, count: int) -> Measurement:
        """Measure cost on the target's rig with the first `count` samples."""
        import msgspec

        from edgescale.rigs import get_rig, rig_fingerprint, timed_here

        rig = get_rig(target.rig)

        def build(directory: Path) -> Mapping[str, Any]:
            inputs = samples.load().head(count)
            measurement = rig.measure(artifact, target, inputs, progress=self.progress)
            taken = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            environment = {**measurement.environment, "taken_utc": taken}
            encoded: dict[str, Any] = msgspec.to_builtins(replace(measurement, environment=environment))
            return encoded

        parts = {
            "artifact": artifact.sha256,
            "target": target.sha256,
            "rig": [target.rig, rig_fingerprint(target.rig)],
            "samples": [samples.fingerprint, count],
            # Timings belong to one machine, counts to none.
            "machine": platform.node() if timed_here(target.rig) else "",
        }
        stage = self.store.run("profile", parts, build)
        return msgspec.convert(dict(stage.result), Measurement)

    def outputs(self, artifact: Artifact, target: Target, data: Samples) -> Path:
        """Run every sample through the artifact's own code on this machine; the path of outputs.npy."""

        from edgescale.rigs import local_executor, rig_fingerprint

        def build(directory: Path) -> Mapping[str, Any]:

            self._run_all(local_executor(artifact, target), data, f"evaluate {artifact.variant}", directory)
            return {}

        tools = rig_fingerprint("host" if artifact.kind == "onnx" else target.rig)
        parts = {"artifact": artifact.sha256, "data": data.fingerprint, "tools": tools}
        return self.store.run("outputs", parts, build).path / "outputs.npy"

    def reference_outputs(self, variant: Variant, data: Samples) -> Path:
        """Run every sample through a variant's ONNX graph in ONNX Runtime; the path of outputs.npy."""

        def build(directory: Path) -> Mapping[str, Any]:
            from edgescale.rigs import onnx_executor

            self._run_all(onnx_executor(variant.path), data, f"reference {variant.model}", directory)
            return {}

        parts = {"variant": variant.sha256, "data": data.fingerprint}
        return self.store.run("reference", parts, build).path / "outputs.npy"

    def _run_all(self, execute: Any, data: Samples, label: str, directory: Path) -> None:
        dataset = data.load()
        batches = list(dataset.parts(64))
        outputs = [execute(batch) for batch in track(batches, self.progress, label, len(batches))]
        np.save(directory / "outputs.npy", np.concatenate(outputs))

    def evaluate(self, outputs: Path, reference: Path, data: Samples, metric: str) -> Quality:
        """Score outputs with the metric; `reference` are the float model's outputs on the same data."""

        def build(directory: Path) -> Mapping[str, Any]:
            from edgescale.frontend import load_metric

            dataset = data.load()
            fitting = "cosine" if dataset.y is None else "top1"
            found = load_metric(fitting if metric == AUTOMATIC_METRIC else metric)
            value = found(np.load(outputs), dataset.y, np.load(reference))
            return {
                "metric": found.name,
                "value": float(value),
                "higher_is_better": found.higher_is_better,
                "samples": len(dataset),
            }

        parts = {
            "outputs": sha256_file(outputs),
            "reference": sha256_file(reference),
            "data": data.fingerprint,
            "metric": _metric_fingerprint(metric),
        }
        return Quality(**self.store.run("evaluate", parts, build).result)

    def comparable(self, artifact: Artifact, target: Target) -> bool:
        """Whether the artifact follows the integer contract: its rig then runs samples in stored units."""
        from edgescale.rigs import get_rig

        return artifact.kind != "onnx" and hasattr(get_rig(target.rig), "raw_executor")

    def difference(self, variant: Variant, artifact: Artifact, target: Target, data: Samples) -> Mapping[str, Any]:
        """How far an artifact that is not `comparable` is from the reference; see `edgescale.verify`."""
        from edgescale.rigs import rig_fingerprint

        def build(directory: Path) -> Mapping[str, Any]:
            from edgescale.verify import difference_from_reference

            return difference_from_reference(variant, artifact, target, data.load().head(VERIFY_SAMPLES))

        parts = {
            "variant": variant.sha256,
            "artifact": artifact.sha256,
            "rig": [target.rig, rig_fingerprint(target.rig)],
            "data": data.fingerprint,
        }
        return self.store.run("difference", parts, build).result

    def verify(self, variant: Variant, artifact: Artifact, target: Target, data: Samples) -> Mapping[str, Any]:
        """Compare the target's output with the NumPy reference on a few inputs; see `edgescale.verify`."""

        from edgescale.rigs import rig_fingerprint

        def build(directory: Path) -> Mapping[str, Any]:
            from edgescale.verify import compare_with_reference

            return compare_with_reference(variant, artifact, target, data.load().head(VERIFY_SAMPLES))

        parts = {
            "variant": variant.sha256,
            "artifact": artifact.sha256,
            "target": target.sha256,
            "rig": [target.rig, rig_fingerprint(target.rig)],
            "samples": [data.fingerprint, VERIFY_SAMPLES],
        }
        return self.store.run("verify", parts, build).result


def _specs(entries: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(e["name"], tuple(e["shape"]), e["dtype"]) for e in entries)


def _metric_fingerprint(metric: str) -> str:
    """A built-in metric's name; the source of a user's function."""
    from edgescale.frontend.fingerprint import dataset_fingerprint, is_function_spec

    return dataset_fingerprint(metric) if is_function_spec(metric) else metric
