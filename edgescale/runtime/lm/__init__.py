"""Language models on a device: a decoder in ONNX Runtime, generated from under a budget.

    from edgescale.runtime.lm import LanguageModel, Options, Sampling

    model = LanguageModel("tinylm_m.onnx")
    for completion in model.generate("43+75+81=", samples=8, options=Options(max_tokens=64)):
        print(completion.text)

Imports NumPy only; ONNX Runtime comes with the first model opened.
"""

from edgescale.runtime.lm.adaptive import AdaptiveGenerator, GeneratorResult
from edgescale.runtime.lm.decoder import Decoder
from edgescale.runtime.lm.draft import NgramDraft, Speculation
from edgescale.runtime.lm.eviction import DelayedEviction, SlidingWindow
from edgescale.runtime.lm.generation import Chunk, Generation
from edgescale.runtime.lm.model import LanguageModel
from edgescale.runtime.lm.particles import particle_filter
from edgescale.runtime.lm.sampling import Sampling
from edgescale.runtime.lm.sequence import Completion, Options
from edgescale.runtime.lm.tokenizer import ByteTokenizer, CharacterTokenizer, load_tokenizer
from edgescale.runtime.lm.usage import Usage

__all__ = [
    "AdaptiveGenerator", "ByteTokenizer", "CharacterTokenizer", "Chunk", "Completion", "Decoder", "DelayedEviction",
    "Generation", "GeneratorResult", "LanguageModel", "NgramDraft", "Options", "Sampling", "SlidingWindow",
    "Speculation", "Usage", "load_tokenizer", "particle_filter",
]  # fmt: skip
