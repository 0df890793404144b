"""`edgescale predict`: a fitted or published law asked at given inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgescale.cli.common import console, json_option, print_json
from edgescale.core.errors import UsageError

if TYPE_CHECKING:
    from edgescale.laws.form import Form, Input


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
        for i in form.inputs:
            if i.name in table.columns:
                whole = i.unit == "index"
                given[i.name] = _values(table.column(i.name), i, form) if whole else list(table.numbers(i.name))
    given |= _parse(inputs, form)
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


def _values(texts: Sequence[object], i: Input, form: Form) -> list[float]:
    """Numbers, or indices of families given by name."""
    if i.unit == "index":
        from edgescale.laws.forms.curves import family_index

        return family_index(form, texts)
    return [float(str(text)) for text in texts]


def _parse(inputs: tuple[str, ...], form: Form) -> dict[str, list[float]]:
    known = {i.name: i for i in form.inputs}
    made = {}
    for text in inputs:
        name, sign, values = text.partition("=")
        if not sign or name not in known:
            raise UsageError(f"{text!r}: write INPUT=VALUE with INPUT one of {', '.join(sorted(known))}")
        try:
            made[name] = _values(values.split(","), known[name], form)
        except ValueError:
            raise UsageError(f"{text!r}: {values!r} is no number or list of numbers") from None
    return made
