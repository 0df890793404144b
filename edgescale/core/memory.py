"""What a back end that plans memory itself is to be good at."""

from __future__ import annotations

from typing import Literal

Memory = Literal["smallest", "balanced", "fastest"]
"""smallest: the least RAM, for some more instructions; balanced: no instruction is spent to save RAM; fastest: flash
and RAM are spent to save instructions."""

MEMORY_MODES: tuple[Memory, ...] = ("smallest", "balanced", "fastest")
