#!/usr/bin/env python3
"""What models cost on an emulated microcontroller: instructions, modelled cycles, flash and RAM, layer by layer.

    tools/bench_mcu.py kws01_int8.tflite ic01_int8.tflite --target cortex-m4-stm32l4r5
    tools/bench_mcu.py net.onnx --calib calibration.npz --target cortex-m7-stm32f746 --json figures.json
    tools/bench_mcu.py net.onnx --calib calibration.npz --target cortex-m7-stm32f746 --baseline figures.json

Quantized models are compiled as they are; float ones to int8 with --calib, without it as they are. Inputs are random
unless --data gives samples; the most expensive of them counts. Where tools/bench_mcu_published.toml holds another
engine's figures for the same file and core, ratios are printed beside ours. With --baseline the exit code is 1 where
instructions, flash or RAM of a model exceed those of an earlier --json by more than one percent.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from edgescale.cache import StageStore
from edgescale.cli.common import memory_option
from edgescale.core.dataset import Dataset
from edgescale.core.errors import EdgescaleError
from edgescale.core.files import sha256_file, write_whole
from edgescale.core.measurement import Measurement
from edgescale.core.memory import Memory
from edgescale.core.model import TensorSpec
from edgescale.core.target import Target, load_target
from edgescale.core.variant import Artifact, Recipe
from edgescale.rigs import get_rig
from edgescale.sources import DataSource, ModelSource
from edgescale.stages import Stages

PUBLISHED = Path(__file__).with_name("bench_mcu_published.toml")
WATCHED = ("instructions", "flash", "ram")
TOLERANCE = 0.01
WIDTH = 150
"""Columns of tables that go to a file or a pipe."""
METRICS = ("instructions", "cycles", "flash", "arena", "ram", "stack")


@dataclass(frozen=True)
class Result:
    """One model on one target. `published`: engine name -> its figures; `board`: latencies of other engines on the
    same board, ms."""

    name: str
    target: Target
    artifact: Artifact
    measurement: Measurement
    published: dict[str, dict[str, int]]
    board: dict[str, float]

    @property
    def macs(self) -> int:
        return sum(layer["macs"] for layer in self.artifact.meta["layers"])

    def value(self, metric: str) -> int | None:
        """None where the rig cannot tell: QEMU models no time."""
        found = self.measurement.metrics.get(metric)
        return None if found is None else int(found.value)

    @property
    def instructions(self) -> int:
        return int(self.measurement.metrics["instructions"].value)


def published(model: Path, core: str) -> dict[str, dict[str, int]]:
    """Other engines' figures for the same file on the same core."""
    digest = sha256_file(model)
    return {
        engine["name"]: entry[core]
        for engine in tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))["engine"]
        for entry in engine["models"].values()
        if entry["sha256"] == digest and core in entry
    }


def board_latencies(model: Path, target: str) -> dict[str, float]:
    """Measured on the target's board, of other engines running the same file, in ms."""
    digest = sha256_file(model)
    table = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))
    names = {
        name for engine in table["engine"] for name, entry in engine["models"].items() if entry["sha256"] == digest
    }
    found: dict[str, float] = {}
    for board in table["board"]:
        for name in names & set(board["models"]) if board["target"] == target else ():
            found |= board["models"][name]
    return found


def random_samples(spec: TensorSpec, count: int) -> Dataset:
    """Samples of an input that reach every stored value: integers over their range, reals of a normal law."""
    rng = np.random.default_rng(0)
    shape, dtype = (count, *spec.shape[1:]), np.dtype(spec.dtype)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        x = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    else:
        x = rng.normal(size=shape).astype(dtype)
    return Dataset("random", x, None, hashlib.sha256(x.tobytes()).hexdigest())


def measure(
    stages: Stages, path: Path, target: Target, memory: Memory, calib: str | None, data: str | None, count: int
) -> Result:
    """Compile and measure one model."""
    loaded = stages.load(ModelSource(path))
    recipe = Recipe(8, 8) if loaded.quantized or calib else Recipe()
    variant = stages.compress(loaded, recipe, DataSource(calib) if calib else None)
    artifact = stages.compile(variant, target, "edgescale_c", memory)
    given = DataSource(data).for_model(loaded).load().head(count) if data else None
    samples = given or random_samples(loaded.only_input(), count)
    measurement = get_rig(target.rig).measure(artifact, target, samples)
    compared = published(path, target.core.cpu), board_latencies(path, target.name)
    return Result(variant.name, target, artifact, measurement, *compared)


def summary(results: list[Result]) -> Table:
    """One row a model, and one for each other engine with our share of its figures."""
    table = Table(title=results[0].target.title)
    for column in ("model", "MACs", "insn/MAC", *METRICS):
        table.add_column(column, justify="left" if column == "model" else "right")
    for result in results:
        per_mac = result.instructions / result.macs if result.macs else float("nan")
        values = {metric: result.value(metric) for metric in METRICS}
        figures = ["-" if value is None else f"{value:,}" for value in values.values()]
        table.add_row(result.name, f"{result.macs:,}", f"{per_mac:.2f}", *figures)
        for engine, theirs in result.published.items():
            shares = ["" if v is None or m not in theirs else f"{v / theirs[m]:.3f}" for m, v in values.items()]
            table.add_row(f"  / {engine}", "", "", *shares, style="bold")
    return table


def board_table(results: list[Result]) -> Table | None:
    """Modelled latencies beside what real boards took with other engines; None where nothing is published."""
    if not any(result.board for result in results):
        return None
    title = "modelled latency beside latencies measured on the board with other engines (plausible, not the same code)"
    table = Table(title=title)
    table.add_column("model")
    for column in ("modelled ms", "best ms", "modelled / best", "reference ms", "modelled / reference"):
        table.add_column(column, justify="right")
    for result in results:
        latency = result.measurement.metrics["latency"].value
        cells = [f"{latency:.3g}"]
        for name in ("best", "reference"):
            theirs = result.board.get(name)
            cells += ["-", "-"] if theirs is None else [f"{theirs:g}", f"{latency / theirs:.2f}"]
        table.add_row(result.name, *cells)
    return table


def layer_table(result: Result) -> Table:
    """One row a layer: kernel, why it is not the target's own, and its share."""
    table = Table(title=result.name)
    for column in ("layer", "kernel", "MACs", "instructions", "%", "insn/MAC", "cycles"):
        table.add_column(column, justify="left" if column in ("layer", "kernel") else "right", overflow="fold")
    total = result.instructions
    for layer, meta in zip(result.measurement.layers, result.artifact.meta["layers"], strict=True):
        if "instructions" not in layer.metrics:
            continue
        instructions = int(layer.metrics["instructions"].value)
        kernel = f"{meta['kernel']} ({meta['reason']})" if meta.get("reason") else meta["kernel"]
        table.add_row(
            layer.name,
            kernel,
            f"{layer.macs:,}" if layer.macs else "",
            f"{instructions:,}",
            f"{100 * instructions / total:.1f}",
            f"{instructions / layer.macs:.2f}" if layer.macs else "",
            f"{int(layer.metrics['cycles'].value):,}" if "cycles" in layer.metrics else "-",
        )
    return table


def record(result: Result) -> dict[str, Any]:
    """The result as plain data."""
    layers = zip(result.measurement.layers, result.artifact.meta["layers"], strict=True)
    return {
        "model": result.name,
        "target": result.target.name,
        "macs": result.macs,
        **{metric: result.value(metric) for metric in METRICS},
        "published": result.published,
        "layers": [
            {
                "name": layer.name,
                "kernel": meta["kernel"],
                "reason": meta.get("reason", ""),
                "macs": layer.macs,
                **{name: int(q.value) for name, q in layer.metrics.items() if name in METRICS},
            }
            for layer, meta in layers
        ],
    }


def regressions(records: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[str]:
    """One line for each watched figure that grew by more than the tolerance, or has nothing to compare with."""
    known = {(entry["model"], entry["target"]): entry for entry in baseline}
    found = []
    for entry in records:
        old = known.get((entry["model"], entry["target"]))
        if old is None:
            found.append(f"{entry['model']} on {entry['target']}: not in the baseline")
            continue
        found += [
            f"{entry['model']} on {entry['target']}: {metric} {old[metric]:,} -> {entry[metric]:,} "
            f"({100 * (entry[metric] / old[metric] - 1):+.2f} %)"
            for metric in WATCHED
            if entry[metric] > old[metric] * (1 + TOLERANCE)
        ]
    return found


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-t", "--target", "profile", default="cortex-m4-stm32l4r5", show_default=True, help="Target profile.")
@memory_option
@click.option("--calib", help="Calibration data for float models.")
@click.option("--data", help="Samples to run. Default: random ones.")
@click.option("--samples", default=1, show_default=True, type=click.IntRange(1), help="How many samples to run.")
@click.option("--layers/--no-layers", default=True, help="Print a table of layers for each model.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Also write all figures here.")
@click.option("--baseline", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Figures to hold.")
def main(
    models: tuple[Path, ...],
    profile: str,
    memory: Memory,
    calib: str | None,
    data: str | None,
    samples: int,
    layers: bool,
    file: Path | None,
    baseline: Path | None,
) -> None:
    """See the command's help, which is the module's text."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        target = load_target(profile)
        with tempfile.TemporaryDirectory() as store:
            stages = Stages(StageStore(Path(store)))
            results = [measure(stages, path, target, memory, calib, data, samples) for path in models]
    except EdgescaleError as error:
        raise click.ClickException(str(error)) from None
    for result in results if layers else []:
        console.print(layer_table(result))
    console.print(summary(results))
    if (boards := board_table(results)) is not None:
        console.print(boards)
    records = [record(result) for result in results]
    if file is not None:
        write_whole(file, json.dumps(records, indent=1) + "\n")
    if baseline is not None and (worse := regressions(records, json.loads(baseline.read_text(encoding="utf-8")))):
        raise click.ClickException("\n  ".join(["worse than the baseline:", *worse]))


if __name__ == "__main__":
    main()
