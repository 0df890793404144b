"""The command line answers fast, names its verbs, and ends with the documented exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgescale.cli.main import VERBS

HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "scipy", "rich", "unicorn", "capstone", "elftools", "msgspec"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edgescale.cli.main import run; code = run(['--help']);"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert all(verb in done.stdout for verb in VERBS)


def test_every_verb_has_help_and_its_summary_is_listed(edgescale: Callable) -> None:
    for verb in VERBS:
        answer = edgescale(verb, "--help")
        assert answer.code == 0, verb
        assert "--json" in answer.out, verb


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["compile"], ["compile", "--nonsense"], ["run"], ["targets", "--x"]]
)
def test_wrong_usage_is_exit_code_2_without_traceback(edgescale: Callable, arguments: list[str]) -> None:
    answer = edgescale(*arguments)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert answer.err.strip()


def test_targets_lists_the_profiles_and_shows_one(edgescale: Callable) -> None:
    listed = json.loads(edgescale("targets", "--json").out)
    names = {t["name"] for t in listed["targets"]}
    assert {"host", "cortex-m0plus", "cortex-m3", "cortex-m4-stm32l4r5", "cortex-m7-stm32f746"} <= names
    assert "cortex-m33-stm32u575" in names
    board = json.loads(edgescale("targets", "cortex-m4-stm32l4r5", "--json").out)["targets"][0]
    assert board["memory"]["flash"]["length"] == 2 * 1024 * 1024
    assert board["memory"]["ram"]["length"] == 640 * 1024
    assert board["core"]["clock_hz"] == 120_000_000
    assert "640" in edgescale("targets", "cortex-m4-stm32l4r5").out


def test_a_users_own_profile_works_by_path(edgescale: Callable, repository: Path, tmp_path: Path) -> None:
    text = (repository / "profiles" / "cortex-m4-stm32l4r5.toml").read_text()
    mine = tmp_path / "my-board.toml"
    mine.write_text(text.replace('name = "cortex-m4-stm32l4r5"', 'name = "my-board"'))
    assert json.loads(edgescale("targets", mine, "--json").out)["targets"][0]["name"] == "my-board"
    mine.write_text(text + "\nnonsense = 1\n")
    answer = edgescale("targets", mine)
    assert answer.code == 2
    assert "nonsense" in answer.err
    assert edgescale("targets", "no-such-board").code == 2


def test_ops_states_a_rule_for_every_operator(edgescale: Callable) -> None:
    backends = json.loads(edgescale("ops", "--json").out)["backends"]
    listed = {row["op"]: row["rule"] for row in backends["edgescale_c"]}
    assert {"Conv", "Gemm", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Softmax", "Concat", "Pad"} <= set(
        listed
    )
    assert all(rule.strip() for rule in listed.values())
    assert edgescale("ops", "edgescale_c").code == 0
    assert edgescale("ops", "nonsense").code == 2


def test_doctor_reports_core_back_ends_and_targets(edgescale: Callable) -> None:
    answer = edgescale("doctor", "--json")
    assert answer.code == 0
    checks = {(c["part"], c["name"]): c for c in json.loads(answer.out)["checks"]}
    assert checks["core", "onnxruntime"]["ok"]
    assert checks["back end", "edgescale_onnx"]["ok"]
    assert ("target", "cortex-m33-stm32u575") in checks
    assert all(c["ok"] or c["fix"] for c in checks.values())


def test_doctor_names_the_command_that_installs_what_is_missing(
    edgescale: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgescale.cli import doctor

    real = doctor.version

    def without_unicorn(package: str) -> str:
        if package == "unicorn":
            raise doctor.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(doctor, "version", without_unicorn)
    checks = json.loads(edgescale("doctor", "--json").out)["checks"]
    found = next(c for c in checks if c["name"] == "unicorn")
    assert not found["ok"]
    assert found["fix"] == "pip install 'edgescale[mcu]'"


def test_square_brackets_in_texts_are_printed_as_they_are(edgescale: Callable) -> None:
    """`pip install 'edgescale[mcu]'` and `[power]` are words, not markup."""
    assert "[1, C, H, W]" in edgescale("ops", "edgescale_c").out
    from rich.console import Console

    from edgescale.report.figures import plain

    console = Console(width=200)
    with console.capture() as captured:
        console.print(plain("the profile has no [power] table; [/] [bold]"))
    assert captured.get() == "the profile has no [power] table; [/] [bold]\n"
