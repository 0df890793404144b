"""From a Relax module to a shared library: kernels by zig's Clang, the rest by TVM's LLVM, one link."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.files import firmware_root
from edgescale.core.target import Target
from edgescale.rigs.toolchain import Compiler, zig_command, zig_version

KERNELS = Path(__file__).resolve().parent / "kernels"

_FLAGS = (
    "-std=c11", "-O2", "-g0", "-fPIC", "-fwrapv", "-fno-sanitize=all", "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables", "-fno-math-errno", "-ffunction-sections", "-fvisibility=default",
)  # fmt: skip
_LINK = (
    "-shared",
    "-s",
    "-fno-sanitize=all",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,-z,norelro",
    "-Wl,--hash-style=gnu",
)
_UNSIGNED_DOTS = ("__AVX512VNNI__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__")


@dataclass(frozen=True)
class Machine:
    """A processor: zig's flags for it, TVM's LLVM target, and the vector instructions the kernels use."""

    triple: str
    zig: tuple[str, ...]
    llvm: tuple[tuple[str, str], ...]
    macros: frozenset[str]

    @property
    def offset(self) -> int:
        """What kernels add to activations: 128 where the processor multiplies unsigned with signed bytes."""
        return 128 if self.macros.issuperset(_UNSIGNED_DOTS) else 0

    @property
    def instructions(self) -> str:
        """The instructions that multiply bytes."""
        if self.offset:
            return "avx512-vnni"
        return "neon-dotprod" if "__ARM_FEATURE_DOTPROD" in self.macros else "portable"

    def target(self) -> Any:
        """TVM's target."""
        from tvm.target import Target as TvmTarget

        return TvmTarget({"kind": "llvm", "num-cores": 1, **dict(self.llvm)})


def machine_of(target: Target) -> Machine:
    """The processor of a target: this machine's where it has no toolchain.

    Raises UnsupportedModelError for one that does not run Linux.
    """
    if target.toolchain is None:
        return _host()
    triple, cpu = target.toolchain.triple, target.toolchain.mcpu
    if "linux" not in triple:
        raise UnsupportedModelError(
            f"target {target.name}: TVM's run time needs Linux, found triple {triple!r}; use edgescale_c"
        )
    return _machine(triple, cpu, *target.toolchain.flags)


@cache
def _host() -> Machine:
    from tvm.target import codegen

    flags = ("-mcpu=native",)
    cpu = str(codegen.llvm_get_system_cpu())
    return Machine(f"{platform.machine()}-linux", flags, (("mcpu", cpu),), _macros(flags))


@cache
def _machine(triple: str, cpu: str, *flags: str) -> Machine:
    zig = ("-target", triple, f"-mcpu={cpu}", *flags)
    # LLVM wants a vendor-free triple without zig's C library version, and hyphens in names of processors.
    parts = triple.split("-")
    llvm = (("mtriple", "-".join([*parts[:2], parts[2].split(".")[0]])), ("mcpu", cpu.replace("_", "-").split("+")[0]))
    return Machine(triple, zig, llvm, _macros(zig))


def _macros(flags: Sequence[str]) -> frozenset[str]:
    """What Clang predefines for the processor."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "empty.c").touch()
        text = _compiler(flags).run(["-dM", "-E", "empty.c"], "the processor's features", Path(folder))
    return frozenset(line.split()[1] for line in text.splitlines() if line.startswith("#define "))


def _compiler(flags: Sequence[str]) -> Compiler:
    command = zig_command() or ()
    return Compiler((*command, "cc", *flags), f"zig {zig_version()} (Clang) {' '.join(flags)}")


def build_library(module: Any, kernels: Sequence[str], machine: Machine, out: Path, flags: Sequence[str] = ()) -> None:
    """Compile a Relax module with the kernels it calls into the stripped shared library `out`. flags: for the kernels.

    Raises RigError with what a compiler said.
    """
    from tvm import relax

    executable = relax.build(relax.get_pipeline("zero")(module), target=machine.target())
    compiler = _compiler(machine.zig)
    with TemporaryDirectory(prefix="edgescale-tvm-") as folder:
        objects = [_kernel_object(kernels, machine, Path(folder), flags)] if kernels else []

        def link(output: str, files: Sequence[str], **options: Any) -> None:
            arguments = [*_LINK, *(str(Path(file).resolve()) for file in files), "-o", str(Path(output).resolve())]
            compiler.run([*arguments, "-lm"], out.name, Path(folder))

        executable.export_library(str(out), fcompile=link, addons=objects, workspace_dir=folder)
    out.write_bytes(without_sections(out.read_bytes()))


def without_sections(library: bytes) -> bytes:
    """A 64-bit little-endian ELF library without its table of sections, which linkers and debuggers read and loaders do
    not: 2 KB of a small net. One that is of another kind stays as it is."""
    if library[:6] != b"\x7fELF\x02\x01":
        return library
    table, size, count = (int.from_bytes(library[at : at + n], "little") for at, n in ((32, 8), (54, 2), (56, 2)))
    segments = [library[table + i * size : table + (i + 1) * size] for i in range(count)]
    end = max(sum(int.from_bytes(part[at : at + 8], "little") for at in (8, 32)) for part in segments)
    kept = bytearray(library[: max(end, table + size * count)])
    kept[40:48] = bytes(8)  # where the table is
    kept[60:64] = bytes(4)  # how many sections, and which one names them
    return bytes(kept)


def _kernel_object(kernels: Sequence[str], machine: Machine, folder: Path, flags: Sequence[str] = ()) -> str:
    needs = [f"-DES_NEED_{name.removeprefix('es_').upper()}" for name in kernels]
    includes = [f"-I{firmware_root() / part}" for part in ("include/edgescale", "kernels/scalar")]
    made = folder / "es_tvm.o"
    arguments = [*_FLAGS, *flags, f"-DES_OFFSET={machine.offset}", *needs, *includes, "-c", str(KERNELS / "es_tvm.c")]
    compile_c(machine, [*arguments, "-o", str(made)], "TVM kernels", folder)
    return str(made)


def compile_c(machine: Machine, arguments: Sequence[str], what: str, folder: Path) -> None:
    """Compile C that uses TVM's C interface, for `machine`. Raises RigError with what the compiler said."""
    from tvm_ffi import libinfo

    headers = sorted({str(libinfo.find_include_path()), str(libinfo.find_dlpack_include_path())})
    includes = [part for header in headers for part in ("-isystem", header)]
    _compiler(machine.zig).run([*includes, *arguments], what, folder)
