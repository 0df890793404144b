"""What is made of a model under a recipe: a compressed variant, a compiled artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgescale.core.recipe import OBSERVERS, Observer, Recipe, parse_recipe, with_overrides

__all__ = ["OBSERVERS", "Artifact", "LayerDiagnosis", "Observer", "Recipe", "Variant", "parse_recipe", "with_overrides"]


@dataclass(frozen=True)
class LayerDiagnosis:
    """What quantizing one layer alone does to the model's output.

    name, op: of the node in the model the user gave ("Input": the graph's input); loss: squared error of the output
    relative to its power; share: part of the sum of all layers' losses; changed: share of samples whose answer
    (largest output) changes; causes: what in the data makes it hard; verdict: what to do about it; override: the
    rule to paste behind --override, "" where none is worth it.
    """

    name: str
    op: str
    loss: float
    share: float
    changed: float
    causes: tuple[str, ...]
    verdict: str
    override: str


@dataclass(frozen=True)
class Variant:
    """A model under a recipe, as an ONNX file: float, or QDQ where quantized.

    `diagnosis`: its layers, the one that costs most accuracy first; empty where edgescale did not quantize it.
    """

    model: str
    recipe: Recipe
    path: Path
    sha256: str
    diagnosis: tuple[LayerDiagnosis, ...] = ()

    @property
    def name(self) -> str:
        """`<model>-<recipe>`, unique within a bundle."""
        return f"{self.model}-{self.recipe}"


@dataclass(frozen=True)
class Artifact:
    """What a back end made of a variant for a target.

    `path` is a directory; `sha256` covers every file in it; `kind` tells the rigs how to run it
    ("onnx": `model.onnx` for ONNX Runtime; "c": generated C99; "tvm": a library for TVM's run time; "tflite": a file
    for LiteRT; a back end of another package has a kind of its own, which its rig knows).
    `meta` is JSON-ready and is also stored in `path/artifact.json`; its keys are documented by the back end.
    """

    variant: str
    target: str
    backend: str
    kind: str
    path: Path
    sha256: str
    meta: Mapping[str, Any] = field(default_factory=dict)
