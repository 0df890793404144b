"""A vendor's compiler in an environment of its own: which Python it has, how it is run, how its failures read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgescale.core.errors import MissingDependencyError, RigError
from edgescale.core.target import Target

SECONDS = 900
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TELLING = re.compile(r"error|fail|unsupport|invalid|not support", re.IGNORECASE)


@dataclass(frozen=True)
class Tool:
    """A vendor's compiler with its emulator.

    title: as users know it; package: its distribution on PyPI; variable: the environment variable that names the
    Python it is installed in; install: what else goes there; script: the program in this folder that this Python runs,
    which may import nothing of edgescale; profile: the target of `--emit`; chip: target -> what the script is told of
    the chip (raises UnsupportedModelError); prepare: copies an ONNX file so that the compiler takes it (raises
    UnsupportedModelError).
    """

    name: str
    kind: str
    title: str
    package: str
    variable: str
    install: str
    script: str
    profile: str
    chip: Callable[[Target], Mapping[str, Any]]
    prepare: Callable[[Path, Path], None]

    @property
    def hint(self) -> str:
        """The commands that install it."""
        folder = self.kind
        return (
            f"python -m venv {folder} && {folder}/bin/pip install {self.install} && "
            f"export {self.variable}=$PWD/{folder}/bin/python"
        )

    def python(self) -> str | None:
        """The Python that has it; None where the variable names none."""
        return shutil.which(os.environ.get(self.variable, ""))

    def version(self) -> str:
        """Of the package in that environment; "absent" without it."""
        python = self.python()
        return "absent" if python is None else _version(python, self.package)

    def missing(self) -> str | None:
        """None when ready, else the commands that install it."""
        return None if self.version() not in ("absent", "broken") else self.hint

    def run(self, task: str, request: Mapping[str, Any], what: str) -> dict[str, Any]:
        """What the script answers to a task. what: names the artifact in errors.

        Raises MissingDependencyError, or RigError in one sentence where it crashes, refuses or does not end.
        """
        python = self.python()
        if python is None or self.missing():
            raise MissingDependencyError(
                f"{self.title} ({self.package}), which has an environment of its own,", self.hint
            )
        script = Path(__file__).with_name(self.script)
        with tempfile.TemporaryDirectory(prefix=f"edgescale-{self.kind}-") as scratch:
            answer = Path(scratch) / "answer.json"
            asked = Path(scratch) / "request.json"
            asked.write_text(json.dumps({"task": task, "answer": str(answer), **request}))
            try:
                # -I: that environment alone, not what PYTHONPATH or this folder hold.
                done = subprocess.run(
                    [python, "-I", str(script), str(asked)],
                    cwd=scratch, capture_output=True, text=True, timeout=SECONDS, check=False, errors="replace",
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise RigError(f"{self.title} did not finish {task} of {what} within {SECONDS} s") from None
            except OSError as error:
                raise RigError(f"{self.title} cannot be started: {error}") from None
            try:
                found: dict[str, Any] = json.loads(answer.read_text())
            except (OSError, ValueError):
                raise RigError(f"{self.title} failed to {task} {what}: {_why(done)}") from None
        if "error" in found:
            raise RigError(f"{self.title} refused to {task} {what}: {_sentence(str(found['error']), done)}")
        return found


@cache
def _version(python: str, package: str) -> str:
    code = (
        "import importlib.metadata as m, sys\n"
        "try: print(m.version(sys.argv[1]))\n"
        "except m.PackageNotFoundError: print('absent')"
    )
    try:
        shown = subprocess.run(
            [python, "-I", "-c", code, package], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "broken"
    return shown.stdout.strip() or "broken"


def _lines(text: str) -> list[str]:
    return [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """The signal that ended it, or the last thing it said."""
    if done.returncode < 0:
        try:
            return f"it crashed ({signal.Signals(-done.returncode).name})"
        except ValueError:
            pass
    lines = _lines(done.stdout + "\n" + done.stderr)
    telling = [line for line in lines if _TELLING.search(line)]
    return (telling or lines or [f"exit code {done.returncode}"])[-1][:300]


def _sentence(error: str, done: subprocess.CompletedProcess[str]) -> str:
    """The last line of an exception that says something, else of what was printed."""
    lines = [line for line in _lines(error) if not line.startswith(("File ", "Traceback", "During handling"))]
    return lines[-1][:300] if lines else _why(done)
