"""tools/trace_lab.py: traces by name and from files, on a policy file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgescale.control import Option, Policy, PolicyVariant, Step, encode_policy

TOOL = Path(__file__).resolve().parents[2] / "tools" / "trace_lab.py"


@pytest.fixture
def policy(tmp_path):
    options = tuple(
        Option(quality=(q,), steps=(Step(variant=i, time_us=t),), mean_us=t)
        for i, (t, q) in enumerate([(1000, 26000), (2500, 29000), (6000, 30500)])
    )
    path = tmp_path / "policy.json"
    variants = tuple(PolicyVariant(name=f"v{i}") for i in range(3))
    path.write_bytes(encode_policy(Policy(target="t", metric="top1", variants=variants, options=options)))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_traces_by_name_and_from_a_file(policy, tmp_path):
    slow = tmp_path / "recorded.csv"
    slow.write_text("".join(f"{1 + (i // 40) % 2}\n" for i in range(200)))
    done = run(policy, "--trace", "bursts", "--trace", slow, "--deadline-ms", 7, "--calls", 150)
    assert done.returncode == 0, done.stderr
    for word in ("bursts", "recorded", "edgescale", "ALERT-like", "best static", "oracle"):
        assert word in done.stdout


def test_a_wrong_trace_is_named(policy, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("1\n-3\n" * 20)
    assert "neither a file nor one of the traces" in run(policy, "--trace", "weather").stderr
    assert "all above 0" in run(policy, "--trace", bad).stderr
