"""From a model this repository does not ship to a bundle that serves, and again from the store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

BOARD = "cortex-m4-stm32l4r5"


def _compile(edgescale: Callable, project: object, out: Path, *extra: object) -> object:
    p = project
    data = ["--calib", p.calib, "--eval", p.test]
    return edgescale("compile", p.model, *data, "--out", out, *extra)


@pytest.mark.slow
def test_compile_for_host_and_microcontroller(edgescale: Callable, project: object, tmp_path: Path) -> None:
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")
    out = tmp_path / "bundle"
    budget = "ram<=64KiB, flash<=256KiB, accuracy>=0.8"
    answer = _compile(edgescale, project, out, "-t", "host", "-t", BOARD, "-b", budget, "--json")
    result = json.loads(answer.out)
    entries = {(e["variant"], e["target"]): e for e in result["entries"]}
    assert set(entries) == {(f"model-{r}", t) for r in ("fp32", "w8a8") for t in ("host", BOARD)}
    board = entries["model-w8a8", BOARD]
    assert board["figures"]["instructions"]["source"] == "emulated"
    assert board["figures"]["latency"]["source"] == "modelled"
    assert board["figures"]["accuracy"]["value"] >= 0.9
    assert board["environment"]["verified_exact"] == "True"
    assert board["figures"]["ram"]["value"] >= board["figures"]["arena"]["value"] + board["figures"]["stack"]["value"]
    assert entries["model-w8a8", "host"]["figures"]["latency"]["source"] == "measured"

    served = json.loads(edgescale("run", out, "--input", project.test, "--json").out)
    assert served["top1"] >= 0.9
    emulated = json.loads(edgescale("run", out, "--input", project.test, "-n", 8, "--target", BOARD, "--json").out)
    assert emulated["samples"] == 8
    assert emulated["top1"] >= 0.8
    explained = edgescale("explain", out)
    assert "model-w8a8" in explained.out
    layer = json.loads(edgescale("explain", out, "stem/conv", "--json").out)
    assert {row["layer"] for row in layer["layers"]} >= {"stem/conv"}
    profiled = json.loads(edgescale("profile", out, "--target", BOARD, "--json").out)
    assert (
        sum(x["figures"]["instructions"]["value"] for x in profiled["layers"])
        <= profiled["figures"]["instructions"]["value"]
    )


def test_the_same_compile_again_imports_no_framework(project: object, tmp_path: Path) -> None:
    """The second run is served from the store: neither ONNX nor ONNX Runtime is even imported."""
    arguments = ["compile", project.model, "--calib", project.calib, "--eval", project.test, "--out", tmp_path / "b"]
    code = (
        "import sys, time; from edgescale.cli.main import run; start = time.perf_counter();"
        "code = run(sys.argv[1:]);"
        "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'unicorn'} & set(sys.modules);"
        "print('CODE', code, 'HEAVY', sorted(heavy), 'SECONDS', time.perf_counter() - start)"
    )
    for expected in (None, "HEAVY []"):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
        )
        assert "CODE 0" in done.stdout, done.stderr
        if expected:
            assert expected in done.stdout


def test_an_impossible_budget_names_the_binding_limit_and_keeps_the_best_attempt(
    edgescale: Callable, project: object, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    answer = _compile(edgescale, project, out, "--budget", "latency<=1us", "--json")
    assert answer.code == 3
    result = json.loads(answer.out)
    assert result["targets"]["host"]["binding"] == ["latency<=0.001ms"]
    assert (out / "manifest.json").is_file()
    text = _compile(edgescale, project, out, "--budget", "latency<=1us")
    assert text.code == 3
    assert "NOT MET" in text.out
    served = edgescale("run", out, "--input", project.test, "--budget", "latency<=1us", "--json")
    assert served.code == 3
    assert not json.loads(served.out)["met"]


def test_a_model_too_large_for_its_board_says_by_how_much(edgescale: Callable, project: object, tmp_path: Path) -> None:
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    root = Path(__file__).resolve().parents[2]
    text = (root / "profiles" / "cortex-m0plus.toml").read_text()
    lines = text.splitlines()
    section = ""
    for i, line in enumerate(lines):
        if line.startswith("["):
            section = line
        if section == "[memory.flash]" and line.startswith("length"):
            lines[i] = "length = 4096"
    small = tmp_path / "small.toml"
    small.write_text("\n".join(lines))
    answer = _compile(edgescale, project, tmp_path / "bundle", "-t", small, "--json")
    assert answer.code == 3
    failures = json.loads(answer.out)["failures"]
    assert failures
    assert all("flash" in f["message"].lower() and f["exit_code"] == 3 for f in failures)


def test_without_evaluation_data_quality_is_cosine_to_the_float_model(
    edgescale: Callable, project: object, tmp_path: Path
) -> None:
    answer = edgescale("compile", project.model, "--calib", project.calib, "--out", tmp_path / "b", "--json")
    assert answer.code == 0
    entry = next(e for e in json.loads(answer.out)["entries"] if e["variant"] == "model-w8a8")
    assert entry["figures"]["accuracy"]["note"].startswith("cosine on 32 calibration samples")
    bare = edgescale("compile", project.model, "--recipe", "fp32", "--out", tmp_path / "c", "--json")
    assert bare.code == 0
    assert "no evaluation data" in json.loads(bare.out)["entries"][0]["unavailable"]["accuracy"]


def test_a_report_file_holds_what_the_terminal_shows(edgescale: Callable, project: object, tmp_path: Path) -> None:
    files = [tmp_path / f"report.{suffix}" for suffix in ("txt", "html", "svg")]
    options = [argument for file in files for argument in ("--report", file)]
    answer = _compile(edgescale, project, tmp_path / "b", *options)
    assert answer.code == 0
    assert "model-w8a8" in answer.out
    for file in files:
        assert "model" in file.read_text()
    refused = _compile(edgescale, project, tmp_path / "unused", "--report", tmp_path / "report.doc")
    assert refused.code == 2
    assert not (tmp_path / "unused").exists(), "refused before any work"


def test_recipes_may_be_given_one_an_option(edgescale: Callable, project: object, tmp_path: Path) -> None:
    recipes = ("--recipe", "fp32", "--recipe", "w8a8,w8a8-mse")
    answer = _compile(edgescale, project, tmp_path / "b", *recipes, "--json")
    assert answer.code == 0
    names = [e["variant"] for e in json.loads(answer.out)["entries"]]
    assert names == ["model-fp32", "model-w8a8", "model-w8a8-mse"]


def test_an_already_quantized_model_is_taken_as_it_is(edgescale: Callable, project: object, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert _compile(edgescale, project, first).code == 0
    given = tmp_path / "given.onnx"
    given.write_bytes((first / "artifacts" / "model-w8a8@host" / "model.onnx").read_bytes())
    answer = edgescale("compile", given, "--eval", project.test, "--out", tmp_path / "second", "--json")
    assert answer.code == 0
    assert [e["variant"] for e in json.loads(answer.out)["entries"]] == ["given-w8a8"]


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_half_written_and_the_next_run_completes(project: object, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    x = np.random.default_rng(0).standard_normal((60000, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "large.npz", x=x)
    store = tmp_path / "store"
    environment = {**os.environ, "EDGESCALE_CACHE": str(store)}
    command = [
        sys.executable,
        "-m",
        "edgescale",
        "compile",
        project.model,
        "--calib",
        tmp_path / "large.npz",
        "--out",
        out,
    ]
    running = subprocess.Popen(
        [str(a) for a in command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A job that a shell starts in the background ignores interrupts, and its children would.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list((store / "stages").glob("compress/.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not out.exists()
    assert all(path.parent.name != "compress" for path in store.rglob(".*"))
    command[command.index(tmp_path / "large.npz")] = project.calib
    assert subprocess.run([str(a) for a in command], env=environment, capture_output=True, check=False).returncode == 0


def _break(model: onnx.ModelProto, how: str) -> bytes:
    if how == "truncated":
        data: bytes = model.SerializeToString()
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    if how == "not onnx":
        return b"this is not a model" * 10
    if how == "cyclic":
        model.graph.node[3].input[0] = "a"
    elif how == "dynamic":
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    elif how == "unknown op":
        model.graph.node[2].op_type = "Nonsense"
    elif how == "nan":
        weight = model.graph.initializer[0]
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] = np.nan
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    elif how == "wrong shape":
        weight = model.graph.initializer[6]
        weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((5, 1, 3, 3), np.float32), weight.name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "not onnx", "cyclic", "dynamic", "unknown op", "nan", "wrong shape"]
)
def test_a_broken_model_is_one_sentence_and_exit_code_4(
    edgescale: Callable, project: object, tmp_path: Path, how: str
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(_break(onnx.load(project.model), how))
    out = tmp_path / "bundle"
    for arguments in (["compile", bad, "--calib", project.calib, "--out", out], ["analyze", bad]):
        answer = edgescale(*arguments)
        assert answer.code == 4, answer.err
        assert "bad.onnx" in answer.err
        assert "Traceback" not in answer.err
    assert not out.exists()


@pytest.mark.parametrize("how", ["shape", "text", "constant", "nan", "empty", "missing", "corrupt"])
def test_unusable_calibration_data_is_one_sentence_and_exit_code_2(
    edgescale: Callable, project: object, tmp_path: Path, how: str
) -> None:
    bad = tmp_path / "bad.npz"
    x = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    arrays = {
        "shape": x[:, :2],
        "text": np.array(["a", "b"]),
        "constant": np.zeros_like(x),
        "nan": np.where(x > 1, np.nan, x).astype(np.float32),
        "empty": x[:0],
    }
    if how == "corrupt":
        bad.write_bytes(b"PK\x03\x04 not really a zip")
    elif how != "missing":
        np.savez(bad, x=arrays[how])
    answer = edgescale("compile", project.model, "--calib", bad, "--out", tmp_path / "bundle")
    assert answer.code == 2, answer.err
    assert "bad.npz" in answer.err
    assert not (tmp_path / "bundle").exists()


def test_an_unsupported_operator_is_named_with_its_node_and_rule(
    edgescale: Callable, project: object, tmp_path: Path
) -> None:
    model = onnx.load(project.model)
    model.graph.node[6].CopyFrom(
        onnx.helper.make_node("LpPool", ["a"], ["m"], "odd/pool", kernel_shape=[2, 2], strides=[2, 2])
    )
    onnx.save(model, tmp_path / "odd.onnx")
    arguments = ["compile", tmp_path / "odd.onnx", "--calib", project.calib, "--out", tmp_path / "b"]
    answer = edgescale(*arguments, "-t", BOARD, "-t", "host", "--json")
    assert answer.code == 4
    result = json.loads(answer.out)
    assert all("odd/pool" in f["message"] and "LpPool" in f["message"] for f in result["failures"])
    assert {e["target"] for e in result["entries"]} == {"host"}, "what works elsewhere is kept"
    assert "odd/pool" in edgescale("analyze", tmp_path / "odd.onnx", "-t", BOARD).out


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    edgescale: Callable, project: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import shutil

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    answer = _compile(edgescale, project, tmp_path / "bundle")
    assert answer.code == 1
    assert "space" in answer.err
    assert not (tmp_path / "bundle").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".bundle")]


def test_bad_requests_are_refused_before_any_work(edgescale: Callable, project: object, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    cases = {
        "budget": ["--budget", "latency<=5"],
        "recipe": ["--recipe", "w3a3"],
        "target": ["--target", "nonsense"],
        "metric": ["--metric", "nonsense"],
        "not an edgescale bundle": ["--out", precious],
    }
    for word, extra in cases.items():
        answer = edgescale("compile", project.model, "--calib", project.calib, "--eval", project.test, *extra)
        assert answer.code == 2, word
        assert word in answer.err
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert edgescale("compile", tmp_path / "absent.onnx").code == 2
    assert edgescale("compile", project.model, "--out", tmp_path / "b").code == 2, "int8 without calibration data"
