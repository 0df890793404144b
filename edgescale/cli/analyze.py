"""`edgescale analyze`: what a model is made of, what it will need, and what each target can execute."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgescale.cli.common import console, json_option, print_json

if TYPE_CHECKING:
    from edgescale.core.model import Model
    from edgescale.core.target import Target
    from edgescale.frontend import Description


@click.command("analyze")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "-t", "targets", multiple=True, help="Profile name or .toml path; repeat. [default: all]")
@json_option
def command(model: Path, targets: tuple[str, ...], as_json: bool) -> int:
    """Check MODEL and show its nodes, MACs, parameters, activation memory and support by target.

    Exit code 4 when no asked target can execute it.
    """
    from edgescale.core.target import load_target, profile_names
    from edgescale.frontend import describe, load_model

    loaded = load_model(model)
    description = describe(loaded)
    support = {t.name: (t, check_support(loaded, t)) for t in map(load_target, targets or profile_names())}
    if as_json:
        nodes = [asdict(node) for node in description.nodes]
        summary = {k: v for k, v in vars(description).items() if k != "nodes"}
        named = {
            name: {
                "supported": not problems,
                "problems": problems,
                "notes": [] if problems else support_notes(loaded, target),
            }
            for name, (target, problems) in support.items()
        }
        ports = {"inputs": [asdict(s) for s in loaded.inputs], "outputs": [asdict(s) for s in loaded.outputs]}
        print_json("analyze", {"model": loaded.name, **ports, **summary, "nodes": nodes, "targets": named})
    else:
        _show(loaded, description, support)
    return 0 if any(not problems for _, problems in support.values()) else 4


def check_support(model: Model, target: Target) -> list[str]:
    """Why no back end of the target can execute the model; empty where one can."""
    from edgescale.backends import get_backend
    from edgescale.core.errors import EdgescaleError

    problems = []
    for name in target.backends:
        try:
            reasons = get_backend(name).check(model)
        except EdgescaleError as error:
            reasons = [str(error)]
        if not reasons:
            return []
        problems += [f"{name}: {reason}" for reason in reasons]
    return problems


def support_notes(model: Model, target: Target) -> list[str]:
    """What the target's back ends leave to another processor than the one meant; empty where they say nothing."""
    from edgescale.backends import get_backend
    from edgescale.core.errors import EdgescaleError

    notes: list[str] = []
    for name in target.backends:
        try:
            backend = get_backend(name)
            notes += getattr(backend, "notes", lambda model, target: [])(model, target)
        except EdgescaleError:
            continue  # `check_support` says it
    return notes


def _show(model: Model, description: Description, support: dict[str, tuple[Target, list[str]]]) -> None:
    from rich.table import Table

    from edgescale.core.quantity import format_value
    from edgescale.report.figures import plain

    out = console()
    table = Table(title=f"[bold]{model.name}[/]: {len(description.nodes)} nodes", title_justify="left")
    table.add_column("node", overflow="fold")
    table.add_column("op", no_wrap=True)
    table.add_column("output")
    for heading in ("MACs", "share", "parameters", "activation"):
        table.add_column(heading, justify="right")
    for node in description.nodes:
        share = f"{node.macs / description.macs:.1%}" if description.macs else "-"
        shape = "x".join(map(str, node.output_shape))
        cells = (f"{node.macs:,}", share, f"{node.parameters:,}", format_value(node.activation_bytes, "B"))
        table.add_row(plain(node.name), node.op, shape, *cells)
    out.print(table)
    for word, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs:
            out.print(f"{word} {plain(spec.name)}: {spec.dtype} {'x'.join(map(str, spec.shape))}")
    sizes = {bits: format_value(description.parameters * bits // 8, "B") for bits in (32, 8)}
    peaks = [format_value(n, "B") for n in (description.peak_float_bytes, description.peak_int8_bytes)]
    out.print(f"{description.parameters:,} parameters ({sizes[32]} as float32, {sizes[8]} as int8), ", end="")
    out.print(f"{description.macs:,} MACs")
    out.print(f"peak activations {peaks[0]} as float32, {peaks[1]} as int8 (by liveness; compile: the arena)")
    for name, (target, problems) in support.items():
        if not problems:
            out.print(f"[green]ok[/]  {name}: executed by {', '.join(target.backends)}")
            for note in support_notes(model, target):
                out.print(f"[yellow]note:[/] {plain(note)}")
        for problem in problems:
            out.print(f"[red]no[/]  {name}: {plain(problem)}")
