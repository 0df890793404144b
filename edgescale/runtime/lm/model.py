"""The language model an application holds: a decoder, its tokenizer, and what it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgescale.core.errors import UsageError
from edgescale.runtime.lm.decoder import Decoder
from edgescale.runtime.lm.draft import NgramDraft
from edgescale.runtime.lm.generation import Chunk, Generation
from edgescale.runtime.lm.sequence import Completion, Options
from edgescale.runtime.lm.tokenizer import Tokenizer, load_tokenizer
from edgescale.runtime.lm.usage import PowerFigure, Usage


class LanguageModel:
    """A decoder with its tokenizer. Not for several threads at once."""

    def __init__(
        self, path: str | Path, tokenizer: Tokenizer | str | Path | None = None,
        config: Mapping[str, Any] | None = None, power: PowerFigure | None = None,
    ) -> None:  # fmt: skip
        """Open the ONNX decoder `path`.

        tokenizer: one, or its file; by default tokenizer.json beside the model. config: an artifact's session table.
        power: the active power of the device this runs on, for energy in `Usage`.
        Raises UsageError for a missing file, UnsupportedModelError where the model is no decoder.
        """
        path = Path(path)
        self.decoder = Decoder(path, config)
        if tokenizer is None:
            tokenizer = path.with_name("tokenizer.json")
        self.tokenizer = load_tokenizer(Path(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer
        self._power = power

    def describe(self) -> str:
        """What was opened, in a line, with a warning where generating is slow for want of a cache."""
        return self.decoder.describe()

    def start(
        self, prompt: str | Sequence[int], samples: int | None = 1, options: Options | None = None,
        drafts: NgramDraft | None = None,
    ) -> Generation:  # fmt: skip
        """Begin `samples` completions of `prompt` (text, or token ids), None for as many as are read.

        The prompt is computed once. The text of sample i depends on the options' seed and on i, not on how many
        are computed side by side (up to rounding of floats where two tokens are all but equally likely).
        drafts: n-grams to speculate with from earlier generations; needs `options.speculation`.
        Raises UsageError for an empty or too long prompt, or options the model cannot follow.
        """
        options = options or Options()
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if options.speculation is not None:
            drafts = NgramDraft(options.speculation.ngrams) if drafts is None else drafts
        elif drafts is not None:
            raise UsageError("n-grams were given to speculate with, but options.speculation is not set")
        return Generation(self.decoder, self.tokenizer, ids, samples, options, Usage(power=self._power), drafts)

    def generate(
        self, prompt: str | Sequence[int], samples: int = 1, options: Options | None = None,
        on_chunk: Callable[[Chunk], object] | None = None,
    ) -> list[Completion]:  # fmt: skip
        """All completions in order of samples; `on_chunk` sees text as it becomes certain. Raises as `start`."""
        return ordered(self.start(prompt, samples, options).completions(on_chunk))


def ordered(completions: Iterable[Completion]) -> list[Completion]:
    """Completions by sample number."""
    return sorted(completions, key=lambda completion: completion.sample)
