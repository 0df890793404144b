"""What reads a graph's channels: weights and input covariances of the layers behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.progress import Progress, track
from edgescale.frontend.graph import constant
from edgescale.quantize.calibrate import each_sample
from edgescale.quantize.moments import Moments
from edgescale.quantize.patches import product_of
from edgescale.sparsify.channels import Labels, Structure

Real = npt.NDArray[np.float64]

ROWS = 32768
"""Positions of a layer's output that its moments are taken over, spread over the samples."""


@dataclass(frozen=True)
class Reader:
    """One group of a layer: y = W x. weights [outputs, terms], xx [terms, terms]; units [terms]: each term's class."""

    node: str
    weights: Real
    xx: Real
    units: Labels

    @property
    def power(self) -> float:
        """Mean square of what it gives, about its mean."""
        return float(np.einsum("ot,tu,ou->", self.weights, self.xx, self.weights)) + 1e-30


def find_readers(
    model: Model, graph: ir.Model, structure: Structure, data: Dataset, progress: Progress
) -> list[Reader]:
    """Every group of every layer that sums over channels, with centred moments of its input over the samples."""
    moments = input_moments(model, graph, structure, data, progress)
    nodes = {str(node.name): node for node in graph.graph}
    readers = []
    for layer in structure.weighted:
        if layer.depthwise:
            continue
        node = nodes[layer.node]
        weights = constant(node.inputs[1])
        if weights is None:
            raise ValueError(f"{layer.node}: no constant weights")
        matrix = product_of(node, weights.shape).matrix(weights)
        xx = moments[layer.node].summary(centred=True).xx
        units = np.repeat(structure.root[layer.reads], layer.kernel)
        for rows, own in zip(np.split(matrix, layer.groups), xx, strict=True):
            readers.append(Reader(layer.node, rows, own, units))
    return readers


def input_moments(
    model: Model, graph: ir.Model, structure: Structure, data: Dataset, progress: Progress
) -> Mapping[str, Moments]:
    """Moments of the input of every layer that sums over channels, in one pass over the samples."""
    nodes = {str(node.name): node for node in graph.graph}
    layers = [nodes[layer.node] for layer in structure.weighted if not layer.depthwise]
    products = {}
    for node in layers:
        weights = constant(node.inputs[1])
        if weights is None:
            raise ValueError(f"{node.name}: no constant weights")
        products[str(node.name)] = product_of(node, weights.shape)
    names = [str(value.name) for node in layers for value in (node.inputs[0], node.outputs[0]) if value is not None]
    count = max(1, ROWS // len(data))
    found = {name: Moments() for name in products}
    for index, arrays in enumerate(track(each_sample(model, graph, data, names), progress, "moments", len(data))):
        for node in layers:
            source = node.inputs[0]
            x, y = arrays[str(source.name if source else "")], arrays[str(node.outputs[0].name)]
            found[str(node.name)].update(*products[str(node.name)].pick(x, y, count, index))
    return found
