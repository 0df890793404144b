"""The rig `vela`: what Vela estimates of a network on an Ethos-U. Nothing runs on an NPU here.

Figures are modelled, by Vela. Outputs are those of the file that Vela was given, in LiteRT's reference kernels, which
an NPU is to equal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.dataset import Dataset
from edgescale.core.errors import RigError, UsageError
from edgescale.core.measurement import LayerFigures, Measurement
from edgescale.core.protocols import Executor
from edgescale.core.quantity import Quantity
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs.litert import INSTALL_HINT, LiteRtRig, Raw, runner
from edgescale.rigs.ports import from_stored, single_input, to_stored

BY = "by Vela"


class VelaRig:
    """Reads the report that is part of the artifact."""

    name = "vela"

    def missing(self) -> str | None:
        """None where LiteRT, which outputs come from, is installed, else the command that installs it."""
        return None if LiteRtRig().missing() is None else INSTALL_HINT

    def raw_executor(self, artifact: Artifact, target: Target) -> Raw:
        """Stored samples -> stored first output, by LiteRT's reference kernels on the file that Vela was given."""
        return runner(_given(artifact), reference_kernels=True)

    def executor(self, artifact: Artifact, target: Target) -> Executor:
        """Samples in ONNX layout -> first output in ONNX layout, of the same file by the same kernels."""
        given = _given(artifact)
        port_in, port_out, run = single_input(given), given.meta["outputs"][0], self.raw_executor(artifact, target)

        def execute(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
            return from_stored(port_out, run(to_stored(port_in, x)))

        return execute

    def measure(self, artifact: Artifact, target: Target, samples: Dataset, **options: Any) -> Measurement:
        """Cycles, latency, memory and the shares on the NPU, all of them Vela's estimates. Options: `progress`."""
        if unknown := set(options) - {"progress"}:
            raise UsageError(f"vela has no option {', '.join(sorted(unknown))}; known: progress")
        given = _given(artifact)
        found = given.meta["vela"]
        compiled = given.path / str(given.meta["compiled"])
        if not compiled.is_file():
            raise RigError(f"{artifact.variant}: {compiled.name} is missing; compile it again")
        metrics = {
            "npu": Quantity(found["npu_ops"], "1", "modelled", f"share of {found['operators']} operators, {BY}"),
            "npu_macs": Quantity(found["npu_macs"], "1", "modelled", f"share of MACs, {BY}"),
            "cycles": Quantity(found["cycles"], "1", "modelled", f"of the NPU's part, {BY}"),
            "flash": Quantity(
                compiled.stat().st_size, "B", "measured", "the compiled file: commands, weights, tensors"
            ),
            "weights": Quantity(
                found["encoded_weights_bytes"], "B", "modelled", f"weights as the NPU reads them, {BY}"
            ),
        }
        unavailable = {"energy": "Vela models none"}
        if found["npu_ops"]:
            metrics["ram"] = Quantity(found["sram_bytes"], "B", "modelled", f"SRAM, {BY}")
        else:
            unavailable["ram"] = "nothing runs on the NPU, and Vela plans no memory for the CPU"
        milliseconds = found["seconds"] * 1e3
        if found["cpu_operators"]:
            unavailable["latency"] = (
                f"{found['cpu_operators']} operators run on the CPU, which Vela does not estimate; the NPU's part: "
                f"{milliseconds:.3g} ms"
            )
        else:
            note = f"{found['cycles']:,} cycles at {found['clock_hz'] / 1e6:g} MHz, {BY}"
            metrics["latency"] = Quantity(milliseconds, "ms", "modelled", note)
        environment = {
            "vela": str(found["version"]),
            **{key: str(value) for key, value in given.meta["npu"].items()},
            "cpu_operators": str(found["cpu_operators"]),
            "flash_by_vela": str(found["flash_bytes"]),
            "dram_by_vela": str(found["dram_bytes"]),
            "outputs": "the file given to Vela, in LiteRT's reference kernels on this machine",
        }
        layers = tuple(_layer(row) for row in given.meta["layers"])
        return Measurement(artifact.sha256, target.name, self.name, metrics, layers, unavailable, environment)


def _layer(row: dict[str, Any]) -> LayerFigures:
    metrics = {} if row["on_cpu"] else {"cycles": Quantity(row["cycles"], "1", "modelled", BY)}
    return LayerFigures(row["name"], row["op"], row["macs"], metrics, "CPU" if row["on_cpu"] else "NPU")


def _given(artifact: Artifact) -> Artifact:
    """The artifact as one of LiteRT's, of the file that Vela was given."""
    if artifact.kind != "ethosu":
        raise RigError(f"the vela rig knows artifacts of edgescale_ethosu, not {artifact.kind!r} ({artifact.variant})")
    return replace(artifact, kind="tflite")
