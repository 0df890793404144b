"""A C artifact built for this machine and called in process: for accuracy and equality, not for timing.

The same sources that go to a microcontroller, as a shared library. The model's arena is one object, so
executors of one artifact share it: call them from one thread. A model with state starts a stream when its executor
is made, and every sample continues it.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import RigError
from edgescale.core.protocols import Executor
from edgescale.core.variant import Artifact
from edgescale.rigs.cachedir import cached_build
from edgescale.rigs.ports import check_stored, from_stored, single_input, to_stored
from edgescale.rigs.toolchain import build_shared, host_compiler

_LIBRARY = "model.so"


class HostModel:
    """The artifact's functions, loaded."""

    def __init__(self, artifact: Artifact) -> None:
        if artifact.kind != "c":
            raise RigError(f"{artifact.variant}: only a C artifact can be built as C, this one is {artifact.kind!r}")
        self.input = single_input(artifact)
        self.output: Mapping[str, Any] = artifact.meta["outputs"][0]
        library = ctypes.CDLL(str(build_host_library(artifact) / _LIBRARY))
        self._run = _function(library, f"es_{artifact.meta['symbol']}_run", None)
        self._input = _port_array(library, self.input)
        self._output = _port_array(library, self.output)
        if artifact.meta.get("reset"):
            _function(library, artifact.meta["reset"], None)()

    def run_stored(self, samples: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Stored samples [n, *stored_shape[1:]] -> first output, stored, [n, *stored_shape[1:]]."""
        stored = check_stored(self.input, samples)
        outputs = np.empty((len(stored), *self.output["stored_shape"][1:]), self._output.dtype)
        for sample, output in zip(stored, outputs, strict=True):
            self._input[...] = sample.ravel()
            self._run()
            output[...] = self._output.reshape(output.shape)
        return outputs


def build_host_library(artifact: Artifact) -> Path:
    """The folder with the artifact's shared library, built once per content and compiler."""
    root = artifact.path.resolve()
    sources = [root / name for name in artifact.meta["sources"]]
    # The compiler may use every instruction of this processor, so its model is part of the key.
    key = "\n".join([artifact.sha256, host_compiler().description, platform.machine(), _processor()])

    def build(out: Path) -> None:
        build_shared(sources, out / _LIBRARY, what=f"{artifact.variant} for this machine")

    return cached_build("host_c", key, build)


def raw_executor(artifact: Artifact) -> Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]:
    """Samples and outputs in stored units (int8, int16 or float32), for comparison bit for bit."""
    return HostModel(artifact).run_stored


def executor(artifact: Artifact) -> Executor:
    """Samples in ONNX layout -> first output in ONNX layout, computed by the artifact's own C."""
    model = HostModel(artifact)

    def execute(x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        return from_stored(model.output, model.run_stored(to_stored(model.input, x)))

    return execute


def _function(library: ctypes.CDLL, name: str, result: Any) -> Any:
    try:
        function = getattr(library, name)
    except AttributeError:
        raise RigError(f"the artifact's C defines no function {name!r}") from None
    function.restype = result
    function.argtypes = []
    return function


def _port_array(library: ctypes.CDLL, port: Mapping[str, Any]) -> npt.NDArray[np.generic]:
    """A port's memory as a flat array of its stored type."""
    address = _function(library, port["accessor"], ctypes.c_void_p)()
    dtype = np.dtype(port["dtype"])
    size = int(np.prod(port["stored_shape"]))
    if size * dtype.itemsize != int(port["bytes"]):
        raise RigError(f"port {port['name']!r}: artifact.json says {port['bytes']} bytes, its shape needs {size}")
    kind = np.ctypeslib.as_ctypes_type(dtype)
    return np.ctypeslib.as_array((kind * size).from_address(address))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line
    except OSError:
        pass
    return platform.processor()
