"""The layouts: an entry's files arranged for a build system, as path inside the export -> content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from edgescale.core.errors import EdgescaleError
from edgescale.core.quantity import format_value
from edgescale.export.applications import check_types, example_main, sketch
from edgescale.export.cores import CORTEX_M, CROSS_COMPILE, CortexM
from edgescale.export.source import Source, fill, one_line

Files = dict[str, bytes]
QUANTIZE = "edgescale/es_quantize.h"


def plain(source: Source) -> Files:
    """The artifact as it is, and the header by which applications convert numbers."""
    return {**source.files, QUANTIZE: source.template(f"include/{QUANTIZE}").encode()}


def cmake(source: Source) -> Files:
    """`plain` and a CMakeLists.txt for add_subdirectory(), or to install a package of the library's name."""
    values = {**_names(source), "SOURCES": " ".join(source.sources)}
    return {**plain(source), "CMakeLists.txt": _filled(source, "cmake/model/CMakeLists.txt.in", values)}


def make(source: Source) -> Files:
    """`plain`, a Makefile and an example; for a Cortex-M also start-up code and rules for an image."""
    check_types(source, "make")
    core = CORTEX_M.get(source.cpu)
    values = {
        **_names(source),
        "SOURCES": " ".join(source.sources),
        "HEADERS": " ".join(sorted(path for path in plain(source) if path.endswith(".h"))),
        "CROSS_COMPILE": CROSS_COMPILE if core else "<prefix>-",
        "CPU_FLAGS": core.flags_for(source.target) if core else "...",
    }
    files = plain(source)
    files["Makefile"] = _filled(source, "examples/make/Makefile.in", values)
    files["example/main.c"] = example_main(source).encode()
    for name in ("io.h", "io_stdio.c"):
        files[f"example/{name}"] = source.template(f"examples/common/{name}").encode()
    if core is not None:
        files["example/io_semihosting.c"] = source.template("examples/common/io_semihosting.c").encode()
        files.update(_board(source, core))
    return files


def _board(source: Source, core: CortexM) -> Files:
    """Start-up code, and linker scripts for the profile's memories, where it is known, and for the QEMU board."""
    values = {
        "CROSS_COMPILE": CROSS_COMPILE,
        "CORE_FLAGS": core.flags_for(source.target),
        "QEMU_MACHINE": core.qemu.machine,
        "QEMU_TITLE": core.qemu.title,
    }
    files = {
        "board/board.mk": _filled(source, "examples/make/board.mk.in", values),
        "board/startup.c": source.template("boards/cortex_m/startup.c").encode(),
        "board/memory.c": source.template("boards/common/memory.c").encode(),
        "board/qemu.ld": _linker_script(source, core.qemu.flash, core.qemu.ram),
    }
    if source.target is not None and {"flash", "ram"} <= source.target.memory.keys():
        flash, ram = (source.target.memory[name] for name in ("flash", "ram"))
        files["board/link.ld"] = _linker_script(source, (flash.origin, flash.length), (ram.origin, ram.length))
    return files


def _linker_script(source: Source, flash: tuple[int, int], ram: tuple[int, int]) -> bytes:
    """(origin, length) of both memories; no test harness beside the application."""
    values = {
        "FLASH_ORIGIN": hex(flash[0]),
        "FLASH_LENGTH": hex(flash[1]),
        "RAM_ORIGIN": hex(ram[0]),
        "RAM_LENGTH": hex(ram[1]),
        "HARNESS_MEMORY": "",
        "HARNESS_SECTIONS": "",
        "NAME": "@NAME@",  # named by the script's own comment
    }
    return _filled(source, "boards/cortex_m/link.ld.in", values)


def arduino(source: Source) -> Files:
    """A library for the Arduino IDE and PlatformIO: sources in one folder, an example sketch, both descriptions."""
    check_types(source, "arduino")
    name = library_name(source.name)
    files = {f"src/{path}": content for path, content in _flattened(source).items()}
    files["extras/artifact.json"] = source.files["artifact.json"]
    files[f"examples/{name}/{name}.ino"] = sketch(source).encode()
    figures = source.entry.quantities()
    sizes = {
        metric.upper(): format_value(figures[metric].value, figures[metric].unit)
        if metric in figures
        else "an unknown amount"
        for metric in ("flash", "ram")
    }
    values = {**_names(source), **sizes, "LIBRARY": name}
    files["library.properties"] = _filled(source, "examples/arduino/library.properties.in", values)
    description = {
        "name": name,
        "version": source.version,
        "description": f"{one_line(source.entry.variant)}, compiled to C99 by edgescale",
        "keywords": "neural network, inference, edgescale",
        "headers": source.header,
        "frameworks": "*",
        "platforms": "*",
        "examples": [{"name": name, "base": f"examples/{name}", "files": [f"{name}.ino"]}],
    }
    files["library.json"] = (json.dumps(description, indent=2) + "\n").encode()
    return files


LIBRARY_NAME_LENGTH = 63
"""Longest name the Arduino library specification allows; it also names the sketch and its folder."""


def library_name(text: str) -> str:
    """`text` (a C identifier) as a legal name of an Arduino library."""
    return text[:LIBRARY_NAME_LENGTH].rstrip("_")


_INCLUDE = re.compile(rb'^(\s*#\s*include\s+")([^"]+/)(?=[^"/]+")', re.MULTILINE)


def _flattened(source: Source) -> Files:
    """All C files by their last name, included by that name."""
    files: Files = {}
    for path, content in plain(source).items():
        name = path.rpartition("/")[2]
        if not name.endswith((".c", ".h")):
            continue
        text = _INCLUDE.sub(rb"\1", content)
        if files.setdefault(name, text) != text:
            raise EdgescaleError(f"{source.entry.id} has two files called {name}, which layout arduino cannot hold")
    return files


def _names(source: Source) -> dict[str, str]:
    return {
        "ENTRY": one_line(source.entry.id),
        "VARIANT": one_line(source.entry.variant),
        "TARGET": one_line(source.entry.target),
        "NAME": source.name,
        "HEADER": source.header,
        "VERSION": source.version,
        "OPTIMIZE": source.optimize,
    }


def _filled(source: Source, template: str, values: Mapping[str, str]) -> bytes:
    return fill(source.template(template), values).encode()


LAYOUTS: dict[str, Callable[[Source], Files]] = {"plain": plain, "cmake": cmake, "make": make, "arduino": arduino}
