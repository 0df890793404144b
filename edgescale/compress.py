"""The line's stages that change a model's numbers: sparsity, recovery from it, quantization, training."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any

from edgescale.cache import Stage, StageStore, code_fingerprint
from edgescale.core.errors import UsageError
from edgescale.core.files import sha256_file
from edgescale.core.progress import SILENT, Progress
from edgescale.core.variant import LayerDiagnosis, Recipe, Variant
from edgescale.finetune.settings import Settings
from edgescale.sources import DataSource, LoadedModel, ModelSource

CALIBRATED = 256
"""Training samples that activation ranges are taken from where no calibration data is given."""

Prices = Mapping[str, float]
"""{node: instructions of one of its multiply-accumulates on a target}."""


@dataclass(frozen=True)
class Training:
    """What recipes that train are given: the data, with labels or without, and how to use it."""

    data: DataSource
    settings: Settings


class CompressStages:
    """Cached stages from a loaded float model to a variant, sharing a store and a progress listener."""

    def __init__(self, store: StageStore, progress: Progress = SILENT) -> None:
        self.store = store
        self.progress = progress

    def compress(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        calibration: DataSource | None,
        training: Training | None = None,
        prices: Prices | None = None,
    ) -> Variant:
        """Apply `recipe`: sparsity, then the numbers' formats; recipes that train need `training`, those that keep a
        share of a target's instructions what each layer takes of them (`Stages.prices`).

        A model that arrives quantized is taken as it is.
        """
        if loaded.quantized:
            return loaded.variant
        dense = loaded
        kept: Mapping[str, Any] = {}
        if recipe.sparsity and recipe.recovery != "gmp":
            loaded, kept = self._sparsify(loaded, recipe, calibration, prices)
        if recipe.recovery:
            loaded = self._recover(dense, loaded, kept, recipe, calibration, training, prices)
        if recipe.is_float:
            return replace(loaded.variant, recipe=recipe)
        if recipe.trained:
            return self._train(loaded, recipe, calibration, training, None if loaded is dense else dense)
        if calibration is None and not (loaded.sequence and recipe.data_free):
            raise UsageError(f"recipe {recipe} needs calibration data: give --calib")
        samples = calibration.for_model(loaded) if calibration is not None else None

        def build(directory: Path) -> Mapping[str, Any]:
            from edgescale.frontend import model_from_ir, save_model
            from edgescale.quantize import quantize_and_explain
            from edgescale.quantize.targets import activation_kind

            model = loaded.source.model
            kind = activation_kind()
            data = samples.load() if samples is not None else None
            graph, layers = quantize_and_explain(model, data, recipe, self.progress, activations=kind)
            save_model(model_from_ir(graph, model.name, model.sha256), directory / "model.onnx")
            return {"diagnosis": [asdict(layer) for layer in layers]}

        parts = {
            "model": loaded.variant.sha256,
            "recipe": repr(recipe),
            "calibration": samples.fingerprint if samples is not None else "",
            "machine": platform.machine(),  # decides how activations are stored
        }
        stage = self.store.run("compress", parts, build)
        path = stage.path / "model.onnx"
        layers = tuple(
            LayerDiagnosis(**{**layer, "causes": tuple(layer["causes"])}) for layer in stage.result["diagnosis"]
        )
        return Variant(loaded.variant.model, recipe, path, sha256_file(path), layers)

    def _sparsify(
        self, loaded: LoadedModel, recipe: Recipe, calibration: DataSource | None, prices: Prices | None
    ) -> tuple[LoadedModel, Mapping[str, Any]]:
        """The float model with the recipe's channels and weights taken out, and which channels of each layer are left
        ({node: indices}, empty where none went)."""
        if calibration is None:
            raise UsageError(f"recipe {recipe} needs calibration data: give --calib")
        samples = calibration.for_model(loaded)

        def build(directory: Path) -> Mapping[str, Any]:
            from edgescale.frontend import save_model
            from edgescale.sparsify import sparsify

            made, report = sparsify(loaded.source.model, samples.load(), recipe.sparsity, self.progress, prices)
            save_model(made, directory / "model.onnx")
            return report

        parts = {
            "model": loaded.variant.sha256,
            "sparsity": [str(part) for part in recipe.sparsity],
            "calibration": samples.fingerprint,
            "prices": prices,
        }
        stage = self.store.run("sparsify", parts, build)
        return _changed(loaded, stage.path / "model.onnx"), stage.result.get("kept", {})

    def _recover(
        self,
        dense: LoadedModel,
        pruned: LoadedModel,
        kept: Mapping[str, Any],
        recipe: Recipe,
        calibration: DataSource | None,
        training: Training | None,
        prices: Prices | None,
    ) -> LoadedModel:
        """The pruned float model (for `gmp`: the one that will be) trained towards the dense one's answers.

        kept: channels left of each layer, for the comparison of inner activations.
        """
        chosen = _needed(training, recipe)
        if calibration is None:
            raise UsageError(f"recipe {recipe} needs calibration data: give --calib")
        samples, observed = chosen.data.for_model(dense), calibration.for_model(dense)

        def build(directory: Path, folder: Path) -> Mapping[str, Any]:
            from edgescale.finetune.recover import prune_and_recover, recover
            from edgescale.frontend import save_model

            teacher, data = dense.source.model, samples.load()
            zeros = next((part for part in recipe.sparsity if part.pattern != "channels"), None)
            found: Mapping[str, Any] = {}
            if recipe.recovery == "gmp":
                made, found = prune_and_recover(
                    teacher, observed.load(), data, recipe.sparsity, chosen.settings, self.progress,
                    prices=prices, folder=folder,
                )  # fmt: skip
            else:
                made = recover(
                    teacher, pruned.source.model, data, chosen.settings, self.progress,
                    zeros=zeros, method=recipe.recovery, kept=kept, keep=folder / "run.pt",
                )  # fmt: skip
            save_model(made, directory / "model.onnx")
            return found

        parts = {
            "models": [dense.variant.sha256, pruned.variant.sha256],
            "sparsity": [str(part) for part in recipe.sparsity],
            "method": recipe.recovery,
            "prices": prices,
            "calibration": observed.fingerprint,
            "training": samples.fingerprint,
            "settings": asdict(chosen.settings),
        }
        return _changed(dense, self._long("recover", parts, build).path / "model.onnx")

    def _train(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        calibration: DataSource | None,
        training: Training | None,
        dense: LoadedModel | None,
    ) -> Variant:
        """Quantization-aware training towards the answers of `dense`, None where the model is dense itself."""
        chosen = _needed(training, recipe)
        samples = chosen.data.for_model(loaded)
        ranges = (calibration or chosen.data).for_model(loaded)

        def build(directory: Path, folder: Path) -> Mapping[str, Any]:
            from edgescale.finetune.train import train
            from edgescale.frontend import model_from_ir, save_model
            from edgescale.quantize.targets import activation_kind

            model, kind = loaded.source.model, activation_kind()
            observed = ranges.load() if calibration is not None else ranges.load().head(CALIBRATED)
            graph = train(
                model, observed, samples.load(), recipe, chosen.settings, self.progress, activations=kind,
                teacher=None if dense is None else dense.source.model, keep=folder / "run.pt",
            )  # fmt: skip
            save_model(model_from_ir(graph, model.name, model.sha256), directory / "model.onnx")
            return {}

        parts = {
            "model": loaded.variant.sha256,
            "teacher": "" if dense is None else dense.variant.sha256,
            "recipe": repr(recipe),
            "calibration": [ranges.fingerprint, calibration is None],
            "training": samples.fingerprint,
            "settings": asdict(chosen.settings),
            "machine": platform.machine(),
        }
        path = self._long("train", parts, build).path / "model.onnx"
        return Variant(loaded.variant.model, recipe, path, sha256_file(path))

    def _long(self, name: str, parts: Mapping[str, Any], build: Callable[[Path, Path], Mapping[str, Any]]) -> Stage:
        """A stage that trains: build(directory, folder), where an interrupted one finds in `folder` what it left."""
        run = sha256(json.dumps([code_fingerprint(), name, parts], sort_keys=True).encode()).hexdigest()
        folder = self.store.root / "training" / run[:40]  # among the stages, so that it is trimmed as they are

        def resumed(directory: Path) -> Mapping[str, Any]:
            if not self.store.enabled:
                rmtree(folder, ignore_errors=True)
            return build(directory, folder)

        stage = self.store.run(name, parts, resumed)
        rmtree(folder, ignore_errors=True)
        return stage


def _changed(loaded: LoadedModel, path: Path) -> LoadedModel:
    """The same model with what `path` holds for its graph."""
    variant = replace(loaded.variant, path=path, sha256=sha256_file(path))
    return replace(loaded, source=ModelSource(path, loaded.variant.model), variant=variant)


def _needed(training: Training | None, recipe: Recipe) -> Training:
    """What a recipe trains with. Raises UsageError where there is nothing, MissingDependencyError without PyTorch."""
    if training is None:
        raise UsageError(f"recipe {recipe} is trained: give --train with samples x and, where there are some, labels y")
    from edgescale.finetune import need_torch

    need_torch()
    return training
