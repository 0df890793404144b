"""The C compilers that rigs use: zig (Clang) or GCC for microcontrollers, zig or the system's for this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgescale.core.errors import MissingDependencyError, RigError, UsageError
from edgescale.core.files import cache_root
from edgescale.core.target import Target

INSTALL_HINT = "pip install 'edgescale[mcu]'"
TIMEOUT_S = 600
"""Longest a single compiler call may take; the first link for a core builds its run-time library (about 8 s)."""

_SYSTEM_COMPILERS = ("gcc", "cc", "clang")
_ERROR_LINES = 6

# No sanitizers (zig adds UBSan traps at -O0..-O2 otherwise), no unwinding tables, no frame pointer.
_COMMON_FLAGS = ("-std=c99", "-fno-sanitize=all", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables")
_SECTION_FLAGS = ("-ffunction-sections", "-fdata-sections", "-fomit-frame-pointer")


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C, what it is (name and version), and flags it always gets.

    `libraries` end the command line of a link.
    """

    command: tuple[str, ...]
    description: str
    flags: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()

    def run(self, arguments: Sequence[str], what: str, directory: Path, timeout_s: float = TIMEOUT_S) -> str:
        """Compile in `directory`; returns what the compiler printed (warnings).

        Raises RigError with the first error lines, or naming the timeout; CompilerError keeps the full output.
        """
        environment = dict(os.environ)
        environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache_root() / "zig"))
        environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(cache_root() / "zig-local"))
        try:
            result = subprocess.run(
                [*self.command, *self.flags, *arguments],
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise RigError(f"{what}: {self.description} did not finish within {timeout_s:g} s") from None
        except OSError as error:
            raise RigError(f"{what}: cannot start {self.command[0]}: {error}") from None
        output = result.stderr + result.stdout
        if result.returncode != 0:
            raise CompilerError(what, self.description, output)
        return output


class CompilerError(RigError):
    """A compiler or linker refused its input; `output` is all it printed."""

    def __init__(self, what: str, compiler: str, output: str) -> None:
        # GNU's driver adds "collect2: error" to what its linker said without that word.
        said = [line.strip() for line in output.splitlines() if not line.startswith("collect2:")]
        lines = [line for line in said if "error" in line.lower()] or said
        shown = "\n  ".join(lines[:_ERROR_LINES]) or "no message"
        super().__init__(f"{what}: {compiler} failed:\n  {shown}")
        self.output = output


def zig_command() -> tuple[str, ...] | None:
    """How to call zig, or None where the `ziglang` package is absent."""
    return (sys.executable, "-m", "ziglang") if importlib.util.find_spec("ziglang") else None


@cache
def zig_version() -> str:
    """zig's version; raises MissingDependencyError where it is absent."""
    command = zig_command()
    if command is None:
        raise MissingDependencyError("the zig compiler (ziglang)", INSTALL_HINT)
    result = subprocess.run([*command, "version"], capture_output=True, text=True, timeout=60)
    if result.returncode != 0:
        raise RigError(f"ziglang is installed but does not run: {result.stderr.strip()[:200]}")
    return result.stdout.strip()


def cross_compiler(target: Target) -> Compiler:
    """The compiler for a target with a [toolchain] table.

    Raises MissingDependencyError without the compiler, UsageError where the profile has no toolchain.
    """
    if target.toolchain is None:
        raise UsageError(f"target {target.name} has no [toolchain] table, so no C can be built for it")
    chain = target.toolchain
    flags = (*_COMMON_FLAGS, *_SECTION_FLAGS, "-ffreestanding", "-g0", *chain.flags)
    if chain.compiler == "gcc":
        from edgescale.rigs.toolchain_gcc import gcc_for

        command, name, machine = gcc_for(chain)
        return Compiler((*command, *machine), f"{name}, {' '.join(machine)}", ("-nostdlib", *flags), ("-lgcc",))
    version = zig_version()
    zig = zig_command() or ()
    return Compiler(
        (*zig, "cc", "-target", chain.triple, f"-mcpu={chain.mcpu}"),
        f"zig {version} (Clang) for {chain.triple} {chain.mcpu}",
        flags,
    )


@cache
def host_compiler() -> Compiler:
    """The compiler for this machine: zig, else the system's, which the description then says."""
    command = zig_command()
    if command is not None:
        return Compiler((*command, "cc"), f"zig {zig_version()} (Clang)", (*_COMMON_FLAGS, "-O2", "-g0"))
    for name in _SYSTEM_COMPILERS:
        if path := shutil.which(name):
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout
            version = shown.splitlines()[0] if shown else name
            return Compiler((path,), f"{version} (ziglang is not installed)", ("-std=c99", "-O2", "-g0"))
    raise MissingDependencyError("a C compiler (ziglang, gcc, cc or clang)", INSTALL_HINT)


def host_missing() -> str | None:
    """None where C can be built for this machine, else the command that installs what is missing."""
    try:
        host_compiler()
    except MissingDependencyError as error:
        return error.hint
    return None


def build_shared(sources: Sequence[Path], out: Path, flags: Sequence[str] = (), what: str = "host build") -> None:
    """Build C sources into a shared library for this machine; each source's folder is on the include path."""
    includes = sorted({f"-I{source.parent.resolve()}" for source in sources})
    arguments = ["-shared", "-fPIC", *includes, *flags, *(str(s.resolve()) for s in sources), "-o", str(out), "-lm"]
    host_compiler().run(arguments, what, out.parent)
