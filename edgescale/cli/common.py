"""What the verbs share: options, JSON output, progress bars."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgescale.core.memory import MEMORY_MODES
from edgescale.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from edgescale.core.recipe import Observer, Recipe

F = TypeVar("F", bound=Callable[..., Any])
JSON_SCHEMA = 1

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
cache_option = click.option("--no-cache", is_flag=True, help="Recompute every stage instead of using stored results.")
memory_option = click.option(
    "--memory",
    type=click.Choice(MEMORY_MODES),
    default="balanced",
    show_default=True,
    help="Generated C: spend instructions to save RAM and flash, flash alone, neither, or both to save instructions.",
)
override_option = click.option(
    "--override",
    "-O",
    "overrides",
    multiple=True,
    metavar="PATTERN=RECIPE",
    help="Recipe of the nodes whose name matches, e.g. 'stem*=w8a8' or 'head=fp32'; repeatable, later rules win.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress bars.")


def console() -> Console:
    """The terminal, at most 140 columns wide where the output is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def recipes_of(
    names: Sequence[str], observer: Observer, overrides: Sequence[str], sparsity: str | None = None
) -> tuple[Recipe, ...]:
    """The recipes named, each once, all but float ones with the overrides; with `sparsity` also each made sparse.

    Raises UsageError for an unknown name, a malformed override, or overrides that change nothing.
    """
    from edgescale.core.errors import UsageError
    from edgescale.core.recipe import parse_recipe, with_overrides

    wanted = dict.fromkeys(names)
    if sparsity:
        wanted |= dict.fromkeys(f"{name}+{sparsity}" for name in names if "+" not in name)
    parsed = [parse_recipe(name, observer) for name in wanted]
    if overrides and all(recipe.is_float for recipe in parsed):
        raise UsageError("--override changes quantized recipes, and only fp32 was asked for: add one with --recipe")
    made = [recipe if recipe.is_float else with_overrides(recipe, overrides) for recipe in parsed]
    return tuple(dict.fromkeys(made))


def print_json(kind: str, payload: dict[str, Any]) -> None:
    """One JSON document: `{"edgescale": <kind>, "schema": 1, ...}`."""
    click.echo(json.dumps({"edgescale": kind, "schema": JSON_SCHEMA, **payload}, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return str(value)


class _Bars:
    """Progress shown as rich bars on stderr."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    def start(self, label: str, total: int | None) -> int:
        return int(self._bars.add_task(label, total=total))

    def advance(self, task: int, steps: int = 1) -> None:
        from rich.progress import TaskID

        self._bars.advance(TaskID(task), steps)

    def finish(self, task: int) -> None:
        from rich.progress import TaskID

        self._bars.remove_task(TaskID(task))


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """Bars on stderr while the block runs; silent where `quiet` or stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield SILENT
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)
