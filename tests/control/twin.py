"""firmware/controller built for this machine, called through ctypes beside the Python controller."""

from __future__ import annotations

import ctypes
import random
import subprocess
from pathlib import Path

from edgescale.control import Controller, Decision, Option, Policy, PolicyVariant, Request, Step

SOURCE = Path(__file__).parents[2] / "firmware" / "controller"
U8, U16, U32, I32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_int32
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror"]


class COption(ctypes.Structure):
    _fields_ = (
        ("time_us", U32 * 2),
        ("energy_uj", U32 * 2),
        ("mean_us", U32),
        ("mean_uj", U32),
        ("memory", U32),
        ("quality", U16 * 4),
        ("confidence", U16),
        ("variant", U8 * 2),
        ("samples", U8),
    )


class CPolicy(ctypes.Structure):
    _fields_ = (
        ("options", ctypes.POINTER(COption)),
        ("load_us", ctypes.POINTER(U32)),
        ("hysteresis", U16),
        ("option_count", U8),
        ("variant_count", U8),
    )


class CRequest(ctypes.Structure):
    _fields_ = (
        *((name, U32) for name in ("deadline_us", "violation", "memory", "energy_uj", "mean_us", "mean_uj", "work")),
        ("quality", U16),
        ("difficulty", U8),
        ("cheapest", U8),
    )


class CDecision(ctypes.Structure):
    _fields_ = (("bound", I32), ("option", U8), ("held", U8), ("binding", U8))


class CHead(ctypes.Structure):
    """The first members of es_controller: what an application may set."""

    _fields_ = (("policy", ctypes.c_void_p), ("resident", U32), ("free_memory", U32))


def build(folder: Path, *flags: str) -> ctypes.CDLL:
    """Compile the controller with every warning an error."""
    library = folder / "controller.so"
    command = ["gcc", *WARNINGS, "-O2", *flags, "-shared", "-fPIC", "-o", library, SOURCE / "es_controller.c"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    loaded = ctypes.CDLL(str(library))
    loaded.es_controller_decide.restype = CDecision
    loaded.es_controller_settled.restype = I32
    loaded.es_controller_report.restype = U32
    return loaded


class CController:
    """The C body behind the interface of the Python one."""

    def __init__(self, library: ctypes.CDLL, policy: Policy) -> None:
        self.library = library
        options = [
            COption(
                (U32 * 2)(*(s.time_us for s in o.steps)),
                (U32 * 2)(*(s.energy_uj for s in o.steps)),
                o.mean_us,
                o.mean_uj,
                o.memory,
                (U16 * 4)(*(o.quality if len(o.quality) == 4 else o.quality * 4)),
                o.confidence,
                (U8 * 2)(o.steps[0].variant, o.steps[1].variant if len(o.steps) > 1 else 0xFF),
                o.samples,
            )
            for o in policy.options
        ]
        self.options = (COption * len(options))(*options)
        self.loads = (U32 * len(policy.variants))(*(v.load_us for v in policy.variants))
        self.policy = CPolicy(self.options, self.loads, policy.hysteresis, len(options), len(policy.variants))
        self.state = ctypes.create_string_buffer(1024)
        library.es_controller_init(self.state, ctypes.byref(self.policy))
        self.head = CHead.from_buffer(self.state)

    def decide(self, r: Request) -> tuple[int, bool, int, int]:
        asked = CRequest(
            *(r.deadline_us, r.violation, r.memory, r.energy_uj, r.mean_us, r.mean_uj, r.work),
            *(r.quality, r.difficulty, int(r.cheapest)),
        )
        d = self.library.es_controller_decide(self.state, ctypes.byref(asked))
        return d.option, bool(d.held), d.binding, d.bound

    def report(self, steps_us: list[int], total_us: int, energy_uj: int | None) -> int:
        times = (U32 * 2)(*steps_us)
        joules = 0xFFFFFFFF if energy_uj is None else energy_uj
        return self.library.es_controller_report(self.state, times, U32(len(steps_us)), U32(total_us), U32(joules))

    def settled(self, confidence: int, spent_us: int) -> bool:
        return bool(self.library.es_controller_settled(self.state, U32(confidence), U32(spent_us)))

    def failed(self, variant: int) -> None:
        self.library.es_controller_failed(self.state, U32(variant))


def plain(decision: Decision) -> tuple[int, bool, int, int]:
    return decision.option, decision.held, int(decision.binding), decision.bound


def drawn_policy(rng: random.Random, most: int = 16) -> Policy:
    """A policy of any shape: single variants and cascades, with and without energy, flat and by difficulty."""
    count = rng.randint(1, most)
    variants = tuple(
        PolicyVariant(name=f"v{i}", load_us=rng.choice([0, 0, rng.randrange(1 << 20)])) for i in range(count)
    )
    scale = rng.choice([100, 10_000, 1_000_000, 1 << 31])
    levels = rng.choice([4, 33, 32769])
    options = []
    for _ in range(rng.randint(1, 64)):
        steps = tuple(
            Step(
                variant=rng.randrange(count),
                time_us=rng.randint(1, scale),
                energy_uj=rng.choice([0, rng.randrange(scale)]),
            )
            for _ in range(rng.choice([1, 1, 2]))
        )
        options.append(
            Option(
                quality=tuple(rng.randrange(levels) * (32768 // (levels - 1)) for _ in range(rng.choice([1, 4]))),
                steps=steps,
                mean_us=rng.randint(1, scale),
                mean_uj=rng.choice([0, rng.randrange(scale)]),
                memory=rng.choice([0, rng.randrange(1 << 20)]),
                confidence=rng.randrange(32769) if len(steps) > 1 else 0,
            )
        )
    return Policy(
        target="t", metric="accuracy", variants=variants, options=tuple(options), hysteresis=rng.choice([0, 66, 4000])
    )


def drawn_request(rng: random.Random, policy: Policy) -> Request:
    """Limits near what the policy's options cost, so that they bind now and then."""
    option = rng.choice(policy.options)
    near = lambda value: min(int(value * rng.uniform(0.3, 3.0)), 0xFFFFFFFF)  # noqa: E731
    pace = rng.choice(["", "", "us", "uj"])
    return Request(
        deadline_us=rng.choice([0, near(option.steps[0].time_us)]),
        violation=rng.choice([1, 7, 66, 655, 3277, 10_000, 32768]),
        memory=rng.choice([0, near(option.memory)]),
        energy_uj=rng.choice([0, near(option.steps[0].energy_uj)]),
        mean_us=near(option.mean_us) if pace == "us" else 0,
        mean_uj=near(option.mean_uj) if pace == "uj" else 0,
        quality=rng.choice([0, 0, rng.randrange(32769)]),
        difficulty=rng.randrange(4),
        work=rng.choice([256, 256, 1, rng.randint(1, 4096), 1 << 20]),
        cheapest=rng.random() < 0.2,
    )


def drawn_times(rng: random.Random, policy: Policy, option: int, work: int) -> list[int]:
    """Times of the steps of an option: close to the profile, far off, or absurd."""
    steps = policy.options[option].steps
    slow = rng.choice([1.0, rng.lognormvariate(0, 0.05), rng.lognormvariate(1, 1.5)])
    ran = steps[: rng.randint(1, len(steps))]
    return [rng.choice([min(int(s.time_us * work / 256 * slow), 0xFFFFFFFF)] * 20 + [0, 0xFFFFFFFF]) for s in ran]


__all__ = ["CController", "Controller", "build", "drawn_policy", "drawn_request", "drawn_times", "plain"]
