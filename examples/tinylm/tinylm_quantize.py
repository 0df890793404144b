"""Writes the int8 and int4 files of the family: weights of the matrices in blocks of 32, activations in float.

    python examples/tinylm/tinylm_quantize.py

Rounding to nearest, as `edgescale compile --recipe w8a16-g32,w4a16-g32` does; the batch, which the pipeline fixes
at 1, is opened again, so that samples are computed side by side.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from edgescale.core.recipe import parse_recipe
from edgescale.frontend import load_model, model_from_ir, save_model
from edgescale.quantize import quantize

EXAMPLE = Path(__file__).resolve().parent
RECIPES = {"int8": "w8a16-g32", "int4": "w4a16-g32"}


def open_batch(path: Path) -> None:
    """Name the first dimension of every input and output of the decoder `path` again."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # noted for a batch of 1
    onnx.save(model, path)


def main() -> None:
    """Quantize every float file beside this one."""
    for path in sorted(EXAMPLE.glob("tinylm_*.onnx")):
        if path.stem.count("_") > 1:
            continue
        model = load_model(path)
        for name, recipe in RECIPES.items():
            out = path.with_name(f"{path.stem}_{name}.onnx")
            save_model(model_from_ir(quantize(model, None, parse_recipe(recipe)), model.name), out)
            open_batch(out)
            print(f"{out.name}: {out.stat().st_size} bytes, float {path.stat().st_size}")


if __name__ == "__main__":
    main()
