"""Text to token ids and back: vocabularies beside a model, bytes, and files of the `tokenizers` package."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from edgescale.core.errors import MissingDependencyError, UsageError

CHARACTERS = "edgescale-characters"
BYTES = "edgescale-bytes"


class Tokenizer(Protocol):
    """What the language model needs of a tokenizer."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a completion."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Raises UsageError for text it cannot write."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; a character not complete yet reads as U+FFFD."""


class CharacterTokenizer:
    """One token a character, from a vocabulary in order of ids."""

    def __init__(self, tokens: Sequence[str], end: int) -> None:
        """Raises UsageError for tokens that are not distinct single characters, or an `end` that is none."""
        if any(len(token) != 1 for token in tokens) or len(set(tokens)) != len(tokens):
            raise UsageError("a character vocabulary holds distinct single characters")
        if not 0 <= end < len(tokens):
            raise UsageError(f"end token {end} is not one of {len(tokens)} tokens")
        self._tokens = tuple(tokens)
        self._ids = {token: index for index, token in enumerate(tokens)}
        self.ends = frozenset({end})

    def encode(self, text: str) -> list[int]:
        """One id a character. Raises UsageError naming the first character that is no token."""
        for place, character in enumerate(text):
            if character not in self._ids:
                raise UsageError(f"character {character!r} at place {place} is not in the model's vocabulary")
        return [self._ids[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The characters, joined."""
        return "".join(self._tokens[index] for index in ids)


class ByteTokenizer:
    """Token ids 0 to 255 are the bytes of UTF-8; `end` is the id that ends a completion (any id)."""

    def __init__(self, end: int) -> None:
        self.ends = frozenset({end})

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes; ids above 255 are left out."""
        return bytes(index for index in ids if index < 256).decode(errors="replace")


class PackageTokenizer:
    """A tokenizer.json of the `tokenizers` package."""

    def __init__(self, path: Path) -> None:
        """Raises MissingDependencyError where the package is absent, UsageError where it refuses the file."""
        if importlib.util.find_spec("tokenizers") is None:
            raise MissingDependencyError("tokenizers", "pip install 'edgescale[lm]'")
        package: Any = importlib.import_module("tokenizers")
        try:
            self._tokenizer = package.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise UsageError(f"{path}: not a tokenizer file: {error}") from None
        self.ends = frozenset(_ends(path, self._tokenizer))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, special tokens in it read as such."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text, special tokens left out."""
        return str(self._tokenizer.decode(list(ids)))


_END_NAMES = ("<|im_end|>", "<|endoftext|>", "</s>", "<|end|>", "<|eot_id|>", "<eos>", "<end_of_turn>")


def _ends(path: Path, tokenizer: Any) -> list[int]:
    """eos_token_id of generation_config.json or config.json beside `path`, else the usual end tokens it has."""
    for name in ("generation_config.json", "config.json"):
        file = path.with_name(name)
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return [found] if isinstance(found, int) else list(found)
    return [index for name in _END_NAMES if (index := tokenizer.token_to_id(name)) is not None]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the file `path`: a vocabulary of ours ({"format", "tokens", "end"}) or of `tokenizers`.

    Raises UsageError for a missing or broken file, MissingDependencyError for an absent package.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"tokenizer file {path} does not exist") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: not a tokenizer file: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a tokenizer file: no JSON object")
    if content.get("format") == BYTES and isinstance(content.get("end"), int):
        return ByteTokenizer(content["end"])
    if content.get("format") == CHARACTERS:
        tokens, end = content.get("tokens"), content.get("end")
        if not isinstance(tokens, list) or not isinstance(end, int) or not all(isinstance(t, str) for t in tokens):
            raise UsageError(f'{path}: a vocabulary needs "tokens" (a list of text) and "end" (a whole number)')
        return CharacterTokenizer(tokens, end)
    if "format" in content:
        raise UsageError(f"{path}: unknown format {content['format']!r}; known: {CHARACTERS}, {BYTES}")
    return PackageTokenizer(path)
