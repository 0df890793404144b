"""Back end for Arm's Ethos-U NPUs: a .tflite file, compiled by Vela, with the placement of every operator explained.

`placement` says before Vela runs which operators an NPU does not take, why, and what would keep them there; `vela`
runs the compiler in a process of its own and reads its reports; `backend` joins the two.
"""

from __future__ import annotations

from edgescale_tflite.ethosu.backend import BACKEND, EthosUBackend

__all__ = ["BACKEND", "EthosUBackend"]
