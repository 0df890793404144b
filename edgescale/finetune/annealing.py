"""Weights at a rounding threshold: which they are, how often they cross it, and annealing that calms them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgescale.finetune.loop import Hook
from edgescale.finetune.network import QuantizedGraph

Tensor = Any


class Annealing(Hook):
    """Confidence-guided annealing (OFQ): from epoch `start` on, only weights near a threshold move.

    Weights further than `band` steps from the threshold between two integers are confident: after each step of the
    optimizer they get back the value they had. Scales that follow the weights (StatsQ) are held, too: where a channel
    has few weights, the moves of one would carry the others across their thresholds.
    """

    def __init__(self, net: QuantizedGraph, band: float, start: int) -> None:
        super().__init__()
        # In a tuple, so that the network does not count among this module's parts.
        self._net, self._band, self._start, self._on = (net,), band, start, False
        self._held: dict[Any, tuple[Tensor, Tensor]] = {}

    def begin(self, epoch: int) -> None:
        """Whether it acts."""
        self._on = epoch >= self._start
        if epoch == self._start:
            (net,) = self._net
            with torch.no_grad():
                for node, (_, rounder) in net.layers.items():
                    rounder.hold(net.latent(node))

    def before(self, step: int) -> None:
        """Remember the weights, and which of them are confident."""
        if not self._on:
            return
        (net,) = self._net
        with torch.no_grad():
            for node, (_, rounder) in net.layers.items():
                latent = net.latent(node)
                position = rounder.position(latent)
                distance = (position - torch.floor(position) - 0.5).abs()
                self._held[node] = (latent.detach().clone(), distance > self._band)

    def after(self, step: int) -> None:
        """Put the confident ones back."""
        if not self._on:
            return
        (net,) = self._net
        with torch.no_grad():
            for node, (before, confident) in self._held.items():
                latent = net.latent(node)
                latent.copy_(torch.where(confident, before, latent))


class Flips(Hook):
    """Counts how often weights change their integer, and how often back the way they came (oscillation).

    Only the layers of the fewest bits count: 8-bit ones beside 3-bit ones would drown them, and harm nothing.
    """

    def __init__(self, net: QuantizedGraph) -> None:
        super().__init__()
        self._net = (net,)
        fewest = min(rounder.high for _, rounder in net.layers.values())
        self._nodes = [node for node, (_, rounder) in net.layers.items() if rounder.high == fewest]
        self._codes = self._read(net)
        self._moved = {node: torch.zeros_like(codes) for node, codes in self._codes.items()}
        self.weights = sum(codes.numel() for codes in self._codes.values())
        self.flips = 0
        self.oscillations = 0

    def _read(self, net: QuantizedGraph) -> dict[Any, Tensor]:
        with torch.no_grad():
            return {node: net.layers[node][1].codes(net.latent(node)) for node in self._nodes}

    def begin(self, epoch: int) -> None:
        """Count from here."""
        self._codes = self._read(*self._net)
        self._moved = {node: torch.zeros_like(codes) for node, codes in self._codes.items()}

    def after(self, step: int) -> None:
        """Compare with the codes of the step before."""
        codes = self._read(*self._net)
        for node, now in codes.items():
            change = torch.sign(now - self._codes[node])
            self.flips += int((change != 0).sum())
            self.oscillations += int((change * self._moved[node] < 0).sum())
            self._moved[node] = torch.where(change != 0, change, self._moved[node])
        self._codes = codes

    def figures(self) -> Mapping[str, float]:
        """{flips, oscillations}: counts a weight since the last call."""
        found = {"flips": self.flips / self.weights, "oscillations": self.oscillations / self.weights}
        self.flips = self.oscillations = 0
        return found
