"""`edgescale policy`: the options a run-time controller chooses among, to read, or as C for firmware."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgescale.cli.common import console, json_option, print_json

if TYPE_CHECKING:
    from edgescale.control import Policy


@click.command("policy")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", "-t", help="A target of the bundle. [default: the only one]")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="Directory for the C files: the policy and the controller."
)
@click.option("--name", default=None, help="C name of the policy. [default: the target's]")
@json_option
def command(bundle: Path, target: str | None, out: Path | None, name: str | None, as_json: bool) -> None:
    """Show the controller's policy of a BUNDLE's target; with --out also write it, and the controller, as C.

    Each option is a variant, or a cascade of two: the second is asked where the first is less sure than the
    confidence named. `longest` is what a deadline is judged by, `mean` what a call costs in the mean.
    """
    from edgescale.bundle import open_bundle
    from edgescale.core.errors import UsageError

    opened = open_bundle(bundle)
    names = opened.target_names()
    if target is None and len(names) > 1:
        raise UsageError(f"the bundle serves {', '.join(names)}: name one with --target")
    policy = opened.controller_policy(target or names[0])
    written = _write(policy, out, name or policy.target) if out is not None else []
    if as_json:
        import msgspec

        print_json("policy", {"policy": msgspec.to_builtins(policy), "files": written})
    else:
        _show(policy, written)


def _write(policy: Policy, out: Path, name: str) -> list[str]:
    """The files written, by path."""
    from edgescale.control.c_source import c_policy
    from edgescale.core.files import firmware_root, write_whole

    texts = c_policy(policy, name)
    out.mkdir(parents=True, exist_ok=True)
    texts |= {path.name: path.read_text() for path in sorted((firmware_root() / "controller").iterdir())}
    for file, text in texts.items():
        write_whole(out / file, text)
    return [str(out / file) for file in texts]


def _show(policy: Policy, written: list[str]) -> None:
    from rich.table import Table

    from edgescale.control.policy import CERTAIN, QUALITY_ONE
    from edgescale.core.quantity import format_value
    from edgescale.report.figures import plain

    table = Table(title=f"{policy.target}: {policy.metric}; {policy.source}", title_justify="left")
    for heading in ("option", "expected quality", "mean", "longest", "energy", "memory"):
        table.add_column(heading, justify="left" if heading == "option" else "right")
    for option in policy.options:
        names = [
            policy.variants[step.variant].name.removesuffix(f"@{policy.target}")
            + (f" with {step.views} view{'' if step.views == 1 else 's'}" if step.views else "")
            for step in option.steps
        ]
        text = names[0] if len(names) == 1 else f"{names[0]}, below {option.confidence / CERTAIN:.2f} {names[1]}"
        quality = " ".join(f"{q / QUALITY_ONE:.4f}" for q in option.quality)
        longest = sum(step.time_us for step in option.steps) / 1e3
        table.add_row(
            plain(text),
            quality,
            format_value(option.mean_us / 1e3, "ms"),
            format_value(longest, "ms"),
            format_value(option.mean_uj, "uJ") if option.mean_uj else "",
            format_value(option.memory, "B") if option.memory else "",
        )
    console().print(table)
    for path in written:
        console().print(plain(path), soft_wrap=True)
