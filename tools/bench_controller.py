#!/usr/bin/env python3
"""What the run-time controller is worth: traces, a real competing load, equal mean cost, and its own cost.

    tools/bench_controller.py                     traces live family cost, on the shipped family
    tools/bench_controller.py traces generators   some of: traces live family cost generators

traces  simulated: misses and quality beside ALERT's filter, the best fixed option, trusted profiles, an oracle
live    this machine, with busy processes switched on and off: controllers take turns call by call
family  real answers at equal mean cost: every variant run alone, and the controller under that mean budget; modelled
        time of a Cortex-M4, then wall time of this machine. The policy knows one half of the test images, the other
        half is measured, and the other way round
cost    a decision in Python and on a Cortex-M4; opening a bundle; memory over 10,000 calls with switching
generators  language models: size, bits and number of samples (tools/bench_generators.py, with options of its own)
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "compilers"), str(ROOT / "tools")]

from trace_lab import RealCalls, calibrated, singles, table  # noqa: E402

from edgescale.bundle.options import confidences  # noqa: E402
from edgescale.cache import StageStore  # noqa: E402
from edgescale.control import Controller, Policy, Request  # noqa: E402
from edgescale.control.policy import CERTAIN  # noqa: E402
from edgescale.control.simulate import WARM_UP, simulate  # noqa: E402
from edgescale.control.traces import SHAPES, synthetic  # noqa: E402
from edgescale.core.recipe import parse_recipe  # noqa: E402
from edgescale.core.target import load_target  # noqa: E402
from edgescale.pipeline import CompileResult, compile_models  # noqa: E402
from edgescale.pipeline import Request as CompileRequest  # noqa: E402
from edgescale.runtime import AdaptiveSession  # noqa: E402

EXAMPLES = ROOT / "examples" / "fashion"
BOARD = "cortex-m4-stm32l4r5"
VIOLATION = 0.05


def compiled(folder: Path, evaluation: Path) -> CompileResult:
    """The shipped family as float and int8, for this machine and the board."""
    request = CompileRequest(
        models=tuple(EXAMPLES / f"fashion_{size}.onnx" for size in ("small", "medium", "large")),
        recipes=(parse_recipe("fp32"), parse_recipe("w8a8")),
        targets=(load_target("host"), load_target(BOARD)),
        calibration=str(EXAMPLES / "calibration.npz"),
        evaluation=str(evaluation),
        samples=20,
        out=folder,
    )
    return compile_models(request, StageStore())


def say(text: Any = "") -> None:
    """Print to the terminal or a file alike."""
    from rich.console import Console

    Console(width=120).print(text)


def traces(bundle: Path) -> None:
    """Every synthetic trace, three seeds, a tight and a loose deadline: the worst of the six, and one table."""
    from edgescale.bundle import open_bundle

    opened = open_bundle(bundle)
    policy = singles(opened.controller_policy(BOARD))
    largest = max(option.memory for option in policy.options)
    by_time = sorted(option.mean_us for option in policy.options)
    shown, worst = {}, {}
    for name in SHAPES:
        rows = []
        for seed in range(3):
            for deadline in (by_time[len(by_time) // 2], by_time[-2]):
                trace = synthetic(name, 1000, len(policy.variants), seed, largest)
                request = Request(deadline_us=round(1.25 * deadline), violation=round(VIOLATION * 65536))
                rows.append(simulate(policy, trace, request))
        shown[name] = rows[0]
        worst[name] = [
            (max(r[i].misses for r in rows), min(r[i].quality / r[-1].quality for r in rows), r[i].memory_broken)
            for i, r in [(i, rows[0]) for i in range(4)]
        ]
    say("[bold]traces, simulated[/]: seed 0, the tighter deadline")
    say(table(shown))
    say("the worst of three seeds and two deadlines: misses, quality of the oracle's, calls beyond free memory")
    names = [outcome.name for outcome in next(iter(shown.values()))][:4]
    for name, found in worst.items():
        cells = [f"{n} {m:.1%} {q:.1%} {b}" for n, (m, q, b) in zip(names, found, strict=True)]
        say(f"  {name:11s} " + "; ".join(cells))


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that compute without end, stopped until they are continued."""
    loads = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        for load in loads:
            load.send_signal(signal.SIGSTOP)
        yield loads
    finally:
        for load in loads:
            load.kill()
            load.wait()


def live(bundle: Path, calls: int = 600) -> None:
    """Controllers take turns call by call while a busy process for each core comes and goes.

    Only rounds count in which the quickest option kept the deadline: the others nobody could have served.
    """
    real = RealCalls(bundle, "host")
    real.policy = singles(real.policy)
    real.policy = policy = calibrated(real)
    options = policy.options
    deadline = 1.25 * sorted(o.mean_us for o in options)[-2] / 1e3
    ours = Controller(policy)
    ours.resident = 0xFFFF
    fits = [i for i, o in enumerate(options) if o.mean_us <= deadline * 1e3]
    largest = max(fits, key=lambda i: options[i].quality[0])
    calm: dict[int, float] = {i: float(np.quantile([real.time_option(i) for _ in range(20)], 0.95)) for i in fits}
    good = [i for i in fits if calm[i] <= deadline] or [min(calm, key=lambda i: calm[i])]
    static = max(good, key=lambda i: options[i].quality[0])
    fastest = min(range(len(options)), key=lambda i: options[i].mean_us)
    request = Request(deadline_us=round(deadline * 1e3), violation=round(VIOLATION * 65536))
    rng = np.random.default_rng(0)
    seen: dict[str, list[tuple[bool, float]]] = {
        n: [] for n in ("edgescale", "best static", "largest that fits", "fastest")
    }
    with busy(os.cpu_count() or 1) as loads:
        left, loaded = 0, True
        for _ in range(calls):
            if left <= 0:
                loaded = not loaded
                left = int(rng.exponential(40 if loaded else 80)) + 5
                for load in loads:
                    load.send_signal(signal.SIGCONT if loaded else signal.SIGSTOP)
            left -= 1
            decision = ours.decide(request)
            ms = real.time_option(decision.option)
            ours.report([round(ms * 1e3)])
            seen["edgescale"].append((ms > deadline, options[decision.option].quality[0] / 32768))
            for name, index in (("best static", static), ("largest that fits", largest), ("fastest", fastest)):
                ms = real.time_option(index)
                seen[name].append((ms > deadline, options[index].quality[0] / 32768))
    say(
        f"[bold]live[/], measured: {calls} calls of {real.repeat} inferences, deadline {deadline:.3g} ms, "
        f"asked {VIOLATION:.0%}"
    )
    possible = ~np.array([late for late, _ in seen["fastest"]][WARM_UP:], bool)
    say(f"  {possible.mean():.1%} of the calls could be served in time")
    for name, rows in seen.items():
        late, quality = np.array(rows[WARM_UP:])[possible].T
        say(
            f"  {name:18s} misses {late.mean():6.2%}   mean quality {quality.mean():.4f}   "
            f"in time {(quality * (1 - late)).mean():.4f}"
        )


def family(folder: Path) -> None:
    """Accuracy at equal mean cost, on images the policy has not seen."""
    data = np.load(EXAMPLES / "test.npz")
    halves = [slice(0, None, 2), slice(1, None, 2)]
    found: dict[str, list[tuple[float, ...]]] = {}
    for index, (known, unknown) in enumerate([halves, halves[::-1]]):
        path = folder / f"half{index}.npz"
        np.savez(path, x=data["x"][known], y=data["y"][known])
        result = compiled(folder / f"bundle{index}", path)
        assert result.bundle is not None
        board(result, data["x"][unknown], data["y"][unknown], found)
        host(result.bundle, data["x"][unknown], data["y"][unknown], found)
    for where in (BOARD, "host"):
        say(f"[bold]family[/], {where}: a variant alone, and the controller at its mean cost (2,000 images)")
        rows = {n.removeprefix(where + " "): np.mean(v, axis=0) for n, v in found.items() if n.startswith(where + " ")}
        for name, (cost, alone, adaptive, spent) in sorted(rows.items(), key=lambda row: row[1][0]):
            say(
                f"  {name:20s} {cost:9.4f} ms   alone {alone:.4f}   controller {adaptive:.4f} "
                f"({100 * (adaptive - alone):+.2f} points) in {spent:.4f} ms"
            )
        least = [np.mean(v) for n, v in found.items() if n.startswith(f"share {where}")]
        for share in least:
            say(f"  the accuracy of the best variant at {share:.0%} of its mean cost")


def board(result: CompileResult, x: Any, y: Any, found: dict[str, list[tuple[float, ...]]]) -> None:
    """The microcontroller: real answers of the generated C, modelled times."""
    from edgescale.bundle import open_bundle
    from edgescale.rigs import local_executor

    assert result.bundle is not None
    policy = open_bundle(result.bundle).controller_policy(BOARD)
    answers: dict[str, tuple[Any, Any]] = {}
    for entry in result.entries:
        if entry.target.name == BOARD:
            scores = np.asarray(local_executor(entry.artifact, entry.target)(x), np.float64).reshape(len(x), -1)
            answers[f"{entry.variant.name}@{BOARD}"] = (confidences(scores) * CERTAIN, scores.argmax(axis=1) == y)

    def play(mean_us: int) -> tuple[float, float]:
        controller, right, spent = Controller(policy), 0, 0
        controller.resident = 0xFFFF
        for i in range(len(x)):
            option = policy.options[controller.decide(Request(mean_us=mean_us)).option]
            steps = []
            for step in option.steps:
                confidence, correct = answers[policy.variants[step.variant].name]
                steps.append(step.time_us)
                if controller.settled(int(confidence[i]), sum(steps)):
                    break
            right += bool(correct[i])
            spent += sum(steps)
            controller.report(steps)
        return right / len(x), spent / len(x)

    alone = {n: float(answers[policy.variants[n].name][1].mean()) for n in range(len(policy.variants))}
    cost = {o.steps[0].variant: o.mean_us for o in policy.options if len(o.steps) == 1}
    for n, us in cost.items():
        name = policy.variants[n].name.removesuffix(f"@{BOARD}")
        accuracy, mean = play(us)
        found.setdefault(f"{BOARD} {name}", []).append((us / 1e3, alone[n], accuracy, mean / 1e3))
    best = max((n for n in cost if "w8a8" in policy.variants[n].name), key=lambda n: alone[n])
    for share in np.arange(0.1, 1.01, 0.05):
        accuracy, _ = play(round(cost[best] * share))
        if accuracy >= alone[best]:
            found.setdefault(f"share {BOARD}", []).append((share,))
            break


def host(bundle: Path, x: Any, y: Any, found: dict[str, list[tuple[float, ...]]]) -> None:
    """This machine: wall time around each answer, variants alone through the same session; blocks alternate.

    A call repeats its inferences, as for a net of some milliseconds: the shipped ones take less than the interpreter.
    """
    real = RealCalls(bundle, "host")
    session = real.session
    names = [variant.name for variant in real.policy.variants]
    controllers = {name: Controller(real.policy) for name in names}
    alone: dict[str, list[float]] = {name: [] for name in names}
    right = dict.fromkeys(names, 0)
    adaptive = dict.fromkeys(names, 0)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for start in range(0, len(x), 25):
        block = range(start, min(start + 25, len(x)))
        for name in names:
            for i in block:
                begun = time.perf_counter()
                outputs, _ = session.session.infer(name, x[i])
                alone[name].append((time.perf_counter() - begun) * 1e3)
                right[name] += int(next(iter(outputs.values())).argmax() == y[i])
            session.controller = controllers[name]
            session.controller.resident = 0xFFFF
            for i in block:
                answer = session.run(x[i], mean_ms=float(np.mean(alone[name])))
                spent[name].append(answer.milliseconds)
                adaptive[name] += int(answer.output.argmax() == y[i])
    for name in names:
        row = (float(np.mean(alone[name])), right[name] / len(x), adaptive[name] / len(x), float(np.mean(spent[name])))
        found.setdefault(f"host {name.removesuffix('@host')}", []).append(row)
    session.close()


def cost(bundle: Path, folder: Path) -> None:
    """What deciding itself takes."""
    with AdaptiveSession(bundle, "host") as session:
        session.ready()
        policy: Policy = session.controller.policy
        controller = Controller(policy)
        controller.resident = 0xFFFF
        decide, report = [], []
        limits = Request(deadline_us=policy.options[-1].mean_us, mean_us=policy.options[0].mean_us * 2)
        for _ in range(20_000):
            begun = time.perf_counter_ns()
            option = controller.decide(limits).option
            between = time.perf_counter_ns()
            controller.report([policy.options[option].steps[0].time_us])
            report.append(time.perf_counter_ns() - between)
            decide.append(between - begun)
        say(
            f"[bold]cost[/], Python, {len(policy.options)} options: decide p50 {np.median(decide) / 1e3:.1f} us, "
            f"p99 {np.quantile(decide, 0.99) / 1e3:.1f} us; report p50 {np.median(report) / 1e3:.1f} us"
        )
        sample = np.zeros((1, 28, 28), np.float32)
        for _ in range(500):
            session.run(sample)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for call in range(10_000):
            session.run(sample, mean_ms=0.03 * (1 + call % 7))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        say(f"  10,000 calls with switching: peak RSS grew by {grown} KiB")
    code = (
        "import sys, time, onnxruntime as ort, numpy\n"
        "ort.InferenceSession(sys.argv[2])\n"
        "a = time.perf_counter()\n"
        "from edgescale.runtime import AdaptiveSession\n"
        "s = AdaptiveSession(sys.argv[1], 'host', preload=False)\n"
        "print((time.perf_counter() - a) * 1e3)\n"
    )
    model = next((bundle / "artifacts").glob("*@host/model.onnx"))
    command = [sys.executable, "-c", code, str(bundle), str(model)]
    starts = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    say(
        f"  opening the bundle, beyond importing ONNX Runtime and loading the model with it: {np.median(starts):.0f} ms"
    )
    on_board(folder)


def on_board(folder: Path) -> None:
    """The C body among 16 variants, every limit given: instructions are emulated."""
    from edgescale.rigs.controller_gate import controller_cost

    gate = controller_cost(folder, load_target(BOARD))
    say(
        f"  Cortex-M4, 16 variants, every limit: decide {gate.decide:,} instructions, report {gate.report:,}, "
        f"code {gate.code:,} B, state {gate.state} B"
    )


SECTIONS = ("traces", "live", "family", "cost")


def main() -> None:
    """Run the sections named on the command line, or all but `generators`."""
    wanted = sys.argv[1:] or list(SECTIONS)
    if unknown := [name for name in wanted if name not in (*SECTIONS, "generators")]:
        sys.exit(f"error: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}, generators")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = folder / "bundle"
        if {"traces", "live", "cost"} & set(wanted):
            compiled(bundle, EXAMPLES / "test.npz")
        for section in SECTIONS:
            if section in wanted:
                {
                    "traces": lambda: traces(bundle),
                    "live": lambda: live(bundle),
                    "family": lambda: family(folder),
                    "cost": lambda: cost(bundle, folder),
                }[section]()
    if "generators" in wanted:
        import bench_generators

        bench_generators.main([])


if __name__ == "__main__":
    main()
