#!/usr/bin/env python3
"""Small language models of characters, trained from a seed and written as ONNX, for `tools/bench_quantize_lm.py`.

    tools/train_lm.py text.txt --out lm            sizes 64x2, 128x2 and 192x3 (width x layers), about ten minutes

Needs PyTorch. Each size is a decoder (LayerNorm before attention and before a GELU network of four times the width,
learned positions, a head of its own) that sees the same tokens in the same order; OUT/<size>.onnx takes `tokens` int64
[batch, length] and gives logits [batch, length, characters]. The last tenth of the text is held out: OUT/eval.npz has
windows of it (x [n, length + 1]: the last character is only predicted), OUT/calib.npz windows of the rest.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

LENGTH = 64
BATCH = 32
CHARACTERS = 95
"""Kinds of characters kept, the most frequent ones; the rest reads as a space."""


class Block(nn.Module):
    """Attention on what came before, then a network on each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 32
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x: [batch, length, width]; mask: [length, length], 0 or a large negative number."""
        shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        h = self.norm1(x)
        q, k, v = (part(h).reshape(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(shape[3]) + mask, -1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """tokens [batch, length] -> logits [batch, length, CHARACTERS + 1]."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(CHARACTERS + 1, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS + 1)
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), -1e4).triu(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """As the class says."""
        length = tokens.shape[1]
        x = self.embed(tokens) + self.place.weight[:length]
        for block in self.blocks:
            x = block(x, self.mask[:length, :length])
        return self.head(self.norm(x))


def encode(text: str) -> np.ndarray:
    """Characters as ids by falling frequency, from 1; 0 is a rare one."""
    kinds, counts = np.unique(np.array(list(text)), return_counts=True)
    ids = {kind: i + 1 for i, kind in enumerate(kinds[np.argsort(-counts, kind="stable")][:CHARACTERS])}
    return np.array([ids.get(character, 0) for character in text], np.int64)


def windows(tokens: np.ndarray, count: int, random: np.random.Generator, length: int) -> np.ndarray:
    """Random stretches, [count, length]."""
    starts = random.integers(0, len(tokens) - length, count)
    return tokens[starts[:, None] + np.arange(length)]


def train(tokens: np.ndarray, width: int, layers: int, steps: int, seed: int) -> Decoder:
    """AdamW with a warm-up of a twentieth and a cosine down to zero."""
    torch.manual_seed(seed)
    model, random = Decoder(width, layers), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    start = time.perf_counter()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (0.05 * steps))
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (64 / width) ** 0.5 * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = torch.from_numpy(windows(tokens, BATCH, random, LENGTH + 1))
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"  step {step + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    """Parse the command line, train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="UTF-8 text of some megabytes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", default="64x2,128x2,192x3", help="width x layers, comma-separated")
    parser.add_argument("--steps", type=int, default=900, help=f"of {BATCH} x {LENGTH} characters")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokens = encode(options.text.read_text(encoding="utf-8"))
    held = len(tokens) // 10
    options.out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    np.savez(options.out / "calib.npz", x=windows(tokens[:-held], 128, random, LENGTH))
    np.savez(options.out / "eval.npz", x=windows(tokens[-held:], 400, random, LENGTH + 1))
    for size in options.sizes.split(","):
        width, layers = (int(part) for part in size.split("x"))
        print(f"{size}:", flush=True)
        model = train(tokens[:-held], width, layers, options.steps, options.seed)
        torch.onnx.export(
            model, (torch.zeros(1, LENGTH, dtype=torch.long),), str(options.out / f"{size}.onnx"), opset_version=17,
            input_names=["tokens"], output_names=["logits"], dynamo=False,
            dynamic_axes={"tokens": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip


if __name__ == "__main__":
    main()
