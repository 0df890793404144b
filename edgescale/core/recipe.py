"""How a model is compressed: a recipe, its short name and the overrides for single layers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Literal

from edgescale.core.errors import UsageError
from edgescale.core.sparsity import Sparsity, check_recovery, parse_sparsities, split_recovery

Observer = Literal["robust", "minmax", "percentile", "mse", "entropy"]
OBSERVERS: tuple[str, ...] = ("robust", "minmax", "percentile", "mse", "entropy")

ROUNDINGS: dict[str, str] = {
    "rtn": "round to nearest",
    "gptq": "column by column, the error of each carried into those that follow (GPTQ)",
    "adaround": "the levels and bias that reproduce the float layer's output from the quantized layer's input",
    "qat": "trained with the rounding in the loop, towards the float model's answers (needs --train)",
}
STEPS: dict[str, str] = {
    "cle": "cross-layer equalization of the weights before they are rounded",
    "smooth": "migration of activation outliers into the weights (SmoothQuant)",
    "bc": "bias correction by the mean output error over the calibration samples",
    "abc": "bias correction by the mean input and the weights' rounding errors (analytic)",
    "qkr": "query and key weights of each attention head multiplied into one matrix before training (with qat)",
    "mse": "weight scales that minimise the squared error instead of covering the largest weight",
    "awq": "input channels scaled up by what their activations weigh, and weights clipped (AWQ)",
    "clip": "each block's range cut to the part that keeps the layer's output best",
    "hadamard": "inputs and weights rotated by blocks of a Hadamard matrix, which spreads outliers",
}
WEIGHT_ONLY_STEPS = frozenset(("awq", "clip", "hadamard"))
"""Steps of MatMul and Gemm whose activations stay float."""
DEFAULT_RANK = 8
"""Rank of the correction that `lorc` adds to each layer."""
SCALE_RULES: dict[str, str] = {
    "m1": "scales rounded up to powers of two",
    "m2": "scales a power of two below the largest of the tensor",
    "pos": "scales above zero, for what reads the file elsewhere and wants them so (weights beside float activations)",
}

FLOAT = 32
SIMULATED = "-simulated"
"""What the names of variants end in that no back end executes as they are."""

DEFAULT_SHARE = 0.62
"""Weight bytes a recipe `auto` may use, as a share of those at 8 bits."""

WeightFormat = Literal["int", "fp4", "fp8", "nf4"]
ActivationFormat = Literal["int", "fp8"]

_WEIGHTS: dict[str, tuple[WeightFormat, int]] = {
    **{str(k): ("int", k) for k in range(2, 9)},
    "fp4": ("fp4", 4),
    "nf4": ("nf4", 4),
    "fp8": ("fp8", 8),
}
_ACTIVATIONS: dict[str, tuple[ActivationFormat, int]] = {
    "8": ("int", 8),
    "16": ("int", 16),
    "32": ("int", FLOAT),
    "fp8": ("fp8", 8),
}
_BASE = re.compile(r"^(?:w(?P<w>fp4|nf4|fp8|\d+)|(?P<plain>fp4|nf4|fp8))(?:a(?P<a>fp8|\d+))?$")
_AUTO = re.compile(r"^auto(?P<share>0?\.\d+|1(?:\.0+)?)?$")
_NAMES = "fp32, w8a8 (int8), w4a8, w8a16, w4a16-g32, w4a8-adaround, w4a8-qat, fp4-g64, auto"


@dataclass(frozen=True)
class Override:
    """Nodes whose name matches `pattern` (shell wildcards) follow `recipe`."""

    pattern: str
    recipe: Recipe


@dataclass(frozen=True)
class Recipe:
    """How a model is compressed; `str(recipe)` is its short name (`fp32`, `w8a8`, `w4a16-g32`).

    A name is `w<weights>a<activations>` and suffixes: weights 2 to 8 (bits of an integer), fp4 (E2M1), fp8
    (E4M3) or nf4; activations 8, 16 (integers), fp8 or, left out, float. Suffixes in any order: `g<n>` one
    scale a group of n input channels, `tensor` one a tensor (default: one an output channel), `asym` with
    zero-points, one of ROUNDINGS, any of STEPS and SCALE_RULES, `lorc` or `lorc<rank>`. `auto` chooses 4 or 8 bits
    for each layer. 16-bit activations beside groups of weights stay float (see `weight_only`).
    Behind a `+`: sparsity (`core.sparsity`), which comes before the numbers' formats, and closing it a recovery
    (`core.sparsity.RECOVERIES`).
    """

    weight_bits: int = FLOAT
    activation_bits: int = FLOAT
    observer: Observer = "robust"
    percentile: float = 99.99
    """Share of |values| kept by the percentile observer, in percent."""
    weight_format: WeightFormat = "int"
    activation_format: ActivationFormat = "int"
    group: int | Literal["tensor"] = 0
    """Input channels that share a scale; 0: all of an output channel's; "tensor": all weights."""
    symmetric: bool = True
    scale_rule: str = ""
    rounding: str = ""
    """One of ROUNDINGS as the user wrote it; see `method` for what applies where nothing was written."""
    steps: tuple[str, ...] = ()
    rank: int = 0
    """Rank of the low-rank correction (LoRC, ZeroQuant-FP) of each MatMul and Gemm; 0: none."""
    share: float | None = None
    """Weight bytes allowed, as a share of those at 8 bits; None: every layer has `weight_bits`."""
    overrides: tuple[Override, ...] = ()
    sparsity: tuple[Sparsity, ...] = ()
    recovery: str = ""
    """How training makes up for sparsity, one of `core.sparsity.RECOVERIES`; "": it does not."""

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized; weights may be sparse."""
        return self.weight_bits == FLOAT and self.activation_bits == FLOAT and not self.overrides

    @property
    def weight_only(self) -> bool:
        """Whether activations stay float: none were asked for, or 16 bits beside weights in groups.

        No integer kernel multiplies int16 activations by weights in groups; what the field calls w4a16 computes with
        the activations as they are.
        """
        own = (isinstance(self.group, int) and self.group > 0) or self.asks_weight_only
        return self.activation_bits == FLOAT or (self.activation_bits == 16 and own)

    @property
    def asks_weight_only(self) -> bool:
        """Whether a part of the name has a meaning for weight-only quantization alone."""
        return bool(self.rank or WEIGHT_ONLY_STEPS & set(self.steps))

    @property
    def signed_scales(self) -> bool:
        """Whether scales beside float activations may be below zero, so that the larger side of a block takes the
        level that only one side has.

        Such weights are multiplied by their scales in float, whatever the sign; integer kernels rescale by factors
        above zero, and so are all scales beside quantized activations.
        """
        one_sided = self.weight_format == "int" and self.weight_bits < 8
        return one_sided and self.symmetric and not self.scale_rule

    @property
    def data_free(self) -> bool:
        """Whether weight-only quantization under this recipe needs no calibration data."""
        return self.rounding in ("", "rtn") and not {"awq", "clip", "bc", "abc"} & set(self.steps)

    @property
    def method(self) -> str:
        """The rounding of weights: as written, else `adaround` for integers below 8 bits, `rtn` for the rest."""
        if self.rounding:
            return self.rounding
        few = self.weight_format == "int" and self.weight_bits < 8
        return "adaround" if few and not self.weight_only and self.symmetric else "rtn"

    @property
    def trained(self) -> bool:
        """Whether the weights come from quantization-aware training."""
        return self.rounding == "qat"

    @property
    def needs_training(self) -> bool:
        """Whether any part of it needs training data."""
        return self.trained or bool(self.recovery)

    @property
    def simulated(self) -> str | None:
        """Why no back end stores or computes this as it is, or None: the name then ends in `-simulated`."""
        every = (self, *(rule.recipe for rule in self.overrides))
        tables = {r.weight_format for r in every} - {"int"} | {r.activation_format for r in every} - {"int"}
        if tables:
            return f"{' and '.join(sorted(tables))} values are computed and stored as float32"
        odd = {r.weight_bits for r in every if r.weight_only} - {4, 8, FLOAT}
        if odd:
            listed = " and ".join(str(bits) for bits in sorted(odd))
            return f"weights of {listed} bits are stored and multiplied as codes of 4 or 8 bits"
        return None

    def for_node(self, name: str) -> Recipe:
        """The recipe of one node: that of the last override whose pattern matches, else this one."""
        for rule in reversed(self.overrides):
            if fnmatchcase(name, rule.pattern):
                return rule.recipe
        return self

    def __str__(self) -> str:
        parts = [self._base()]
        if self.group:
            parts.append("tensor" if self.group == "tensor" else f"g{self.group}")
        parts += [] if self.symmetric else ["asym"]
        parts += [part for part in (self.scale_rule, self.rounding, *self.steps) if part]
        if self.rank:
            parts.append("lorc" if self.rank == DEFAULT_RANK else f"lorc{self.rank}")
        if self.overrides:
            # Two sets of overrides are two variants: the name tells them apart, the manifest holds the text.
            text = ";".join(override_texts(self))
            parts.append(f"o{sha256(text.encode()).hexdigest()[:6]}")
        sparse = "".join(f"+{part}" for part in self.sparsity)
        if self.recovery and not (self.trained and self.recovery == "ft"):
            sparse += f"-{self.recovery}"
        return "-".join(parts) + sparse + (SIMULATED if self.simulated else "")

    def _base(self) -> str:
        if self.share is not None:
            return "auto" if self.share == DEFAULT_SHARE else f"auto{self.share:g}"
        if self.weight_bits == FLOAT and self.activation_bits == FLOAT:
            return "fp32"
        weights = str(self.weight_bits) if self.weight_format == "int" else self.weight_format
        if self.activation_bits == FLOAT:
            return f"w{weights}" if self.weight_format == "int" else weights
        return f"w{weights}a{self.activation_bits if self.activation_format == 'int' else self.activation_format}"


def parse_recipe(text: str, observer: Observer = "robust") -> Recipe:
    """A recipe's name -> Recipe (see there). Raises UsageError for a part that is unknown or has no effect."""
    written = text.strip().lower()
    dense, *sparse = written.removesuffix(SIMULATED).split("+")
    if sparse:
        sparse, recovery = split_recovery(sparse)
        made = replace(parse_recipe(dense, observer), sparsity=parse_sparsities(sparse))
        check_recovery(made.sparsity, recovery, text)
        if "qkr" in made.steps and any(part.pattern != "channels" for part in made.sparsity):
            raise UsageError(f"recipe {text!r}: qkr multiplies weights and fills their zeros; leave one of them out")
        # Where there is data to train the rounding on, pruning is made up for first.
        return replace(made, recovery=recovery or ("ft" if made.trained else ""))
    base, *suffixes = written.split("-")
    if base in ("fp32", "float", "float32"):
        if suffixes:
            raise UsageError(f"recipe {text!r}: fp32 takes no suffix")
        return Recipe()
    if base == "int8":
        base = "w8a8"
    recipe = _parse_base(base, text, observer)
    for suffix in suffixes:
        recipe = _with_suffix(recipe, suffix, text)
    return _checked(recipe, text)


def _parse_base(base: str, text: str, observer: Observer) -> Recipe:
    if found := _AUTO.match(base):
        share = float(found["share"] or DEFAULT_SHARE)
        return Recipe(8, 8, observer, share=share)
    match = _BASE.match(base)
    weights = _WEIGHTS.get(match["w"] or match["plain"]) if match else None
    activations = _ACTIVATIONS.get(match["a"] or "32") if match else None
    if weights is None or activations is None:
        raise UsageError(
            f"unknown recipe {text!r}; known are names such as {_NAMES}: weights of 2 to 8 bits, fp4, nf4 or fp8, "
            "activations of 8 or 16 bits, fp8 or left out"
        )
    made = Recipe(weights[1], activations[1], observer)
    return replace(made, weight_format=weights[0], activation_format=activations[0])


def _with_suffix(recipe: Recipe, suffix: str, text: str) -> Recipe:
    if re.fullmatch(r"g[1-9]\d*", suffix):
        return replace(recipe, group=int(suffix[1:]))
    if suffix == "tensor":
        return replace(recipe, group="tensor")
    if re.fullmatch(r"lorc([1-9]\d*)?", suffix):
        return replace(recipe, rank=int(suffix[4:] or DEFAULT_RANK))
    if suffix == "asym":
        return replace(recipe, symmetric=False)
    if suffix in SCALE_RULES:
        return replace(recipe, scale_rule=suffix)
    if suffix in ROUNDINGS:
        return replace(recipe, rounding=suffix)
    if suffix in STEPS:
        return recipe if suffix in recipe.steps else replace(recipe, steps=(*recipe.steps, suffix))
    if suffix == "simulated" and recipe.simulated:
        return recipe
    known = ", ".join(["g<n>", "tensor", "asym", *SCALE_RULES, *ROUNDINGS, *STEPS, "lorc<rank>"])
    raise UsageError(f"recipe {text!r}: unknown suffix {suffix!r}; known: {known}")


def _checked(recipe: Recipe, text: str) -> Recipe:
    """Refuse combinations in which a part would be ignored."""
    if recipe.weight_format != "int" and not recipe.symmetric:
        raise UsageError(f"recipe {text!r}: {recipe.weight_format} has no zero-points; leave out asym")
    fixed = recipe.rounding in ("adaround", "qat") or (recipe.rounding == "gptq" and not recipe.weight_only)
    if fixed and not recipe.symmetric:
        raise UsageError(f"recipe {text!r}: {recipe.rounding} rounds to symmetric levels; leave out asym")
    if recipe.activation_bits == FLOAT and "smooth" in recipe.steps:
        raise UsageError(f"recipe {text!r}: smooth serves quantized activations, and here they stay float")
    beside_float = recipe.activation_bits in (16, FLOAT) and recipe.activation_format == "int"
    if recipe.scale_rule == "pos" and not (beside_float and replace(recipe, scale_rule="").signed_scales):
        raise UsageError(
            f"recipe {text!r}: its scales are above zero without pos, which serves symmetric integers of 2 to 7 bits "
            "beside float activations"
        )
    if recipe.trained and (recipe.weight_format != "int" or recipe.activation_format != "int"):
        raise UsageError(f"recipe {text!r}: qat trains integers of 2 to 8 bits; fp4, fp8 and nf4 have none")
    if recipe.trained and (recipe.scale_rule or {"bc", "abc", "mse"} & set(recipe.steps)):
        raise UsageError(f"recipe {text!r}: qat trains scales and biases itself; leave out m1, m2, bc, abc and mse")
    if "qkr" in recipe.steps and not recipe.trained:
        raise UsageError(f"recipe {text!r}: qkr serves training; write qat too, or leave it out")
    if recipe.asks_weight_only and not recipe.weight_only:
        raise UsageError(
            f"recipe {text!r}: {', '.join(sorted(WEIGHT_ONLY_STEPS))} and lorc serve weights beside float activations: "
            "write a16, or leave the activations out"
        )
    if len(cuts := [step for step in ("mse", "awq", "clip") if step in recipe.steps]) > 1:
        raise UsageError(f"recipe {text!r}: {' and '.join(cuts)} each choose the weights' scales; write one of them")
    if recipe.group == "tensor" and {"awq", "clip"} & set(recipe.steps):
        raise UsageError(f"recipe {text!r}: awq and clip choose a range for each block; leave out tensor")
    if recipe.rounding == "adaround" and {"bc", "abc"} & set(recipe.steps):
        raise UsageError(f"recipe {text!r}: adaround fits the biases already; leave out bc and abc")
    if {"bc", "abc"} <= set(recipe.steps):
        raise UsageError(f"recipe {text!r}: bc and abc correct the same biases; choose one")
    if recipe.share is not None and set(recipe.steps) - {"cle", "smooth"}:
        raise UsageError(f"recipe {text!r}: auto chooses the weights' format itself; only cle and smooth may follow")
    if recipe.share is not None and (recipe.group or not recipe.symmetric or recipe.scale_rule or recipe.rounding):
        raise UsageError(f"recipe {text!r}: auto chooses the weights' format itself; only cle and smooth may follow")
    return recipe


def with_overrides(recipe: Recipe, texts: Iterable[str]) -> Recipe:
    """`recipe` with rules `pattern=name` added, later ones first in line. Raises UsageError for a malformed rule."""
    rules = list(recipe.overrides)
    for text in texts:
        pattern, separator, name = text.rpartition("=")
        if not separator or not pattern.strip() or not name.strip():
            raise UsageError(f"override {text!r}: write pattern=recipe, for example 'stage1.*=w8a8' or 'head=fp32'")
        made = parse_recipe(name, recipe.observer)
        if made.share is not None or made.trained or made.sparsity or set(made.steps) - {"mse"}:
            steps = ", ".join(step for step in STEPS if step != "mse")
            raise UsageError(f"override {text!r}: auto, qat, sparsity, {steps} are choices for the whole model")
        rules.append(Override(pattern.strip(), replace(made, percentile=recipe.percentile)))
    return replace(recipe, overrides=tuple(rules))


def override_texts(recipe: Recipe) -> tuple[str, ...]:
    """The overrides as the command line takes them."""
    return tuple(f"{rule.pattern}={rule.recipe}" for rule in recipe.overrides)
