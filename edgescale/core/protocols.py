"""The two plug-in points: a back end makes artifacts, a rig runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset
from edgescale.core.measurement import Measurement
from edgescale.core.memory import Memory
from edgescale.core.model import Model
from edgescale.core.target import Target
from edgescale.core.variant import Artifact, Variant

Executor = Callable[[Any], npt.NDArray[np.float32]]
"""Samples (`core.dataset.Fed`: [n, *sample_shape] as the original model takes it, or, where the rig runs models of
several inputs, one such array each) -> first output, [n, *output_shape], as real values in float32 (a quantized
output dequantized)."""


class Backend(Protocol):
    """A compiler, found through the entry-point group `edgescale.compilers`.

    One that leaves some operators to another processor may also have `notes(model, target) -> list[str]`: a sentence
    for each, which `edgescale analyze` prints. Sentences under the key `notes` of an artifact's `meta` are printed by
    `edgescale compile`. One with an attribute `tunes` that is true has a `compile` that also takes `tune`, how many
    candidates to time on the target, and `progress`.
    """

    name: str
    plans_memory: bool
    """Whether the memory mode shapes what it makes; otherwise its run time plans memory itself."""

    def version(self) -> str:
        """Version of the back end and of the tools that shape its output (part of the cache key)."""

    def missing(self) -> str | None:
        """None when ready, else the command that installs what is missing."""

    def operators(self) -> list[tuple[str, str]]:
        """Supported ONNX operators with the rule each must meet, for `edgescale ops`."""

    def check(self, model: Model) -> list[str]:
        """Why the model cannot be executed, one sentence a node (name, rule, value); empty when it can."""

    def compile(self, variant: Variant, target: Target, out: Path, memory: Memory = "balanced") -> Artifact:
        """Fill the empty directory `out` and describe it.

        Raises UnsupportedModelError naming node, rule and value; InfeasibleError is not for back ends.
        """


class Rig(Protocol):
    """A place where artifacts run: `host`, `emulator`."""

    name: str

    def missing(self) -> str | None:
        """None when ready, else the command that installs what is missing."""

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Measure cost on a few samples. Raises RigError."""

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """A function that runs samples through the artifact on this rig, for accuracy and equality checks."""
