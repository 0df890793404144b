#!/usr/bin/env python3
"""What a policy's controller does on a trace, beside a fixed option, trusted profiles, ALERT's filter and an oracle.

    tools/trace_lab.py BUNDLE --deadline-ms 5                        every synthetic trace, simulated
    tools/trace_lab.py BUNDLE --deadline-ms 5 --trace bursts         one of them
    tools/trace_lab.py BUNDLE --deadline-ms 5 --trace slow.csv       recorded: one slowdown a line, 1 is the profile's
    tools/trace_lab.py BUNDLE --deadline-ms 5 --real                 also the run-time itself, each inference stretched
                                                                     by the trace, beside its simulation
    tools/trace_lab.py BUNDLE --record slow.csv --calls 2000         record this machine's slowdowns

Misses count calls over the deadline that some option could have met, after the first ten. Quality is the mean expected
quality of the options run, also as a share of the oracle's, which knows every call's slowdown beforehand.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "compilers")]

from edgescale.control import Controller, Option, Policy, Request, Step  # noqa: E402
from edgescale.control.simulate import WARM_UP, Outcome, simulate  # noqa: E402
from edgescale.control.traces import SHAPES, Trace, synthetic  # noqa: E402
from edgescale.core.errors import UsageError  # noqa: E402
from edgescale.core.files import write_whole  # noqa: E402
from edgescale.runtime import AdaptiveSession  # noqa: E402

CALL_MS = 2.0
"""A call of the real run-time repeats inferences so that the quickest variant takes about this long: below, the
interpreter's own time would be what is measured."""


class RealCalls:
    """The run-time on this machine; a call runs its variant `repeat` times, stretched by a given factor."""

    def __init__(self, bundle: Path, target: str | None) -> None:
        self.session = AdaptiveSession(bundle, target)
        self.session.ready()
        policy = self.session.controller.policy
        self.repeat = max(1, math.ceil(CALL_MS * 1e3 / min(step.time_us for o in policy.options for step in o.steps)))
        self.policy = times(policy, self.repeat)
        self.stretch = 1.0
        self._infer = self.session.session.infer
        self.session.session.infer = self._repeated  # type: ignore[method-assign]
        spec = self.session.session.bundle.entry(policy.variants[0].name).onnx
        assert spec is not None
        self.sample = np.zeros(spec.inputs[0].shape[1:], spec.inputs[0].dtype)
        self.restart()

    def restart(self) -> None:
        """Forget what was learnt; the variants stay loaded."""
        self.session.controller = Controller(self.policy)
        self.session.controller.resident = (1 << len(self.policy.variants)) - 1

    def run(self, **limits: Any) -> Any:
        """One call; see `AdaptiveSession.run`."""
        return self.session.run(self.sample, **limits)

    def time_option(self, index: int) -> float:
        """Milliseconds of one option run outright, all its steps."""
        steps = self.policy.options[index].steps
        return sum(self._repeated(self.policy.variants[s.variant].name, self.sample)[1] for s in steps)

    def _repeated(self, entry: str, x: Any) -> tuple[Mapping[str, Any], float]:
        begun = time.perf_counter()
        for _ in range(self.repeat):
            outputs, _ = self._infer(entry, x)
        until = begun + (time.perf_counter() - begun) * self.stretch
        while (now := time.perf_counter()) < until:
            pass
        return outputs, (now - begun) * 1e3


def times(policy: Policy, factor: int) -> Policy:
    """The policy of calls that repeat every inference `factor` times."""

    def option(o: Option) -> Option:
        steps = tuple(
            Step(variant=s.variant, time_us=s.time_us * factor, energy_uj=s.energy_uj * factor) for s in o.steps
        )
        return Option(
            quality=o.quality,
            steps=steps,
            mean_us=o.mean_us * factor,
            mean_uj=o.mean_uj * factor,
            memory=o.memory,
            confidence=o.confidence,
            samples=o.samples,
        )

    return Policy(
        target=policy.target,
        metric=policy.metric,
        variants=policy.variants,
        options=tuple(map(option, policy.options)),
        hysteresis=policy.hysteresis,
        source=policy.source,
    )


def singles(policy: Policy) -> Policy:
    """The policy without cascades: how often one stops early depends on inputs, which a trace does not hold."""
    kept = tuple(option for option in policy.options if len(option.steps) == 1)
    return Policy(
        target=policy.target, metric=policy.metric, variants=policy.variants, options=kept, hysteresis=policy.hysteresis
    )


def calibrated(real: RealCalls) -> Policy:
    """The real calls' policy with this minute's times of the options, medians of 9."""
    medians = [float(np.median([real.time_option(i) for _ in range(9)])) for i in range(len(real.policy.options))]
    options = [
        Option(
            quality=o.quality,
            steps=(Step(variant=o.steps[0].variant, time_us=round(ms * 1e3)),),
            mean_us=round(ms * 1e3),
        )
        for o, ms in zip(real.policy.options, medians, strict=True)
    ]
    p = real.policy
    return Policy(
        target=p.target, metric=p.metric, variants=p.variants, options=tuple(options), hysteresis=p.hysteresis
    )


def play_real(real: RealCalls, trace: Trace, deadline_ms: float, violation: float) -> tuple[float, float]:
    """(share of misses, mean expected quality) of the run-time on a trace, after the first ten calls."""
    real.restart()
    missed, quality = [], []
    for slowdown in trace.slowdown:
        real.stretch = max(float(slowdown), 1.0)
        answer = real.run(deadline_ms=deadline_ms, violation=violation)
        missed.append(answer.milliseconds > deadline_ms)
        quality.append(answer.quality)
    real.stretch = 1.0
    return float(np.mean(missed[WARM_UP:])), float(np.mean(quality[WARM_UP:]))


def open_policy(path: Path, target: str | None) -> Policy:
    """The policy of a bundle's target, or a policy file."""
    from edgescale.bundle import open_bundle
    from edgescale.control import decode_policy

    if path.is_file():
        return decode_policy(path.read_bytes(), str(path))
    opened = open_bundle(path)
    return opened.controller_policy(target or opened.target_names()[0])


def open_trace(name: str, calls: int, policy: Policy, seed: int) -> Trace:
    """A synthetic trace by its name, or one from a file of slowdowns. Raises UsageError."""
    if name in SHAPES:
        return synthetic(name, calls, len(policy.variants), seed)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"{name} is neither a file nor one of the traces {', '.join(SHAPES)}")
    try:
        values = np.loadtxt(path, delimiter=",", usecols=0, ndmin=1)
    except ValueError as error:
        raise UsageError(f"{name} must hold one slowdown a line: {error}") from None
    if len(values) <= WARM_UP or not (np.isfinite(values) & (values > 0)).all():
        raise UsageError(f"{name} must hold more than {WARM_UP} slowdowns, all above 0")
    none = np.zeros(len(values), np.int64)
    return Trace(path.stem, values, np.ones(len(policy.variants)), none, none)


def table(outcomes: Mapping[str, list[Outcome]]) -> Any:
    """Outcomes by trace as a table."""
    from rich.table import Table

    made = Table()
    for heading in (
        "trace",
        "controller",
        "misses",
        "quality",
        "of the oracle's",
        "quality in time",
        "mean ms",
        "changes",
    ):
        made.add_column(heading, justify="left" if heading in ("trace", "controller") else "right")
    for name, rows in outcomes.items():
        for row in rows:
            cells = (
                (row.late_quality, f"{row.late_quality:.4f}"),
                (row.mean_us, f"{row.mean_us / 1e3:.3f}"),
                (row.switches, f"{row.switches:.1%}"),
            )
            made.add_row(
                name if row is rows[0] else "",
                row.name,
                f"{row.misses:.2%}",
                f"{row.quality:.4f}",
                f"{row.quality / rows[-1].quality:.2%}",
                *("" if math.isnan(value) else text for value, text in cells),
            )
        made.add_section()
    return made


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--target", help="A target of the bundle. [default: its first]")
@click.option("--trace", "names", multiple=True, help="A synthetic trace, or a CSV file. [default: all synthetic ones]")
@click.option("--deadline-ms", type=click.FloatRange(0, min_open=True), help="[default: 1.25 x the second best option]")
@click.option("--violation", default=0.05, show_default=True, type=click.FloatRange(0.00002, 0.5))
@click.option("--calls", default=1000, show_default=True, type=click.IntRange(WARM_UP + 1))
@click.option("--seed", default=0, show_default=True)
@click.option("--real", is_flag=True, help="Also run the run-time of this machine, stretched by the trace.")
@click.option("--record", type=click.Path(path_type=Path), help="Write this machine's slowdowns and exit.")
def main(
    bundle: Path,
    target: str | None,
    names: tuple[str, ...],
    deadline_ms: float | None,
    violation: float,
    calls: int,
    seed: int,
    real: bool,
    record: Path | None,
) -> None:
    """Replay traces against the controller of BUNDLE (or of a policy file) and against others."""
    from rich.console import Console

    console = Console(width=120)
    runtime = RealCalls(bundle, target) if real or record else None
    if record:
        assert runtime is not None
        taken = [runtime.time_option(0) for _ in range(calls)]
        usual = float(np.median(taken[: max(10, calls // 20)]))
        write_whole(record, "".join(f"{value / usual:.4f}\n" for value in taken))
        console.print(f"{calls} slowdowns of {runtime.policy.variants[0].name} written to {record}")
        return
    if runtime is not None:
        runtime.policy = singles(runtime.policy)
        runtime.policy = calibrated(runtime)
    policy = runtime.policy if runtime is not None else singles(open_policy(bundle, target))
    if deadline_ms is None:
        by_quality = sorted(policy.options, key=lambda o: -o.quality[0])
        deadline_ms = 1.25 * by_quality[min(1, len(by_quality) - 1)].mean_us / 1e3
    request = Request(deadline_us=round(deadline_ms * 1e3), violation=max(round(violation * 65536), 1))
    outcomes = {}
    for name in names or SHAPES:
        trace = open_trace(name, calls, policy, seed)
        if runtime is not None:
            trace = Trace(
                trace.name,
                np.maximum(trace.slowdown, 1.0),
                np.ones(len(policy.variants)),
                trace.memory,
                trace.difficulty,
            )
        outcomes[trace.name] = simulate(policy, trace, request)
        if runtime is not None:
            missed, quality = play_real(runtime, trace, deadline_ms, violation)
            there = Outcome("edgescale, real run-time", missed, quality, math.nan, math.nan, math.nan, math.nan, 0)
            outcomes[trace.name].insert(1, there)
    console.print(f"deadline {deadline_ms:.4g} ms, to be missed in at most {violation:.2%} of the calls")
    console.print(table(outcomes))


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
