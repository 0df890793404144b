"""`edgescale policy`: the options in words, and a folder of C that builds as C99 and from C++."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]


@pytest.fixture
def bundle(edgescale, project, tmp_path):
    out = tmp_path / "bundle"
    answer = edgescale(
        *("compile", project.model, "--target", "host", "--target", "cortex-m4-stm32l4r5"),
        *("--calib", project.calib, "--eval", project.test, "--recipe", "fp32,w8a8", "--out", out),
    )
    assert answer.code == 0, answer.err
    return out


def test_the_options_and_the_c(edgescale, bundle, tmp_path):
    shown = edgescale("policy", bundle, "--target", "host")
    assert shown.code == 0 and "model-w8a8" in shown.out
    assert "name one with --target" in edgescale("policy", bundle).err
    if shutil.which("g++") is None:
        pytest.skip("needs gcc and g++: apt-get install g++")
    out = tmp_path / "c"
    answer = edgescale(
        "policy", bundle, "--target", "cortex-m4-stm32l4r5", "--out", out, "--name", "my board", "--json"
    )
    assert answer.code == 0
    files = [Path(file).name for file in json.loads(answer.out)["files"]]
    assert "es_policy_my_board.c" in files
    for file in (name for name in files if name.endswith(".c")):
        command = ["gcc", "-std=c99", *WARNINGS, "-fsanitize=address,undefined", "-c", file, "-o", file + ".o"]
        subprocess.run(command, cwd=out, check=True, capture_output=True)
    (out / "app.cpp").write_text(
        '#include "es_policy_my_board.h"\n'
        "int main() {\n"
        "    static es_controller controller;\n"
        "    es_controller_init(&controller, &es_policy_my_board);\n"
        "    es_request request = ES_REQUEST_ANY;\n"
        "    es_decision decision = es_controller_decide(&controller, &request);\n"
        "    uint32_t us[2] = {1000, 0};\n"
        "    es_controller_report(&controller, us, 1, 1000, ES_UNKNOWN_ENERGY);\n"
        "    return decision.held ? 0 : 1;\n"
        "}\n"
    )
    objects = [name + ".o" for name in files if name.endswith(".c")]
    command = ["g++", *WARNINGS, "-fsanitize=address,undefined", "app.cpp", *objects, "-o", "app"]
    subprocess.run(command, cwd=out, check=True, capture_output=True)
    assert subprocess.run([out / "app"], check=False).returncode == 0
