"""What the C controller may take on a Cortex-M4: these gates are of its specification."""

from __future__ import annotations

import pytest

from edgescale.core.target import load_target

pytest.importorskip("unicorn")
pytest.importorskip("ziglang")


def test_a_decision_among_16_variants_with_every_limit(tmp_path):
    from edgescale.rigs.controller_gate import controller_cost

    cost = controller_cost(tmp_path, load_target("cortex-m4-stm32l4r5"))
    assert cost.state <= 512
    assert cost.code <= 8192
    assert cost.decide <= 3000
