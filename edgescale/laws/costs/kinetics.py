"""What generating text costs when memory counts: Kinetics' eFLOPs (arXiv:2506.05333), and what they leave out.

eFLOPs = compute + I * memory, I = FLOP a device does in the time of one byte. The published form assumes a large
batch and drops the weights' traffic; a device decodes alone, so weights are read for every token.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgescale.laws.errors import FitError

B200_INTENSITY = 562.5
"""FLOP per byte of the accelerator the paper assumes."""


@dataclass(frozen=True)
class Decoder:
    """`params` parameters; `kv` key and value elements a token; `group` query heads a key-value head.

    `weight_bytes` and `kv_bytes`: bytes of one parameter and of one element of the cache.
    """

    params: float
    kv: float
    group: float
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0


@dataclass(frozen=True)
class Cost:
    """FLOP of `compute`; `memory` traffic (cache) and `weights` traffic, both times the device's intensity."""

    compute: float
    memory: float
    weights: float

    @property
    def total(self) -> float:
        """eFLOPs."""
        return self.compute + self.memory + self.weights


def attended(prompt: int, generated: int, budget: int | None = None) -> float:
    """Cache elements (per KV element of a token) read over a generation: sum over steps of min(context, budget).

    Step t of `generated` reads prompt + t tokens, t = 0 .. generated - 1, `budget` at most.
    """
    if prompt < 0 or generated < 0 or (budget is not None and budget < 1):
        raise FitError("lengths must not be negative and a budget is at least 1 token")
    full = generated if budget is None else min(max(budget - prompt, 0), generated)
    steps = full * prompt + full * (full - 1) / 2
    return steps + (generated - full) * (budget or 0)


def generation_cost(
    model: Decoder,
    prompt: int,
    generated: int,
    samples: int = 1,
    *,
    intensity: float = B200_INTENSITY,
    batch: float | None = None,
    budget: int | None = None,
) -> Cost:
    """Cost of `samples` generations that share a prompt.

    The prompt's cache is read once for all samples, each sample's own cache for itself. `batch`: sequences that share
    one reading of the weights (1 on a device; None leaves the weights out, as the paper does). `budget`: tokens a
    step attends to (sparse attention); all of the shared prompt comes first.
    """
    if samples < 1 or (batch is not None and batch < 1):
        raise FitError("samples and batch are at least 1")
    linear = 2 * samples * model.params * generated
    if budget is None:
        own = generated * generated / 2  # the paper's sum, in its continuous form
        compute = linear + 2 * model.group * model.kv * samples * (prompt * generated + own)
        traffic = model.kv_bytes * model.kv * (prompt * generated + samples * own)
    else:
        read = attended(prompt, generated, budget)
        compute = linear + 2 * model.group * model.kv * samples * read
        traffic = model.kv_bytes * model.kv * samples * read
    weights = 0.0
    if batch is not None:
        weights = model.params * model.weight_bytes * generated * samples / min(batch, samples) * intensity
    return Cost(compute, traffic * intensity, weights)


def samples_within(model: Decoder, prompt: int, generated: int, flops: float, **how: float) -> int:
    """How many samples `flops` eFLOPs pay for (0 where not one)."""
    intensity, batch = how.get("intensity", B200_INTENSITY), how.get("batch")
    one = generation_cost(model, prompt, generated, 1, intensity=intensity, batch=batch).total
    if one > flops:
        return 0
    low, high = 1, 2
    while generation_cost(model, prompt, generated, high, intensity=intensity, batch=batch).total <= flops:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        fits = generation_cost(model, prompt, generated, middle, intensity=intensity, batch=batch).total <= flops
        low, high = (middle, high) if fits else (low, middle)
    return low
