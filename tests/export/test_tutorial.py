"""docs/device-app.md works as written: its files are written, its commands run in order, part by part."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "device-app.md").read_text()
PARTS = dict(re.findall(r"^## (\d+\. .*?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"(?:^`([\w./-]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOOLS = {
    "make": ("make ", "make"),
    "cmake": ("cmake ", "cmake"),
    "arm-none-eabi-gcc": (" qemu\n", " image\n", "arm-none-eabi.cmake", "gcc-arm-none-eabi"),
    "qemu-system-arm": (" qemu\n", "qemu-system-arm"),
}
"""Tool -> texts of a command that need it, and, last, the package that brings it."""


@dataclass
class Part:
    """What became of a part: the reason it could not run, or the output of the command that failed."""

    skipped: str = ""
    failed: str = ""
    printed: str = ""


def _missing(command: str) -> str:
    for tool, (*marks, package) in TOOLS.items():
        if any(mark in command for mark in marks) and shutil.which(tool) is None:
            return f"needs {tool}: apt-get install {package}"
    return ""


def _run(part: str, folder: Path, environment: dict[str, str]) -> Part:
    outcome = Part()
    for name, language, text in BLOCK.findall(part):
        if name:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        elif language == "sh":
            outcome.skipped = outcome.skipped or _missing(text)
            if outcome.skipped:
                continue
            command = ["bash", "-euc", text]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            outcome.printed += done.stdout
            if done.returncode != 0:
                outcome.failed = f"{text}\n{done.stdout}\n{done.stderr}"
                break
    return outcome


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, strict: str, need) -> tuple[Path, dict[str, Part]]:
    """The folder of a reader who followed the tutorial, all C under strict warnings, and what each part did."""
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")
    need("gcc")
    folder = tmp_path_factory.mktemp("tutorial")
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "examples" / "fashion").mkdir(parents=True)
    for path in (ROOT / "examples" / "fashion").iterdir():
        if path.suffix in (".onnx", ".npz"):
            shutil.copyfile(path, checkout / "examples" / "fashion" / path.name)
    data = np.load(ROOT / "examples" / "fashion" / "test.npz")  # fewer samples, to be quick
    np.savez(checkout / "examples" / "fashion" / "test.npz", x=data["x"][:100], y=data["y"][:100])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "EDGESCALE": str(checkout), "CFLAGS": strict}
    outcomes: dict[str, Part] = {}
    for name, text in PARTS.items():
        broken = any(part.failed for part in outcomes.values())
        outcomes[name] = Part(skipped="an earlier part failed") if broken else _run(text, folder, environment)
    return folder, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_part(name: str, parts: tuple[Path, dict[str, Part]]) -> None:
    outcome = parts[1][name]
    assert not outcome.failed, outcome.failed
    if outcome.skipped:
        pytest.skip(outcome.skipped)


@pytest.mark.slow
def test_what_the_reader_sees(parts: tuple[Path, dict[str, Part]]) -> None:
    folder, outcomes = parts
    printed = {name.partition(".")[0]: part.printed for name, part in outcomes.items() if not part.skipped}
    for number in {"3", "4"} & printed.keys():
        assert "equal on 8 samples" in printed[number]
    if "6" in printed:
        assert re.search(r"^class \d, logit -?\d+\.\d{3}$", printed["6"], re.MULTILINE)
        assert (folder / "prefix" / "include" / "es_fashion_small_w8a8.h").is_file()
    if "8" in printed:
        assert re.search(r"^int8 -?\d+, float -?\d+\.\d{3}$", printed["8"], re.MULTILINE)
    if "10" in printed:
        assert "LENGTH = 0x80000" in (folder / "my-net" / "board" / "link.ld").read_text()


@pytest.mark.slow
def test_the_shortcut_without_float_holds_for_the_example(parts, sh, tmp_path: Path) -> None:
    """`pixels[i] - 128` stores what es_real_to_s8(pixels[i] / 255) stores."""
    net = parts[0] / "net"
    (tmp_path / "t.c").write_text(
        '#include "es_fashion_small_w8a8.h"\n#include "edgescale/es_quantize.h"\n'
        "int main(void) { for (int p = 0; p < 256; p++) if (es_real_to_s8((float)p / 255.0f,"
        "ES_FASHION_SMALL_W8A8_INPUT_SCALE, ES_FASHION_SMALL_W8A8_INPUT_ZERO_POINT) != (int8_t)(p - 128)) return 1;"
        "return 0; }\n"
    )
    sh("gcc", "-std=c99", f"-I{net}", "t.c", "-o", "t", cwd=tmp_path)
    sh("./t", cwd=tmp_path)


@pytest.mark.slow
def test_the_linker_scripts_section_moves_the_arena(parts, need, sh, tmp_path: Path) -> None:
    need("make", "arm-none-eabi-gcc")
    snippet = next(text for _, language, text in BLOCK.findall(DOCUMENT) if language == "ld")
    shutil.copytree(parts[0] / "net", tmp_path / "net")
    script = tmp_path / "net" / "board" / "link.ld"
    text = script.read_text()
    assert text.count("  .bss (NOLOAD)") == 1
    text = text.replace("MEMORY\n{\n", "MEMORY\n{\n  DTCM (rwx) : ORIGIN = 0x10000000, LENGTH = 0x4000\n")
    script.write_text(text.replace("  .bss (NOLOAD)", f"{snippet}\n  .bss (NOLOAD)"))
    sh("make", "image", cwd=tmp_path / "net")
    symbols = sh("arm-none-eabi-nm", "build/example.elf", cwd=tmp_path / "net")
    assert re.search(r"^10000000 \w es_fashion_small_w8a8_arena$", symbols, re.MULTILINE), symbols


def test_every_block_is_run_or_written() -> None:
    for name, language, text in BLOCK.findall(DOCUMENT):
        assert name or language in ("sh", "ld"), text
    assert DOCUMENT.count("```") == 2 * len(BLOCK.findall(DOCUMENT))
    assert sum(len(BLOCK.findall(part)) for part in PARTS.values()) == len(BLOCK.findall(DOCUMENT))
