"""A session that adapts: every call runs the option its limits allow best, and teaches the controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from time import monotonic, perf_counter_ns
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgescale.bundle.options import probabilities
from edgescale.control import Battery, Controller, Limit, Option, Request
from edgescale.control.policy import CERTAIN, QUALITY_ONE
from edgescale.core.errors import RigError, UsageError
from edgescale.runtime.session import Session
from edgescale.runtime.views import parse_views

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class AdaptiveResult:
    """One answer, and what it took.

    outputs: name -> array without the batch axis, of the variant that answered (`entry`); where it averaged views of an
    image, mean probabilities. ran: entries in the
    order they ran, more than one where a cascade asked on. held: whether every limit was promised to hold with
    the asked probability; binding: what keeps a better option out, or what could not be met. quality: expected.
    energy_uj: estimated from the policy and the time taken, 0 where the target has no figure of power.
    """

    outputs: Mapping[str, Array]
    entry: str
    ran: tuple[str, ...]
    quality: float
    held: bool
    binding: Limit
    milliseconds: float
    energy_uj: int

    @property
    def output(self) -> Array:
        """The first output."""
        return next(iter(self.outputs.values()))


class AdaptiveSession:
    """Serves one target of a bundle, choosing variant and cascade for each call by what calls really take.

    Calls take turns: one controller, one stream of measurements. Use it as a context manager.
    """

    def __init__(
        self,
        bundle_path: str | Path,
        target: str | None = None,
        verify: bool = True,
        threads: int | None = None,
        preload: bool = True,
    ) -> None:
        """Open a bundle as `Session` does. Raises also UsageError where it has no policy for the controller.

        preload: open the variants in the background, cheapest first, so that no call waits for them; otherwise a
        variant is opened by the first call whose limits leave time for it.
        """
        self.session = Session(bundle_path, target, verify, threads)
        self.controller = Controller(self.session.bundle.controller_policy(self.session.target))
        self._views = parse_views(self.controller.policy.views)
        self._names = [variant.name for variant in self.controller.policy.variants]
        served = {choice.entry for choice in self.session.variants()}
        for index, name in enumerate(self._names):
            if name not in served:
                self.controller.waits[index] = 0xFFFFFFFF  # C code for the same target: not runnable here
        self._lock = Lock()
        self._loader: Thread | None = None
        if preload:
            self._loader = Thread(target=self._load_all, daemon=True)
            self._loader.start()

    def run(
        self,
        x: npt.ArrayLike | Mapping[str, npt.ArrayLike],
        *,
        deadline_ms: float | None = None,
        violation: float = 0.05,
        memory: int | None = None,
        energy_uj: float | None = None,
        mean_ms: float | None = None,
        mean_uj: float | None = None,
        quality: float = 0.0,
        difficulty: int = 0,
        cheapest: bool = False,
        battery: Battery | None = None,
    ) -> AdaptiveResult:
        """Answer one sample within limits.

        deadline_ms: to be missed in at most the share `violation` of the calls. memory: bytes a variant may have.
        energy_uj: of this call. mean_ms or mean_uj: mean over calls. quality: least expected quality in [0, 1].
        cheapest: the least cost that reaches `quality`. battery: energy that must last; sets mean_uj, and is charged
        with what the call took. Where nothing holds the cheapest option runs, and the
        result says so. A variant that fails is left out for some calls and another answers; RigError only where
        all fail.
        """
        if battery is not None:
            mean_uj = battery.mean_uj(monotonic())
        request = Request(
            deadline_us=_scaled(deadline_ms, 1e3),
            violation=max(round(violation * 65536), 1),
            memory=_scaled(memory, 1),
            energy_uj=_scaled(energy_uj, 1),
            mean_us=_scaled(mean_ms, 1e3),
            mean_uj=_scaled(mean_uj, 1),
            quality=round(quality * QUALITY_ONE),
            difficulty=difficulty,
            cheapest=cheapest,
        )
        with self._lock:
            begun = perf_counter_ns()
            for _ in self._names:
                decision = self.controller.decide(request)
                option = self.controller.policy.options[decision.option]
                try:
                    outputs, ran, times = self._execute(option, x, begun)
                except _VariantError as error:
                    self.controller.failed(error.variant)
                    trouble = error.cause
                    continue
                total = (perf_counter_ns() - begun) // 1000
                energy = self.controller.report(times, total)
                if battery is not None:
                    battery.spend(energy)
                worth = option.quality[difficulty if len(option.quality) > 1 else 0] / QUALITY_ONE
                return AdaptiveResult(
                    outputs, ran[-1], tuple(ran), worth, decision.held, decision.binding, total / 1e3, energy
                )
            raise RigError(f"every variant failed, the last with: {trouble}") from trouble

    def ready(self) -> None:
        """Wait until the variants are open, as far as they can be."""
        if self._loader is not None:
            self._loader.join()

    def close(self) -> None:
        """Release the variants."""
        self.ready()
        self.session.close()

    def __enter__(self) -> AdaptiveSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _execute(
        self, option: Option, x: npt.ArrayLike | Mapping[str, npt.ArrayLike], begun: int
    ) -> tuple[Mapping[str, Array], list[str], list[int]]:
        """Run an option's steps as far as they are needed: outputs, entries that ran, microseconds of each."""
        ran, times = [], []
        outputs: Mapping[str, Array] = {}
        answers: list[Array] = []
        before = -1
        for step in option.steps:
            name = self._names[step.variant]
            inputs = self._views_of(name, x, step.views)
            if step.variant != before:  # else its answer to the input itself is there already
                inputs, answers, before = [x, *inputs], [], step.variant
            spent = 0.0
            try:
                for seen in inputs:
                    outputs, milliseconds = self.session.infer(name, seen)
                    spent += milliseconds
                    answers.append(next(iter(outputs.values())))
            except RigError as error:
                raise _VariantError(step.variant, error) from error
            if step.views:
                mean = np.mean([_probabilities(answer) for answer in answers], axis=0).astype(np.float32)
                outputs = {next(iter(outputs)): mean}
            ran.append(name)
            times.append(max(round(spent * 1e3), 1))
            if len(option.steps) == 1:
                break
            elapsed = (perf_counter_ns() - begun) // 1000
            if self.controller.settled(_confidence(next(iter(outputs.values()))), elapsed):
                break
        return outputs, ran, times

    def _views_of(
        self, entry: str, x: npt.ArrayLike | Mapping[str, npt.ArrayLike], count: int
    ) -> list[npt.ArrayLike | Mapping[str, npt.ArrayLike]]:
        """The first `count` views of the image a variant takes."""
        if not count:
            return []
        spec = self.session.input_of(entry)
        image = np.asarray(x[spec.name] if isinstance(x, Mapping) else x)
        return [view.apply(image, spec.shape[1:]) for view in self._views[:count]]

    def _load_all(self) -> None:
        for index, name in enumerate(self._names):
            if self.controller.waits[index]:
                continue
            try:
                self.session.open(name)
            except (RigError, UsageError):
                continue  # The call that needs it meets the same error and demotes it.
            self.controller.resident |= 1 << index


class _VariantError(Exception):
    """A variant that failed in a call."""

    def __init__(self, variant: int, cause: RigError) -> None:
        super().__init__(str(cause))
        self.variant = variant
        self.cause = cause


def _confidence(scores: Array) -> int:
    """The largest probability of one answer, Q15."""
    return int(_probabilities(scores).max() * CERTAIN)


def _probabilities(scores: Array) -> npt.NDArray[np.float64]:
    """One answer's scores as probabilities, by the rule of the policy's maker."""
    return probabilities(scores.reshape(1, -1).astype(np.float64)).reshape(scores.shape)


def _scaled(value: float | None, factor: float) -> int:
    return 0 if value is None else max(int(value * factor), 1)
