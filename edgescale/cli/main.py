"""The `edgescale` command: verbs are loaded when called, so that `--help` answers at once."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click

from edgescale import __version__
from edgescale.core.errors import EdgescaleError

# verb -> (module, one line of help); the table spares `--help` from importing the verbs.
VERBS: dict[str, tuple[str, str]] = {
    "compile": ("edgescale.cli.compile", "Compress, compile, measure and select under a budget; write a bundle."),
    "analyze": ("edgescale.cli.analyze", "Show a model's layers, MACs, parameters, memory and support by target."),
    "profile": ("edgescale.cli.profile", "Measure a model or a bundle's variants on a target, layer by layer."),
    "run": ("edgescale.cli.run", "Serve samples from a bundle under a budget."),
    "export": ("edgescale.cli.export", "Write a bundle's C as a folder for CMake, make, Arduino or any other build."),
    "policy": ("edgescale.cli.policy", "Show what the run-time controller chooses among, or write it as C."),
    "explain": ("edgescale.cli.explain", "Say why a bundle's variants were chosen or not, and where their cost lies."),
    "targets": ("edgescale.cli.targets", "List target profiles, or show one."),
    "ops": ("edgescale.cli.ops", "List the operators each back end executes, with their rules."),
    "doctor": ("edgescale.cli.doctor", "Check what is installed and what each back end and rig still needs."),
    "demo": ("edgescale.cli.demo", "Compile the shipped Fashion-MNIST family for this machine and a Cortex-M4."),
}

EPILOG = (
    "Exit codes: 0 budget met, 1 other failure, 2 usage, 3 no variant meets the budget (best attempt kept), "
    "4 unsupported model, 5 device, emulator or compiler failure, 130 interrupted."
)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.group(cls=_LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgescale")
def cli() -> None:
    """Compress, compile, measure and adapt neural networks on edge hardware."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure is one sentence on stderr and an exit code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """As `main`, returning the exit code."""
    try:
        result = cli.main(args=arguments, prog_name="edgescale", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except EdgescaleError as error:
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; finished stages are kept, the same command resumes where it stopped")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        _complain("out of memory; use fewer or smaller samples (--samples), or a smaller model")
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _complain("no space left on the disk; nothing half-written was kept. Free some space and run it again")
        else:
            where = f" ({error.filename})" if error.filename else ""
            _complain(f"{error.strerror or error}{where}")
        return 1


def _complain(message: str) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)


if __name__ == "__main__":
    main()
