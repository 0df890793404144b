"""Python and C take the same decision in every state, and keep the same state."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.control.twin import CController, Controller, build, drawn_policy, drawn_request, drawn_times, plain

STATES = 100_000
CALLS = 40


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt-get install gcc")
    # Undefined behaviour ends the process instead of giving some answer.
    flags = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    return build(tmp_path_factory.mktemp("controller"), *flags)


def test_the_same_decisions_in_100000_states(library):
    rng = random.Random(7)
    states = held = 0
    while states < STATES:
        policy = drawn_policy(rng)
        python, c = Controller(policy), CController(library, policy)
        python.resident = c.head.resident = rng.choice([0, 0xFFFF, rng.getrandbits(16)])
        for _ in range(CALLS):
            python.free_memory = c.head.free_memory = rng.choice([0, 0, rng.randrange(1 << 20)])
            request = drawn_request(rng, policy)
            decision = python.decide(request)
            assert plain(decision) == c.decide(request), (policy, request)
            states, held = states + 1, held + decision.held
            if rng.random() < 0.05:
                variant = rng.randrange(len(policy.variants))
                python.failed(variant)
                c.failed(variant)
                continue
            times = drawn_times(rng, policy, decision.option, request.work)
            asked = (rng.randrange(32769), min(times[0] + rng.randrange(1000), 0xFFFFFFFF))
            assert python.settled(*asked) == c.settled(*asked)
            total = min(sum(times) + rng.choice([0, 0, 500]), 0xFFFFFFFF)
            energy = rng.choice([None, rng.randrange(1 << 32 - 1)])
            assert python.report(times, total, energy) == c.report(times, total, energy)
    assert 0.2 < held / states < 0.95
