"""A prepared graph with rounding in the loop: what its QDQ form will compute, as a trainable module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgescale.core.errors import UsageError
from edgescale.core.recipe import Recipe
from edgescale.finetune.fakequant import Activation, Weights, straight
from edgescale.finetune.graph import TorchGraph
from edgescale.finetune.settings import Scales, Start
from edgescale.frontend.graph import constant, input_at
from edgescale.quantize.blocks import Blocks
from edgescale.quantize.layers import Stored, layout_of, store
from edgescale.quantize.patches import Product, product_of
from edgescale.quantize.prepared import Prepared
from edgescale.quantize.rules import BINARY, data_inputs
from edgescale.quantize.units import BIAS_LIMIT, Units, units_of

Tensor = Any


class QuantizedGraph(TorchGraph):
    """`TorchGraph` of `prepared.graph` with Q/DQ pairs where `quantize.qdq.WriteQdq` writes them.

    Activations go through their group's units (one learned scale a group), weights of the weighted nodes through the
    format of their recipe, biases beside 8-bit inputs through int32, constants of Add, Sub, Mul and Concat through
    units of their own. Training starts from `rounded`, the constants of the weighted nodes as post-training
    quantization rounds them, or takes only their scales (`start` "float"). Raises UsageError for a layer whose recipe
    has zero-points for weights or is no integer's.
    """

    def __init__(
        self,
        prepared: Prepared,
        rounded: Mapping[ir.Node, Stored],
        scales: Scales,
        start: Start = "reconstructed",
    ) -> None:
        super().__init__(prepared.graph)
        self.prepared = prepared
        self._chosen = set(prepared.plan.nodes)
        self.activations = torch.nn.ModuleList()
        self._units: dict[ir.Value, Activation] = {}
        for group in prepared.plan.groups:
            own = Activation(prepared.units[group.members[0]], learned=group.fixed is None)
            if own.kind == "fp8":
                raise UsageError("training takes activations of 8 or 16 bits, or float ones; fp8 is not among them")
            self.activations.append(own)
            self._units.update(dict.fromkeys(group.members, own))
        self.rounders = torch.nn.ModuleList()
        self.layers: dict[ir.Node, tuple[Product, Weights]] = {}
        for node, recipe in prepared.weighted.items():
            if recipe.weight_format != "int" or not recipe.symmetric:
                raise UsageError(f"node {node.name!r}: training takes symmetric integer weights, not recipe {recipe}")
            self.layers[node] = self._layer(node, recipe, rounded[node], scales, start)
            self.rounders.append(self.layers[node][1])
        self._rounded: dict[ir.Value, Tensor] = {}
        self._made: dict[ir.Node, Tensor] = {}

    def _layer(
        self, node: ir.Node, recipe: Recipe, stored: Stored, scales: Scales, start: Start
    ) -> tuple[Product, Weights]:
        """Put a layer's starting values into its parameters; how its weights are rounded."""
        own = self.parameter_of(input_at(node, 2))
        with torch.no_grad():
            if start == "reconstructed":
                self.weight_of(node).copy_(torch.from_numpy(stored.real()))
                bias = stored.real_bias()
                if own is not None and bias is not None:
                    own.copy_(torch.from_numpy(bias))
            real = self.weight_of(node).numpy().copy()
        product = product_of(node, real.shape)
        if stored.scale is None:
            raise ValueError(f"{node.name}: simulated weights cannot be trained")
        scale = stored.scale if not stored.block else np.moveaxis(stored.scale, product.axis, 0)
        return product, Weights(np.moveaxis(real, product.axis, 0), scale, layout_of(product, recipe), scales)

    def inner(self) -> list[tuple[ir.Node, ir.Value]]:
        """(layer, what it gives behind the clamp that its units include), first to last."""
        found = []
        for node in self.layers:
            value = node.outputs[0]
            if value in self.prepared.plan.inner:
                value = next(iter(value.uses())).node.outputs[0]
            found.append((node, value))
        return found

    def begin(self) -> None:
        """Forget the last pass."""
        self._rounded, self._made = {}, {}

    def latent(self, node: ir.Node) -> Tensor:
        """The weights behind a weighted node's integers, channels first."""
        return self.weight_of(node).movedim(self.layers[node][0].axis, 0)

    def operand(self, node: ir.Node, index: int, value: ir.Value, found: Tensor | None) -> Tensor | None:
        """As the deployed graph reads it."""
        if found is not None:
            return self._activation(node, index, value, found)
        if node in self.layers and index in (1, 2):
            return self._weights(node) if index == 1 else self._bias(node, value)
        plain = super().operand(node, index, value, found)
        integer = node in self._chosen and (node.op_type in BINARY or node.op_type == "Concat")
        return self._constant(node, plain) if integer and plain is not None else plain

    def result(self, value: ir.Value, found: Tensor) -> Tensor:
        """Outputs of integer nodes come back dequantized."""
        return self._round(value, found) if value.producer() in self._chosen else found

    def _activation(self, node: ir.Node, index: int, value: ir.Value, found: Tensor) -> Tensor:
        from_integer = value.producer() in self._chosen
        reads = node in self._chosen and index in data_inputs(node)
        return self._round(value, found) if from_integer or reads else found

    def _round(self, value: ir.Value, found: Tensor) -> Tensor:
        if value not in self._units:  # between an operator and its clamp
            return found
        if value not in self._rounded:
            self._rounded[value] = self._units[value](found)
        return self._rounded[value]

    def _weights(self, node: ir.Node) -> Tensor:
        product, rounder = self.layers[node]
        return rounder(self.latent(node)).movedim(0, product.axis).unsqueeze(0)

    def _bias(self, node: ir.Node, value: ir.Value) -> Tensor:
        plain = super().operand(node, 2, value, None)
        scale = self._input_scale(node)
        rounder = self.layers[node][1]
        each = rounder.scale(self.latent(node))
        if plain is None or scale is None or each.shape[0] != each.numel():  # groups leave the bias float
            return plain
        step = (scale * each.reshape(-1)).detach()
        return straight(torch.clamp(plain / step, -BIAS_LIMIT, BIAS_LIMIT)) * step

    def _input_scale(self, node: ir.Node) -> Tensor | None:
        """Scale of an 8-bit input; None where the bias stays float."""
        source = node.inputs[0]
        own = self._units.get(source) if source is not None and node in self._chosen else None
        return own.scale() if own is not None and own.kind in ("uint8", "int8") else None

    def _constant(self, node: ir.Node, plain: Tensor) -> Tensor:
        own = self._units.get(node.outputs[0])
        if node.op_type == "Concat" and own is not None:
            return own(plain)
        kind = own.kind if own is not None else self.activations[0].kind
        found = plain.detach()
        return Activation(units_of(float(found.min()), float(found.max()), kind), learned=False)(plain)

    def finished(self) -> tuple[Prepared, dict[ir.Node, Stored]]:
        """What was trained, ready for `quantize.post_training.finish`: units, and every layer's constants.

        The trained parameters are also written into the prepared graph's initializers, which float nodes read.
        """
        stored: dict[ir.Node, Stored] = {}
        units: dict[ir.Value, Units] = {value: own.units() for value, own in self._units.items()}
        prepared = replace(self.prepared, units={value: units[value] for value in self.prepared.units})
        with torch.no_grad():
            for node, (product, rounder) in self.layers.items():
                latent = self.latent(node)
                blocks = Blocks(
                    rounder.codes(latent).double().numpy(), rounder.scale(latent).double().numpy(), None, rounder.block
                )
                bias_value = input_at(node, 2)
                bias = self.parameter_of(bias_value)
                plain = constant(bias_value) if bias is None else bias.numpy().copy()
                scale = self._input_scale(node)
                recipe = self.prepared.weighted[node]
                stored[node] = store(product, blocks, plain, recipe, None if scale is None else float(scale))
        for name, array in self.trained().items():
            self.model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        return prepared, stored
