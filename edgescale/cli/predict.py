"""`edgescale predict`: a fitted or published law asked at given inputs."""

from __future__ import annotations

from pathlib import Path

import click

from edgescale.cli.common import console, json_option, print_json
from edgescale.core.errors import UsageError


@click.command("predict")
@click.argument("law")
@click.argument("inputs", nargs=-1, metavar="[INPUT=VALUE[,VALUE...]]...")
@click.option("--data", "-d", type=click.Path(path_type=Path), help="A table whose columns are the inputs.")
@click.option(
    "--level",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of intervals.",
)
@click.option("--observation", is_flag=True, help="Intervals of a new measurement instead of the curve.")
@json_option
def command(
    law: str, inputs: tuple[str, ...], data: Path | None, level: float, observation: bool, as_json: bool
) -> int:
    """Predict with LAW, a file `edgescale fit` wrote or the name of a published law (precision, sparse-t5, ...).

    Inputs are given as N=1e6,1e7 D=1e9: lists of equal length go together, single values stand for all rows.
    Published laws come without intervals.
    """
    from edgescale.laws.published import PUBLISHED
    from edgescale.laws.store import load

    path = Path(law)
    saved = None if law in PUBLISHED and not path.exists() else load(path)
    known = PUBLISHED[law] if saved is None else saved.law
    form = known.form
    given: dict[str, list[float]] = {}
    if data is not None:
        from edgescale.laws.table import read_table

        table = read_table(data)
        given = {i.name: list(table.numbers(i.name)) for i in form.inputs if i.name in table.columns}
    given |= _parse(inputs, {i.name for i in form.inputs})
    columns = form.columns(given)
    if saved is None:
        if observation:
            raise UsageError("a published law has no residuals: --observation needs a fit of your own")
        band, value, beyond = None, known.predict(columns), []
    else:
        band = saved.band(columns, level, observation=observation)
        value, beyond = band.value, saved.beyond(columns)
    if as_json:
        rows = [
            {
                **{name: float(values[row]) for name, values in columns.items()},
                form.output: float(value[row]),
                **({} if band is None else {"low": float(band.low[row]), "high": float(band.high[row])}),
            }
            for row in range(value.size)
        ]
        print_json("predict", {"law": form.name, "source": known.cite, "level": level, "rows": rows, "beyond": beyond})
        return 0
    from edgescale.report.figures import plain
    from edgescale.report.laws import band_table

    console().print(band_table(form, columns, band, value))
    console().print(plain(known.cite))
    for sentence in beyond:
        console().print(f"[yellow]note:[/] extrapolated: {plain(sentence)}")
    return 0


def _parse(inputs: tuple[str, ...], known: set[str]) -> dict[str, list[float]]:
    made = {}
    for text in inputs:
        name, sign, values = text.partition("=")
        if not sign or name not in known:
            raise UsageError(f"{text!r}: write INPUT=VALUE with INPUT one of {', '.join(sorted(known))}")
        try:
            made[name] = [float(value) for value in values.split(",")]
        except ValueError:
            raise UsageError(f"{text!r}: {values!r} is no number or list of numbers") from None
    return made
