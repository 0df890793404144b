"""What the machine that runs ONNX Runtime prefers."""

from __future__ import annotations

import platform

from edgescale.quantize.units import Kind

_SIGNED = frozenset(("aarch64", "arm64"))


def activation_kind(machine: str | None = None) -> Kind:
    """How 8-bit activations are stored for a machine (`platform.machine()`; None: this one).

    ONNX Runtime multiplies unsigned by signed bytes fastest on x86, signed by signed on 64-bit Arm. The integers of
    the two differ by 128 and so do their zero-points; microcontrollers compute the same from either.
    """
    return "int8" if (machine or platform.machine()).lower() in _SIGNED else "uint8"
