"""A program in C that runs an artifact on a device without Python, on TVM's run time alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgescale.core.target import Target
from edgescale_tvm.library import compile_c, machine_of

SOURCE = Path(__file__).with_name("es_tvm_run.c")
_CODES = {"i": 0, "f": 2}  # DLPack's


def build_runner(meta: Mapping[str, Any], target: Target, libraries: Sequence[Path], out: Path) -> None:
    """Compile the runner of an artifact, described by `meta`, for `target` into `out`.

    libraries: libtvm_runtime.so and libtvm_ffi.so of the device (PyPI's wheels of apache-tvm and apache-tvm-ffi hold
    them). Raises RigError with what the compiler said.
    """
    port = meta["inputs"][0]
    dtype = np.dtype(port["dtype"])
    defines = [
        f"-DES_INPUT_BITS={8 * dtype.itemsize}",
        f"-DES_INPUT_CODE={_CODES[dtype.kind]}",
        f"-DES_INPUT_SHAPE={','.join(map(str, port['stored_shape']))}",
    ]
    # Their own dependencies (C++'s library) are the device's.
    linking = ["-Wl,--allow-shlib-undefined", "-Wl,--no-as-needed", *map(str, libraries)]
    arguments = [str(SOURCE), *linking, "-o", str(out.resolve())]
    compile_c(machine_of(target), [*defines, *arguments], out.name, out.resolve().parent)
