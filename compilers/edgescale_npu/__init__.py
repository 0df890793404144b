"""Back ends for NPUs whose compilers cannot share an environment with edgescale: Qualcomm's and Rockchip's.

Each compiler lives in a virtual environment of its own, whose Python an environment variable names; it is run as a
subprocess (`spawn`) with files in and files out and never imported. Outputs are those of the vendor's emulator on this
machine; the time an emulator takes says nothing of the NPU, so no latency is reported.
"""

from __future__ import annotations

from edgescale_npu.backend import SpawnedBackend
from edgescale_npu.qnn import QNN
from edgescale_npu.rig import SpawnedRig
from edgescale_npu.rknn import RKNN

QNN_BACKEND = SpawnedBackend(QNN)
RKNN_BACKEND = SpawnedBackend(RKNN)


def rig(name: str) -> SpawnedRig:
    """The rig `qnn` or `rknn`."""
    return SpawnedRig({tool.kind: tool for tool in (QNN, RKNN)}[name])


__all__ = ["QNN_BACKEND", "RKNN_BACKEND", "rig"]
