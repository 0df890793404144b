#!/usr/bin/env python3
"""Compare emulated cores with the NumPy reference, bit for bit, on real images.

    tools/check_equality.py                                 # the example family, every core, 100 images
    tools/check_equality.py --images 20 --target cortex-m3
    tools/check_equality.py --model net.onnx --calib c.npz --data test.npz

Prints one line a model and core: outputs compared, outputs that differ. Exit code 1 when any differs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import numpy as np

from edgescale.cache import StageStore
from edgescale.cli.demo import SIZES, example_root
from edgescale.core.target import load_target, profile_names
from edgescale.core.variant import Recipe
from edgescale.lower import lower_file, reference
from edgescale.lower.ports import to_stored
from edgescale.rigs import get_rig
from edgescale.sources import DataSource, ModelSource
from edgescale.stages import Stages


def emulated_targets() -> list[str]:
    """Shipped profiles whose rig is an emulator."""
    return [name for name in profile_names() if load_target(name).rig.startswith("emulator:")]


@click.command()
@click.option("--model", "models", multiple=True, type=click.Path(path_type=Path), help="Default: the example family.")
@click.option("--calib", help="Calibration data. Default: the example's.")
@click.option("--data", help="Images to compare on. Default: the example's test images.")
@click.option("--target", "targets", multiple=True, help="Default: every emulated profile.")
@click.option("--images", default=100, show_default=True, type=click.IntRange(1))
def main(models: tuple[Path, ...], calib: str | None, data: str | None, targets: tuple[str, ...], images: int) -> None:
    """Compare emulated cores with the NumPy reference on real images."""
    example = example_root()
    models = models or tuple(example / f"fashion_{size}.onnx" for size in SIZES)
    calibration = DataSource(calib or str(example / "calibration.npz"))
    samples = DataSource(data or str(example / "test.npz"))
    differing = 0
    with tempfile.TemporaryDirectory() as store:
        stages = Stages(StageStore(Path(store)))
        for path in models:
            loaded = stages.load(ModelSource(path))
            variant = stages.compress(loaded, Recipe(8, 8), calibration)
            program = lower_file(variant.path, variant.name)
            stored = to_stored(program, program.inputs[0], samples.for_model(loaded).load().head(images).x)
            expected = reference.run(program, {program.inputs[0].tensor: stored})[program.outputs[0].tensor]
            for name in targets or emulated_targets():
                target = load_target(name)
                artifact = stages.compile(variant, target, target.backends[0])
                observed = get_rig(target.rig).raw_executor(artifact, target)(stored)
                wrong = int(np.count_nonzero(observed != expected))
                differing += wrong
                print(
                    f"{variant.name:24} {name:24} {len(stored)} images, {expected.size} outputs, {wrong} differ",
                    flush=True,
                )
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
