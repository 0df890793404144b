"""Pools, Mean and the softmax of float32 as TVM tensor expressions; arguments as in `elementwise`."""

from __future__ import annotations

from typing import Any

from edgescale.lower.program import LIMITS, Mean, Pool2D, Softmax, Tensor
from edgescale_tvm.arithmetic import Expr, clip, constant, scaled, stored, stored_real, wide

Tensors = list[Any]


def pool(layer: Pool2D, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """Largest or mean of each window."""
    from tvm import te, tirx

    x = inputs[0]
    height, width = (int(size) for size in x.shape[1:3])
    real = out.dtype == "float32"
    rows, columns = (te.reduce_axis((0, size), name) for size, name in zip(layer.kernel, ("p", "q"), strict=True))

    def tap(at: tuple[Expr, ...], fill: Expr, dtype: str) -> Expr:
        i = at[1] * layer.stride[0] + rows - layer.padding[0]
        j = at[2] * layer.stride[1] + columns - layer.padding[1]
        inside = tirx.all(i >= 0, i < height, j >= 0, j < width)
        return tirx.if_then_else(inside, x(at[0], i, j, at[3]).astype(dtype), fill)

    if layer.kind == "max":
        least = tirx.const(float("-inf"), "float32") if real else constant(LIMITS[out.dtype][0], out.dtype)
        largest = te.compute(
            out.shape, lambda *at: te.max(tap(at, least, out.dtype), axis=[rows, columns]), name="largest"
        )
        if real:
            return te.compute(out.shape, lambda *at: stored_real(largest(*at), layer.clamp), name="clamp")
        low, high = (constant(int(bound), out.dtype) for bound in layer.clamp)
        return te.compute(out.shape, lambda *at: clip(largest(*at), low, high), name="clamp")

    kind = "float32" if real else "int32"
    zero = 0 if real or not layer.count_padding else tensors[0].zero_point
    total = te.compute(
        out.shape, lambda *at: te.sum(tap(at, tirx.const(zero, kind), kind), axis=[rows, columns]), name="total"
    )

    def count(at: tuple[Expr, ...]) -> Expr:
        if layer.count_padding:
            return constant(layer.kernel[0] * layer.kernel[1])
        sizes = []
        for axis, size in ((0, height), (1, width)):
            first = at[1 + axis] * layer.stride[axis] - layer.padding[axis]
            inside = te.min(first + layer.kernel[axis], size) - te.max(first, 0)
            sizes.append(te.max(inside, 0))
        return wide(te.max(sizes[0] * sizes[1], 1))

    def mean_value(*at: Expr) -> Expr:
        if real:
            return stored_real(total(*at) / count(at).astype("float32"), layer.clamp)
        divisor, value = count(at), wide(total(*at))
        half = divisor >> constant(1)
        rounded = tirx.truncdiv(tirx.Select(value < constant(0), value - half, value + half), divisor)
        own = constant(tensors[0].zero_point)
        centred = rounded - own
        if layer.requant is not None:
            return stored(scaled(centred, layer.requant), layer.clamp, out)
        low, high = (constant(int(bound)) for bound in layer.clamp)
        return clip(rounded, low, high).astype(out.dtype)

    return te.compute(out.shape, mean_value, name="mean")


def mean(layer: Mean, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """Mean over H and W."""
    from tvm import te, tirx

    x = inputs[0]
    height, width, channels = (int(size) for size in x.shape[1:])
    rows, columns = te.reduce_axis((0, height), "p"), te.reduce_axis((0, width), "q")
    kind = "float32" if out.dtype == "float32" else "int32"
    total = te.compute(
        (channels,), lambda c: te.sum(x(0, rows, columns, c).astype(kind), axis=[rows, columns]), name="total"
    )
    count = height * width

    def value(*at: Expr) -> Expr:
        # `out` holds one value a channel, in whatever shape; channels lie last.
        channel = at[-1] if int(out.shape[-1]) == channels else _flat(out.shape, at)
        found = total(channel)
        if out.dtype == "float32":
            return stored_real(found / tirx.const(float(count), "float32"), layer.clamp)
        if layer.requant is None:
            raise ValueError(f"Mean layer {layer.name} on integer tensors has no requantization")
        centred = wide(found) - constant(count * tensors[0].zero_point)
        return stored(scaled(centred, layer.requant, inputs[1:], channel), layer.clamp, out)

    return te.compute(out.shape, value, name="mean")


def _flat(shape: tuple[int, ...], at: tuple[Expr, ...]) -> Expr:
    index: Expr = 0
    for size, position in zip(shape, at, strict=True):
        index = index * size + position
    return index


def softmax(layer: Softmax, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """Softmax of float32 over the last axis."""
    from tvm import te, tirx

    x = inputs[0]
    size, lead = int(x.shape[-1]), out.shape[:-1]
    over, along = te.reduce_axis((0, size), "k"), te.reduce_axis((0, size), "n")
    largest = te.compute(lead, lambda *at: te.max(x(*at, over), axis=[over]), name="largest")
    exponentials = te.compute(out.shape, lambda *at: tirx.exp(x(*at) - largest(*at[:-1])), name="exponentials")
    total = te.compute(lead, lambda *at: te.sum(exponentials(*at, along), axis=[along]), name="total")
    return te.compute(out.shape, lambda *at: exponentials(*at) / total(*at[:-1]), name="softmax")
