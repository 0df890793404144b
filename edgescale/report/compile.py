"""The result of a compile: variants by target, the verdict on the budget, where the cost lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgescale.bundle.pack import Entry
from edgescale.core.errors import UsageError
from edgescale.core.files import write_whole
from edgescale.pipeline import CompileResult
from edgescale.report.comparison import comparison_payload, comparison_table
from edgescale.report.diagnosis import diagnosis_figure, override_lines
from edgescale.report.figures import add_figure_columns, figure_cells, plain, quantity_payload, show_value
from edgescale.report.layers import layer_table
from edgescale.report.predicted import exploration_payload, headline, predicted_table
from edgescale.select import Selection

if TYPE_CHECKING:
    from rich.console import Console

VARIANT_METRICS = ("accuracy", "error", "drop", "latency", "instructions", "energy", "flash", "ram", "arena", "npu")
TOP_LAYERS = 5
FIGURE_LAYERS = 10
REPORT_WIDTH = 132
REPORT_SUFFIXES = (".txt", ".html", ".svg")


def print_compile(result: CompileResult, console: Console) -> None:
    """Print the whole report."""
    for target in result.request.targets:
        entries = [e for e in result.entries if e.target.name == target.name]
        if entries:
            _print_target(result.selections[target.name], entries, console)
    if result.request.compare:
        console.print(comparison_table(result.entries))
    if result.exploration is not None:
        if result.exploration.predictions:
            console.print(predicted_table(result.exploration))
        console.print(plain(headline(result.exploration)))
    _print_failures(result, console)
    if result.bundle is not None:
        console.print(
            f"Bundle: [bold]{plain(_short(result.bundle))}[/]   reproduce with: {plain(result.request.command)}"
        )
    console.print(_LEGEND)


_LEGEND = (
    "[dim]measured: timed or counted on this machine; emulated: exact counts from the emulated core; "
    "modelled: counts through the core's cycle table. * on the Pareto front, > chosen.[/]"
)


def _print_target(selection: Selection, entries: Sequence[Entry], console: Console) -> None:
    console.print(_variant_table(selection, entries))
    if selection.budget.constraints:
        console.print(_budget_table(selection))
    color = "green" if selection.feasible else "red"
    console.print(f"[{color}]{'met' if selection.feasible else 'NOT MET'}[/]: {plain(selection.reason)}")
    for note in dict.fromkeys(note for entry in entries for note in entry.artifact.meta.get("notes", ())):
        console.print(f"[yellow]note:[/] {plain(note)}")
    for warning in selection.warnings:
        console.print(f"[yellow]note:[/] {plain(warning)}")
    chosen = next(e for e in entries if e.selected)
    if chosen.measurement.layers:
        title = f"{chosen.variant.name} on {chosen.target.name}: most expensive layers"
        console.print(layer_table(chosen.measurement.layers, title, TOP_LAYERS))
    console.print()


def _variant_table(selection: Selection, entries: Sequence[Entry]) -> Any:
    from rich.table import Table

    target = entries[0].target
    rows = [e.measurement.metrics for e in entries]
    table = Table(title=f"[bold]{target.name}[/]: {target.title}, rig {target.rig}", title_justify="left")
    table.add_column("")
    table.add_column("variant", no_wrap=True)
    shown = add_figure_columns(table, rows, VARIANT_METRICS)
    table.add_column("budget")
    verdicts = {v.name: v for v in selection.ranking}
    for entry, figures in zip(entries, rows, strict=True):
        verdict = verdicts.get(entry.variant.name) or verdicts[f"{entry.variant.name}:{entry.artifact.backend}"]
        mark = (">" if entry.selected else "") + ("*" if entry.pareto else "")
        missed = ", ".join(row.metric for row in verdict.missed)
        judged = "[green]met[/]" if verdict.feasible else f"[red]misses {missed}[/]"
        table.add_row(mark, plain(verdict.name), *figure_cells(figures, shown, rows), judged)
    return table


def _budget_table(selection: Selection) -> Any:
    from rich.table import Table

    best = selection.best
    table = Table(title=f"Budget, {best.name}", title_justify="left")
    for heading in ("metric", "budget", "value", "how it is known", "margin", "verdict"):
        table.add_column(heading, overflow="fold")
    for row in best.rows:
        margin = "-" if row.margin is None else f"{row.margin:+.0%}"
        known = f"{row.source}: {row.note}" if row.note else row.source
        verdict = "[green]met[/]" if row.holds else "[red]missed[/]"
        table.add_row(
            row.metric, str(row.constraint), show_value(row.metric, row.quantity), plain(known), margin, verdict
        )
    return table


def _print_diagnoses(result: CompileResult, console: Console) -> None:
    """For each variant edgescale quantized, once for all targets that share its file, what its layers cost."""
    variants = {entry.variant.sha256: entry.variant for entry in result.entries if entry.variant.diagnosis}
    for variant in variants.values():
        title = f"{variant.name}: error of the output, each layer quantized alone"
        console.print()
        console.print(diagnosis_figure(variant.diagnosis, title, FIGURE_LAYERS))
        for line in override_lines(variant.diagnosis):
            console.print(plain(line))


def _print_failures(result: CompileResult, console: Console) -> None:
    groups: dict[tuple[str, str], list[str]] = {}
    for failure in result.failures:
        groups.setdefault((failure.target, str(failure.error)), []).append(failure.variant)
    for (target, error), variants in groups.items():
        console.print(f"[red]{', '.join(variants)} on {target}:[/] {plain(error)}")


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def check_reports(paths: Sequence[Path]) -> None:
    """Raise UsageError for a report whose suffix names no format."""
    for path in paths:
        if path.suffix not in REPORT_SUFFIXES:
            found = path.suffix or "no suffix"
            raise UsageError(f"report {path}: {found} is not a report format; use {', '.join(REPORT_SUFFIXES)}")


def write_reports(result: CompileResult, paths: Sequence[Path]) -> None:
    """Write what `print_compile` prints, and a figure of the layers that cost quality, to each of `paths`.

    .txt, .html or .svg by suffix (see `check_reports`).
    """
    from io import StringIO

    from rich.console import Console

    for path in paths:
        recorder = Console(record=True, file=StringIO(), width=REPORT_WIDTH, highlight=False)
        print_compile(result, recorder)
        _print_diagnoses(result, recorder)
        match path.suffix:
            case ".txt":
                content = recorder.export_text()
            case ".html":
                content = recorder.export_html()
            case _:
                content = recorder.export_svg(title="edgescale compile")
        write_whole(path, content)


def compile_payload(result: CompileResult) -> dict[str, Any]:
    """The result as JSON-ready data; layer figures are in the bundle."""
    return {
        "bundle": None if result.bundle is None else str(result.bundle),
        "command": result.request.command,
        "exit_code": result.exit_code,
        "targets": {name: _selection_payload(selection) for name, selection in result.selections.items()},
        "entries": [_entry_payload(entry) for entry in result.entries],
        **({"comparison": comparison_payload(result.entries)} if result.request.compare else {}),
        **({"exploration": exploration_payload(result.exploration)} if result.exploration else {}),
        "failures": [
            {"variant": f.variant, "target": f.target, "exit_code": f.error.exit_code, "message": str(f.error)}
            for f in result.failures
        ],
    }


def _selection_payload(selection: Selection) -> dict[str, Any]:
    return {
        "budget": str(selection.budget),
        "feasible": selection.feasible,
        "chosen": selection.best.name,
        "fallback": selection.fallback,
        "binding": [str(c) for c in selection.binding],
        "reason": selection.reason,
        "warnings": list(selection.warnings),
        "ranking": [
            {"variant": v.name, "feasible": v.feasible, "misses": [str(r.constraint) for r in v.missed]}
            for v in selection.ranking
        ],
    }


def _entry_payload(entry: Entry) -> dict[str, Any]:
    return {
        "variant": entry.variant.name,
        "target": entry.target.name,
        "backend": entry.artifact.backend,
        "artifact_sha256": entry.artifact.sha256,
        "pareto": entry.pareto,
        "selected": entry.selected,
        "figures": quantity_payload(entry.measurement.metrics),
        "unavailable": dict(entry.measurement.unavailable),
        "environment": dict(entry.measurement.environment),
    }
