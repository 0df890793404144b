"""`edgescale compile`: models in, a bundle out, with the table that says whether the budget is met."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from edgescale.cli.common import (
    cache_option,
    console,
    json_option,
    memory_option,
    override_option,
    print_json,
    progress_bars,
    quiet_option,
    recipes_of,
)
from edgescale.core.budget import BUDGET_METRICS
from edgescale.core.recipe import OBSERVERS

_METRICS = ", ".join(BUDGET_METRICS)


@click.command("compile")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", "-t", "targets", multiple=True, help="Profile name or .toml path; repeat for several.")
@click.option(
    "--emit",
    metavar="BACKENDS",
    help="Comma-separated back ends (onnx, c, tflite, tvm, ethosu, ...): make every variant with each, on the targets "
    "given or its own, and compare them in one table.",
)
@click.option(
    "--budget",
    "-b",
    "budgets",
    multiple=True,
    help="Limits for all targets, e.g. 'latency<=50ms, ram<=64KiB', or for one: 'TARGET: ram<=64KiB'. "
    f"Metrics: {_METRICS}.",
)
@click.option(
    "--recipe",
    "-r",
    "recipes",
    multiple=True,
    default=("fp32,w8a8",),
    show_default=True,
    help="Comma-separated, or one an option: fp32, w8a8, w4a8, w8a16, w4a16-g32, w4a8-qat, fp4-g64, ... or auto.",
)
@click.option("--bits", type=click.Choice(["auto"]), help="auto: also choose 4 or 8 bits layer by layer (recipe auto).")
@click.option(
    "--sparsity",
    metavar="KIND",
    help="Also make each recipe sparse: auto, ch0.5 (channels, half the MACs left), 2:4, 1x4:0.75, u0.9. The same as "
    "a recipe such as w8a8+ch0.5. With -ft behind it (ch0.5-ft, u0.9-gmp) training makes up for it: see --train.",
)
@override_option
@click.option(
    "--observer",
    type=click.Choice(OBSERVERS),
    default="robust",
    show_default=True,
    help="How activation ranges are chosen from the calibration histograms; robust: all of it, without rare outliers.",
)
@memory_option
@click.option(
    "--metric",
    help="top1, top5, auc, mse, cosine or package.module:function. "
    "[default: top1 with labels, else cosine to the float model]",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Inputs on which a device's cost is measured.",
)
@click.option(
    "--measure",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Make and measure at most this share of the variants, those that may be best; a law fitted to them predicts "
    "the others.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("edgescale-out/bundle"),
    show_default=True,
    help="Directory of the bundle.",
)
@click.option(
    "--report",
    "reports",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Also write the tables to a .txt, .html or .svg file; repeatable.",
)
@click.option(
    "--tune",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Time up to N candidates of the kernels' tile for each artifact, where a back end does so (tvm). Records are "
    "kept, so that a search that was interrupted goes on.",
)
@click.option("--calib", help="Calibration data: .npz, folder of .npy, or package.module:function.")
@click.option(
    "--train",
    "training",
    help="Data for recipes that train (w4a8-qat, w8a8+ch0.5-ft), in the same forms; without labels the float model's "
    "answers are learned. Needs PyTorch (extra `train`).",
)
@click.option("--epochs", type=click.IntRange(1), help="How often training goes over the data.  [default: 6]")
@click.option("--eval", "evaluation", help="Evaluation data with labels, in the same forms.")
@click.option(
    "--views",
    help="Changes of an image that leave its class as it is, such as 'mirror shift:1,0 zoom:1.1': the run-time "
    "controller may average over them, where that pays on the evaluation data.",
)
@json_option
@cache_option
@quiet_option
def command(models: tuple[Path, ...], **options: Any) -> int:
    """Compress MODELS (one model, or sizes of a family), compile and measure them on every target.

    Writes a bundle and prints a table of variants and, for each target, the budget's verdict. Exit
    code 0 when every target has a variant that meets the budget, 3 when one has none (the nearest
    is named and the bundle is written all the same).
    """
    options["recipes"] = ",".join(options["recipes"])
    return run_compile(models, command_line=["edgescale", *sys.argv[1:]], **options)


def run_compile(
    models: tuple[Path, ...],
    *,
    targets: tuple[str, ...],
    emit: str | None = None,
    budgets: tuple[str, ...],
    recipes: str,
    observer: Any,
    memory: Any,
    metric: str | None,
    samples: int,
    measure: float = 1.0,
    out: Path,
    reports: tuple[Path, ...],
    calib: str | None,
    evaluation: str | None,
    as_json: bool,
    no_cache: bool,
    quiet: bool,
    command_line: list[str],
    bits: str | None = None,
    overrides: tuple[str, ...] = (),
    sparsity: str | None = None,
    training: str | None = None,
    epochs: int | None = None,
    views: str | None = None,
    tune: int = 0,
) -> int:
    """Compile, print, write the reports; the exit code."""
    from edgescale.cache import StageStore
    from edgescale.core.budget import parse_budgets
    from edgescale.core.target import load_target
    from edgescale.emitted import emitted_targets
    from edgescale.pipeline import Request, compile_models
    from edgescale.report.compile import check_reports, compile_payload, print_compile, write_reports

    check_reports(reports)
    named = targets or (() if emit else ("host",))
    profiles = tuple(load_target(name) for name in dict.fromkeys(named))
    if emit:
        profiles = emitted_targets([name.strip() for name in emit.split(",") if name.strip()], profiles)
    request = Request(
        models=models,
        targets=profiles,
        recipes=recipes_of([*recipes.split(","), *([bits] if bits else [])], observer, overrides, sparsity),
        budgets=parse_budgets(budgets, [profile.name for profile in profiles]),
        calibration=calib,
        training=training,
        epochs=epochs,
        evaluation=evaluation,
        metric=metric,
        samples=samples,
        memory=memory,
        out=out,
        command=shlex.join(command_line),
        compare=emit is not None,
        measure=measure,
        views=tuple((views or "").split()),
        tune=tune,
    )
    store = StageStore(enabled=not no_cache)
    with progress_bars(quiet=quiet or as_json) as progress:
        result = compile_models(request, store, progress)
    if as_json:
        print_json("compile", compile_payload(result))
    else:
        print_compile(result, console())
    write_reports(result, reports)
    store.trim()
    return result.exit_code
