"""Whose code is at an address: function and layer, for attributing counts and for messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgescale.rigs.elf import Elf


class CodeMap:
    """Functions and layers of an image. Layers are numbered 0 outside layers, k + 1 for layer k."""

    def __init__(self, elf: Elf, run: str, layers: Sequence[dict[str, Any]]) -> None:
        self.functions = sorted((s for s in elf.symbols if s.kind == "STT_FUNC"), key=lambda s: s.address)
        self._names = [str(layer["name"]) for layer in layers]
        symbols = [run, *(str(layer.get("symbol") or "") for layer in layers)]
        self._numbers = {symbol: number for number, symbol in enumerate(symbols) if symbol}

    def ranges(self) -> list[tuple[int, int, int]]:
        """(begin, end, layer) of the run function and of each layer's; other code belongs to its caller."""
        known = [(f, self._numbers.get(f.name)) for f in self.functions]
        return [(f.address, f.end, number) for f, number in known if number is not None]

    def location(self, address: int, layer: int = 0) -> str:
        """An address as people read it: program counter, function, and layer where one is known or given."""
        function = next((f.name for f in self.functions if f.address <= address < f.end), "")
        number = layer or self._numbers.get(function, 0)
        name = self._names[number - 1] if number else ""
        return f"PC 0x{address:08X}" + (f" ({function})" if function else "") + (f", layer {name!r}" if name else "")
