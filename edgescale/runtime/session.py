"""The session: a bundle opened on a device, deciding by budget which variant answers."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.bundle.manifest import TensorRecord
from edgescale.bundle.policy import decide, miss_text, smallest
from edgescale.bundle.reader import Bundle, open_bundle
from edgescale.core.budget import Budget, Constraint, parse_budget
from edgescale.core.errors import EdgescaleError, RigError, UsageError
from edgescale.core.quantity import Quantity
from edgescale.runtime.inputs import Feed, read_inputs
from edgescale.runtime.results import BudgetWarning, Choice, RunResult

WINDOW = 101
"""Latest runs of a variant over which the observed latency is the median."""

WARNED_BUDGETS = 1000
"""Budgets remembered as warned of, so that a budget computed anew for each sample cannot fill the memory."""

Array = npt.NDArray[np.generic]


class Session:
    """Runs the variants of a bundle for one target of kind "onnx", each opened when it is first chosen.

    Decisions use the bundle's figures alone, so they are the same on every start; live latency is
    observed and reported beside them. A session may be used from several threads: choosing, opening
    and bookkeeping are locked, inferences run side by side. Close it, or use it as a context manager.
    """

    def __init__(
        self, bundle_path: str | Path, target: str | None = None, verify: bool = True, threads: int | None = None
    ) -> None:
        """Open the bundle directory `bundle_path`.

        target: a target of the bundle; by default the first that can run here. verify: check every
        SHA-256. threads: intra-op threads instead of those the figures were measured with.
        Raises UsageError (no bundle, unknown target, only C code) or BundleError (damaged bundle).
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        self._bundle = open_bundle(Path(bundle_path), verify)
        self.target = _pick_target(self._bundle, target)
        self._threads = threads
        entries = self._bundle.entries_for(self.target)
        self._entries = {entry.id: entry for entry in entries if entry.onnx is not None}
        self._models = {entry.id: entry.onnx for entry in entries if entry.onnx is not None}
        self._figures = {name: entry.quantities() for name, entry in self._entries.items()}
        policy = self._bundle.policy(self.target)
        # The table may name entries this session cannot run: C code compiled for the same target.
        self._default = policy.default if policy.default in self._entries else next(iter(self._entries))
        self._fallback = policy.fallback if policy.fallback in self._entries else smallest(self._figures)
        self._made_for = parse_budget(self._bundle.policy(self.target).budget)
        self._lock = Lock()
        self._engines: dict[str, Any] = {}
        self._latencies: dict[str, deque[float]] = {}
        self._warned: set[Budget | None] = set()
        self._closed = False

    @property
    def bundle(self) -> Bundle:
        """The opened bundle."""
        return self._bundle

    @property
    def observed(self) -> dict[str, Quantity]:
        """Latency of one sample by entry id, median over its latest WINDOW runs in this process (measured)."""
        with self._lock:
            windows = {entry: list(window) for entry, window in self._latencies.items()}
        return {entry: _median(times) for entry, times in windows.items()}

    def variants(self) -> tuple[Choice, ...]:
        """Every variant this session can run, best first, judged by the budget the bundle was made for."""
        return tuple(self._by_default(name) for name in self._entries)

    def choose(self, budget: Budget | str | None = None) -> Choice:
        """The variant `run` would use. None: the bundle's default. Raises UsageError for a wrong budget."""
        limits = parse_budget(budget) if isinstance(budget, str) else budget
        if limits is None:
            return self._by_default(self._default)
        decision = decide(self._figures, self._fallback, limits)
        return self._choice(decision.name, decision.met, decision.unmet, decision.reason)

    def run(self, x: npt.ArrayLike | Mapping[str, npt.ArrayLike], budget: Budget | str | None = None) -> RunResult:
        """Run one sample or a batch (sample by sample) through the variant that `budget` chooses.

        x: as `runtime.inputs.read_inputs` takes it; budget: text such as "latency<=5ms, ram<=1MiB",
        a Budget, or None for the bundle's default. Where nothing meets the budget the smallest
        variant runs, `met` is False, `reason` names the limit in the way, and BudgetWarning is
        issued once for each budget.
        """
        limits = parse_budget(budget) if isinstance(budget, str) else budget
        choice = self.choose(limits)
        model = self._models[choice.entry]
        feed = read_inputs(x, model.inputs)
        engine = self._engine(choice.entry)
        if not choice.met:
            self._warn_once(limits, choice.reason)
        outputs, times = _execute(engine, [spec.name for spec in model.outputs], feed, choice.entry)
        with self._lock:
            self._latencies.setdefault(choice.entry, deque(maxlen=WINDOW)).extend(times)
        return RunResult(
            outputs, choice.variant, choice.entry, choice.figures, choice.met, choice.reason, _median(times)
        )

    def infer(self, entry: str, x: npt.ArrayLike | Mapping[str, npt.ArrayLike]) -> tuple[dict[str, Array], float]:
        """One sample through the variant `entry`: outputs by name, and the milliseconds of the inference.

        Raises UsageError for an entry this session does not run and for wrong inputs, RigError where it fails.
        """
        if entry not in self._models:
            raise UsageError(f"{entry} is not served here; served are {', '.join(self._models)}")
        model = self._models[entry]
        feed = read_inputs(x, model.inputs)
        if feed.count != 1:
            raise UsageError(f"one sample at a time is taken here, not {feed.count}")
        outputs, times = _execute(self._engine(entry), [spec.name for spec in model.outputs], feed, entry)
        with self._lock:
            self._latencies.setdefault(entry, deque(maxlen=WINDOW)).extend(times)
        return {name: array[0] if feed.batched else array for name, array in outputs.items()}, times[0]

    def input_of(self, entry: str) -> TensorRecord:
        """The first input of the variant `entry`. Raises UsageError for an entry this session does not run."""
        if entry not in self._models:
            raise UsageError(f"{entry} is not served here; served are {', '.join(self._models)}")
        return self._models[entry].inputs[0]

    def open(self, entry: str) -> None:
        """Open a variant before it is needed. Raises RigError, UsageError."""
        if entry not in self._models:
            raise UsageError(f"{entry} is not served here; served are {', '.join(self._models)}")
        self._engine(entry)

    def close(self) -> None:
        """Release the opened variants; later runs raise UsageError. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._engines.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _by_default(self, name: str) -> Choice:
        """An entry judged by the budget the bundle was made for."""
        unmet = tuple(self._made_for.unmet(self._figures[name]))
        if unmet:
            misses = ", ".join(miss_text(c, self._figures[name]) for c in unmet)
            verdict = f"misses {misses} of the bundle's budget"
        elif self._made_for.constraints:
            verdict = f"meets the bundle's budget ({self._made_for})"
        else:
            verdict = "has no limits to meet: the bundle was made without a budget"
        reason = f"the bundle's default {verdict}" if name == self._default else verdict
        return self._choice(name, not unmet, unmet, reason)

    def _choice(self, name: str, met: bool, unmet: tuple[Constraint, ...], reason: str) -> Choice:
        return Choice(self._entries[name].variant, name, self.target, self._figures[name], met, unmet, reason)

    def _warn_once(self, budget: Budget | None, reason: str) -> None:
        with self._lock:
            if budget in self._warned:
                return
            if len(self._warned) >= WARNED_BUDGETS:
                self._warned.clear()
            self._warned.add(budget)
        warnings.warn(reason, BudgetWarning, stacklevel=3)

    def _engine(self, name: str) -> Any:
        """The ONNX Runtime session of an entry, opened under the lock so that it is opened once."""
        with self._lock:
            if self._closed:
                raise UsageError("the session is closed")
            if name not in self._engines:
                from edgescale.runtime.ort import open_session

                options = dict(self._models[name].session)
                if self._threads is not None:
                    options["intra_op_num_threads"] = self._threads
                path = self._bundle.artifact_path(self._entries[name]) / self._models[name].file
                with _rig_errors(f"{name}: ONNX Runtime cannot open {path}"):
                    self._engines[name] = open_session(path, options)
            return self._engines[name]


@contextmanager
def _rig_errors(what: str) -> Iterator[None]:
    """Turn an error of ONNX Runtime, whose classes are not known before it is imported, into a RigError."""
    try:
        yield
    except EdgescaleError:
        raise
    except Exception as error:
        raise RigError(f"{what}: {error}") from error


def _pick_target(bundle: Bundle, wanted: str | None) -> str:
    """The target to serve. Raises UsageError, with what to do, where it has nothing that runs here."""
    names = bundle.target_names() if wanted is None else (wanted,)
    for name in names:
        if any(entry.kind == "onnx" for entry in bundle.entries_for(name)):
            return name
    entry = bundle.entries_for(names[0])[0]
    here = [t for t in bundle.target_names() if any(e.kind == "onnx" for e in bundle.entries_for(t))]
    instead = f"use target {' or '.join(here)}" if here else "compile the bundle for --target host as well"
    raise UsageError(
        f"the bundle {bundle.path} holds only C code for {', '.join(names)}: build it into the device's firmware from "
        f"{bundle.path / entry.path}, or {instead} to run it on this machine"
    )


def _execute(engine: Any, names: list[str], feed: Feed, entry: str) -> tuple[dict[str, Array], list[float]]:
    """Run the samples one after another; outputs by name, and each inference's time in ms."""
    collected: list[list[Array]] = []
    times = []
    for index in range(feed.count):
        sample = feed.sample(index)
        start = perf_counter()
        with _rig_errors(f"{entry}: ONNX Runtime failed on sample {index}"):
            outputs = engine.run(names, sample)
        times.append((perf_counter() - start) * 1e3)
        collected.append(outputs)
    joined = {name: _join([outs[i] for outs in collected], feed.batched) for i, name in enumerate(names)}
    return joined, times


def _join(parts: list[Array], batched: bool) -> Array:
    """Outputs of single samples, [1, ...] each, as [n, ...]; one sample given without a batch axis loses it."""
    bare = [part[0] if part.ndim and part.shape[0] == 1 else part for part in parts]
    return np.stack(bare) if batched else bare[0]


def _median(times: list[float]) -> Quantity:
    ordered = sorted(times)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    note = f"median of {len(ordered)} run{'s' if len(ordered) > 1 else ''} in this process, the first included"
    return Quantity(middle, "ms", "measured", note)
