"""The five sizes of the tiny language family: decoders with rotary positions and RMS norms (PyTorch)."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from tinylm_shapes import EPSILON, POSITIONS, ROPE_BASE, Shape
from tinylm_task import TOKENS
from torch import Tensor, nn


def rope_table(head_width: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each [POSITIONS, head_width], the halves of the last axis alike."""
    rates = ROPE_BASE ** (-torch.arange(0, head_width, 2).float() / head_width)
    angles = torch.arange(POSITIONS).float()[:, None] * rates[None]
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: `heads` [batch, heads, time, width]; cos and sin [batch, 1, time, width]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


class Block(nn.Module):
    """Attention and a perceptron with squared ReLU, each behind a norm and around a residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = nn.RMSNorm(shape.width, eps=EPSILON)
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, shape.width, bias=False)
        self.value = nn.Linear(shape.width, shape.width, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)
        self.mlp_norm = nn.RMSNorm(shape.width, eps=EPSILON)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [batch, time, width]; mask bool [batch, 1, time, time], true where attended to."""
        batch, time, width = x.shape
        normed = self.attention_norm(x)
        query, key, value = (
            layer(normed).view(batch, time, self.shape.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value, mask)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(torch.relu(self.up(self.mlp_norm(x))).square())


class TinyLM(nn.Module):
    """Token embedding (tied with the output layer), blocks, norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(len(TOKENS), shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=EPSILON)
        cos, sin = rope_table(shape.head_width)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        nn.init.normal_(self.embedding.weight, std=shape.width**-0.5)
        for block in self.blocks:
            nn.init.zeros_(block.output.weight)
            nn.init.zeros_(block.down.weight)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Logits [batch, time, vocabulary] of ids and positions [batch, time]; mask as in Block."""
        x = self.embedding(ids) * self.shape.width**0.5
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return functional.linear(self.norm(x), self.embedding.weight)


def count_parameters(net: nn.Module) -> int:
    """Trainable parameters, the tied embedding once."""
    return sum(parameter.numel() for parameter in net.parameters())
