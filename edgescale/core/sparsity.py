"""What a recipe says of sparsity: the parts behind its `+`, as in `w8a8+ch0.5` or `w4a8+2:4`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgescale.core.errors import UsageError

Pattern = Literal["channels", "n:m", "block", "unstructured"]
Of = Literal["macs", "bytes", "instructions"]

AUTO = "auto"
BLOCK = 4
"""Input channels of a block."""

RECOVERIES: dict[str, str] = {
    "ft": "pruned at once, then trained towards the dense model's answers",
    "gmp": "pruned while it is trained: zeros along a cubic, channels in steps",
    "rigl": "trained with zeros that move inside their layer: small weights go, those of great gradient come",
    "dsl": "the same over all layers together: density moves to where it is worth most",
}
"""What training makes up for sparsity (needs --train); written behind it, as in `w8a8+ch0.5-ft`."""

_CHANNELS = re.compile(r"^ch(?P<share>0?\.\d+|1(?:\.0+)?|auto)(?P<of>[bi]?)$")
_N_M = re.compile(r"^(?P<n>\d+):(?P<m>\d+)$")
_ZEROS = re.compile(r"^(?P<kind>1x4|u)[:-]?(?P<share>0?\.\d+)$")
_MOST_M = 16
_OF: dict[str, Of] = {"": "macs", "b": "bytes", "i": "instructions"}
_KNOWN = (
    "ch0.5 (half the multiply-accumulates left), ch0.5b (half the weights), ch0.5i (half the target's instructions), "
    "auto, 2:4, 1x4:0.75, u0.9"
)


@dataclass(frozen=True)
class Sparsity:
    """One kind of sparsity.

    channels: `share` of the dense cost `of` is left (instructions: of the layers with weights, as the target takes them
    for int8), 0 where it is chosen (`auto`); n:m: of every `m` weights along the input channels at most `n` are not
    zero; block: `share` of the blocks of four input channels are zero; unstructured: `share` of the weights are zero.
    """

    pattern: Pattern
    share: float = 0.0
    of: Of = "macs"
    n: int = 0
    m: int = 0

    @property
    def is_auto(self) -> bool:
        """Whether the share is to be chosen by what it does to the model's output."""
        return self.pattern == "channels" and self.share == 0.0

    def __str__(self) -> str:
        if self.pattern == "channels":
            return AUTO if self.is_auto else f"ch{self.share:g}{next(key for key, of in _OF.items() if of == self.of)}"
        if self.pattern == "n:m":
            return f"{self.n}:{self.m}"
        return f"{'1x4:' if self.pattern == 'block' else 'u'}{self.share:g}"


def parse_sparsity(text: str) -> Sparsity:
    """One part, without its `+`. Raises UsageError for what is unknown or makes no sense."""
    text = text.strip().lower()
    if text in (AUTO, "chauto"):
        return Sparsity("channels")
    if found := _CHANNELS.match(text):
        return Sparsity("channels", float(found["share"]), _OF[found["of"]])
    if found := _N_M.match(text):
        n, m = int(found["n"]), int(found["m"])
        if not 0 < n < m <= _MOST_M:
            raise UsageError(f"sparsity {text!r}: n of m weights stay, 0 < n < m <= {_MOST_M}")
        return Sparsity("n:m", n=n, m=m)
    if (found := _ZEROS.match(text)) and 0 < float(found["share"]) < 1:
        return Sparsity("block" if found["kind"] == "1x4" else "unstructured", float(found["share"]))
    raise UsageError(f"unknown sparsity {text!r}; known: {_KNOWN}")


def parse_sparsities(texts: list[str]) -> tuple[Sparsity, ...]:
    """All parts of a recipe, in order. Raises UsageError for a kind given twice: channels, or zeros of any kind."""
    found = tuple(parse_sparsity(text) for text in texts)
    kinds = [part.pattern == "channels" for part in found]
    if len(set(kinds)) != len(kinds):
        raise UsageError(f"sparsity {'+'.join(texts)!r}: at most one of ch..., and one of n:m, 1x4:... and u...")
    return tuple(sorted(found, key=lambda part: part.pattern != "channels"))


def split_recovery(texts: list[str]) -> tuple[list[str], str]:
    """The parts of a recipe's sparsity without the recovery that closes them, and it (see RECOVERIES; "": none)."""
    *before, last = texts
    part, separator, name = last.strip().rpartition("-")
    return ([*before, part], name) if separator and name in RECOVERIES else (texts, "")


def check_recovery(parts: tuple[Sparsity, ...], recovery: str, text: str) -> None:
    """Raise UsageError for a recovery that has nothing to act on in these parts of the recipe `text`."""
    zeros = next((part for part in parts if part.pattern != "channels"), None)
    if recovery in ("rigl", "dsl") and zeros is None:
        raise UsageError(f"recipe {text!r}: {recovery} moves zeros, and channels that go leave none; write ft or gmp")
    if recovery == "dsl" and zeros is not None and zeros.pattern == "n:m":
        raise UsageError(f"recipe {text!r}: {zeros} fixes the density of every layer; write rigl")
    if recovery == "gmp" and any(part.is_auto for part in parts):
        raise UsageError(f"recipe {text!r}: gmp steps towards a share, and auto has none to begin with; write ft")
