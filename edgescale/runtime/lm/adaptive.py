"""A generator that adapts: size, precision and number of samples of every prompt, within what the call may cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from time import monotonic, perf_counter

from edgescale.control.battery import Battery
from edgescale.control.generators import GeneratorPolicy, Unit, decode_generators
from edgescale.control.ladder_choice import GeneratorRequest, LadderController
from edgescale.control.request import Limit
from edgescale.core.errors import EdgescaleError, RigError, UsageError
from edgescale.runtime.lm.generation import Generation
from edgescale.runtime.lm.model import LanguageModel
from edgescale.runtime.lm.poll import Poll
from edgescale.runtime.lm.sequence import Completion, Options
from edgescale.runtime.lm.table import seed_of


@dataclass(frozen=True)
class GeneratorResult:
    """One answer, and what it took.

    text: of the completion chosen, "" where none was finished; answer: what of it was voted on. accepted: by the
    verifier (None without one). share: of the votes. asked: completions by variant, in the order asked. quality:
    expected. settled: whether the answers ended it; otherwise its samples were used up, or (`cut`) a limit was near.
    token_bytes: tokens of prompts and completions times the weights' bytes. energy_uj: 0 where no power is known.
    """

    text: str
    answer: Hashable
    accepted: bool | None
    share: float
    asked: dict[str, int]
    quality: float
    difficulty: int
    settled: bool
    cut: bool
    held: bool
    binding: Limit
    tokens: int
    token_bytes: float
    milliseconds: float
    energy_uj: float

    @property
    def samples(self) -> int:
        """Completions in all."""
        return sum(self.asked.values())


class AdaptiveGenerator:
    """Serves a family of decoders by a policy of generators. Calls take turns: one stream of measurements."""

    def __init__(
        self,
        policy: GeneratorPolicy | str | Path,
        folder: str | Path | None = None,
        answer: Callable[[str, str], Hashable] = lambda prompt, text: text,
        verifier: Callable[[str, str], bool] | None = None,
        options: Options | None = None,
    ) -> None:
        """policy: one, or its file. folder: what the variants' files are relative to, by default the policy's.

        answer: (prompt, completion) -> what of it is voted on ("" for nothing). verifier: (prompt, completion) ->
        whether it is accepted, of a policy made with one. options: of generation; `max_tokens` is the policy's.
        Raises UsageError for a policy that is none, or one whose verifier is missing or not asked.
        """
        if not isinstance(policy, GeneratorPolicy):
            path = Path(policy)
            folder = path.parent if folder is None else folder
            try:
                policy = decode_generators(path.read_bytes(), str(path))
            except OSError as error:
                raise UsageError(f"cannot read the policy {path}: {error.strerror}") from None
        wants = {ladder.rule for ladder in policy.ladders}
        if "verified" in wants and verifier is None:
            raise UsageError("the policy was made for answers that a verifier checks: give one")
        if wants == {"majority"} and verifier is not None:
            raise UsageError(
                "the policy was made for votes: it asks no verifier; make one with the verifier's verdicts"
            )
        self.controller = LadderController(policy)
        self._folder = Path(folder or ".")
        self._answer, self._verifier = answer, verifier
        self._options = replace(options or Options(), max_tokens=policy.max_tokens, batch=1)
        self._models: dict[int, LanguageModel] = {}
        self._lock = Lock()

    @property
    def policy(self) -> GeneratorPolicy:
        """The policy served."""
        return self.controller.policy

    def open(self, variant: int) -> LanguageModel:
        """A variant's model, opened the first time. Raises RigError where that fails."""
        if variant not in self._models:
            path = self._folder / self.policy.variants[variant].file
            with _failures(self.policy.variants[variant].name):
                self._models[variant] = LanguageModel(path)
            self.controller.resident.add(variant)
        return self._models[variant]

    def run(
        self,
        prompt: str,
        *,
        token_bytes: float = 0,
        deadline_ms: float = 0,
        energy_uj: float = 0,
        violation: float = 0.05,
        memory: int = 0,
        mean_token_bytes: float = 0,
        mean_ms: float = 0,
        mean_uj: float = 0,
        quality: float = 0,
        cheapest: bool = False,
        difficulty: int | None = None,
        battery: Battery | None = None,
    ) -> GeneratorResult:
        """Answer a prompt within limits; 0 is none.

        token_bytes, energy_uj: of this call, never exceeded (energy as far as the profiled power is right).
        deadline_ms: missed in at most the share `violation` of the calls. memory: bytes of the variants used. mean_*:
        over the calls, one of them. quality: least expected; cheapest: the least cost that reaches it. difficulty: 0
        (easiest) to 3, by default told from the prompt's tokens. battery: energy that must last; sets mean_uj, and is
        charged. A variant that fails is left out for some calls and others answer. Raises UsageError for limits out of
        range, or energy limits where no power is known; RigError where every variant fails.
        """
        if battery is not None:
            mean_uj = battery.mean_uj(monotonic())
        means: list[tuple[float, Unit]] = [(mean_token_bytes, "bytes"), (mean_ms * 1e3, "us"), (mean_uj, "uj")]
        given = [(value, unit) for value, unit in means if value]
        if len(given) > 1:
            raise UsageError("a call has one mean budget: token-bytes, milliseconds or microjoules")
        if (energy_uj or mean_uj) and not all(v.power_mw for v in self.policy.variants):
            raise UsageError("the policy knows no power of the device: energy cannot be limited")
        mean, unit = given[0] if given else means[0]
        with self._lock:
            ids = self._encode(prompt)
            request = GeneratorRequest(
                difficulty=self.policy.difficulty.bin(ids) if difficulty is None else difficulty,
                prompt_tokens=len(ids),
                token_bytes=token_bytes,
                us=deadline_ms * 1e3,
                uj=energy_uj,
                violation=violation,
                memory=memory,
                mean=mean,
                unit=unit,
                quality=quality,
                cheapest=cheapest,
            )
            begun = perf_counter()
            trouble: RigError | None = None
            for _ in self.policy.variants:
                climb = _Climb(self, prompt, request, begun)
                try:
                    climb.run()
                except _VariantError as error:
                    self.controller.failed(error.variant)
                    trouble = error.cause
                    continue
                result = climb.result()
                spent: dict[Unit, float] = {
                    "bytes": result.token_bytes,
                    "us": result.milliseconds * 1e3,
                    "uj": result.energy_uj,
                }
                self.controller.report(spent, climb.profiled("us"), climb.computed_us)
                if battery is not None:
                    battery.spend(result.energy_uj)
                return result
            raise RigError(f"every variant failed, the last with: {trouble}") from trouble

    def _encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, by the tokenizer of a variant that is open, or of the first that opens."""
        trouble: RigError | None = None
        for variant in [*self._models, *range(len(self.policy.variants))]:
            try:
                return self.open(variant).tokenizer.encode(prompt)
            except RigError as error:
                self.controller.failed(variant)
                trouble = error
        raise RigError(f"no variant opens, the last: {trouble}") from trouble


class _Climb:
    """One prompt on its ladder."""

    def __init__(self, owner: AdaptiveGenerator, prompt: str, request: GeneratorRequest, begun: float) -> None:
        self.owner, self.prompt, self.request, self.begun = owner, prompt, request, begun
        self.decision = owner.controller.decide(request)
        policy = owner.policy
        self.ladder = policy.ladders[self.decision.ladder]
        self.poll = Poll(self.ladder, [v.vote for v in policy.variants])
        self.variants = policy.variants
        self.open: dict[int, Generation] = {}
        self.asked: dict[int, int] = {}
        self.done: list[tuple[Hashable, bool, str]] = []
        self.cut = False

    @property
    def computed_us(self) -> float:
        """Time spent computing, without opening models."""
        return sum(generation.usage.seconds for generation in self.open.values()) * 1e6

    def run(self) -> None:
        """Ask until the ladder ends, the answers settle it, or a limit is near. Raises _VariantError."""
        while (variant := self.poll.variant) is not None:
            completion = self._next(variant)
            if completion is None:
                self.cut = True
                return
            owner = self.owner
            answer = owner._answer(self.prompt, completion.text)
            accepted = owner._verifier is None or owner._verifier(self.prompt, completion.text)
            self.asked[variant] = self.asked.get(variant, 0) + 1
            self.done.append((answer, accepted, completion.text))
            self.poll.add(answer, accepted, math.exp(completion.log_probability / len(completion.tokens)))

    def profiled(self, unit: Unit) -> float:
        """What the tokens so far cost at profiled speed; token-bytes are exact."""
        total = 0.0
        for index, generation in self.open.items():
            used = generation.usage
            first, each = self.variants[index].rates(unit)
            total += used.prompt_tokens * first + used.generated_tokens * each
        return total

    def result(self) -> GeneratorResult:
        """The answer chosen, and the account."""
        poll, verified = self.poll, self.ladder.rule == "verified"
        answer = poll.leader
        if answer is None and self.done:  # nothing counted: the first completion that says something
            answer = next((a for a, _, _ in self.done if a), self.done[0][0])
        text = next((t for a, ok, t in self.done if a == answer and (ok or not (verified and poll.settled))), "")
        us = (perf_counter() - self.begun) * 1e6
        energy = sum(g.usage.seconds * self.variants[v].power_mw * 1e3 for v, g in self.open.items())
        return GeneratorResult(
            text=text,
            answer=answer,
            accepted=poll.settled if verified else None,
            share=poll.share,
            asked={self.variants[v].name: count for v, count in self.asked.items()},
            quality=self.ladder.quality[self.request.difficulty],
            difficulty=self.request.difficulty,
            settled=poll.settled,
            cut=self.cut,
            held=self.decision.held,
            binding=self.decision.binding,
            tokens=sum(g.usage.prompt_tokens + g.usage.generated_tokens for g in self.open.values()),
            token_bytes=self.profiled("bytes"),
            milliseconds=us / 1e3,
            energy_uj=energy,
        )

    def _next(self, variant: int) -> Completion | None:
        """One more completion of a variant; None where it does not fit the limits any more."""
        v, request = self.variants[variant], self.request
        prompt = 0 if variant in self.open else request.prompt_tokens
        wanted = v.tokens[request.difficulty] if self.done else 1.0
        if self._tokens_left(variant, prompt) < wanted:
            return None
        try:
            with _failures(v.name):
                if variant not in self.open:
                    model = self.owner.open(variant)
                    options = replace(self.owner._options, seed=seed_of(self.prompt, v.name, self.owner._options.seed))
                    self.open[variant] = model.start(self.prompt, None, options)
                for chunk in self.open[variant]:
                    if chunk.completion is not None:
                        return chunk.completion
                    if self._tokens_left(variant, 0) < 1:
                        return None
        except RigError as error:
            raise _VariantError(variant, error) from error
        return None

    def _tokens_left(self, variant: int, prompt: int) -> float:
        """Tokens of a variant that the limits leave, after a prompt of so many."""
        v, request, controller = self.variants[variant], self.request, self.owner.controller
        slow = self.decision.slowdown
        limits: list[tuple[float, Unit, float]] = [
            (request.token_bytes, "bytes", self.profiled("bytes")),
            (request.us / slow, "us", (perf_counter() - self.begun) * 1e6 / slow),
            (request.uj / slow, "uj", self.profiled("uj")),
        ]
        if request.mean and self.done:  # one completion there is always: a mean is no limit of a call
            limits.append((controller.allowance(request), request.unit, self.profiled(request.unit)))
        left = float("inf")
        for limit, unit, spent in limits:
            if limit:
                first, each = v.rates(unit)
                left = min(left, (limit - spent - prompt * first) / max(each, 1e-9))
        return left


class _VariantError(Exception):
    """A variant that failed in a call."""

    def __init__(self, variant: int, cause: RigError) -> None:
        super().__init__(str(cause))
        self.variant = variant
        self.cause = cause


@contextmanager
def _failures(name: str) -> Iterator[None]:
    """Any failure of a variant as a RigError: the classes of ONNX Runtime's are not known before it is imported."""
    try:
        yield
    except RigError:
        raise
    except (EdgescaleError, OSError, RuntimeError, ValueError) as error:
        raise RigError(f"{name}: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            raise RigError(f"{name}: ONNX Runtime failed: {error}") from error
        raise
