#!/usr/bin/env python3
"""A small vision transformer on Fashion-MNIST: trained in float, written as ONNX.

    tools/train_vit.py --out build/vit/vit.onnx

16 patches of 7x7, 32 channels, 3 blocks of 2 heads, 28,138 parameters; other sizes by --width and --depth. Needs the
extra `train` and the Debian package `dataset-fashion-mnist`. One thread on the CPU; the same arguments give the same
weights on one machine.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "compilers"), str(ROOT / "examples" / "fashion")]

try:
    import torch
    from fashion_data import DEFAULT_DATA, load_split, to_input
    from torch import nn
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing.name} is not installed: pip install 'edgescale[train]'") from missing

HEADS, PATCH, TOKENS = 2, 7, 16


class Attention(nn.Module):
    """Softmax(q k^T / sqrt(d)) v over HEADS heads; x [B, TOKENS, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], TOKENS, HEADS, x.shape[2] // HEADS)
        q, k, v = (part(x).reshape(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores = torch.softmax(q @ k.transpose(-2, -1) * shape[3] ** -0.5, dim=-1)
        return self.out((scores @ v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Pre-norm attention and a two-layer perceptron of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))


class Vit(nn.Module):
    """image [B, 1, 28, 28] in [0, 1] -> logits [B, 10]; the mean of all tokens is classified."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, PATCH)
        self.place = nn.Parameter(torch.randn(1, TOKENS, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def trained(net: Vit, data: Path, epochs: int, count: int, device: str = "cpu", batch: int = 128) -> Vit:
    """AdamW on the first `count` training images, one warm-up epoch and a cosine."""
    net = net.to(device)
    images, labels = load_split(data, "train")
    x, y = torch.from_numpy(to_input(images[:count])), torch.from_numpy(labels[:count].astype("int64"))
    x, y = x.to(device), y.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    steps = len(x) // batch
    began = time.perf_counter()
    for epoch in range(epochs):
        order, total = torch.randperm(len(x)).to(device), 0.0
        for step in range(steps):
            at = (epoch * steps + step) / (epochs * steps)
            rate = 2e-3 * min(1.0, at * epochs) * 0.5 * (1 + math.cos(math.pi * at))
            for group in optimizer.param_groups:
                group["lr"] = rate
            picked = order[step * batch : (step + 1) * batch]
            loss = nn.functional.cross_entropy(net(x[picked]), y[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    return net.cpu().eval()


def write(net: Vit, path: Path) -> None:
    """Export to ONNX, weights inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(net, (torch.zeros(1, 1, 28, 28),), dynamo=True, opset_version=18, verbose=False,
                                input_names=["image"], output_names=["logits"])  # fmt: skip
    program.save(str(path), external_data=False)


def main() -> None:
    """Parse the command line, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=32, help="channels, a multiple of the heads (2)")
    parser.add_argument("--depth", type=int, default=3, help="blocks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where torch trains: cpu or cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "vit" / "vit.onnx")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    net = Vit(options.width, options.depth)
    write(trained(net, options.data, options.epochs, options.images, options.device), options.out)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
