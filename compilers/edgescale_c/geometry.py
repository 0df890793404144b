"""Window geometry of a layer, as the kernels take it (firmware `es_window`)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgescale.lower.program import Conv2D, DepthwiseConv2D, Layer, Pool2D, Program


@dataclass(frozen=True)
class Window:
    """Fields of `es_window`, in its order.

    Output rows full_top..full_bottom-1 and columns full_left..full_right-1 see no padding.
    """

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    k_h: int
    k_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_top: int
    pad_left: int
    groups: int
    full_top: int
    full_bottom: int
    full_left: int
    full_right: int

    @property
    def has_border(self) -> bool:
        """Whether some output pixel sees padding."""
        rows = self.full_top == 0 and self.full_bottom == self.out_h
        return not (rows and self.full_left == 0 and self.full_right == self.out_w)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output pixel sees the input pixel in its place and no other: `out_w` pixels in one row."""
        return (self.k_h, self.k_w, self.stride_h, self.stride_w) == (1, 1, 1, 1) and not self.has_border

    def initialiser(self) -> str:
        """C initialiser list with designators."""
        return ", ".join(f".{field.name} = {getattr(self, field.name)}" for field in fields(self))


def _full(size: int, outputs: int, kernel: int, stride: int, dilation: int, pad: int) -> tuple[int, int]:
    """Range of outputs whose taps all lie in [0, size)."""
    inside = [o for o in range(outputs) if o * stride - pad >= 0 and o * stride - pad + (kernel - 1) * dilation < size]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def window(program: Program, layer: Layer) -> Window:
    """Geometry of a convolution or pool. A 1x1 convolution without padding becomes one long row of pixels."""
    if not isinstance(layer, (Conv2D, DepthwiseConv2D, Pool2D)):
        raise TypeError(f"{layer.op} has no window")
    _, in_h, in_w, in_c = program.tensors[layer.inputs[0]].shape
    _, out_h, out_w, out_c = program.tensors[layer.output].shape
    groups, dilation = 1, (1, 1)
    if isinstance(layer, Conv2D):
        kernel, dilation, groups = (layer.weights.shape[1], layer.weights.shape[2]), layer.dilation, layer.groups
    elif isinstance(layer, DepthwiseConv2D):
        kernel, dilation = (layer.weights.shape[0], layer.weights.shape[1]), layer.dilation
    else:
        kernel = layer.kernel
    if kernel == (1, 1) and layer.stride == (1, 1) and not any(layer.padding):
        in_h, in_w, out_h, out_w = 1, in_h * in_w, 1, out_h * out_w
    rows = _full(in_h, out_h, kernel[0], layer.stride[0], dilation[0], layer.padding[0])
    columns = _full(in_w, out_w, kernel[1], layer.stride[1], dilation[1], layer.padding[1])
    return Window(
        in_h, in_w, in_c, out_h, out_w, out_c, *kernel, *layer.stride, *dilation,
        layer.padding[0], layer.padding[1], groups, *rows, *columns,
    )  # fmt: skip
