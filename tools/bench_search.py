#!/usr/bin/env python3
"""The law-guided search on the example family: sizes x bits x pruned shares, every variant really quantized and scored.

    tools/bench_search.py                       60 variants; about six minutes, kept: the next run takes seconds
    tools/bench_search.py --share 0.3 --seeds 5

Prints how well the law, fitted to 40 % of the variants, predicts the others (mean absolute error in points of top-1),
and how much of the Pareto front's hypervolume (error against the logarithm of weight bytes) the search reaches with the
measurements it was allowed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "compilers")]

from edgescale.cache import StageStore  # noqa: E402
from edgescale.core.recipe import parse_recipe  # noqa: E402
from edgescale.laws.design import first_design  # noqa: E402
from edgescale.laws.fit import fit  # noqa: E402
from edgescale.laws.forms.family import FAMILY  # noqa: E402
from edgescale.select.search import guided_search, hypervolume  # noqa: E402
from edgescale.sources import DataSource, ModelSource  # noqa: E402
from edgescale.stages import LoadedModel, Stages  # noqa: E402

EXAMPLES = ROOT / "examples" / "fashion"
SIZES = ("small", "medium", "large")
BITS = (2, 3, 4, 6, 8)
KEPT = (1.0, 0.8, 0.65, 0.5)


def measured(stages: Stages, loaded: LoadedModel, bits: int, kept: float) -> tuple[float, int]:
    """(error, bytes of the quantized weights) of one variant."""
    calibration, evaluation = (DataSource(str(EXAMPLES / f"{name}.npz")) for name in ("calibration", "test"))
    recipe = parse_recipe(f"w{bits}a8" + (f"+ch{kept}" if kept < 1 else ""))
    variant = stages.compress(loaded, recipe, calibration)
    samples = evaluation.for_model(loaded)
    outputs = stages.reference_outputs(variant, samples)
    quality = stages.evaluate(outputs, outputs, samples, "top1")
    return 1 - quality.value, weight_bytes(variant.path, bits)


def weight_bytes(path: Path, bits: int) -> int:
    """Bytes of the quantized weights, `bits` each."""
    import onnx

    graph = onnx.load(str(path)).graph
    weights = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    small = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    count = sum(int(np.prod(t.dims)) for t in graph.initializer if t.name in weights and t.data_type in small)
    return -(-count * bits // 8)


@click.command()
@click.option("--share", default=0.4, show_default=True, help="Of the variants that may be measured.")
@click.option("--seeds", default=3, show_default=True, help="Searches, with other refits each.")
def main(share: float, seeds: int) -> None:
    """Measure the family, fit, predict, search."""
    stages = Stages(StageStore())
    rows = []
    for size in SIZES:
        loaded = stages.load(ModelSource(EXAMPLES / f"fashion_{size}.onnx"))
        dense = weight_bytes(
            stages.compress(loaded, parse_recipe("w8a8"), DataSource(str(EXAMPLES / "calibration.npz"))).path, 8
        )
        for kept in KEPT:
            for bits in BITS:
                error, size_bytes = measured(stages, loaded, bits, kept)
                rows.append((dense, bits, kept, error, size_bytes))
                print(
                    f"\r{len(rows)} of {len(SIZES) * len(BITS) * len(KEPT)} variants measured", end="", file=sys.stderr
                )
    print(file=sys.stderr)
    table = np.array(rows, dtype=np.float64)
    columns = {"N": table[:, 0], "P_w": table[:, 1], "kept": table[:, 2]}
    errors, cost = table[:, 3], np.log(table[:, 4])

    chosen = first_design(columns, int(share * len(table)))
    others = np.setdiff1d(np.arange(len(table)), chosen)
    made = fit(FAMILY, {n: c[chosen] for n, c in columns.items()}, errors[chosen], starts=500)
    away = 100 * np.abs(made.predict({n: c[others] for n, c in columns.items()}) - errors[others])
    print(
        f"law from {len(chosen)} of {len(table)} variants: the others within {away.mean():.2f} points in the mean, "
        f"{np.median(away):.2f} in the median, {away.max():.2f} at most"
    )

    corner = (errors.max() * 1.05, cost.max() + 0.1)
    points = np.column_stack([errors, cost])
    everything = hypervolume(points, corner)
    for seed in range(seeds):
        found = guided_search(FAMILY, columns, cost, lambda i: float(errors[i]), share, seed)
        reached = hypervolume(points[list(found.front)], corner) / everything
        print(
            f"search {seed}: {len(found.measured)} measured ({len(found.measured) / len(table):.0%}), "
            f"hypervolume {reached:.2%} of the front of all"
        )


if __name__ == "__main__":
    main()
