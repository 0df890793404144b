"""What is made of a model: a recipe, a compressed variant, a compiled artifact."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgescale.core.errors import UsageError

Observer = Literal["minmax", "percentile", "mse", "entropy"]
OBSERVERS: tuple[str, ...] = ("minmax", "percentile", "mse", "entropy")

_RECIPE = re.compile(r"^w(\d+)a(\d+)$")


@dataclass(frozen=True)
class Recipe:
    """How a model is compressed; `str(recipe)` is its short name (`fp32`, `w8a8`)."""

    weight_bits: int = 32
    activation_bits: int = 32
    observer: Observer = "mse"
    percentile: float = 99.99
    """Share of |values| kept by the percentile observer, in percent."""

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weight_bits == 32

    def __str__(self) -> str:
        return "fp32" if self.is_float else f"w{self.weight_bits}a{self.activation_bits}"


def parse_recipe(text: str, observer: Observer = "mse") -> Recipe:
    """`fp32`, `int8` or `w8a8` -> Recipe. Raises UsageError for what is not built yet, never ignores it."""
    cleaned = text.strip().lower()
    if cleaned in ("fp32", "float", "float32"):
        return Recipe()
    if cleaned in ("int8", "w8a8"):
        return Recipe(8, 8, observer)
    if _RECIPE.match(cleaned):
        raise UsageError(f"recipe {text!r}: only fp32 and w8a8 (int8) are implemented")
    raise UsageError(f"unknown recipe {text!r}; known: fp32, w8a8 (also written int8)")


@dataclass(frozen=True)
class Variant:
    """A model under a recipe, as an ONNX file: float, or QDQ where quantized."""

    model: str
    recipe: Recipe
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """`<model>-<recipe>`, unique within a bundle."""
        return f"{self.model}-{self.recipe}"


@dataclass(frozen=True)
class Artifact:
    """What a back end made of a variant for a target.

    `path` is a directory; `sha256` covers every file in it; `kind` tells the rigs how to run it
    ("onnx": `model.onnx` for ONNX Runtime; "c": generated C99). `meta` is JSON-ready and is also
    stored in `path/artifact.json`; its keys are documented by the back end.
    """

    variant: str
    target: str
    backend: str
    kind: Literal["onnx", "c"]
    path: Path
    sha256: str
    meta: Mapping[str, Any] = field(default_factory=dict)
