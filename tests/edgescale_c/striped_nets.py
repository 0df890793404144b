"""Random branching nets whose layers can run row by row."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from edgescale.lower.integer import add_rescaling
from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Layer,
    Lut,
    Pool2D,
    Port,
    Program,
    Requant,
    Tensor,
)

ONE = (1, 1)
FULL = (-128, 127)


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name, (1, *shape), "int8", 0.05, -3)


def scaled(rng: np.random.Generator, channels: int, taps: int) -> Requant:
    """A scaling that keeps accumulators of `taps` products of full range in the middle of int8."""
    shift = -(6 + int(np.log2(taps)))
    return Requant(rng.integers(2**30, 2**31, channels).astype(np.int32), np.full(channels, shift, np.int32))


class Drawn:
    """A net under construction. axis 1: rows are image rows; 2: positions of [1, 1, L, C]."""

    def __init__(self, seed: int, rows: int, columns: int, depth: int, axis: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.axis = axis
        self.tensors = {"x": tensor("x", *((rows, columns) if axis == 1 else (1, rows)), depth)}
        self.layers: list[Layer] = []

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape[1:]

    def put(self, layer: Layer, *shape: int) -> str:
        self.layers.append(layer)
        self.tensors[layer.output] = tensor(layer.output, *shape)
        return layer.output

    def window(self, source: str, k: int, stride: int, dilation: int, pads: tuple[int, int]):
        """Kernel, stride, dilation, padding and output extents, with rows treated as asked."""
        height, width, _ = self.shape(source)
        size = height if self.axis == 1 else width
        reach = (k - 1) * dilation + 1
        rows = (size + sum(pads) - reach) // stride + 1
        if self.axis == 1:
            return (k, 1), (stride, 1), (dilation, 1), (pads[0], 0, pads[1], 0), (rows, width)
        return (1, k), (1, stride), (1, dilation), (0, pads[0], 0, pads[1]), (1, rows)

    def conv(self, source: str, channels: int, k: int, stride: int, dilation: int, pads: tuple[int, int]) -> str:
        kernel, strides, dilations, padding, extents = self.window(source, k, stride, dilation, pads)
        depth = self.shape(source)[2]
        name = f"t{len(self.layers)}"
        weights = self.rng.integers(-127, 128, (channels, *kernel, depth)).astype(np.int8)
        bias = self.rng.integers(-999, 999, channels).astype(np.int32)
        scaling = scaled(self.rng, channels, k * depth)
        layer = Conv2D(name, (source,), name, weights, bias, strides, dilations, padding, 1, scaling, FULL)
        return self.put(layer, *extents, channels)

    def depthwise(self, source: str, k: int, stride: int, pads: tuple[int, int]) -> str:
        kernel, strides, dilations, padding, extents = self.window(source, k, stride, 1, pads)
        depth = self.shape(source)[2]
        name = f"t{len(self.layers)}"
        weights = self.rng.integers(-127, 128, (*kernel, depth)).astype(np.int8)
        bias = self.rng.integers(-999, 999, depth).astype(np.int32)
        scaling = scaled(self.rng, depth, k)
        layer = DepthwiseConv2D(name, (source,), name, weights, bias, strides, dilations, padding, 1, scaling, FULL)
        return self.put(layer, *extents, depth)

    def pool(self, source: str, kind: str, k: int, stride: int, pads: tuple[int, int]) -> str:
        kernel, strides, _, padding, extents = self.window(source, k, stride, 1, pads)
        name = f"t{len(self.layers)}"
        layer = Pool2D(name, (source,), name, kind, kernel, strides, padding, False, None, FULL)
        return self.put(layer, *extents, self.shape(source)[2])

    def lut(self, source: str) -> str:
        name = f"t{len(self.layers)}"
        table = self.rng.permutation(np.arange(-128, 128)).astype(np.int8)
        return self.put(Lut(name, (source,), name, table, "shuffled"), *self.shape(source))

    def add(self, a: str, b: str) -> str:
        name = f"t{len(self.layers)}"
        return self.put(Add(name, (a, b), name, *add_rescaling(0.05, 0.05, 0.05), FULL), *self.shape(a))

    def concat(self, a: str, b: str) -> str:
        name = f"t{len(self.layers)}"
        *extents, depth = self.shape(a)
        return self.put(Concat(name, (a, b), name, 3, (None, None)), *extents, depth + self.shape(b)[2])

    def program(self) -> Program:
        read = {name for layer in self.layers for name in layer.inputs}
        ends = [layer.output for layer in self.layers if layer.output not in read]

        def ports(names: list[str]) -> tuple[Port, ...]:
            return tuple(Port(n, n, self.tensors[n].shape, (0, 1, 2, 3)) for n in names)

        return Program("drawn", self.tensors, ports(["x"]), ports(ends), tuple(self.layers))


@st.composite
def nets(draw, most: int = 6) -> Program:
    """A net of windows of every stride, dilation and padding, with skips, sums and concatenations."""
    axis = draw(st.sampled_from([1, 2]))
    net = Drawn(
        draw(st.integers(0, 10**6)), draw(st.integers(6, 15)), draw(st.integers(1, 4)), draw(st.integers(1, 4)), axis
    )
    names = ["x"]
    for _ in range(draw(st.integers(2, most))):
        source = draw(st.sampled_from(names[-3:]))
        size = net.shape(source)[axis - 1]
        kind = draw(st.sampled_from(["conv", "conv", "depthwise", "pool", "lut", "add", "concat"]))
        k, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        dilation = draw(st.integers(1, 2)) if kind == "conv" else 1
        pads = draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))
        twins = [name for name in names if net.shape(name)[:2] == net.shape(source)[:2]]
        if kind in ("conv", "depthwise", "pool") and size + sum(pads) < (k - 1) * dilation + 1:
            kind = "lut"
        if kind == "conv":
            names.append(net.conv(source, draw(st.integers(1, 5)), k, stride, dilation, pads))
        elif kind == "depthwise":
            names.append(net.depthwise(source, k, stride, pads))
        elif kind == "pool":
            names.append(net.pool(source, draw(st.sampled_from(["max", "avg"])), k, stride, pads))
        elif kind == "add":
            same = [name for name in twins if net.shape(name) == net.shape(source)]
            names.append(net.add(source, draw(st.sampled_from(same))))
        elif kind == "concat":
            names.append(net.concat(source, draw(st.sampled_from(twins))))
        else:
            names.append(net.lut(source))
    return net.program()
