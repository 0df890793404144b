"""What the C controller needs on a Cortex-M4: instructions of a decision, bytes of code and of state."""

from __future__ import annotations

import pytest

from edgescale.control import Option, Policy, PolicyVariant, Step
from edgescale.control.c_source import c_policy
from edgescale.core.target import load_target
from tests.control.twin import SOURCE

pytest.importorskip("unicorn")
pytest.importorskip("ziglang")

DRIVER = """
#include "es_controller.h"
#include "es_policy_gate.h"
static es_controller controller;
static const es_request request = {9000, 3277, 400000, 90000, 0, 5000, 300, 20000, 2, 0};
static const uint32_t took[2] = {5100, 0};
uint32_t start(void) { es_controller_init(&controller, &es_policy_gate); return sizeof(controller); }
uint32_t decide(void) { return es_controller_decide(&controller, &request).option; }
uint32_t report(void) { es_controller_report(&controller, took, 1, 5200, 7000); return 0; }
uint32_t decide_after(void) { return es_controller_decide(&controller, &request).option; }
"""


def test_a_decision_among_16_variants_with_every_limit(tmp_path):
    from edgescale.rigs.bare import count_calls

    options = tuple(
        Option(
            quality=tuple(24000 + 500 * i + 10 * d for d in range(4)),
            steps=(Step(variant=i, time_us=1000 + 600 * i, energy_uj=9000 + 900 * i),),
            mean_us=1000 + 600 * i,
            mean_uj=9000 + 900 * i,
            memory=20_000 + 30_000 * i,
        )
        for i in range(16)
    )
    variants = tuple(PolicyVariant(name=f"net {i}") for i in range(16))
    policy = Policy(target="m4", metric="top1", variants=variants, options=options, hysteresis=33)
    for name, text in {**c_policy(policy, "gate"), "driver.c": DRIVER}.items():
        (tmp_path / name).write_text(text)
    sources = [SOURCE / "es_controller.c", tmp_path / "es_policy_gate.c", tmp_path / "driver.c"]
    counted = count_calls(sources, ["start", "decide", "report", "decide_after"], load_target("cortex-m4-stm32l4r5"))
    print(counted)
    assert counted.calls["start"][1] <= 512
    assert counted.code["es_controller"] <= 8192
    assert counted.calls["decide"][0] <= 3000
    assert counted.calls["decide_after"][0] <= 3000
    print(counted)
