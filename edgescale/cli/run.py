"""`edgescale run`: serve samples from a bundle, on this machine or on the emulated device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from edgescale.cli.common import console, json_option, print_json
from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.served import Served, serve

SHOWN = 5


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--input", "-i", "source", required=True, help="Samples: .npz (x, y), folder of .npy, or package.module:function."
)
@click.option("--budget", "-b", help="Limits for the choice. [default: the bundle's choice]")
@click.option(
    "--target", "-t", help="Target of the bundle, or the path of its profile. [default: the first that runs here]"
)
@click.option("--samples", "-n", type=click.IntRange(1), help="Use only the first N samples.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the outputs to this .npz (key y).")
@json_option
def command(
    bundle: Path,
    source: str,
    budget: str | None,
    target: str | None,
    samples: int | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Run samples through the variant of BUNDLE that the budget chooses.

    Microcontroller targets run on their emulator. Exit code 3 when no variant meets the budget and
    the smallest ran instead.
    """
    if output is not None and output.suffix != ".npz":
        raise UsageError(f"--output {output}: give a file name ending in .npz")
    served, dataset = serve(bundle, target, budget, source, samples)
    if output is not None:
        _write(output, served)
    score = _accuracy(served.outputs, dataset)
    if as_json:
        print_json("run", _payload(served, dataset, score, output))
    else:
        _show(served, dataset, score, output)
    return 0 if served.met else 3


def _write(path: Path, served: Served) -> None:
    from io import BytesIO

    from edgescale.core.files import write_whole

    buffer = BytesIO()
    np.savez_compressed(buffer, y=served.outputs)
    write_whole(path, buffer.getvalue())


def _accuracy(outputs: Any, dataset: Dataset) -> float | None:
    """Top-1 where the data has class labels and the outputs are class scores."""
    y = dataset.y
    if y is None or outputs.ndim != 2 or outputs.shape[1] < 2 or y.shape != (len(outputs),) or y.dtype.kind not in "iu":
        return None
    return float(np.mean(outputs.argmax(axis=1) == y))


def _payload(served: Served, dataset: Dataset, score: float | None, output: Path | None) -> dict[str, Any]:
    from edgescale.report.figures import quantity_payload

    return {
        "target": served.target,
        "variant": served.variant,
        "met": served.met,
        "reason": served.reason,
        "samples": len(dataset),
        "figures": quantity_payload(served.figures),
        "observed": quantity_payload(served.observed),
        "top1": score,
        "output": None if output is None else str(output),
        "first_outputs": served.outputs[:SHOWN].tolist(),
    }


def _show(served: Served, dataset: Dataset, score: float | None, output: Path | None) -> None:
    from rich.table import Table

    from edgescale.report.figures import add_figure_columns, figure_cells, plain

    out = console()
    color = "green" if served.met else "red"
    out.print(f"[bold]{served.variant}[/] on {served.target}: [{color}]{plain(served.reason)}[/]")
    rows = [served.figures, served.observed]
    table = Table(title="figures", title_justify="left")
    table.add_column("")
    shown = add_figure_columns(table, rows, ("accuracy", "error", "latency", "instructions", "energy", "flash", "ram"))
    table.add_row("bundle", *figure_cells(served.figures, shown, rows))
    if served.observed:
        table.add_row("this run", *figure_cells(served.observed, shown, rows))
    out.print(table)
    for index, row in enumerate(served.outputs[:SHOWN]):
        flat = np.ravel(row)
        top = f"argmax {int(flat.argmax())}, " if flat.size > 1 else ""
        values = np.array2string(flat[:12], precision=4, suppress_small=True, max_line_width=200)
        out.print(plain(f"sample {index}: {top}{values}"))
    if len(dataset) > SHOWN:
        out.print(f"... {len(dataset)} samples in all")
    if score is not None:
        out.print(f"top-1 {score:.4f} on {len(dataset)} samples (measured)")
    if output is not None:
        out.print(f"outputs written to {output}")
