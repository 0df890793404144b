"""What GCC for Arm and QEMU call the cores of target profiles."""

from __future__ import annotations

from dataclasses import dataclass

from edgescale.core.target import Target

CROSS_COMPILE = "arm-none-eabi-"


@dataclass(frozen=True)
class QemuBoard:
    """A QEMU machine and the memories an image is linked for: addresses and lengths in bytes."""

    machine: str
    title: str
    flash: tuple[int, int]
    ram: tuple[int, int]


# Arm application notes AN385, AN386, AN500: 4 MiB of ZBT SSRAM at 0 where the vectors are, 4 MiB at 0x20000000.
_MPS2 = ((0x0000_0000, 0x40_0000), (0x2000_0000, 0x40_0000))
_AN385 = QemuBoard("mps2-an385", "Arm MPS2 with a Cortex-M3 (AN385)", *_MPS2)
_AN386 = QemuBoard("mps2-an386", "Arm MPS2 with a Cortex-M4 (AN386)", *_MPS2)
_AN500 = QemuBoard("mps2-an500", "Arm MPS2 with a Cortex-M7 (AN500)", *_MPS2)
# AN505, secure addresses: code SSRAM1, and SSRAM2 and 3 for data.
_AN505 = QemuBoard(
    "mps2-an505", "Arm MPS2 with a Cortex-M33 (AN505)", (0x1000_0000, 0x40_0000), (0x3800_0000, 0x40_0000)
)
# AN547: ITCM and DTCM, secure addresses.
_AN547 = QemuBoard("mps3-an547", "Arm MPS3 with a Cortex-M55 (AN547)", (0x0000_0000, 0x8_0000), (0x2000_0000, 0x8_0000))


@dataclass(frozen=True)
class CortexM:
    """GCC's flags without and with a floating-point unit, and the QEMU board that executes the core's code."""

    flags: str
    fpu_flags: str
    qemu: QemuBoard

    def flags_for(self, target: Target | None) -> str:
        """Soft-float unless the profile says that the device has an FPU."""
        return self.fpu_flags if target is not None and target.core.fpu else self.flags


def _core(gcc: str, qemu: QemuBoard, fpu: str | None = None) -> CortexM:
    flags = f"-mcpu={gcc} -mthumb"
    return CortexM(flags, f"-mcpu={fpu or gcc} -mthumb -mfloat-abi=hard", qemu)


# cpu of a profile -> core. Armv6-M code runs on a Cortex-M3 as it is. A Cortex-M7 may have a single-precision FPU.
CORTEX_M: dict[str, CortexM] = {
    "cortex-m0": _core("cortex-m0", _AN385),
    "cortex-m0plus": _core("cortex-m0plus", _AN385),
    "cortex-m3": _core("cortex-m3", _AN385),
    "cortex-m4": _core("cortex-m4", _AN386),
    "cortex-m7": _core("cortex-m7", _AN500, "cortex-m7+nofp.dp"),
    "cortex-m33": _core("cortex-m33", _AN505),
    "cortex-m55": _core("cortex-m55", _AN547),
}
