"""An artifact linked for a QEMU board and ready to run samples: its two images, limits, and what went wrong where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import InfeasibleError, RigError
from edgescale.core.files import firmware_root
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs.codemap import CodeMap
from edgescale.rigs.figures import instruction_limit, over_limit, stack_overflow
from edgescale.rigs.image import Harness, Image, build_image, region
from edgescale.rigs.ports import check_stored, single_input
from edgescale.rigs.qemu_boards import Board
from edgescale.rigs.qemu_plugin import Guarded, Stopped, Watch, build_plugin, configuration
from edgescale.rigs.qemu_run import Finished, Plugin, Stream, plugins_supported, qemu_version, run_image

TIMEOUT_S = 600
_ARENA, _STACK = 0, 1  # guards


@dataclass(frozen=True)
class Limits:
    """Bytes of arena and stack a run may touch, None as many as there are; instructions a run may take."""

    arena: int | None
    stack: int | None
    instructions: int


class Loaded:
    """An artifact with its two images, ready to run samples on a board."""

    def __init__(self, artifact: Artifact, target: Target, board: Board) -> None:
        self.artifact, self.target, self.board = artifact, target, board
        self.input = single_input(artifact)
        self.output: Mapping[str, Any] = artifact.meta["outputs"][0]
        placed = board.place(target)
        self.image: Image = build_image(artifact, target)
        self.placed: Image = _build_placed(artifact, placed, board, self.input, self.output)
        self._stream = Stream() if artifact.meta.get("reset") else None
        self.map = CodeMap(self.placed.elf, f"es_{artifact.meta['symbol']}_run", artifact.meta["layers"])

    @property
    def plugged(self) -> bool:
        """Whether this QEMU loads plug-ins, which count layers, stop runaways and watch memory."""
        return plugins_supported(self.board.program)

    def run_stored(self, samples: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Every sample -> first output, stored; a model with state continues the stream of earlier calls."""
        return self.run(samples, stream=self._stream)[0]

    def run(
        self,
        samples: npt.NDArray[np.generic],
        limits: Limits | None = None,
        icount: int | None = None,
        stream: Stream | None = None,
    ) -> tuple[npt.NDArray[np.generic], Finished]:
        """Every sample, stored, through one start of QEMU: (outputs, stored, and what was seen).

        With `limits` the stack is painted and, where plug-ins are to be had, memory watched; `icount` and
        `stream` as in `run_image`. Raises RigError for a trap, a runaway program or an access outside the
        part's memories.
        """
        flat = check_stored(self.input, samples)
        data = np.frombuffer(flat.tobytes(), np.uint8).reshape(len(flat), int(self.input["bytes"]))
        shape, dtype = self.output["stored_shape"][1:], np.dtype(self.output["dtype"])
        size = int(np.prod(shape)) * dtype.itemsize
        seen = run_image(
            self.board,
            self.placed.path,
            data,
            size,
            self._plugin(limits) if self.plugged else None,
            stream=stream,
            icount=icount,
            paint=limits is not None,
            timeout_s=TIMEOUT_S,
        )
        if seen.observed and seen.observed.stopped:
            raise RigError(self._describe_stop(seen.observed.stopped, limits))
        if seen.fault:
            where = self.map.location(seen.fault.counter)
            raise RigError(f"{seen.fault.what} at {where} on the emulated {self.board.name}")
        return seen.outputs.view(dtype).reshape(len(flat), *shape), seen

    def _plugin(self, limits: Limits | None) -> Plugin:
        elf, layers = self.placed.elf, len(self.artifact.meta["layers"])
        code = self.board.harness_code
        most = limits.instructions if limits else instruction_limit(self.artifact)
        text = configuration(
            layers,
            elf.address("es_harness_mark"),
            most,
            self.map.ranges(),
            (code[0], code[0] + code[1]),
            self._watch(limits) if limits else None,
        )
        return Plugin(build_plugin(qemu_version(self.board.program)[:2]), text, layers)

    def _watch(self, limits: Limits) -> Watch:
        elf = self.placed.elf
        flash, ram = (region(self.placed.target, name) for name in ("flash", "ram"))
        memories = [(part.origin, part.origin + part.length, part is ram) for part in (flash, ram)]
        guards = [(0, 0), (0, 0)]
        if limits.arena is not None:
            if (arena := elf.find(f"es_{self.artifact.meta['symbol']}_arena")) is None:
                raise RigError("the image has no arena symbol, so its use cannot be limited")
            guards[_ARENA] = (arena.address + limits.arena, arena.end)
        if limits.stack is not None:
            low, high = elf.address("es_board_stack_limit"), elf.address("es_board_stack_top")
            guards[_STACK] = (low, high - limits.stack)
        return Watch(memories, guards)

    def stack_used(self, untouched: int) -> int:
        """Bytes of stack from its top to the deepest overwritten word. Raises RigError where no paint is left."""
        elf = self.placed.elf
        room = elf.address("es_board_stack_top") - elf.address("es_board_stack_limit")
        if untouched == 0:
            raise RigError(stack_overflow(self.target, room))
        return room - untouched

    def refuse_guarded(self, guarded: Guarded, limits: Limits) -> None:
        """Raise the RigError that tells which limit a run exceeded and by how much."""
        where = self.map.location(guarded.counter, guarded.layer)
        elf = self.placed.elf
        if guarded.guard == _ARENA and limits.arena is not None:
            begin = elf.address(f"es_{self.artifact.meta['symbol']}_arena")
            raise RigError(over_limit("arena", limits.arena, guarded.high - begin - limits.arena, where))
        if limits.stack is not None:
            over = elf.address("es_board_stack_top") - limits.stack - guarded.low
            raise RigError(over_limit("stack", limits.stack, over, where))

    def _describe_stop(self, stopped: Stopped, limits: Limits | None) -> str:
        where = f"{self.map.location(stopped.counter, stopped.layer)} on the emulated {self.board.name}"
        if stopped.reason == "limit":
            most = limits.instructions if limits else instruction_limit(self.artifact)
            return f"the program did not end within {most:,} instructions; it was at {where}"
        kind = "write" if stopped.store else "read"
        flash = region(self.placed.target, "flash")
        if stopped.store and flash.origin <= stopped.address < flash.origin + flash.length:
            return f"Write to write-protected memory (flash) at 0x{stopped.address:08X}, {where}"
        return f"Invalid memory {kind} at 0x{stopped.address:08X}: the part has no memory there; {where}"


def _build_placed(
    artifact: Artifact, placed: Target, board: Board, port_in: Mapping[str, Any], port_out: Mapping[str, Any]
) -> Image:
    folder = firmware_root() / "boards" / "qemu"
    defines = {
        "ES_HARNESS_RUN": f"es_{artifact.meta['symbol']}_run",
        "ES_HARNESS_INPUT": port_in["accessor"],
        "ES_HARNESS_OUTPUT": port_out["accessor"],
        "ES_HARNESS_INPUT_BYTES": f"{port_in['bytes']}u",
        "ES_HARNESS_OUTPUT_BYTES": f"{port_out['bytes']}u",
    }
    if artifact.meta.get("reset"):
        defines["ES_HARNESS_RESET"] = artifact.meta["reset"]
    flags = tuple(f"-D{name}={value}" for name, value in defines.items())
    sources = (folder / "harness.c", folder / board.assembly)
    try:
        return build_image(artifact, placed, Harness("es_harness_enter", sources, flags, *board.harness_memory()))
    except InfeasibleError as error:
        raise RigError(f"the image fits the part, but not QEMU's board {board.name}: {error}") from None
