"""Zeros in the weights while they are trained: held, grown along a cubic, or dropped and regrown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgescale.core.sparsity import BLOCK, Sparsity
from edgescale.finetune.graph import TorchGraph
from edgescale.finetune.loop import Hook
from edgescale.finetune.settings import Settings
from edgescale.quantize.patches import Product, product_of
from edgescale.sparsify.masks import Row, choose, layers_taking

Tensor = Any
Real = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Movement = Literal["rigl", "dsl"]

INTERVAL = 100
"""Steps between two changes of the masks, and at most a LEAST-th of all steps."""
LEAST = 40


def cubic(done: float, begin: float, end: float) -> float:
    """Share of the final sparsity after a share `done` of the training (Zhu and Gupta): 1 - (1 - t)^3.

    t rises from 0 at `begin` to 1 at `end`.
    """
    t = min(max((done - begin) / max(end - begin, 1e-12), 0.0), 1.0)
    return 1 - (1 - t) ** 3


def moved(done: float, share: float, end: float) -> float:
    """Share of the weights left that is dropped and regrown (RigL): `share` (1 + cos(pi done / end)) / 2, then none."""
    return share / 2 * (1 + math.cos(math.pi * done / end)) if done < end else 0.0


@dataclass(frozen=True)
class Layer:
    """A layer under masks: its weights' name, how they lie, and how many of its terms go together."""

    name: str
    product: Product
    row: Row


class Masks(Hook):
    """Weights outside the masks are zero after every step, and have no part in the optimizer's moments.

    Masks are bool tensors in the shape of the weights, {initializer: mask}; layers without one train freely.
    """

    def __init__(self, net: TorchGraph, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._weights = {name: net.weights[net.names.index(name)] for name in masks}
        self._slots = {name: f"mask{i}" for i, name in enumerate(masks)}
        for name, mask in masks.items():
            self.register_buffer(self._slots[name], mask.clone())
        self.after(-1)

    @classmethod
    def of_zeros(cls, source: TorchGraph, net: TorchGraph) -> Self:
        """The zeros of `source`, a net of the same weights, are held."""
        masks = {}
        for node in source.weighted():
            name = str(node.inputs[1].name)  # type: ignore[union-attr]
            mask = source.weight_of(node).detach() != 0
            if name in net.names and not bool(mask.all()):
                masks[name] = mask
        return cls(net, masks)

    def __getitem__(self, name: str) -> Tensor:
        """The mask of an initializer."""
        return getattr(self, self._slots[name])

    def before(self, step: int) -> None:
        """Weights that are gone have no gradient."""
        for name, weights in self._weights.items():
            if weights.grad is not None:
                weights.grad.mul_(self[name])

    def after(self, step: int) -> None:
        """Put the zeros back."""
        with torch.no_grad():
            for name, weights in self._weights.items():
                weights.mul_(self[name])


class _Changing(Masks):
    """Masks that change every so many steps, in [outputs, terms] of each layer."""

    def __init__(self, net: TorchGraph, masks: Mapping[str, Tensor], layers: Sequence[Layer], steps: int) -> None:
        super().__init__(net, masks)
        self._layers, self._steps = tuple(layers), steps
        self._every = max(1, min(INTERVAL, steps // LEAST))

    def _read(self, layer: Layer) -> Real:
        return layer.product.matrix(self._weights[layer.name].detach().numpy())

    def _write(self, layer: Layer, mask: Mask) -> None:
        self[layer.name].copy_(torch.from_numpy(layer.product.weights(mask)))


class Gradual(_Changing):
    """Gradual magnitude pruning: from no zeros to `part` along `cubic` between two shares of the training."""

    def __init__(self, net: TorchGraph, part: Sparsity, settings: Settings, steps: int) -> None:
        layers = find_layers(net.model, part)
        masks = {layer.name: torch.ones(layer.product.shape, dtype=torch.bool) for layer in layers}
        super().__init__(net, masks, layers, steps)
        self._part, self._ramp = part, settings.ramp
        self._last = min(max(math.ceil(settings.ramp[1] * steps), 1), steps) - 1
        self.register_buffer("done", torch.zeros((), dtype=torch.bool))

    @property
    def settled(self) -> bool:  # type: ignore[override]
        """Whether all zeros are there."""
        return bool(self.done)

    def after(self, step: int) -> None:
        """More zeros where it is time; the smallest weights go."""
        if step >= 0 and not self.done and (step % self._every == 0 or step >= self._last):
            share = 1.0 if step >= self._last else cubic(step / self._steps, *self._ramp)
            part = scaled(self._part, share)
            if part is not None:
                for layer in self._layers:
                    self._write(layer, choose(self._read(layer) ** 2, part, layer.row))
            self.done.fill_(step >= self._last)
        super().after(step)

    def figures(self) -> Mapping[str, float]:
        """{density}: share of weights left in the layers under masks."""
        masks = [self[layer.name] for layer in self._layers]
        return {"density": float(sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks))}


class Regrown(_Changing):
    """Dynamic sparse training: weights of small magnitude go, zeros of great gradient come, as many as went.

    "rigl" (Evci et al.): within every layer. "dsl": one budget for all layers, magnitudes and gradients relative to
    each layer's weights, so density moves to where it is worth most. The share that moves falls along `moved` and is
    nothing from the end of `settings.ramp` on. n:m patterns hold in each of their groups, blocks move whole.
    """

    def __init__(self, net: TorchGraph, part: Sparsity, settings: Settings, steps: int, movement: Movement) -> None:
        layers = find_layers(net.model, part)
        masks = {layer.name: net.weights[net.names.index(layer.name)].detach() != 0 for layer in layers}
        super().__init__(net, masks, layers, steps)
        self._part, self._settings, self._movement = part, settings, movement
        self._count = 0.0

    def before(self, step: int) -> None:
        """Move zeros where it is time, by this batch's gradients."""
        share = moved(step / self._steps, self._settings.regrow, self._settings.ramp[1])
        if step and step % self._every == 0 and share > 0:
            self._move(share)
        super().before(step)

    def _move(self, share: float) -> None:
        held = [self._units(layer) for layer in self._layers]
        if self._movement == "dsl":
            sizes = np.cumsum([one.kept.size for one in held])[:-1]
            for one in held:  # no layer loses all
                one.weights.reshape(-1)[one.weights.argmax()] = np.inf
            kept, weights, gradients = (
                np.concatenate([getattr(one, field).reshape(-1) for one in held])[None]
                for field in ("kept", "weights", "gradients")
            )
            parts = np.split(swap(kept, weights, gradients, share)[0], sizes)
        else:
            parts = [swap(u.kept, u.weights, u.gradients, share) for u in held]
        for layer, units, new in zip(self._layers, held, parts, strict=True):
            self._count += float((new.reshape(-1) & ~units.kept.reshape(-1)).mean())
            shape = (layer.product.outputs, layer.product.terms)
            wide = np.repeat(new.reshape(-1), BLOCK if self._part.pattern == "block" else 1).reshape(shape)
            mask = np.empty(shape, np.bool_)
            mask[:, layer.row.order()] = wide
            self._write(layer, mask)

    def _units(self, layer: Layer) -> _Units:
        """What goes together, [groups, units], in the order of the devices; relative to the layer's weights."""
        order = layer.row.order()
        weights = self._weights[layer.name]
        gradient = np.zeros(layer.product.shape) if weights.grad is None else weights.grad.numpy()
        w, g = self._read(layer)[:, order], layer.product.matrix(gradient)[:, order]
        kept = layer.product.matrix(self[layer.name].numpy())[:, order] != 0
        size = math.sqrt(float((w**2).mean())) + 1e-30
        if self._part.pattern == "block":
            w, g = (np.sqrt((v.reshape(-1, BLOCK) ** 2).mean(axis=1)) for v in (w, g))
            kept = kept.reshape(-1, BLOCK).any(axis=1)
        shape = (-1, self._part.m) if self._part.pattern == "n:m" else (1, -1)
        return _Units(kept.reshape(shape), np.abs(w).reshape(shape) / size, np.abs(g).reshape(shape) * size)

    def figures(self) -> Mapping[str, float]:
        """{regrown}: share of the weights that came back in the epoch, mean over layers."""
        count, self._count = self._count / len(self._layers), 0.0
        return {"regrown": count}


@dataclass(frozen=True)
class _Units:
    """Weights that go together and the groups whose number of zeros is fixed: all [groups, units]."""

    kept: Mask
    weights: Real
    gradients: Real


def swap(kept: Mask, weights: Real, gradients: Real, share: float) -> Mask:
    """Masks [groups, units] with `share` of all units that are kept dropped, and as many regrown in each group.

    Dropped are those of least magnitude, in all groups together; regrown those of greatest gradient among what is then
    not kept, which those just dropped are among. Each group has as many units as before.
    """
    count = round(share * int(kept.sum()))
    order = np.argsort(np.where(kept, weights, np.inf), axis=None, kind="stable")
    left = kept.copy()
    left.reshape(-1)[order[:count]] = False
    missing = kept.sum(axis=1) - left.sum(axis=1)
    place = np.argsort(np.argsort(-np.where(left, -np.inf, gradients), axis=1, kind="stable"), axis=1)
    return np.asarray(left | (place < missing[:, None]))


def scaled(part: Sparsity, share: float) -> Sparsity | None:
    """The pattern on the way to `part`, after `share` of its zeros; None where there are none yet."""
    if part.pattern != "n:m":
        return Sparsity(part.pattern, share=part.share * share) if share > 0 else None
    left = part.m - round((part.m - part.n) * share)
    return Sparsity("n:m", n=left, m=part.m) if left < part.m else None


def find_layers(model: ir.Model, part: Sparsity) -> list[Layer]:
    """The layers that take the pattern, as `sparsify.prune_weights` finds them."""
    nodes = {str(node.name): node for node in model.graph}
    found = {}
    for layer in layers_taking(model.graph, part):
        value = nodes[layer.node].inputs[1]
        if value is not None and value.shape is not None:
            shape = tuple(int(d) for d in value.shape)  # type: ignore[arg-type]
            product = product_of(nodes[layer.node], shape)
            found[str(value.name)] = Layer(str(value.name), product, Row(len(layer.reads), layer.kernel))
    return list(found.values())
