"""What a generation cost: tokens, bytes, time and, where power is known, energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgescale.core.quantity import Quantity


class PowerFigure(Protocol):
    """Active power of a device, as a target's profile states it."""

    active_mw: float
    origin: str


@dataclass
class Usage:
    """Counts of one generation; bytes are those a pass has to read, of one copy of the weights.

    prompt_tokens: of the prompt, once. generated_tokens: in all samples. computed_tokens: places the model computed
    (prompt, generated, drafts that failed, padding). drafted_tokens, accepted_tokens: of speculation. passes: calls
    of the model. weight_bytes: the file's size, once a pass. cache_bytes: keys and values read over all passes.
    cache_peak_bytes: most held at a time, in the precision they are held in.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    computed_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    passes: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0
    cache_peak_bytes: int = 0
    seconds: float = 0.0
    """Spent computing, wall clock."""
    power: PowerFigure | None = None

    @property
    def bytes(self) -> int:
        """Weights and cache read."""
        return self.weight_bytes + self.cache_bytes

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens by seconds (0 before the first pass)."""
        return self.generated_tokens / self.seconds if self.seconds else 0.0

    @property
    def latency(self) -> Quantity:
        """Time spent computing."""
        return Quantity(self.seconds * 1e3, "ms", "measured", "wall clock of the passes and of sampling")

    @property
    def energy(self) -> Quantity | None:
        """Measured time by the device's stated active power; None where no power is stated."""
        if self.power is None:
            return None
        note = f"measured time x {self.power.active_mw:g} mW active power ({self.power.origin})"
        return Quantity(self.seconds * self.power.active_mw * 1e3, "uJ", "modelled", note)
