"""The rig of a spawned compiler: its emulator, for outputs; figures of bytes, none of time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset, Fed
from edgescale.core.errors import RigError, UsageError
from edgescale.core.measurement import Measurement
from edgescale.core.protocols import Executor
from edgescale.core.quantity import Quantity
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs.units import output_units, real_values
from edgescale_npu.spawn import Tool

NO_TIME = "the emulator's time is not the NPU's; measure on the device"


class SpawnedRig:
    """Runs artifacts of one tool's kind in its emulator. An emulator rounds as the NPU does, which is not the integer
    contract: outputs are compared with the reference in steps, not required to be equal."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.name = tool.kind

    def missing(self) -> str | None:
        """None when its environment is there, else the commands that make it."""
        return self.tool.missing()

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """Samples -> first output, real values in float32, in the emulator."""
        self._own(artifact)
        model = artifact.path / str(artifact.meta["file"])
        units = output_units(model)

        def execute(x: Fed) -> npt.NDArray[np.float32]:
            if not isinstance(x, np.ndarray) or len(artifact.meta["inputs"]) != 1:
                names = ", ".join(port["name"] for port in artifact.meta["inputs"])
                raise UsageError(f"{artifact.variant} has several inputs ({names}); the rig {self.name} feeds one")
            (port,) = artifact.meta["inputs"]
            given = np.ascontiguousarray(x.reshape(len(x), *port["shape"]), port["dtype"])
            with tempfile.TemporaryDirectory(prefix=f"edgescale-{self.name}-") as folder:
                samples, outputs = Path(folder) / "samples.npy", Path(folder) / "outputs.npy"
                np.save(samples, given)
                request = {
                    "model": str(model.resolve()),
                    "entry": str((artifact.path / str(artifact.meta["entry"])).resolve()),
                    "chip": dict(artifact.meta["chip"]),
                    "samples": str(samples),
                    "outputs": str(outputs),
                }
                self.tool.run("run", request, artifact.variant)
                try:
                    made = np.load(outputs)
                except (OSError, ValueError):
                    raise RigError(f"{self.tool.title} ran {artifact.variant} and left no outputs") from None
            return real_values(made, units)

        return execute

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Bytes of what was compiled. Options: `progress`."""
        if unknown := set(options) - {"progress"}:
            raise UsageError(f"{self.name} has no option {', '.join(sorted(unknown))}; known: progress")
        self._own(artifact)
        size = sum((artifact.path / name).stat().st_size for name in artifact.meta["compiled"])
        metrics = {"flash": Quantity(size, "B", "measured", f"what {self.tool.title} compiled")}
        unavailable = dict.fromkeys(("latency", "ram", "energy"), NO_TIME)
        environment = {
            "tool": str(artifact.meta["tool"]),
            "outputs": f"{self.tool.title}'s emulator on this machine",
            **{key: str(value) for key, value in artifact.meta["chip"].items()},
        }
        return Measurement(artifact.sha256, target.name, self.name, metrics, (), unavailable, environment)

    def _own(self, artifact: Artifact) -> None:
        if artifact.kind != self.tool.kind:
            raise RigError(f"the rig {self.name} runs artifacts of {self.tool.name}, not {artifact.kind!r}")
        for name in (artifact.meta["file"], *artifact.meta["compiled"]):
            if not (artifact.path / str(name)).is_file():
                raise RigError(f"{artifact.variant}: {name} is missing; compile it again")
