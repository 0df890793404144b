"""Models and data as the user names them: a fingerprint at once, the content when a stage asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.model import INDEX_TYPES, Model, TensorSpec, takes_sequences
from edgescale.core.variant import Variant
from edgescale.runtime.views import View

RANDOM_SAMPLES = 16


class ModelSource:
    """A model file. Raises UsageError where it does not exist."""

    def __init__(self, path: Path, name: str = "") -> None:
        """`name`: of the model, where the file is not called after it."""
        from edgescale.frontend.fingerprint import model_fingerprint

        self.path = path
        self._name = name
        self.fingerprint = model_fingerprint(path)

    @cached_property
    def model(self) -> Model:
        """The checked, cleaned graph. Raises UnsupportedModelError."""
        if self.path.suffix == ".pt2":
            from edgescale.finetune.exported import load_exported

            return load_exported(self.path, self.fingerprint)
        from edgescale.frontend import load_model

        model = load_model(self.path)
        return replace(model, name=self._name) if self._name else model


@dataclass(frozen=True)
class LoadedModel:
    """What is known of a model once it was checked: its starting variant and its ports."""

    source: ModelSource
    variant: Variant
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    quantized: bool

    def only_input(self) -> TensorSpec:
        """The model's input. Raises UsageError for models with several."""
        if len(self.inputs) != 1:
            names = ", ".join(spec.name for spec in self.inputs)
            raise UsageError(f"{self.variant.model} has {len(self.inputs)} inputs ({names}); one is supported here")
        return self.inputs[0]

    @property
    def sequence(self) -> bool:
        """Whether the model takes more than one float input of fixed shape (see `core.model.takes_sequences`)."""
        return takes_sequences(self.inputs)


@dataclass(frozen=True)
class Samples:
    """A dataset to be checked against one model's inputs."""

    source: DataSource
    specs: tuple[TensorSpec, ...]

    @property
    def fingerprint(self) -> str:
        """Identifies the samples as this model sees them."""
        if len(self.specs) == 1:
            return f"{self.source.fingerprint}:{self.specs[0].dtype}:{self.specs[0].shape}"
        ports = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in self.specs)
        return f"{self.source.fingerprint}:{ports}"

    def load(self) -> Dataset:
        """Decode and check. Raises UsageError."""
        return self.source.load(self.specs)


@dataclass(frozen=True)
class DataSource:
    """A dataset specification: .npz, a folder of .npy, or package.module:function."""

    spec: str
    _decoded: dict[tuple[TensorSpec, ...], Dataset] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the source's bytes. Raises UsageError where there is no such data."""
        from edgescale.frontend.fingerprint import dataset_fingerprint

        return dataset_fingerprint(self.spec)

    def for_model(self, loaded: LoadedModel) -> Samples:
        """These samples for one model."""
        return Samples(self, loaded.inputs)

    def load(self, specs: tuple[TensorSpec, ...]) -> Dataset:
        """Decode once for each set of inputs and check against it. Raises UsageError."""
        if specs not in self._decoded:
            self._decoded[specs] = self._decode(specs)
        return self._decoded[specs]

    def _decode(self, specs: tuple[TensorSpec, ...]) -> Dataset:
        from edgescale.frontend import load_dataset

        return load_dataset(self.spec, specs)


@dataclass(frozen=True)
class ViewedSource(DataSource):
    """A view of every sample of a dataset, for models of one image."""

    view: View = field(kw_only=True)

    @cached_property
    def fingerprint(self) -> str:
        return f"{DataSource(self.spec).fingerprint}:{self.view.text}"

    def _decode(self, specs: tuple[TensorSpec, ...]) -> Dataset:
        if len(specs) != 1:
            raise UsageError(f"views are of the one image a model takes; this one has {len(specs)} inputs")
        data = DataSource(self.spec).load(specs)
        return replace(data, x=self.view.apply(data.x, specs[0].shape[1:]), sha256=f"{data.sha256}:{self.view.text}")


@dataclass(frozen=True)
class RandomSource(DataSource):
    """Seeded inputs for cost where the user gave no data; never to judge quality.

    Floats are normal, 8-bit integers uniform, and what is looked up or compared (token ids, masks) 0 or 1. Raises
    UsageError for an input of any length: its cost is that of a length, which only data knows.
    """

    @cached_property
    def fingerprint(self) -> str:
        return f"random:{RANDOM_SAMPLES}"

    def _decode(self, specs: tuple[TensorSpec, ...]) -> Dataset:
        random = np.random.default_rng(0)
        arrays = {spec.name: self._draw(spec, random) for spec in specs}
        first, *others = arrays
        more = {name: arrays[name] for name in others}
        return Dataset("random", arrays[first], None, self.fingerprint, more, first)

    @staticmethod
    def _draw(spec: TensorSpec, random: np.random.Generator) -> npt.NDArray[np.generic]:
        if not spec.static:
            raise UsageError(
                f"the input {spec.name!r} takes any length ({list(spec.shape)}, -1 for any): give --eval or --calib, "
                "whose samples say which to measure"
            )
        shape = (RANDOM_SAMPLES, *spec.shape[1:])
        if spec.dtype in INDEX_TYPES:
            return random.integers(0, 2, shape).astype(spec.dtype)
        if np.dtype(spec.dtype).kind in "iu":
            limits = np.iinfo(spec.dtype)
            return random.integers(limits.min, limits.max, shape, np.dtype(spec.dtype), endpoint=True)
        return random.standard_normal(shape).astype(spec.dtype)
