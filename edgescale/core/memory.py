"""What a back end that plans memory itself is to be good at."""

from __future__ import annotations

from typing import Literal

Memory = Literal["smallest", "packed", "balanced", "fastest"]
"""smallest: the least RAM and flash, for some more instructions; packed: the least flash alone; balanced: no
instruction is spent to save RAM or flash; fastest: flash and RAM are spent to save instructions."""

MEMORY_MODES: tuple[Memory, ...] = ("smallest", "packed", "balanced", "fastest")

PACKING: tuple[Memory, ...] = ("smallest", "packed")
"""Modes in which flash counts for more than instructions."""
