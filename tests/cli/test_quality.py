"""Recipes, overrides and the diagnosis through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

BOARD = "cortex-m4-stm32l4r5"


def test_explain_names_layers_verdicts_and_overrides(edgescale: Callable, project: object, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = ["compile", project.model, "--calib", project.calib, "--eval", project.test, "--out", out, "-q"]
    done = edgescale(*arguments, "--recipe", "w2a8-rtn,fp4", "--override", "head/fc=w8a8")
    assert done.code == 0, done.err
    told = json.loads(edgescale("explain", out, "--json").out)["targets"][0]["diagnosis"]
    assert {layer["name"] for layer in told} >= {"stem/conv", "block/dw", "block/pw", "head/fc", "block/add", "image"}
    worst = told[0]
    assert worst["override"] == f"{worst['name']}=w8a8"
    text = edgescale("explain", out).out
    assert f"--override '{worst['override']}'" in text
    assert "layers by the quality they cost" in text
    one = json.loads(edgescale("explain", out, "block/pw", "--json").out)
    assert {row["name"] for row in one["diagnosis"]} == {"block/pw"}
    recipes = {e["recipe"]["name"]: e["recipe"] for e in json.loads((out / "manifest.json").read_text())["entries"]}
    assert all(recipe["overrides"] == ["head/fc=w8a8"] for recipe in recipes.values())
    assert [bool(recipe["simulated"]) for name, recipe in sorted(recipes.items())] == [True, False]


def test_simulated_variants_are_never_chosen_or_compiled(edgescale: Callable, project: object, tmp_path: Path) -> None:
    arguments = ["compile", project.model, "--calib", project.calib, "--eval", project.test, "--out", tmp_path / "b"]
    done = edgescale(*arguments, "-t", "host", "-t", BOARD, "-r", "w2a8-rtn,fp8", "-q", "--json")
    assert done.code == 4  # the board cannot compute fp8, and that is said
    told = json.loads(done.out)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    chosen = [entry["recipe"]["name"] for entry in manifest["entries"] if entry["selected"]]
    assert chosen == ["w2a8-rtn", "w2a8-rtn"]
    simulated = next(entry for entry in manifest["entries"] if entry["recipe"]["simulated"])
    assert set(simulated["figures"]) == {"accuracy", "drop"}
    assert "simulated" in simulated["unavailable"]["latency"]
    assert "simulated" in json.dumps(told)


def test_requests_that_would_do_nothing_are_refused(edgescale: Callable, project: object) -> None:
    arguments = ["compile", project.model, "--calib", project.calib]
    for more, words in (
        (["-r", "fp32", "-O", "head/fc=w8a8"], "only fp32"),
        (["-r", "w8a8", "-O", "nowhere=w8a8"], "matches no node"),
        (["-r", "w8a8", "-O", "head/fc"], "pattern=recipe"),
        (["-r", "w8a8-quick"], "unknown suffix"),
    ):
        done = edgescale(*arguments, *more)
        assert done.code == 2
        assert words in done.err


def test_bits_auto_adds_the_recipe(edgescale: Callable, project: object, tmp_path: Path) -> None:
    arguments = ["compile", project.model, "--calib", project.calib, "--eval", project.test, "--out", tmp_path / "b"]
    assert edgescale(*arguments, "-q", "-r", "fp32", "--bits", "auto").code == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert {entry["recipe"]["name"] for entry in manifest["entries"]} == {"fp32", "auto"}


def test_the_report_shows_which_layers_cost_quality(edgescale: Callable, project: object, tmp_path: Path) -> None:
    """Bars in the order of the diagnosis, as long as the shares; explain shows them even where float is best."""
    out, reports = tmp_path / "b", [tmp_path / f"report.{kind}" for kind in ("txt", "html", "svg")]
    arguments = ["compile", project.model, "--calib", project.calib, "--eval", project.test, "--out", out]
    wanted = [part for path in reports for part in ("--report", path)]
    assert edgescale(*arguments, "-q", "-r", "fp32,w3a8-rtn", *wanted).code == 0
    told = json.loads(edgescale("explain", out, "--json").out)["targets"][0]
    assert told["ranking"][0]["entry"].partition("@")[0].endswith("fp32")
    assert "w3a8-rtn" in told["diagnosed"]
    shares = {layer["name"]: layer["share"] for layer in told["diagnosis"]}
    for text in (reports[0].read_text(), edgescale("explain", out).out):
        bars = [line.split() for line in text.splitlines() if "█" in line]
        assert [bar[0] for bar in bars] == list(shares)[: len(bars)]
        lengths = {bar[0]: bar[2].count("█") for bar in bars}
        longest = max(shares.values())
        assert all(abs(length - 40 * shares[name] / longest) <= 1 for name, length in lengths.items())
    assert all("each layer quantized alone" in path.read_text().replace("\xa0", " ") for path in reports[:2])
    assert "█" in reports[2].read_text()
