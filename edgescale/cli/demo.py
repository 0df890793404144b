"""`edgescale demo`: the main job on the shipped Fashion-MNIST family, with the defaults built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgescale.cli.common import cache_option, json_option, quiet_option
from edgescale.core.errors import UsageError
from edgescale.core.files import shipped

SIZES = ("small", "medium", "large")
TARGETS = ("host", "cortex-m4-stm32l4r5")
BUDGETS = (
    "accuracy>=0.88",
    "host: latency<=1ms",
    "cortex-m4-stm32l4r5: latency<=100ms, ram<=64KiB, flash<=256KiB",
)


@click.command("demo")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("edgescale-out"),
    show_default=True,
    help="Directory for the bundle and the reports.",
)
@click.option("--budget", "-b", "budgets", multiple=True, default=BUDGETS, show_default=True, help="As for compile.")
@json_option
@cache_option
@quiet_option
def command(out: Path, budgets: tuple[str, ...], as_json: bool, no_cache: bool, quiet: bool) -> int:
    """Compile three nets x {fp32, int8} for this machine and an emulated Cortex-M4, and choose by budget."""
    from edgescale.cli.compile import run_compile

    data = example_root()
    models = tuple(data / f"fashion_{size}.onnx" for size in SIZES)
    arguments: dict[str, Any] = {
        "targets": TARGETS,
        "budgets": budgets,
        "calib": str(data / "calibration.npz"),
        "evaluation": str(data / "test.npz"),
        "out": out / "bundle",
        "reports": tuple(out / f"report.{suffix}" for suffix in ("txt", "html", "svg")),
    }
    code = run_compile(
        models,
        **arguments,
        recipes="fp32,w8a8",
        observer="robust",
        metric="top1",
        memory="balanced",
        samples=4,
        as_json=as_json,
        no_cache=no_cache,
        quiet=quiet,
        command_line=["edgescale", "demo", "--out", str(out), *(word for b in budgets for word in ("--budget", b))],
    )
    if not as_json:
        click.echo(f"Report: {out / 'report.txt'}, .html, .svg")
        click.echo(f"Serve it: edgescale run {out / 'bundle'} --input {data / 'test.npz'} --budget 'latency<=1ms'")
    return code


def example_root() -> Path:
    """Where the shipped example lies: in the installed package, or in the source tree."""
    root = shipped("examples/fashion")
    if not (root / "test.npz").is_file():
        raise UsageError(f"the example family is not in {root}; reinstall edgescale or use a full checkout")
    return root
