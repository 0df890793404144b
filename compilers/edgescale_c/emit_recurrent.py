"""Emitters of LSTM and GRU, and of what they start from."""

from __future__ import annotations

import numpy as np

from edgescale.lower.program import Requant
from edgescale.lower.program_recurrent import Gru, Initial, Lstm, Recurrent
from edgescale_c import requant
from edgescale_c.constants import Table, float_literal
from edgescale_c.emission import REGISTRY, LayerCode, Scope, wrap_int32
from edgescale_c.emit_slice import filled
from edgescale_c.recurrent_scratch import needed
from edgescale_c.requant import accumulator_bounds, rescaled_bound

_Q30 = 32767 * 32767
"""Greatest product of two numbers in Q0.15."""
_Q15 = 2**15
_EVERY = (-128, 127)


@REGISTRY.register(Initial)
def initial(scope: Scope, layer: Initial) -> LayerCode:
    """A copy of constants."""
    statement = filled(scope.write(), layer.values, scope.pool, f"{scope.prefix}_values")
    return LayerCode((statement,), "initial", ("es_base.h",))


@REGISTRY.register(Lstm)
def lstm(scope: Scope, layer: Lstm) -> LayerCode:
    """LSTM over a sequence."""
    order = np.arange(4 * layer.units).reshape(4, layer.units).T.reshape(-1)
    hidden = scope.read(1) if layer.has_hidden else "NULL"
    sizes = _sizes(scope, layer)
    if scope.out.dtype == "float32":
        clip = float_literal(layer.cell_clip)
        body: tuple[str, ...] = (
            *_scratch(scope, layer, "float"),
            f"const es_lstm_f32_layer p = {{{sizes}, {clip}, {_products_f32(scope, layer, order)}}};",
            f"es_lstm_f32({scope.read()}, {hidden}, carried, {scope.write()}, other, &p);",
        )
        return LayerCode(body, "lstm_f32", ("es_recurrent_f32.h",))
    if layer.recurrent_bias.any():
        raise scope.refuse("an int8 LSTM has one bias a gate, with the input's product; found a recurrent one")
    products = _products_s8(scope, layer, order)
    body = (
        *_scratch(scope, layer, "int16_t"),
        scope.requant(layer.hidden_requant, _Q30, _EVERY),
        f"const es_lstm_s8_layer p = {{{sizes}, {layer.cell_exponent}, {int(layer.cell_clip)}, {products}, q}};",
        f"es_lstm_s8({scope.read()}, {hidden}, carried, {scope.write()}, other, &p);",
    )
    return LayerCode(body, "lstm_s8", ("es_lstm_s8.h",))


@REGISTRY.register(Gru)
def gru(scope: Scope, layer: Gru) -> LayerCode:
    """GRU over a sequence."""
    rows = np.arange(3 * layer.units).reshape(3, layer.units)
    early = np.concatenate([rows[1], rows[[0, 2]].T.reshape(-1)])
    order = rows.T.reshape(-1) if layer.linear_before_reset else early
    sizes = f"{_sizes(scope, layer)}, {int(layer.linear_before_reset)}"
    if scope.out.dtype == "float32":
        hidden = scope.read(1) if layer.has_hidden else "NULL"
        body: tuple[str, ...] = (
            *_scratch(scope, layer, ""),
            f"const es_gru_f32_layer p = {{{sizes}, {_products_f32(scope, layer, order)}}};",
            f"es_gru_f32({scope.read()}, {hidden}, {scope.write()}, other, masked, &p);",
        )
        return LayerCode(body, "gru_f32", ("es_recurrent_f32.h",))
    products = _products_s8(scope, layer, order)
    body = (
        *_scratch(scope, layer, "int16_t"),
        scope.requant(layer.hidden_requant, _Q15, _EVERY),
        f"const es_gru_s8_layer p = {{{sizes}, {products}, q}};",
        f"es_gru_s8({scope.read()}, carried, {scope.write()}, other, masked, &p);",
    )
    return LayerCode(body, "gru_s8", ("es_gru_s8.h",))


def _sizes(scope: Scope, layer: Recurrent) -> str:
    """Steps, direction, what is kept and units, once the tensors' shapes are known to fit."""
    *_, steps, columns = scope.source().shape
    gates, units, _ = layer.weights.shape
    out_steps = steps if layer.sequence else 1
    if layer.weights.shape[2] != columns or layer.recurrent.shape != (gates, units, units):
        raise scope.refuse(
            f"weights {list(layer.weights.shape)} and {list(layer.recurrent.shape)} for {columns} inputs"
        )
    if scope.out.size != out_steps * units:
        raise scope.refuse(f"needs an output of {out_steps} * {units} elements, found {list(scope.out.shape)}")
    kinds = {"int8": ("int8", "int16"), "float32": ("float32", "float32")}
    if scope.out.dtype not in kinds or scope.source().dtype != scope.out.dtype:
        raise scope.refuse(f"needs int8 or float32, found {scope.source().dtype} to {scope.out.dtype}")
    for index in range(1, len(layer.inputs)):
        held = scope.source(index)
        if held.dtype != kinds[scope.out.dtype][held.name in layer.updates] or held.size != units:
            raise scope.refuse(f"cannot start from {held.name!r}, {held.dtype} {list(held.shape)}")
    return f"{steps}, {int(layer.reverse)}, {int(layer.sequence)}, {units}"


def _scratch(scope: Scope, layer: Recurrent, vector: str) -> tuple[str, ...]:
    """Declarations of `carried` (of C type `vector`; started from zeros where it is scratch), `other` and `masked`."""
    parts = needed(scope.program, layer)
    item = "int8_t" if scope.out.dtype == "int8" else "float"
    lines = [f"uint8_t *scratch = {scope.scratch('uint8_t')};"] if parts.total else []

    def place(name: str, kind: str, at: int | None) -> str:
        return f"{kind} *{name} = {'NULL' if at is None else f'({kind} *)(void *)(scratch + {at})'};"

    for name in layer.updates:
        _check_update(scope, name)
    if vector and layer.updates:
        lines.append(f"{vector} *carried = {scope.update(len(layer.inputs) - 1)};")
    elif vector:
        size = layer.units * (2 if vector == "int16_t" else 4)
        lines += [place("carried", vector, parts.carried), f"__builtin_memset(carried, 0, {size});"]
    lines.append(place("other", item, parts.other))
    if isinstance(layer, Gru):
        lines.append(place("masked", item, parts.masked))
    return tuple(lines)


def _check_update(scope: Scope, name: str) -> None:
    """Nobody needs, from this layer on, what another tensor of the same bytes held before it."""
    program, at = scope.program, scope.plan.offset(name)
    end = at + program.tensors[name].nbytes
    makers = {layer.output: index for index, layer in enumerate(program.layers)}
    if name in program.sources:
        raise scope.refuse(f"updates a tensor that a layer made, found the port or state {name!r}")
    for other, tensor in program.tensors.items():
        start = scope.plan.offset(other)
        apart = other == name or start >= end or start + tensor.nbytes <= at
        if apart or makers.get(other, -1) >= scope.index:
            continue
        if any(other in layer.inputs for layer in program.layers[scope.index :]) or other in program.results:
            raise scope.refuse(f"updates {name!r}, whose bytes {other!r} still needs as they were")


def _products_f32(scope: Scope, layer: Recurrent, order: Table) -> str:
    """Initialisers of both `es_product_f32`, rows in `order`."""
    texts = []
    for name, weights, bias in (
        ("weights", layer.weights, layer.bias), ("recurrent", layer.recurrent, layer.recurrent_bias)
    ):  # fmt: skip
        rows = weights.reshape(-1, weights.shape[2])[order].astype(np.float32)
        table = scope.constant(name, rows)
        added = scope.constant(f"{name}_bias", bias.reshape(-1)[order].astype(np.float32))
        texts.append(f"{{{table}, {added}, {weights.shape[2]}}}")
    return ", ".join(texts)


def _products_s8(scope: Scope, layer: Recurrent, order: Table) -> str:
    """Initialisers of both `es_product_s8`, rows in `order`."""
    ahead = _product_s8(scope, "weights", layer.weights, layer.bias, layer.requant, scope.source().zero_point, order)
    back = layer.recurrent, layer.recurrent_bias, layer.recurrent_requant
    return f"{ahead}, {_product_s8(scope, 'recurrent', *back, scope.out.zero_point, order)}"


def _product_s8(
    scope: Scope, name: str, weights: Table, bias: Table, scaling: Requant | None, zero_point: int, order: Table
) -> str:
    if scaling is None or (str(weights.dtype), str(bias.dtype)) != ("int8", "int32"):
        raise scope.refuse(f"needs int8 {name} and int32 bias with a rescaling, found {weights.dtype} and {bias.dtype}")
    gates, _, columns = weights.shape
    rows, flat = weights.reshape(-1, columns), bias.reshape(-1)
    bound = int(accumulator_bounds(rows, flat, zero_point).max(initial=0))
    if bound >= 2**31 or rescaled_bound(scaling, bound) >= 2**31 - 2**16:
        raise scope.refuse(f"accumulators must stay below 2^31, {name} may reach {bound}")
    per_row = scaling.multiplier.size != gates
    if per_row:
        scaling = Requant(scaling.multiplier[order], scaling.shift[order], scaling.rounding)
    found = requant.tables(scaling, bound, scope.where)
    multiplier, shift = found.multiplier, found.shift
    mixed = found.form == "ES_DOUBLE" and bound < 2**30 and bool((shift <= 0).all())
    form = "ES_GATE_BOUNDED" if mixed else found.form
    if multiplier.size == 1:
        # One scale for all gates.
        multiplier, shift, per_row = np.repeat(multiplier, gates), np.repeat(shift, gates), False
    folded = wrap_int32(flat.astype(np.int64) - zero_point * rows.astype(np.int64).sum(axis=1))
    tables = [
        scope.constant(name, rows[order]),
        scope.constant(f"{name}_bias", folded[order]),
    ]
    scales = [scope.constant(f"{name}_multiplier", multiplier), scope.constant(f"{name}_shift", shift)]
    return f"{{{', '.join(tables)}, {columns}, {{{', '.join(scales)}, {int(per_row)}, {form}}}}}"
