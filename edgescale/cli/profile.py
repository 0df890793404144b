"""`edgescale profile`: measure a model, or a bundle's variants, on a target, layer by layer."""

from __future__ import annotations

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
from edgescale.core.errors import UsageError
from edgescale.core.progress import Progress
from edgescale.core.recipe import OBSERVERS


@click.command("profile")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--target", "-t", default="host", show_default=True, help="Profile name or .toml path.")
@click.option("--recipe", "-r", default="fp32", show_default=True, help="Recipe applied to a model, as for compile.")
@override_option
@click.option(
    "--observer", type=click.Choice(OBSERVERS), default="robust", show_default=True, help="For int8 activations."
)
@click.option("--calib", help="Calibration data, for all recipes but fp32.")
@memory_option
@click.option("--input", "-i", "inputs", help="Samples to measure with. [default: the calibration data, else random]")
@click.option("--samples", "-n", type=click.IntRange(1), default=4, show_default=True, help="How many samples.")
@click.option("--variant", "-v", help="A bundle's variant. [default: the target's choice]")
@json_option
@cache_option
@quiet_option
def command(source: Path, target: str, as_json: bool, no_cache: bool, quiet: bool, **options: Any) -> int:
    """Measure SOURCE (an ONNX or TensorFlow Lite model, or a bundle) on a target and show every layer."""
    from edgescale.cache import StageStore
    from edgescale.report.profile import print_profile, profile_payload

    store = StageStore(enabled=not no_cache)
    measure = _measure_bundle if source.is_dir() else _measure_model
    with progress_bars(quiet=quiet or as_json) as progress:
        artifact, measurement = measure(source, target, store, progress, options)
    if as_json:
        print_json("profile", profile_payload(artifact, measurement))
    else:
        print_profile(artifact, measurement, console())
    return 0


def _measure_model(path: Path, target_name: str, store: Any, progress: Progress, options: dict[str, Any]) -> Any:
    from edgescale.core.target import load_target
    from edgescale.sources import DataSource, ModelSource, RandomSource
    from edgescale.stages import Stages

    if options["variant"] is not None:
        raise UsageError("--variant chooses among a bundle's variants; for a model give --recipe")
    stages = Stages(store, progress)
    target = load_target(target_name)
    calibration = DataSource(options["calib"]) if options["calib"] else None
    inputs = DataSource(options["inputs"]) if options["inputs"] else calibration or RandomSource("random")
    loaded = stages.load(ModelSource(path))
    (recipe,) = recipes_of([options["recipe"]], options["observer"], options["overrides"])
    variant = stages.compress(loaded, recipe, calibration)
    artifact = stages.compile(variant, target, target.backends[0], options["memory"])
    return artifact, stages.profile(artifact, target, inputs.for_model(loaded), options["samples"])


def _measure_bundle(path: Path, target_name: str, store: Any, progress: Progress, options: dict[str, Any]) -> Any:
    from edgescale.bundle import open_bundle
    from edgescale.core.model import TensorSpec
    from edgescale.core.target import load_target
    from edgescale.rigs import get_rig
    from edgescale.served import entry_artifact, entry_target
    from edgescale.sources import DataSource, RandomSource

    bundle = open_bundle(path)
    if options["memory"] != "balanced":
        raise UsageError("--memory shapes what is compiled; a bundle's variants are measured as they are")
    name = load_target(target_name).name
    entries = bundle.entries_for(name)
    wanted = options["variant"] or bundle.entry(bundle.policy(name).default).variant
    entry = next((e for e in entries if wanted in (e.variant, e.id)), None)
    if entry is None:
        raise UsageError(
            f"{path} has no variant {wanted!r} for {name}; it holds: {', '.join(e.variant for e in entries)}"
        )
    artifact = entry_artifact(bundle, entry)
    target = entry_target(bundle, entry, target_name)
    ports = artifact.meta["inputs"]
    source = DataSource(options["inputs"]) if options["inputs"] else RandomSource("random")
    # An ONNX port's own type, or that of the value a C port stores, quantized or as it is.
    types = [port["dtype"] if artifact.kind == "onnx" else port.get("value_dtype", "float32") for port in ports]
    specs = tuple(TensorSpec(p["name"], tuple(p["shape"]), dtype) for p, dtype in zip(ports, types, strict=True))
    samples = source.load(specs).head(options["samples"])
    return artifact, get_rig(target.rig).measure(artifact, target, samples, progress=progress)
