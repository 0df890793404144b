"""`edgescale explain`: why a bundle's variants were chosen or not, and where their cost lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgescale.bundle import Bundle, EntryRecord, open_bundle
from edgescale.cli.common import console, json_option, print_json
from edgescale.core.budget import parse_budget
from edgescale.core.errors import UsageError
from edgescale.core.measurement import SHARES
from edgescale.select import Candidate, Selection, select


@click.command("explain")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("layer", required=False)
@click.option("--budget", "-b", help="Judge by these limits instead of those the bundle was made for.")
@click.option("--target", "-t", help="Only this target.")
@json_option
def command(bundle: Path, layer: str | None, budget: str | None, target: str | None, as_json: bool) -> int:
    """Rank BUNDLE's variants under the budget, say what each misses and by how much.

    Of the best variant, also the layers that cost most. Of the best quantized one, those whose quantization costs most
    quality: why, and the override that helps. With LAYER (a node's name, or a part of it), all that of one layer in
    every variant. Exit code 3 when a target has no variant within the budget.
    """
    opened = open_bundle(bundle)
    if layer is not None:
        return _explain_layer(opened, layer, target, as_json)
    names = [target] if target else list(opened.target_names())
    selections = [
        select(
            [_candidate(e) for e in opened.entries_for(name)],
            parse_budget(opened.policy(name).budget if budget is None else budget),
        )
        for name in names
    ]
    if as_json:
        print_json("explain", {"targets": [_with_diagnosis(opened, s) for s in selections]})
    else:
        for selection in selections:
            _show(opened, selection)
    return 0 if all(s.feasible for s in selections) else 3


def _candidate(entry: EntryRecord) -> Candidate:
    figures, missing = entry.quantities(), entry.unavailable
    return Candidate(entry.id, entry.model, entry.recipe.name, entry.target, figures, missing)


def _payload(selection: Selection) -> dict[str, Any]:
    rows = [
        {
            "entry": verdict.name,
            "feasible": verdict.feasible,
            "limits": [
                {
                    "metric": r.metric,
                    "limit": str(r.constraint),
                    "value": r.value,
                    "source": r.source,
                    "margin": r.margin,
                    "holds": r.holds,
                }
                for r in verdict.rows
            ],
        }
        for verdict in selection.ranking
    ]
    summary = {
        "target": selection.target,
        "budget": str(selection.budget),
        "reason": selection.reason,
        "warnings": list(selection.warnings),
    }
    return {**summary, "binding": [str(c) for c in selection.binding], "ranking": rows}


def _with_diagnosis(bundle: Bundle, selection: Selection) -> dict[str, Any]:
    judged = _diagnosed(bundle, selection)
    layers = () if judged is None else bundle.diagnosis(judged)
    diagnosis = {"diagnosed": None if judged is None else judged.id, "diagnosis": [_fields(layer) for layer in layers]}
    return {**_payload(selection), **diagnosis}


def _diagnosed(bundle: Bundle, selection: Selection) -> EntryRecord | None:
    """The best variant that edgescale quantized: the chosen one, or where that is float the next in the ranking."""
    entries = (bundle.entry(verdict.name) for verdict in selection.ranking)
    return next((entry for entry in entries if bundle.diagnosis(entry)), None)


def _show(bundle: Bundle, selection: Selection) -> None:
    from rich.table import Table

    from edgescale.report.figures import plain, show_value

    out = console()
    table = Table(title=f"[bold]{selection.target}[/] under {selection.budget}", title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("variant")
    for constraint in selection.budget.constraints:
        table.add_column(str(constraint), justify="right")
    table.add_column("verdict")
    for rank, verdict in enumerate(selection.ranking, 1):
        cells = [
            f"{show_value(r.metric, r.quantity)} ([{'green' if r.holds else 'red'}]"
            f"{'?' if r.margin is None else format(r.margin, '+.0%')}[/])"
            for r in verdict.rows
        ]
        judged = "[green]meets all[/]" if verdict.feasible else f"[red]misses {plain(verdict.misses())}[/]"
        table.add_row(str(rank), plain(verdict.name.partition("@")[0]), *cells, judged)
    out.print(table)
    out.print(plain(selection.reason))
    for warning in selection.warnings:
        out.print(f"[yellow]note:[/] {plain(warning)}")
    best = bundle.entry(selection.best.name)
    for metric, reason in sorted(best.unavailable.items()):
        out.print(f"[dim]{metric} is unavailable: {plain(reason)}[/]")
    if layers := bundle.layers(best):
        from edgescale.report.layers import layer_table

        out.print(layer_table([_Layer(record) for record in layers], f"{best.id}: most expensive layers", 5))
    if (diagnosed := _diagnosed(bundle, selection)) is not None:
        from edgescale.report.diagnosis import diagnosis_figure, diagnosis_table, override_lines

        diagnosis = bundle.diagnosis(diagnosed)
        out.print(diagnosis_figure(diagnosis, f"{diagnosed.id}: error of the output, each layer quantized alone", 10))
        out.print(diagnosis_table(diagnosis, f"{diagnosed.id}: layers by the quality they cost", 5))
        for line in override_lines(diagnosis):
            out.print(plain(line))
    if best.kind == "c":
        from edgescale.report.arena import arena_table
        from edgescale.served import entry_artifact

        out.print(arena_table(entry_artifact(bundle, best).meta))
    out.print()


class _Layer:
    """A bundle's layer record, with quantities instead of stored figures."""

    def __init__(self, record: Any) -> None:
        self.name, self.op, self.macs, self.kernel = record.name, record.op, record.macs, record.kernel
        self.metrics = {metric: figure.quantity() for metric, figure in record.metrics.items()}


def _explain_layer(bundle: Bundle, wanted: str, target: str | None, as_json: bool) -> int:
    found = []
    judged = []
    names: dict[str, None] = {}
    for entry in bundle.manifest.entries if target is None else bundle.entries_for(target):
        layers = [_Layer(record) for record in bundle.layers(entry)]
        total: dict[str, float] = {}
        for layer in layers:
            names[layer.name] = None
            for metric, quantity in layer.metrics.items():
                total[metric] = total.get(metric, 0.0) + quantity.value
        diagnosis = bundle.diagnosis(entry)
        names |= dict.fromkeys(layer.name for layer in diagnosis)
        same = [layer for layer in diagnosis if layer.name == wanted]
        judged += [(entry, layer) for layer in same or [layer for layer in diagnosis if wanted in layer.name]]
        exact = [layer for layer in layers if layer.name == wanted]
        found += [(entry, layer, total) for layer in exact or [layer for layer in layers if wanted in layer.name]]
    if not found and not judged:
        listed = ", ".join(list(names)[:20]) or "none: the rigs gave no layer figures"
        raise UsageError(f"no layer of {bundle.path} is called {wanted!r}; layers: {listed}")
    if as_json:
        from edgescale.report.figures import quantity_payload

        print_json(
            "explain-layer",
            {
                "layers": [
                    {
                        "entry": entry.id,
                        "layer": layer.name,
                        "op": layer.op,
                        "kernel": layer.kernel,
                        "macs": layer.macs,
                        "figures": quantity_payload(layer.metrics),
                    }
                    for entry, layer, _ in found
                ],
                "diagnosis": [{"entry": entry.id, **_fields(layer)} for entry, layer in judged],
            },
        )
        return 0
    from rich.table import Table

    from edgescale.report.figures import plain

    table = Table(title=f"layers matching {plain(repr(wanted))}", title_justify="left")
    for heading in ("entry", "layer", "op", "kernel", "MACs", "figure", "value", "share"):
        table.add_column(heading, overflow="fold")
    for entry, layer, total in found:
        for metric, quantity in layer.metrics.items():
            share = f"{quantity.value / total[metric]:.1%}" if total[metric] and metric not in SHARES else "-"
            cells = (
                plain(entry.id),
                plain(layer.name),
                layer.op,
                layer.kernel,
                f"{layer.macs:,}",
                metric,
                str(quantity),
                share,
            )
            table.add_row(*cells)
    if found:
        console().print(table)
    if judged:
        from edgescale.report.diagnosis import diagnosis_table, override_lines

        for entry_id in dict.fromkeys(entry.id for entry, _ in judged):
            own = [layer for entry, layer in judged if entry.id == entry_id]
            console().print(diagnosis_table(own, f"{entry_id}: the quality they cost", len(own)))
            for line in override_lines(own):
                console().print(plain(line))
    return 0


def _fields(record: Any) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(record)
    return plain
