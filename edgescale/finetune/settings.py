"""How a model is trained: everything that, with model, recipe and data, the result depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgescale.core.errors import UsageError

Scales = Literal["statsq", "lsq"]
Start = Literal["reconstructed", "float"]


@dataclass(frozen=True)
class Settings:
    """Settings of training; defaults suit fine-tuning of a trained float model.

    scales: how weight scales follow the weights: "statsq" (in proportion to each channel's mean magnitude, the ratio
    found once by least squares) or "lsq" (learned by gradient). annealing: the last part of all epochs, in which
    only weights near a rounding threshold move (confidence-guided annealing). Query-key reparameterization changes the
    graph, so the recipe asks for it (`qkr`). start: "reconstructed" (the integers that post-training quantization
    finds) or "float" (the float weights, first scales by least squares, as the papers of LSQ and OFQ begin).
    """

    epochs: int = 6
    batch: int = 64
    rate: float = 0.005
    """Step of Adam as a share of a tensor's root mean square, at the top of the schedule (warm-up, then cosine)."""
    scale_rate: float = 0.002
    """Step of learned scales, as a share of each."""
    annealing: float = 0.34
    band: float = 0.005
    """Half the width of the zone about a rounding threshold whose weights annealing lets move, in steps."""
    labels: float = 0.5
    """Weight of the labels' loss; the float model's answers have the rest. Without labels they have all."""
    features: float = 0.1
    """Weight of the inner activations' squared error, relative to their power."""
    scales: Scales = "statsq"
    start: Start = "reconstructed"
    ramp: tuple[float, float] = (0.25, 0.75)
    """Shares of the training between which zeros grow (`gmp`) and at whose end they stop moving (`rigl`, `dsl`)."""
    regrow: float = 0.3
    """Share of the weights left that `rigl` and `dsl` drop and regrow at first."""
    seed: int = 0

    def checked(self) -> Settings:
        """Itself. Raises UsageError for values out of range."""
        for name, low, high in (
            ("epochs", 1, 10_000),
            ("batch", 1, 65_536),
            ("rate", 0, 1),
            ("scale_rate", 0, 1),
            ("annealing", 0, 1),
            ("band", 0, 0.5),
            ("labels", 0, 1),
            ("features", 0, 1e6),
            ("regrow", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"training setting {name} is {value}; it must lie in [{low}, {high}]")
        begin, end = self.ramp
        if not 0 <= begin < end <= 1:
            raise UsageError(f"training setting ramp is {begin:g} to {end:g}; it must rise within [0, 1]")
        for name, known in (("scales", get_args(Scales)), ("start", get_args(Start))):
            if getattr(self, name) not in known:
                raise UsageError(f"training setting {name} is {getattr(self, name)!r}; known: {', '.join(known)}")
        return self

    @property
    def annealed(self) -> int:
        """How many of the last epochs anneal."""
        return round(self.epochs * self.annealing)
