"""`edgescale fit`: a law from a table of measurements, or from those in a bundle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgescale.cli.common import console, json_option, print_json
from edgescale.core.errors import UsageError

if TYPE_CHECKING:
    from edgescale.laws.intervals import Bootstrap
    from edgescale.laws.table import Table


@click.command("fit")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--law", "law", help="The law's form; --laws lists them.")
@click.option("--laws", is_flag=True, help="List the forms with their equations, inputs and sources.")
@click.option(
    "--map", "-m", "mapping", multiple=True, metavar="INPUT=COLUMN", help="Which column is an input of the law."
)
@click.option(
    "--y", "target_column", metavar="COLUMN", help="The column to explain (default: named as the law's output)."
)
@click.option(
    "--where", "-w", "conditions", multiple=True, metavar="COND", help="Keep rows, e.g. 'loss<4'; repeatable."
)
@click.option("--target", "-t", help="Of a bundle: only this target's entries.")
@click.option("--hold", multiple=True, metavar="PARAMETER=VALUE", help="Keep a parameter at a value.")
@click.option("--starts", default=200, show_default=True, type=click.IntRange(1), help="Descents begun.")
@click.option("--refits", default=400, show_default=True, type=click.IntRange(20), help="Bootstrap refits.")
@click.option(
    "--groups", metavar="COLUMN", help="Resample whole groups of rows (runs, families) with equal value here."
)
@click.option("--seed", default=0, show_default=True, help="Seed of starts and resamples.")
@click.option("--space", type=click.Choice(["log", "linear"]), help="Where residuals are taken (default: the law's).")
@click.option("--delta", type=float, help="Where Huber's loss turns linear; inf is least squares (default: the law's).")
@click.option("--mean", is_flag=True, help="Report the mean loss over rows instead of the sum.")
@click.option(
    "--level",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of intervals.",
)
@click.option("--profile", "profiled", is_flag=True, help="Also profile-likelihood intervals.")
@click.option(
    "--note",
    "notes",
    multiple=True,
    metavar="FIELD=TEXT",
    help="For the checklist: models, parameter_count, training, selection.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Where the fit is written (default: DATA's name + .LAW.fit.json).",
)
@click.option(
    "--plots", type=click.Path(path_type=Path), help="Where plots are written, as SVG (default: beside the fit)."
)
@json_option
def command(data: Path | None, law: str | None, laws: bool, as_json: bool, **how: Any) -> int:
    """Fit a law to DATA: a .csv, .tsv, .json, .jsonl or .parquet table, or a bundle.

    Prints the parameters with intervals, what is poorly determined, and how well the law predicts what was left out
    of the fit; writes the fit file that `edgescale predict` reads, with a checklist of how it was made, and plots.
    Columns of a bundle: accuracy, latency, flash, ... (its figures), macs, weight_bits, activation_bits, model.
    """
    if laws:
        return _list(as_json)
    if data is None or law is None:
        raise UsageError("give DATA and --law NAME; `edgescale fit --laws` lists the laws")
    from edgescale.core.files import write_whole
    from edgescale.laws.checklist import checklist
    from edgescale.laws.fit import fit
    from edgescale.laws.forms import form_named
    from edgescale.laws.intervals import bootstrap, profile
    from edgescale.laws.store import save
    from edgescale.laws.validate import edge_holdouts
    from edgescale.report.curves import svg
    from edgescale.report.laws import panels

    form = form_named(law)
    table = _read(data, how["target"])
    for condition in how["conditions"]:
        table = table.where(condition)
    named = _pairs(how["mapping"], "--map", {i.name for i in form.inputs})
    columns = {
        i.name: _column(table, named.get(i.name, i.name), i, form) for i in form.inputs if _present(i, named, table)
    }
    observed = table.numbers(how["target_column"] or form.output)
    held = {name: _number(value, "--hold") for name, value in _pairs(how["hold"], "--hold", set(form.names)).items()}
    made = fit(
        form, columns, observed, starts=how["starts"], seed=how["seed"], space=how["space"], delta=how["delta"],
        mean=how["mean"], fixed=held,
    )  # fmt: skip
    groups = None if how["groups"] is None else [str(value) for value in table.column(how["groups"])]
    refits = bootstrap(made, how["refits"], how["seed"], groups=groups)
    profiles = {
        n: profile(made, n, how["level"])
        for n, free in zip(form.names, made.problem.free, strict=True)
        if free and how["profiled"]
    }
    holdouts = edge_holdouts(made)
    notes = _pairs(how["notes"], "--note", {"models", "parameter_count", "training", "selection"})
    if how["conditions"] and "selection" not in notes:
        notes["selection"] = "kept where " + " and ".join(how["conditions"])
    answers = checklist(made, refits, holdouts, notes)
    out = how["out"] or Path(f"{data.name.removesuffix(data.suffix)}.{form.name.partition(':')[0]}.fit.json")
    plots = how["plots"] or out.with_suffix(".svg")
    save(out, refits, answers, how["level"])
    write_whole(plots, svg(panels(refits, how["level"])))
    if as_json:
        _print_json(refits, profiles, holdouts, answers, how["level"], out, plots)
    else:
        _show(refits, profiles, holdouts, how["level"], out, plots)
    return 0


def _present(i: Any, named: dict[str, str], table: Table) -> bool:
    """Whether an input is to be read: it was mapped, has its column, or has no default (then reading it says so)."""
    return i.name in named or i.name in table.columns or i.default is None


def _column(table: Table, name: str, i: Any, form: Any) -> Any:
    """A column as numbers; families by name become their index in the law's."""
    if i.unit != "index":
        return table.numbers(name)
    from edgescale.laws.forms.curves import family_index

    return family_index(form, table.column(name))


def _read(data: Path, target: str | None) -> Table:
    from edgescale.laws.table import read_table

    if not data.is_dir():
        if target is not None:
            raise UsageError("--target applies to a bundle, and this is a table: use --where")
        return read_table(data)
    from edgescale.bundle import open_bundle
    from edgescale.laws.table import Table

    bundle = open_bundle(data)
    entries = [e for e in bundle.manifest.entries if target is None or e.target == target]
    if not entries:
        raise UsageError(f"{data} has no entry for {target!r}; its targets: {', '.join(bundle.target_names())}")
    metrics = sorted({metric for e in entries for metric in e.figures})
    rows: list[dict[str, Any]] = [
        {"entry": e.id, "model": e.model, "target": e.target, "recipe": e.recipe.name}
        | {"weight_bits": e.recipe.weight_bits, "activation_bits": e.recipe.activation_bits}
        | {"macs": sum(layer.macs for layer in bundle.layers(e)) or None}
        | {metric: e.figures[metric].value if metric in e.figures else None for metric in metrics}
        for e in entries
    ]
    return Table({name: [row[name] for row in rows] for name in rows[0]}, str(data))


def _pairs(texts: tuple[str, ...], option: str, known: set[str]) -> dict[str, str]:
    made = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or name not in known:
            raise UsageError(f"{option} {text!r}: write NAME=VALUE with NAME one of {', '.join(sorted(known))}")
        made[name] = value
    return made


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: {text!r} is no number") from None


def _list(as_json: bool) -> int:
    from edgescale.laws.forms import FORMS

    if as_json:
        rows = [
            {
                "law": form.name, "equation": form.equation, "source": form.cite, "output": form.output,
                "inputs": [{"name": i.name, "unit": i.unit, "meaning": i.meaning} for i in form.inputs],
                "parameters": list(form.names),
            }
            for form in FORMS.values()
        ]  # fmt: skip
        print_json("laws", {"laws": rows})
        return 0
    from rich.table import Table as RichTable

    from edgescale.report.figures import plain

    table = RichTable()
    for heading in ("law", "equation", "inputs", "source"):
        table.add_column(heading, overflow="fold")
    for form in FORMS.values():
        table.add_row(*map(plain, (form.name, form.equation, ", ".join(i.name for i in form.inputs), form.cite)))
    console().print(table)
    console().print("also: shared-slopes:FAMILY,FAMILY,... (inputs s, t, family)")
    return 0


def _show(refits: Bootstrap, profiles: Any, holdouts: Any, level: float, out: Path, plots: Path) -> None:
    from edgescale.report.figures import plain
    from edgescale.report.laws import fit_table

    made, screen = refits.fit, console()
    screen.print(fit_table(refits, level, profiles))
    loss = made.problem.loss
    kind = f"Huber {loss.delta:g}" if math.isfinite(loss.delta) else "squares"
    screen.print(
        f"{made.problem.y.size} rows, {'mean' if loss.mean else 'sum'} of {kind} over {loss.space} residuals "
        f"{made.objective:.9g}; R2 {made.r_squared:.5f}; {made.agreement:.0%} of {made.starts} starts agree"
    )
    for held in holdouts:
        screen.print(f"without the {held.rule}: {held.relative:.2%} mean error over {held.count} rows left out")
    for warning in made.warnings:
        screen.print(f"[yellow]note:[/] {plain(warning)}")
    screen.print(plain(f"data {made.data_sha256[:12]}, seed {made.seed}; written: {out}, {plots}"))


def _print_json(
    refits: Bootstrap, profiles: Any, holdouts: Any, answers: Any, level: float, out: Path, plots: Path
) -> None:
    made = refits.fit
    print_json(
        "fit",
        {
            "law": made.form.name,
            "params": made.params,
            "standard_errors": refits.standard_errors(),
            "level": level,
            "intervals": {n: [i.low, i.high] for n, i in refits.intervals(level).items()},
            "profiles": {n: [i.low, i.high] for n, i in profiles.items()},
            "objective": made.objective,
            "r_squared": made.r_squared,
            "holdouts": list(holdouts),
            "warnings": list(made.warnings),
            "checklist": answers,
            "fit": out,
            "plots": plots,
        },
    )
