"""The five sizes of the tiny language family, in numbers that training and export share."""

from __future__ import annotations

from dataclasses import dataclass

ROPE_BASE = 1000.0
EPSILON = 1e-5
POSITIONS = 144
"""Rows of the rotary table: the longest prompt with its completion, in tokens."""


@dataclass(frozen=True)
class Shape:
    """Widths of one size. Every width is a multiple of 32, so that blocks of 32 weights fit."""

    layers: int
    width: int
    heads: int
    hidden: int

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


SIZES = {
    "xs": Shape(2, 32, 2, 32),
    "s": Shape(2, 64, 4, 32),
    "m": Shape(3, 64, 4, 192),
    "l": Shape(4, 96, 6, 288),
    "xl": Shape(4, 160, 5, 640),
}
