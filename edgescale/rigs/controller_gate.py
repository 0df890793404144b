"""What the C controller takes on an emulated core: instructions of a decision, bytes of code and of state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgescale.control.c_source import c_policy
from edgescale.control.policy import MAX_VARIANTS, Option, Policy, PolicyVariant, Step
from edgescale.core.files import firmware_root
from edgescale.core.target import Target
from edgescale.rigs.bare import count_calls

_DRIVER = """
#include "es_controller.h"
#include "es_policy_gate.h"
static es_controller controller;
static const es_request request = {9000, 3277, 400000, 90000, 0, 5000, 300, 20000, 2, 0};
static const es_request stricter = {9000, 66, 400000, 90000, 0, 5000, 300, 20000, 2, 0};
static const uint32_t took[2] = {5100, 0};
uint32_t start(void) { es_controller_init(&controller, &es_policy_gate); return sizeof(controller); }
uint32_t decide(void) { return es_controller_decide(&controller, &request).option; }
uint32_t report(void) { es_controller_report(&controller, took, 1, 5200, 7000); return 0; }
uint32_t decide_after(void) { return es_controller_decide(&controller, &request).option; }
uint32_t decide_stricter(void) { return es_controller_decide(&controller, &stricter).option; }
"""


@dataclass(frozen=True)
class ControllerCost:
    """Instructions of the longest decision and of a report (emulated); bytes of code with constants, and of state."""

    decide: int
    report: int
    code: int
    state: int


def controller_cost(folder: Path, target: Target) -> ControllerCost:
    """Measure with 16 single variants, four bins of difficulty and every limit given; files go to `folder`."""
    options = tuple(
        Option(
            quality=tuple(24000 + 500 * i + 10 * d for d in range(4)),
            steps=(Step(variant=i, time_us=1000 + 600 * i, energy_uj=9000 + 900 * i),),
            mean_us=1000 + 600 * i,
            mean_uj=9000 + 900 * i,
            memory=20_000 + 30_000 * i,
        )
        for i in range(MAX_VARIANTS)
    )
    variants = tuple(PolicyVariant(name=f"net {i}") for i in range(MAX_VARIANTS))
    policy = Policy(target=target.name, metric="top1", variants=variants, options=options, hysteresis=33)
    for name, text in {**c_policy(policy, "gate"), "driver.c": _DRIVER}.items():
        (folder / name).write_text(text)
    sources = [firmware_root() / "controller" / "es_controller.c", folder / "es_policy_gate.c", folder / "driver.c"]
    counted = count_calls(sources, ["start", "decide", "report", "decide_after", "decide_stricter"], target)
    calls = counted.calls
    return ControllerCost(
        max(calls[name][0] for name in ("decide", "decide_after", "decide_stricter")),
        calls["report"][0],
        counted.code["es_controller"],
        calls["start"][1],
    )
