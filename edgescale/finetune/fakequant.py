"""Rounding in the loop: the integers that get deployed, as float values with straight-through gradients.

For u = x / scale: y = scale * round(clip(u, low, high)), with d round(v) / dv taken as 1. So dy/dx is 1 inside the
limits and 0 outside, and dy/dscale is round(u) - u inside and the limit outside (LSQ).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgescale.finetune.settings import Scales
from edgescale.quantize.rounding import Layout
from edgescale.quantize.units import SMALLEST_SCALE, Units

Tensor = Any
Array = npt.NDArray[np.generic]

LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32767, 32767)}


def straight(value: Tensor) -> Tensor:
    """Nearest integers, ties to even; the gradient passes as if nothing were rounded."""
    # The difference of two floats within a factor of two is exact, so the sum is the integer itself.
    return value + (torch.round(value) - value).detach()


class _FakeQuantize(torch.autograd.Function):  # type: ignore[misc]
    """`fake_quantize` with its gradients written out: a third of the passes over memory that recording them takes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        position = value / scale
        integers = torch.clamp(position, low, high).round_()
        ctx.save_for_backward(position, integers, scale)
        ctx.low, ctx.high = low, high
        return integers * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        position, integers, scale = ctx.saved_tensors
        # The kernel's limits are open, those of rounding closed: weights begin exactly on theirs.
        low, high = np.nextafter(np.float32(ctx.low), -np.inf), np.nextafter(np.float32(ctx.high), np.inf)
        inside = torch.ops.aten.hardtanh_backward(gradient, position, float(low), float(high))
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None
        if scale.numel() == 1:
            found = torch.dot(gradient.flatten(), integers.flatten()) - torch.dot(inside.flatten(), position.flatten())
            return inside, found.reshape(scale.shape), None, None
        return inside, (gradient * integers - inside * position).sum_to_size(scale.shape), None, None


def fake_quantize(value: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """`value` as what its integers in [low, high] stand for."""
    return _FakeQuantize.apply(value, scale, low, high)


class Activation(torch.nn.Module):  # type: ignore[misc]
    """Values of shared units: the scale is learned (its logarithm), the zero-point keeps its place.

    `learned` False: the units an operator prescribes.
    """

    def __init__(self, units: Units, *, learned: bool) -> None:
        super().__init__()
        self.kind = units.kind
        self.zero_point = units.zero_point
        low, high = LIMITS[units.kind]
        self.low, self.high = low - units.zero_point, high - units.zero_point
        self._start = units.scale
        self.shift = torch.nn.Parameter(torch.zeros(()), requires_grad=learned)

    def scale(self) -> Tensor:
        """The present scale, a float32 number above 0; at the start exactly the calibrated one."""
        return torch.exp(self.shift) * self._start

    def forward(self, value: Tensor) -> Tensor:
        """Rounded to the units."""
        return fake_quantize(value, self.scale(), self.low, self.high)

    def units(self) -> Units:
        """The units as they are now."""
        return Units(float(self.scale().detach()), self.zero_point, self.kind)


class Weights(torch.nn.Module):  # type: ignore[misc]
    """One layer's weights in blocks of one scale each; all tensors of the channels-first shape.

    "statsq": scale = ratio * mean |w| of its block, the ratio fixed at the start; from `hold` on the scale itself is.
    "lsq": the logarithm of the scale is a parameter. Both begin at `start` (one scale a block, or one an output
    channel).
    """

    def __init__(self, weights: Array, start: Array, layout: Layout, rule: Scales) -> None:
        super().__init__()
        if layout.form.limits is None:
            raise ValueError("weights of a format that is no integer")
        self.low, self.high = layout.form.limits
        self.block = tuple(min(b, s) for b, s in zip(layout.block_size, layout.shape, strict=True))
        self.rule = rule
        sides = tuple(-(-s // b) for b, s in zip(self.block, layout.shape, strict=True))
        first = np.asarray(start, np.float32).reshape(-1)
        # Rounding to one scale a tensor stores it once an output channel.
        first = first if first.size == int(np.prod(sides)) else first[: int(np.prod(sides))]
        fitted = torch.from_numpy(np.maximum(first, SMALLEST_SCALE).reshape(sides).copy())
        if rule == "lsq":
            self.register_buffer("start", fitted)
            self.shift = torch.nn.Parameter(torch.zeros_like(fitted))
        else:
            means = self._means(torch.from_numpy(np.array(weights, np.float32)))
            # A block of zeros has no statistic: its scale stays as found.
            self.register_buffer("floor", torch.where(means > 0, torch.zeros_like(fitted), fitted))
            self.register_buffer("ratio", torch.where(means > 0, fitted / means.clamp_min(1e-30), 0.0))
            # Part of the state: one from before `hold` has none.
            self.register_buffer("held", torch.zeros_like(fitted))

    def _means(self, weights: Tensor) -> Tensor:
        """Mean magnitude of each block."""
        values = weights.abs()
        for axis, side in enumerate(self.block):
            length = values.shape[axis]
            if side == length:
                values = values.mean(axis, keepdim=True)
            elif side > 1:
                parts = [part.mean(axis, keepdim=True) for part in values.split(side, axis)]
                values = torch.cat(parts, axis)
        return values

    def scale(self, weights: Tensor) -> Tensor:
        """One scale a block, above 0."""
        if self.rule == "lsq":
            return self.start * torch.exp(self.shift)
        found = self.ratio * self._means(weights).detach() + self.floor
        return torch.where(self.held > 0, self.held, found.clamp_min(SMALLEST_SCALE))

    def hold(self, weights: Tensor) -> None:
        """Scales that follow the weights stay as they are from here on."""
        if self.rule == "statsq":
            self.held.copy_(self.scale(weights))

    def wide(self, scale: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One scale a block -> in a shape that broadcasts against the weights."""
        for axis, side in enumerate(self.block):
            if 1 < side < shape[axis]:
                scale = scale.repeat_interleave(side, axis).narrow(axis, 0, shape[axis])
        return scale

    def forward(self, weights: Tensor) -> Tensor:
        """The weights that their integers stand for."""
        scale = self.wide(self.scale(weights), tuple(weights.shape))
        return fake_quantize(weights, scale, self.low, self.high)

    def position(self, weights: Tensor) -> Tensor:
        """weights / scale within the limits: how far each is from its integer."""
        scale = self.wide(self.scale(weights), tuple(weights.shape))
        return torch.clamp(weights / scale, self.low, self.high).detach()

    def codes(self, weights: Tensor) -> Tensor:
        """The integers, as floats."""
        return torch.round(self.position(weights))
