"""The lines of docs/laws.md run as printed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np

from edgescale.cli.main import run
from edgescale.laws.forms import FORMS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "laws.md").read_text()


def test_the_python_of_the_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict = {}
    exec(code, space)
    assert space["band"].low < space["band"].value < space["band"].high


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(6, 9, 80), 10 ** rng.uniform(8, 11, 80)
    loss = (1.8 + 480 * n**-0.35 + 2100 * d**-0.37) * np.exp(rng.normal(0, 0.003, 80))
    rows = [f"{a},{b},{c},r{i // 4}" for i, (a, b, c) in enumerate(zip(n, d, loss, strict=True))]
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,loss,run", *rows]))
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        words = [w.strip("'") for w in line.partition("#")[0].split()]
        if "bundle" not in words:
            assert run(words[1:]) == 0, line


def test_the_page_names_what_exists():
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    names = re.findall(r"`([a-z]+(?:\.[A-Za-z_]+)+)[^`]*`", rows)
    assert len(names) >= 15
    for name in names:
        module, _, rest = name.partition(".")
        found = importlib.import_module(f"edgescale.laws.{module}")
        for part in rest.split("."):
            if not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)
    laws = {word for row in rows.splitlines() for word in re.findall(r"`([a-z-]+)`", row)}
    assert {"chinchilla", "precision", "sparse", "capacity", "turning"} <= laws & set(FORMS)
