"""The three convolutional nets of the Fashion-MNIST example family.

Every net takes ``image``, float32 ``[N, 1, 28, 28]`` with pixels in ``[0, 1]`` (0 is the black
background, so zero padding extends the picture), and gives ``logits``, float32 ``[N, 10]``. There is no
separate normalisation step: the batch normalisation behind the first convolution takes that part.

Only operators that small targets have are used: Conv (also depthwise), BatchNormalization, Relu,
Clip (ReLU6), Add, GlobalAveragePool, Flatten and Gemm. Needs torch (the ``train`` extra).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

SIZES: tuple[str, ...] = ("small", "medium", "large")
INPUT_SHAPE: tuple[int, int, int] = (1, 28, 28)
CLASSES = 10


class ConvUnit(nn.Module):
    """Convolution without bias followed by batch normalisation; no activation.

    Takes ``[N, inputs, H, W]`` and gives ``[N, outputs, ceil(H / stride), ceil(W / stride)]``; the
    padding is ``kernel // 2`` on every side.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Give the normalised convolution; the range is not bounded."""
        out: Tensor = self.norm(self.conv(x))
        return out


class Stem(ConvUnit):
    """First layer: 3x3 convolution from one channel, batch normalisation, ReLU6 (range ``[0, 6]``)."""

    def __init__(self, outputs: int, stride: int) -> None:
        super().__init__(INPUT_SHAPE[0], outputs, 3, stride)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, 1, 28, 28]`` to ``[N, outputs, 28 / stride, 28 / stride]``."""
        out: Tensor = self.act(super().forward(x))
        return out


class SeparableBlock(nn.Module):
    """Depthwise 3x3 then pointwise 1x1 convolution, each with batch normalisation and ReLU6.

    Where the shape stays the same (``stride == 1`` and ``inputs == outputs``) the input is added in
    front of the last activation. The output is in ``[0, 6]``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvUnit(inputs, inputs, 3, stride, groups=inputs)
        self.act1 = nn.ReLU6()
        self.pointwise = ConvUnit(inputs, outputs, 1)
        self.act2 = nn.ReLU6()
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, ceil(H / stride), ceil(W / stride)]``."""
        y = self.pointwise(self.act1(self.depthwise(x)))
        if self.residual:
            y = x + y
        out: Tensor = self.act2(y)
        return out


class ResidualBlock(nn.Module):
    """Two full 3x3 convolutions with an added shortcut; the output is in ``[0, inf)`` (ReLU).

    The shortcut is the input itself, or a 1x1 convolution where stride or channels change.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvUnit(inputs, outputs, 3, stride)
        self.act1 = nn.ReLU()
        self.conv2 = ConvUnit(outputs, outputs, 3)
        self.act2 = nn.ReLU()
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else ConvUnit(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, ceil(H / stride), ceil(W / stride)]``."""
        y = self.conv2(self.act1(self.conv1(x)))
        out: Tensor = self.act2(y + self.shortcut(x))
        return out


class FashionNet(nn.Module):
    """Stem, stages of blocks, global average pooling and one fully connected layer."""

    def __init__(self, stem: Stem, stages: list[list[nn.Module]], features: int) -> None:
        super().__init__()
        self.stem = stem
        for number, blocks in enumerate(stages, start=1):
            named = OrderedDict((f"block{index}", block) for index, block in enumerate(blocks))
            self.add_module(f"stage{number}", nn.Sequential(named))
        self.stage_count = len(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(features, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``image`` ``[N, 1, 28, 28]`` in ``[0, 1]`` to logits ``[N, 10]`` (not bounded)."""
        x = self.stem(image)
        for number in range(1, self.stage_count + 1):
            x = self.get_submodule(f"stage{number}")(x)
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def build(size: str) -> FashionNet:
    """Build an untrained net; ``size`` is one of ``SIZES``, anything else is a ``ValueError``."""
    if size == "small":  # about 5 K parameters, 0.32 M multiply-accumulates
        return FashionNet(
            Stem(16, stride=2),
            [
                [SeparableBlock(16, 24)],
                [SeparableBlock(24, 32, stride=2), SeparableBlock(32, 32), SeparableBlock(32, 40)],
            ],
            features=40,
        )
    if size == "medium":  # about 25 K parameters, 1.6 M multiply-accumulates
        return FashionNet(
            Stem(16, stride=1),
            [
                [SeparableBlock(16, 32, stride=2), SeparableBlock(32, 32), SeparableBlock(32, 32)],
                [SeparableBlock(32, 64, stride=2), SeparableBlock(64, 64), SeparableBlock(64, 64)],
                [SeparableBlock(64, 96)],
            ],
            features=96,
        )
    if size == "large":  # about 95 K parameters, 6.2 M multiply-accumulates
        return FashionNet(
            Stem(16, stride=1),
            [
                [SeparableBlock(16, 24, stride=2), ResidualBlock(24, 24)],
                [ResidualBlock(24, 64, stride=2), SeparableBlock(64, 64), SeparableBlock(64, 64)],
                [SeparableBlock(64, 104), SeparableBlock(104, 104)],
            ],
            features=104,
        )
    raise ValueError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")


def count_parameters(net: nn.Module) -> int:
    """Count the trained numbers (weights, biases, batch-normalisation scales and shifts)."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module) -> int:
    """Count the multiply-accumulates of convolutions and fully connected layers for one image."""
    total = 0

    def conv_hook(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += module.weight[0].numel() * output[0].numel()

    def linear_hook(module: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Linear)
        total += module.weight.numel()

    handles = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(conv_hook))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(linear_hook))
    was_training = net.training
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, *INPUT_SHAPE))
    net.train(was_training)
    for handle in handles:
        handle.remove()
    return total
