"""The rig `qemu:<board>`: a C artifact's bare-metal image on a board that QEMU emulates.

The plain image, linked for the part, gives flash and static RAM. A second link of the same code lies where the
board has memory, under a harness that feeds samples and takes outputs through semihosting. Instructions are
counted exactly by a plug-in (source "emulated"), memory limits are watched by it to the byte. What a QEMU
without plug-ins can tell: `qemu_observe`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset
from edgescale.core.errors import MissingDependencyError, RigError, UsageError
from edgescale.core.measurement import LayerFigures, Measurement
from edgescale.core.progress import SILENT, Progress, track
from edgescale.core.protocols import Executor
from edgescale.core.quantity import Quantity
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs.figures import (
    check_options,
    instruction_limit,
    kernel_text,
    memory_figures,
    static_figures,
    whole_number,
)
from edgescale.rigs.ports import check_stored, from_stored, to_stored
from edgescale.rigs.qemu_boards import BOARDS, INSTALL
from edgescale.rigs.qemu_model import Limits, Loaded
from edgescale.rigs.qemu_observe import Observation, observe
from edgescale.rigs.qemu_run import qemu_version

RawExecutor = Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]
"""Stored samples [n, *stored_shape[1:]] -> first output [n, *stored_shape[1:]], in stored units."""


class QemuRig:
    """Runs C artifacts on one of `qemu_boards.BOARDS`. Options of `measure`: see there."""

    def __init__(self, board: str) -> None:
        if board not in BOARDS:
            raise UsageError(f"QEMU's boards known here do not include {board!r}; known: {', '.join(BOARDS)}")
        self.board = BOARDS[board]
        self.name = f"qemu:{board}"

    def missing(self) -> str | None:
        """None when QEMU, a compiler for this machine and pyelftools are there, else what installs them."""
        from importlib.util import find_spec

        from edgescale.rigs.toolchain import INSTALL_HINT, host_missing

        try:
            qemu_version(self.board.program)
        except MissingDependencyError:
            return INSTALL[self.board.program]
        except RigError as error:
            return str(error)
        return host_missing() or (None if find_spec("elftools") else INSTALL_HINT)

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """Samples in ONNX layout -> first output in ONNX layout, computed on the board."""
        loaded = Loaded(artifact, target, self.board)

        def execute(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
            return from_stored(loaded.output, loaded.run_stored(to_stored(loaded.input, x)))

        return execute

    def raw_executor(self, artifact: Artifact, target: Target) -> RawExecutor:
        """Samples and outputs in stored units, for comparison bit for bit; one start of QEMU a call."""
        return Loaded(artifact, target, self.board).run_stored

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Cost of one inference: the most expensive of `samples`, which differ only where data steers branches.

        Options: `arena_limit`, `stack_limit` (bytes; an access beyond is a RigError naming which and by how
        many bytes), `instruction_limit` (stops a runaway program), `progress`.
        """
        check_options(self.name, options, {"arena_limit", "stack_limit", "instruction_limit", "progress"})
        loaded = Loaded(artifact, target, self.board)
        most = whole_number(options, "instruction_limit")
        limits = Limits(
            whole_number(options, "arena_limit"),
            whole_number(options, "stack_limit"),
            instruction_limit(artifact) if most is None else most,
        )
        stored = check_stored(loaded.input, to_stored(loaded.input, samples.x))
        progress: Progress = options.get("progress") or SILENT
        for _start in track([0], progress, f"emulate {artifact.variant} on {self.board.name}", 1):
            observation = observe(loaded, stored, limits)
        return _measurement(self.name, loaded, stored, observation)


def _measurement(rig: str, loaded: Loaded, stored: npt.NDArray[np.generic], seen: Observation) -> Measurement:
    artifact, target = loaded.artifact, loaded.target
    memory, unavailable = memory_figures(artifact, loaded.image, target, seen.stack)
    metrics = dict(memory)
    if seen.totals is None:
        unavailable["instructions"] = seen.how
    else:
        most, least = int(seen.totals.max()), int(seen.totals.min())
        counted = f"the most of {len(stored)} inputs; the least is {least:,}" if len(stored) > 1 else "one input"
        metrics = {"instructions": Quantity(most, "1", "emulated", f"{seen.how}; {counted}"), **metrics}
    reason = _no_cycles(target)
    unavailable |= {"latency": reason, "cycles": reason, "energy": f"it is modelled from latency; {reason}"}
    crc = (zlib.crc32(stored.tobytes()), zlib.crc32(seen.outputs.tobytes()))
    environment = _environment(loaded, seen, crc)
    return Measurement(
        artifact.sha256, target.name, rig, metrics, _layers(loaded, seen.layers), unavailable, environment
    )


def _no_cycles(target: Target) -> str:
    from edgescale.rigs.cycle_tables import TABLES

    if target.core.cpu in TABLES:
        return f"QEMU does not model time; the rig emulator:{target.core.cpu} has a cycle model of this core"
    return f"QEMU does not model time, and there is no cycle model of the {target.core.cpu} here"


def _layers(loaded: Loaded, counts: npt.NDArray[np.uint64] | None) -> tuple[LayerFigures, ...]:
    layers = loaded.artifact.meta["layers"]
    symbols = loaded.placed.layer_symbols([layer.get("symbol") or "" for layer in layers])
    figures = []
    for index, (layer, symbol) in enumerate(zip(layers, symbols, strict=True), start=1):
        metrics = {}
        if symbol is not None and counts is not None:
            metrics["instructions"] = Quantity(int(counts[index]), "1", "emulated", "with the functions it calls")
            metrics |= static_figures(layer)
        figures.append(LayerFigures(layer["name"], layer["op"], layer["macs"], metrics, kernel_text(layer)))
    return tuple(figures)


def _environment(loaded: Loaded, seen: Observation, crc: tuple[int, int]) -> dict[str, str]:
    board = loaded.board
    return {
        "compiler": loaded.image.compiler,
        "flags": " ".join(loaded.image.flags),
        "emulator": f"{qemu_version(board.program)[2]}, {' '.join(board.machine)}",
        "image_sha256": loaded.image.sha256,
        "emulated_image_sha256": loaded.placed.sha256,
        "input_crc32": f"{crc[0]:08x}",
        "output_crc32": f"{crc[1]:08x}",
        "clock_hz": str(loaded.target.core.clock_hz),
        "instruction_count": f"{seen.how}; of the image's code, linked again where the board has memory",
    }
