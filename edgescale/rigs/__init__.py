"""Where artifacts run: `host` (ONNX Runtime), `emulator:<core>` (a Cortex-M image on unicorn), `qemu:<board>`, `tvm`
(TVM on this machine), `tvm-rpc://host:port` (on another one), `litert` (LiteRT on this machine) and `vela` (Vela's
estimates of an Ethos-U).

Other packages add rigs through the entry-point group `edgescale.rigs`: the entry's name is the rig's, up to the first
colon, and it gives a function from the whole name to the rig. Nothing heavy is imported until a rig is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgescale.core.errors import RigError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgescale.core.protocols import Executor, Rig
    from edgescale.core.target import Target
    from edgescale.core.variant import Artifact

GROUP = "edgescale.rigs"
CORES = ("cortex-m0", "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
BOARDS = ("microbit", "mps2-an385", "mps2-an386", "mps2-an500", "mps2-an505", "mps3-an547", "virt-riscv32")
RIGS = (
    "host",
    *(f"emulator:{core}" for core in CORES),
    *(f"qemu:{board}" for board in BOARDS),
    "tvm",
    "litert",
    "vela",
)


if TYPE_CHECKING:

    class RawRig(Rig, Protocol):
        """A rig that also runs samples in stored units, for comparison bit for bit."""

        def raw_executor(
            self, artifact: Artifact, target: Target
        ) -> Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]:
            """Stored samples [n, *stored_shape[1:]] -> stored first output, likewise."""


@cache
def get_rig(name: str) -> Any:
    """The rig called `name` (see RIGS), a `RawRig`. Raises UsageError for an unknown one, listing those that exist."""
    if name == "host":
        from edgescale.rigs.host import HostRig

        return HostRig()
    if name == "tvm":
        from edgescale.rigs.tvm import TvmRig

        return TvmRig()
    if name == "litert":
        from edgescale.rigs.litert import LiteRtRig

        return LiteRtRig()
    if name == "vela":
        from edgescale.rigs.vela import VelaRig

        return VelaRig()
    if name.startswith("tvm-rpc:"):
        from edgescale.rigs.tvm import TvmRpcRig

        return TvmRpcRig(name)
    kind, _, core = name.partition(":")
    if kind == "emulator" and core in CORES:
        from edgescale.rigs.emulator import EmulatorRig

        return EmulatorRig(core)
    if kind == "qemu" and core in BOARDS:
        from edgescale.rigs.qemu import QemuRig

        return QemuRig(core)
    if kind in _entries():
        try:
            return _entries()[kind].load()(name)
        except (ImportError, AttributeError) as error:
            raise RigError(f"rig {name} is installed but does not import: {error}; reinstall its package") from None
    known = [*RIGS, "tvm-rpc://host:port", *sorted(_entries())]
    raise UsageError(f"unknown rig {name!r}; known: {', '.join(known)}")


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def timed_here(name: str) -> bool:
    """Whether a rig's figures belong to this machine: what it times here is not true of another."""
    kind = name.partition(":")[0]
    return name in ("host", "tvm", "litert", "vela") or kind in _entries()


def local_executor(artifact: Artifact, target: Target) -> Executor:
    """Runs samples through the artifact's own code on this machine, whatever its target.

    C artifacts are built as a shared library, ONNX ones run in ONNX Runtime; all others run on their target's rig.
    """
    if artifact.kind == "c":
        from edgescale.rigs import host_c

        return host_c.executor(artifact)
    if artifact.kind != "onnx":
        on_rig: Executor = get_rig(target.rig).executor(artifact, target)
        return on_rig
    executor: Executor = get_rig("host").executor(artifact, target)
    return executor


def onnx_executor(path: Path) -> Executor:
    """Runs samples through an ONNX file in ONNX Runtime on this machine."""
    from edgescale.rigs.host import session_executor
    from edgescale.rigs.units import output_units
    from edgescale.runtime.ort import open_session

    return session_executor(open_session(path, {}), output_units(path))


@cache
def rig_fingerprint(name: str) -> str:
    """What shapes a rig's figures besides artifact and target: its own code and its tools' versions."""
    import hashlib

    get_rig(name)  # an unknown name is an error here too
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.*")):
        if path.suffix in (".py", ".c"):
            digest.update(path.name.encode() + path.read_bytes())
    if name == "tvm" or name.startswith("tvm-rpc:"):
        digest.update(" ".join(_version(package) for package in ("apache-tvm", "apache-tvm-ffi")).encode())
        return digest.hexdigest()
    if name in ("litert", "vela"):
        digest.update(_version("ai-edge-litert").encode())
        return digest.hexdigest()
    if (entry := _entries().get(name.partition(":")[0])) is not None:
        digest.update(f"{entry.value} {entry.dist.version if entry.dist else ''}".encode())
        return digest.hexdigest()
    packages = ("onnxruntime",) if name == "host" else ("ziglang", "unicorn", "capstone")
    digest.update(" ".join(_version(package) for package in packages).encode())
    if name != "host":
        from edgescale.core.files import firmware_root, sha256_tree

        digest.update(sha256_tree(firmware_root() / "boards").encode())
        programs = ["arm-none-eabi-gcc", "riscv64-unknown-elf-gcc"]
        if name.startswith("qemu:"):
            programs += ["qemu-system-arm", "qemu-system-riscv32"]
        digest.update(" ".join(_program_version(program) for program in programs).encode())
    return digest.hexdigest()


def _program_version(program: str) -> str:
    import shutil
    import subprocess

    if shutil.which(program) is None:
        return f"{program} absent"
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return f"{program} broken"
    return (shown.stdout.splitlines() or [program])[0]


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} absent"
