"""Models and data as the user names them: a fingerprint at once, the content when a stage asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.model import Model, TensorSpec
from edgescale.core.variant import Variant

RANDOM_SAMPLES = 16


class ModelSource:
    """A model file. Raises UsageError where it does not exist."""

    def __init__(self, path: Path) -> None:
        from edgescale.frontend.fingerprint import model_fingerprint

        self.path = path
        self.fingerprint = model_fingerprint(path)

    @cached_property
    def model(self) -> Model:
        """The checked, cleaned graph. Raises UnsupportedModelError."""
        if self.path.suffix == ".pt2":
            from edgescale.finetune.exported import load_exported

            return load_exported(self.path, self.fingerprint)
        from edgescale.frontend import load_model

        return load_model(self.path)


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
            raise UsageError(f"{self.variant.model} has {len(self.inputs)} inputs ({names}); one is supported so far")
        return self.inputs[0]


@dataclass(frozen=True)
class Samples:
    """A dataset to be checked against one model's input."""

    source: DataSource
    spec: TensorSpec

    @property
    def fingerprint(self) -> str:
        """Identifies the samples as this model sees them."""
        return f"{self.source.fingerprint}:{self.spec.dtype}:{self.spec.shape}"

    def load(self) -> Dataset:
        """Decode and check. Raises UsageError."""
        return self.source.load(self.spec)


@dataclass(frozen=True)
class DataSource:
    """A dataset specification: .npz, a folder of .npy, or package.module:function."""

    spec: str
    _decoded: dict[TensorSpec, Dataset] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the source's bytes. Raises UsageError where there is no such data."""
        from edgescale.frontend.fingerprint import dataset_fingerprint

        return dataset_fingerprint(self.spec)

    def for_model(self, loaded: LoadedModel) -> Samples:
        """These samples for one model."""
        return Samples(self, loaded.only_input())

    def load(self, spec: TensorSpec) -> Dataset:
        """Decode once for each input specification and check against it. Raises UsageError."""
        if spec not in self._decoded:
            self._decoded[spec] = self._decode(spec)
        return self._decoded[spec]

    def _decode(self, spec: TensorSpec) -> Dataset:
        from edgescale.frontend import load_dataset

        return load_dataset(self.spec, spec)


@dataclass(frozen=True)
class RandomSource(DataSource):
    """Seeded inputs, normal or (integers) uniform, for cost where the user gave no data; never to judge quality."""

    @cached_property
    def fingerprint(self) -> str:
        return f"random:{RANDOM_SAMPLES}"

    def _decode(self, spec: TensorSpec) -> Dataset:
        random, shape = np.random.default_rng(0), (RANDOM_SAMPLES, *spec.shape[1:])
        if np.dtype(spec.dtype).kind in "iu":
            limits = np.iinfo(spec.dtype)
            x = random.integers(limits.min, limits.max, shape, np.dtype(spec.dtype), endpoint=True)
        else:
            x = random.standard_normal(shape).astype(spec.dtype)
        return Dataset("random", x, None, self.fingerprint)
