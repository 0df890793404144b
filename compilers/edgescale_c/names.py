"""C identifiers from names of models, layers and values."""

from __future__ import annotations

import re


def identifier(text: str, longest: int = 40) -> str:
    """`text` as a C identifier of about `longest` characters at most: letters, digits and single underscores."""
    cleaned = re.sub(r"[^0-9A-Za-z]+", "_", text).strip("_")[:longest].strip("_")
    if not cleaned:
        return "unnamed"
    return f"n{cleaned}" if cleaned[0].isdigit() else cleaned


def layer_symbol(symbol: str, index: int, name: str) -> str:
    """Name of a layer's function: unique by its index, readable by the node's name in the user's model."""
    return f"es_{symbol}_l{index:03d}_{identifier(name)}"


def comment(text: str) -> str:
    """`text` fit for the inside of a C comment: one line, nothing that ends it, plain ASCII."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return re.sub(r"\s+", " ", plain).replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?").rstrip("\\")
