"""`edgescale export`: the C of a bundle's microcontroller variant as a folder for the user's build system."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgescale.cli.common import console, json_option, print_json

if TYPE_CHECKING:
    from edgescale.bundle import Bundle, EntryRecord
    from edgescale.core.target import Target
    from edgescale.export import Choice, Exported

LAYOUT_NAMES = ("plain", "cmake", "make", "arduino")
FIGURES = ("accuracy", "error", "flash", "ram", "arena", "stack", "weights", "latency", "energy")
NEXT = {
    "plain": "add {sources} to the build and its folder to the include path",
    "cmake": "add_subdirectory({name}), then target_link_libraries(<app> PRIVATE edgescale::{name})",
    "make": "make -C {path} example    (its Makefile lists the other rules)",
    "arduino": "copy the folder to the libraries of the Arduino IDE, or to lib/ of a PlatformIO project",
}


def _print_firmware(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from edgescale.core.files import firmware_root

    click.echo(firmware_root())
    context.exit()


@click.command("export")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target", "-t", help="Microcontroller of the bundle, or the path of its profile. [default: the only one]"
)
@click.option("--variant", "-v", help="Variant, or entry id, as `edgescale explain` lists them. [default: the choice]")
@click.option("--budget", "-b", help="Limits for the choice, or for the named variant to meet.")
@click.option(
    "--layout",
    "-l",
    type=click.Choice(LAYOUT_NAMES),
    default="plain",
    show_default=True,
    help="What the folder is for.",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="Directory of the export.")
@click.option(
    "--package-version", default="1.0.0", show_default=True, help="Version that packages and the record carry."
)
@click.option(
    "--firmware-dir",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_firmware,
    help="Print the folder with edgescale's headers and CMake package, and exit.",
)
@json_option
def command(
    bundle: Path,
    target: str | None,
    variant: str | None,
    budget: str | None,
    layout: str,
    out: Path,
    package_version: str,
    as_json: bool,
) -> None:
    """Write BUNDLE's C for a microcontroller as a folder ready for a build.

    plain: the C files. cmake: a package for add_subdirectory and find_package. make: a Makefile with an example,
    and an image for a Cortex-M board or QEMU. arduino: a library for the Arduino IDE and PlatformIO. The bundle's
    hashes are checked first; edgescale-export.json records what the export was made from. Exit code 3 when the
    budget is not met: nothing is exported.
    """
    from edgescale.bundle import open_bundle
    from edgescale.core.budget import parse_budget
    from edgescale.core.files import firmware_root
    from edgescale.core.target import load_target
    from edgescale.export import choose, export

    opened = open_bundle(bundle)
    name = load_target(target).name if target is not None and target.endswith(".toml") else target
    choice = choose(opened, name, variant, None if budget is None else parse_budget(budget))
    profile = _profile(opened, choice.entry, target)
    made = export(opened, choice.entry, layout, out, firmware_root(), profile, package_version)
    if as_json:
        print_json("export", _payload(opened, choice, layout, made))
    else:
        _show(choice, layout, made)


def _profile(bundle: Bundle, entry: EntryRecord, given: str | None) -> Target | None:
    """The profile the entry was made with: an error where the given file is another, None where none is at hand."""
    from edgescale.core.errors import UsageError
    from edgescale.served import entry_target

    try:
        return entry_target(bundle, entry, given)
    except UsageError:
        if given is not None and given.endswith(".toml"):
            raise
        return None


def _payload(bundle: Bundle, choice: Choice, layout: str, made: Exported) -> dict[str, Any]:
    from edgescale.report.figures import quantity_payload

    entry = choice.entry
    return {
        "path": str(made.path),
        "layout": layout,
        "library": made.name,
        "header": made.header,
        "files": list(made.files),
        "entry": entry.id,
        "reason": choice.reason,
        "feasible": entry.verdict.feasible,
        "bundle_manifest_sha256": bundle.sha256,
        "artifact_sha256": entry.artifact_sha256,
        "figures": quantity_payload(entry.quantities()),
    }


def _show(choice: Choice, layout: str, made: Exported) -> None:
    from rich.table import Table

    from edgescale.report.figures import COLUMNS, plain, show_value

    out, entry = console(), choice.entry
    out.print(f"[bold]{plain(entry.id)}[/] as {layout}: {plain(choice.reason)}")
    if not entry.verdict.feasible:
        missed = ", ".join(limit.metric for limit in entry.verdict.unmet)
        out.print(f"[yellow]note:[/] it misses the budget the bundle was made for ({missed})")
    figures = entry.quantities()
    table = Table(title="figures of the bundle", title_justify="left")
    for heading in ("", "value", "source", "how"):
        table.add_column(heading, overflow="fold")
    for metric in FIGURES:
        if metric in figures:
            figure = figures[metric]
            table.add_row(COLUMNS[metric], show_value(metric, figure), figure.source, plain(figure.note))
    out.print(table)
    out.print(plain(f"{len(made.files)} files written to {made.path}"), soft_wrap=True)
    sources = ", ".join(path for path in made.files if path.endswith(".c"))
    out.print(plain("next: " + NEXT[layout].format(name=made.name, path=made.path, sources=sources)), soft_wrap=True)
