"""`edgescale fit` and `edgescale predict`, from files and from a bundle; the laws stand alone."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

VALUES = {"A": 3.0, "alpha": 0.4, "E": 0.1}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Forty runs of two families, one of them worthless rows, as CSV."""
    rng = np.random.default_rng(0)
    n = np.geomspace(1e2, 1e5, 40)
    loss = (0.1 + 3 * n**-0.4) * np.exp(rng.normal(0, 0.002, 40))
    lines = ["params,val,run,kind"] + [f"{a},{b},r{i // 4},good" for i, (a, b) in enumerate(zip(n, loss, strict=True))]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([*lines, "500,9.0,r99,broken", "900,9.5,r99,broken"]) + "\n")
    return path


def test_fit_then_predict(edgescale: Callable, measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "law.json"
    arguments = ["fit", measured, "--law", "power-law", "-m", "n=params", "--y", "val", "--where", "kind=good"]
    answer = edgescale(*map(str, arguments), "--groups", "run", "--profile", "-o", str(out), "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    for name, value in VALUES.items():
        low, high = found["intervals"][name]
        assert low <= found["params"][name] <= high and found["params"][name] == pytest.approx(value, rel=0.1)
    assert found["checklist"]["data"]["left out"] == "kept where kind=good"
    assert {h["rule"] for h in found["holdouts"]} == {"largest n"}
    root = ElementTree.fromstring(Path(found["plots"]).read_text())
    assert len(root.findall(".//{*}circle")) == 80 and len(root.findall(".//{*}polygon")) == 1

    answer = edgescale("predict", str(out), "n=4e5", "--json")
    (row,) = json.loads(answer.out)["rows"]
    assert row["low"] < row["loss"] < row["high"] and row["loss"] == pytest.approx(0.1 + 3 * 4e5**-0.4, rel=0.01)
    assert "beyond" in json.loads(answer.out)["beyond"][0]
    wide = json.loads(edgescale("predict", str(out), "n=4e5", "--observation", "--json").out)["rows"][0]
    assert wide["low"] < row["low"] and wide["high"] > row["high"]
    again = edgescale("predict", str(out), "--data", str(measured.with_name("ask.csv")))
    assert again.code == 2 and "does not exist" in again.err
    measured.with_name("ask.csv").write_text("n\n1000\n2000\n")
    assert edgescale("predict", str(out), "--data", str(measured.with_name("ask.csv"))).code == 0


def test_tables_are_read_in_every_form(edgescale: Callable, tmp_path: Path) -> None:
    n = np.geomspace(1e2, 1e5, 20)
    rows = [{"n": float(a), "loss": float(0.1 + 3 * a**-0.4)} for a in n]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps({"n": [r["n"] for r in rows], "loss": [r["loss"] for r in rows]}))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "d.tsv").write_text("n\tloss\n" + "\n".join(f"{r['n']}\t{r['loss']}" for r in rows))
    hashes = set()
    for name in ("a.json", "b.json", "c.jsonl", "d.tsv"):
        arguments = ("fit", str(tmp_path / name), "--law", "power-law", "-o", str(tmp_path / f"{name}.fit"), "--json")
        answer = edgescale(*arguments)
        assert answer.code == 0, answer.err
        hashes.add(json.loads(answer.out)["checklist"]["data"]["sha256"])
    assert len(hashes) == 1


def test_published_laws_and_the_list(edgescale: Callable) -> None:
    answer = edgescale("predict", "chinchilla-replication", "N=1e9,2e9", "D=2e10", "--json")
    first, second = json.loads(answer.out)["rows"]
    assert second["loss"] < first["loss"] and "low" not in first
    assert edgescale("predict", "precision", "N=1e8", "D=1e10", "--observation").code == 2
    laws = json.loads(edgescale("fit", "--laws", "--json").out)["laws"]
    assert {"chinchilla", "precision", "sparse", "capacity"} <= {law["law"] for law in laws}
    assert edgescale("fit", "--laws").code == 0


def test_families_are_given_by_name(edgescale: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["s,t,family,accuracy"]
    for i in range(60):
        s, t = np.exp(rng.uniform(-2, 3, 2))
        score = {"gem": -0.8, "oak": 0.1}[name := ("gem", "oak")[i % 2]] + 0.4 * np.log(s) + 0.2 * np.log(t)
        rows.append(f"{s},{t},{name},{0.2 + 0.8 / (1 + np.exp(-score)) + rng.normal(0, 0.002)}")
    (tmp_path / "families.csv").write_text("\n".join(rows))
    out = tmp_path / "law.json"
    answer = edgescale(
        "fit", str(tmp_path / "families.csv"), "--law", "shared-slopes:gem,oak", "-o", str(out), "--json"
    )
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["params"]["alpha_oak"] == pytest.approx(0.1, abs=0.05)
    asked = edgescale("predict", str(out), "s=20", "t=20", "family=gem,oak", "--json")
    gem, oak = json.loads(asked.out)["rows"]
    assert (
        gem["accuracy"] < oak["accuracy"] == pytest.approx(0.2 + 0.8 / (1 + np.exp(-0.1 - 0.6 * np.log(20))), abs=0.01)
    )
    assert "unknown family" in edgescale("predict", str(out), "s=20", "t=20", "family=elm").err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--law", "nonsense"], "unknown law"),
        (["--law", "power-law"], "no column 'n'"),
        (["--law", "power-law", "-m", "size=params"], "write NAME=VALUE"),
        (["--law", "power-law", "-m", "n=run", "--y", "val"], "is no number"),
        (["--law", "power-law", "-m", "n=params", "--y", "val", "-w", "kind=none"], "no row"),
        (["--law", "power-law", "-m", "n=params", "--y", "val", "--hold", "E=a"], "is no number"),
        (["--law", "power-law", "-m", "n=params", "--y", "val", "--target", "m4"], "applies to a bundle"),
        ([], "--law NAME"),
    ],
)
def test_mistakes_are_told(edgescale: Callable, measured: Path, arguments: list[str], says: str) -> None:
    answer = edgescale("fit", str(measured), *arguments)
    assert answer.code == 2 and says in answer.err


def test_a_damaged_table_is_told(edgescale: Callable, tmp_path: Path) -> None:
    for name, text in (("a.json", "{"), ("b.json", "3"), ("c.txt", "x")):
        (tmp_path / name).write_text(text)
        answer = edgescale("fit", str(tmp_path / name), "--law", "power-law")
        assert answer.code == 2 and name in answer.err


def test_the_laws_stand_alone() -> None:
    code = (
        "import sys, pkgutil, importlib, edgescale.laws as laws;"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(laws.__path__, 'edgescale.laws.')];"
        "print(sorted({'onnx', 'onnxruntime', 'onnx_ir', 'torch', 'rich', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
