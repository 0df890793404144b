"""`edgescale targets`: the profiles that exist, or one of them in full."""

from __future__ import annotations

import dataclasses

import click

from edgescale.cli.common import console, json_option, print_json
from edgescale.core.quantity import format_value
from edgescale.core.target import Target, load_target, profile_names


@click.command("targets")
@click.argument("target", required=False)
@json_option
def command(target: str | None, as_json: bool) -> None:
    """List target profiles; with TARGET (a name or the path of a .toml), show and check that one."""
    targets = [load_target(target)] if target else [load_target(name) for name in profile_names()]
    if as_json:
        print_json("targets", {"targets": [dataclasses.asdict(t) for t in targets]})
    elif target:
        _show_one(targets[0])
    else:
        _show_list(targets)


def _show_list(targets: list[Target]) -> None:
    from rich.table import Table

    table = Table(title="Target profiles", title_justify="left")
    for heading in ("name", "device", "clock", "flash", "RAM", "back ends", "rig"):
        table.add_column(heading)
    for t in targets:
        table.add_row(t.name, t.title, _clock(t), _bytes(t, "flash"), _bytes(t, "ram"), " ".join(t.backends), t.rig)
    console().print(table)
    click.echo("Your own: copy one of the .toml files, edit it, and give its path: --target ./my-board.toml")


def _show_one(t: Target) -> None:
    from rich.table import Table

    from edgescale.report.figures import plain

    table = Table(title=f"{t.name}: {t.title}", title_justify="left", show_header=False)
    table.add_row("core", f"{t.core.cpu}, {_clock(t)}, kernels {t.core.kernels}, FPU {'yes' if t.core.fpu else 'no'}")
    for region in t.memory.values():
        detail = f"{format_value(region.length, 'B')} at 0x{region.origin:08X}, {region.wait_states} wait states"
        table.add_row(region.name, detail)
    if t.toolchain:
        table.add_row("tools", f"{t.toolchain.triple} {t.toolchain.mcpu} {' '.join(t.toolchain.flags)}")
    power = f"{t.power.active_mw:g} mW active ({t.power.origin})" if t.power else "unknown: energy is unavailable"
    table.add_row("power", plain(power))
    table.add_row("back ends", ", ".join(t.backends))
    table.add_row("rig", t.rig)
    if t.notes:
        table.add_row("notes", plain(t.notes))
    console().print(table)


def _clock(t: Target) -> str:
    return f"{t.core.clock_hz / 1e6:g} MHz" if t.core.clock_hz else "-"


def _bytes(t: Target, region: str) -> str:
    return format_value(t.memory[region].length, "B") if region in t.memory else "-"
