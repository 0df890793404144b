"""The rig `emulator:<core>`: a C artifact's bare-metal image on an emulated Cortex-M.

Instructions are counted exactly (source "emulated"), cycles and latency come from the core's cost table
("modelled"), flash and RAM from the linked image, the stack from painting it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.measurement import LayerFigures, Measurement
from edgescale.core.progress import SILENT, Progress, track
from edgescale.core.protocols import Executor
from edgescale.core.quantity import Quantity
from edgescale.core.target import MemoryRegion, Target
from edgescale.core.variant import Artifact
from edgescale.rigs.cycle_tables import TABLES, CycleTable
from edgescale.rigs.cycles import Tally, tally
from edgescale.rigs.figures import (
    check_options,
    instruction_limit,
    kernel_text,
    memory_figures,
    static_figures,
    whole_number,
)
from edgescale.rigs.image import Image, build_image, region
from edgescale.rigs.machine import CORES, Machine, MemoryLimits
from edgescale.rigs.ports import check_stored, from_stored, single_input, to_stored
from edgescale.rigs.toolchain import INSTALL_HINT, zig_command

RawExecutor = Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]
"""Stored samples [n, *stored_shape[1:]] -> first output [n, *stored_shape[1:]], in stored units."""

_PACKAGES = ("unicorn", "capstone", "elftools")


class Emulated:
    """An artifact on one emulated core, ready to run samples; image and emulator are kept."""

    def __init__(self, artifact: Artifact, target: Target, cpu: str, limits: MemoryLimits | None = None) -> None:
        self.artifact = artifact
        self.image: Image = build_image(artifact, target)
        self.input = single_input(artifact)
        self.output: Mapping[str, Any] = artifact.meta["outputs"][0]
        self.machine = Machine(self.image, cpu, artifact.meta["symbol"], artifact.meta["layers"], limits)
        self.input_address = self.machine.call(self.input["accessor"])
        self.output_address = self.machine.call(self.output["accessor"])
        self.instruction_limit = instruction_limit(artifact)
        if artifact.meta.get("reset"):
            # A stream starts here; every sample continues it.
            self.machine.call(artifact.meta["reset"], self.instruction_limit)

    def infer(self, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """One sample in stored units and shape -> the first output, stored."""
        data = np.frombuffer(stored.tobytes(), np.uint8)
        self.machine.memory(self.input_address, data.size)[:] = data
        self.machine.run(self.instruction_limit)
        shape, dtype = self.output["stored_shape"][1:], np.dtype(self.output["dtype"])
        size = int(np.prod(shape)) * dtype.itemsize
        output: npt.NDArray[np.generic] = self.machine.memory(self.output_address, size).copy().view(dtype)
        return output.reshape(shape)

    def run_stored(self, samples: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Every sample, as RawExecutor."""
        return np.stack([self.infer(sample) for sample in check_stored(self.input, samples)])


@dataclass(frozen=True)
class _Run:
    """What one counted inference showed."""

    tally: Tally
    stack: int


class EmulatorRig:
    """Runs C artifacts on one of the cores in `machine.CORES`. Options of `measure`: see there."""

    def __init__(self, cpu: str) -> None:
        if cpu not in CORES:
            raise UsageError(f"the emulator has no core {cpu!r}; known: {', '.join(CORES)}")
        self.cpu = cpu
        self.name = f"emulator:{cpu}"

    def missing(self) -> str | None:
        """None when zig, unicorn, capstone and pyelftools are there, else the command that installs them."""
        from importlib.util import find_spec

        ready = zig_command() is not None and all(find_spec(package) for package in _PACKAGES)
        return None if ready else INSTALL_HINT

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """Samples in ONNX layout -> first output in ONNX layout, computed by the emulated core."""
        emulated = self._load(artifact, target)

        def execute(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
            return from_stored(emulated.output, emulated.run_stored(to_stored(emulated.input, x)))

        return execute

    def raw_executor(self, artifact: Artifact, target: Target) -> RawExecutor:
        """Samples and outputs in stored units, for comparison bit for bit."""
        return self._load(artifact, target).run_stored

    def _load(self, artifact: Artifact, target: Target, limits: MemoryLimits | None = None) -> Emulated:
        if target.core.cpu != self.cpu:
            raise UsageError(f"target {target.name} has a {target.core.cpu}, the rig {self.name} emulates {self.cpu}")
        return Emulated(artifact, target, self.cpu, limits)

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Cost of one inference: the most expensive of `samples`, which differ only where data steers branches.

        Options: `arena_limit`, `stack_limit` (bytes; an access beyond is a RigError naming which and by how
        many bytes), `instruction_limit` (stops a runaway program), `progress`.
        """
        check_options(self.name, options, {"arena_limit", "stack_limit", "instruction_limit", "progress"})
        limits = MemoryLimits(whole_number(options, "arena_limit"), whole_number(options, "stack_limit"))
        emulated = self._load(artifact, target, limits)
        if (limit := whole_number(options, "instruction_limit")) is not None:
            emulated.instruction_limit = limit
        stored = check_stored(emulated.input, to_stored(emulated.input, samples.x))
        progress: Progress = options.get("progress") or SILENT
        emulated.machine.probe.count()
        table, flash = TABLES[self.cpu], _flash(target)
        runs: list[_Run] = []
        checksum = 0
        for sample in track(stored, progress, f"emulate {artifact.variant}", len(stored)):
            emulated.machine.paint_stack()
            checksum = zlib.crc32(emulated.infer(sample).tobytes(), checksum)
            runs.append(self._account(emulated, table, flash))
        return _measurement(self, emulated, target, runs, table, (zlib.crc32(stored.tobytes()), checksum))

    def _account(self, emulated: Emulated, table: CycleTable, flash: MemoryRegion) -> _Run:
        machine = emulated.machine

        def code_at(address: int, size: int) -> bytes:
            start = address - machine.code_begin
            return machine.code[start : start + size]

        records = machine.probe.take_records()
        return _Run(tally(records, len(emulated.artifact.meta["layers"]), table, flash, code_at), machine.stack_used())


def _flash(target: Target) -> MemoryRegion:
    """The flash as the model plays it: wait states always have a line to wait for, a word where none is given."""
    flash = region(target, "flash")
    return replace(flash, line_bytes=4) if flash.wait_states and not flash.line_bytes else flash


def _measurement(
    rig: EmulatorRig, emulated: Emulated, target: Target, runs: list[_Run], table: CycleTable, crc: tuple[int, int]
) -> Measurement:
    artifact = emulated.artifact
    clock = target.core.clock_hz
    if clock <= 0:
        raise UsageError(f"target {target.name}: [core] clock_hz is needed to turn cycles into latency")
    worst = max(runs, key=lambda r: int(r.tally.cycles.sum()))
    cycles, instructions = int(worst.tally.cycles.sum()), int(worst.tally.instructions.sum())
    memory, unavailable = memory_figures(artifact, emulated.image, target, max(r.stack for r in runs))
    stalls = int(worst.tally.flash_stalls.sum())
    low, high = worst.tally.bounds
    model = (
        f"{table.core} cycle table{', approximate' if table.approximate else ''}; {stalls:,} cycles wait for flash; "
        f"{low:,} to {high:,} cycles over what the manuals leave open"
    )
    least = min(int(r.tally.instructions.sum()) for r in runs)
    counted = f"the most of {len(runs)} inputs; the least is {least:,}" if len(runs) > 1 else "one input"
    metrics = {
        "latency": Quantity(cycles / clock * 1e3, "ms", "modelled", f"{model}; at {clock / 1e6:g} MHz"),
        "instructions": Quantity(instructions, "1", "emulated", counted),
        "cycles": Quantity(cycles, "1", "modelled", model),
        **memory,
    }
    if target.power is None:
        unavailable["energy"] = f"the profile {target.name} has no [power] table: no published figure for this part"
    else:
        energy = target.power.active_mw * (cycles / clock) * 1e3  # mW x s = mJ
        note = f"modelled latency x {target.power.active_mw:g} mW. {target.power.origin}"
        metrics["energy"] = Quantity(energy, "uJ", "modelled", note)
    return Measurement(
        artifact.sha256,
        target.name,
        rig.name,
        metrics,
        _layer_figures(emulated, worst.tally, clock),
        unavailable,
        _environment(emulated, rig.cpu, table, target, worst.tally, crc),
    )


def _layer_figures(emulated: Emulated, run: Tally, clock: int) -> tuple[LayerFigures, ...]:
    layers = emulated.artifact.meta["layers"]
    symbols = emulated.image.layer_symbols([layer.get("symbol") or "" for layer in layers])
    figures = []
    for index, (layer, symbol) in enumerate(zip(layers, symbols, strict=True), start=1):
        metrics: dict[str, Quantity] = {}
        if symbol is not None:
            cycles = int(run.cycles[index])
            metrics = {
                "instructions": Quantity(int(run.instructions[index]), "1", "emulated", "with the functions it calls"),
                "cycles": Quantity(cycles, "1", "modelled"),
                "latency": Quantity(cycles / clock * 1e3, "ms", "modelled"),
                **static_figures(layer),
            }
        figures.append(LayerFigures(layer["name"], layer["op"], layer["macs"], metrics, kernel_text(layer)))
    return tuple(figures)


def _environment(
    emulated: Emulated, cpu: str, table: CycleTable, target: Target, run: Tally, crc: tuple[int, int]
) -> dict[str, str]:
    import unicorn

    flash = region(target, "flash")
    environment = {
        "compiler": emulated.image.compiler,
        "flags": " ".join(emulated.image.flags),
        "emulator": f"unicorn {unicorn.__version__}, {CORES[cpu]}",
        "image_sha256": emulated.image.sha256,
        "input_crc32": f"{crc[0]:08x}",
        "output_crc32": f"{crc[1]:08x}",
        "clock_hz": str(target.core.clock_hz),
        "cycle_table": table.document,
        "cycle_assumptions": "; ".join(table.assumptions),
        "flash_model": (
            f"{flash.wait_states} wait states, {flash.line_bytes or 4} B lines, caches of {flash.instruction_cache} B "
            f"for instructions and {flash.data_cache} B for constants (4-way LRU), cold at the start of the inference; "
            "sequential fetch is prefetched; RAM without wait states"
        ),
        "instruction_count": "every slot of an executed block, conditional instructions of IT blocks included",
    }
    if run.unknown:
        environment["cycles_unknown"] = f"counted as one cycle: {' '.join(run.unknown)}"
    return environment
