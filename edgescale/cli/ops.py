"""`edgescale ops`: the operators each back end executes and the rule each must meet."""

from __future__ import annotations

import click

from edgescale.cli.common import console, json_option, print_json


@click.command("ops")
@click.argument("backend", required=False)
@json_option
def command(backend: str | None, as_json: bool) -> None:
    """List supported ONNX operators with their rules, for every back end or for BACKEND."""
    from edgescale.backends import backend_names, load_backend

    operators = {name: load_backend(name).operators() for name in ([backend] if backend else backend_names())}
    if as_json:
        listed = {name: [{"op": op, "rule": rule} for op, rule in rows] for name, rows in operators.items()}
        print_json("ops", {"backends": listed})
        return
    from rich.table import Table

    from edgescale.report.figures import plain

    for name, rows in operators.items():
        table = Table(title=f"{name}: {len(rows)} operators", title_justify="left")
        table.add_column("operator", no_wrap=True)
        table.add_column("rule")
        for op, rule in rows:
            table.add_row(op, plain(rule))
        console().print(table)
