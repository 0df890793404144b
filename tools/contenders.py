"""What runs a variant in one call: ours and others', made ready to be timed in turn, and the variants of a model.

One process, one thread: import this before TVM is.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np

from edgescale.core.errors import EdgescaleError
from edgescale.core.files import sha256_file
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact, Recipe, Variant, parse_recipe

SECONDS_A_TURN = 0.05


@dataclass
class Contender:
    """Something that runs one inference a call; `bytes` of what is shipped."""

    bytes: int
    run: Callable[[], object]
    note: str = ""
    name: str = ""


def variants_of(path: Path, recipe: str, calib: str | None, folder: Path) -> tuple[dict[str, Variant], np.ndarray]:
    """The model as it is and under the recipe, int4 weights too; and an input."""
    from edgescale.frontend import load_dataset, load_model, model_from_ir, save_model
    from edgescale.quantize import quantize
    from edgescale.sources import RandomSource

    model = load_model(path)
    spec = model.inputs[0]
    data = load_dataset(calib) if calib else RandomSource("random").load(model.inputs)
    made: dict[str, Variant] = {}
    names = ["int8"] if model.quantized else ["fp32", recipe, recipe.replace("w8", "w4", 1)]
    for name in dict.fromkeys(names):
        graph = model.ir if name in ("fp32", "int8") else quantize(model, data, parse_recipe(name))
        file = folder / f"{name}.onnx"
        save_model(model_from_ir(graph, model.name, model.sha256), file)
        made[name] = Variant(model.name, Recipe() if name == "fp32" else parse_recipe(recipe), file, sha256_file(file))
    return made, data.x[:1].reshape(1, *spec.shape[1:]).astype(spec.dtype)


def latencies(found: list[Contender], rounds: int) -> dict[str, float]:
    """Median microseconds of one inference, each round giving every contender a turn of about 50 ms."""
    times: dict[str, list[float]] = {one.name: [] for one in found}
    for _ in range(rounds):
        for one in found:
            end = time.perf_counter() + SECONDS_A_TURN
            one.run()
            while True:
                start = time.perf_counter()
                one.run()
                done = time.perf_counter()
                times[one.name].append((done - start) * 1e6)
                if done > end:
                    break
    return {name: statistics.median(values) for name, values in times.items()}


def compiled(backend: str, target: str, variant: Variant, folder: Path) -> Artifact:
    """What a back end makes of a variant. Raises EdgescaleError where it is not installed or refuses."""
    from edgescale.backends import get_backend

    return get_backend(backend).compile(variant, load_target(target), folder)


def onnx_runtime(variant: Variant, x: np.ndarray) -> Contender:
    """ONNX Runtime with one thread, as the back end edgescale_onnx opens it."""
    from edgescale_onnx.backend import SESSION

    from edgescale.runtime.ort import open_session

    session = open_session(variant.path, SESSION)
    feed = {session.get_inputs()[0].name: x}
    return Contender(variant.path.stat().st_size, lambda: session.run(None, feed))


def imported(variant: Variant, x: np.ndarray, library: Path) -> Contender:
    """TVM's own ONNX importer, untuned, for the same processor and linked with the same flags."""
    import onnx
    import tvm
    from edgescale_tvm.library import build_library, machine_of
    from tvm.relax.frontend.onnx import from_onnx

    from edgescale.rigs.tvm import open_machine

    module = from_onnx(onnx.load(str(variant.path)), keep_params_in_input=False)
    build_library(module, [], machine_of(load_target("host-tvm")), library)
    main = open_machine(library)["main"]
    value = tvm.runtime.tensor(x)
    return Contender(library.stat().st_size, lambda: main(value))


def by_onnx_runtime(variant: Variant, x: np.ndarray, folder: Path) -> tuple[Contender, Artifact]:
    """ONNX Runtime as the back end opens it."""
    return onnx_runtime(variant, x), compiled("edgescale_onnx", "host", variant, folder)


def by_litert(variant: Variant, x: np.ndarray, folder: Path) -> tuple[Contender, Artifact]:
    """LiteRT's default kernels, one thread, stored units in and out."""
    from edgescale.rigs.litert import file_of, open_interpreter
    from edgescale.rigs.ports import to_stored

    artifact = compiled("edgescale_tflite", "host-litert", variant, folder)
    interpreter = open_interpreter(file_of(artifact), reference_kernels=False)
    port = interpreter.get_input_details()[0]["index"]
    stored = to_stored(artifact.meta["inputs"][0], x)

    def run() -> None:
        interpreter.set_tensor(port, stored)
        interpreter.invoke()

    return Contender(file_of(artifact).stat().st_size, run), artifact


def by_tvm(variant: Variant, x: np.ndarray, folder: Path) -> tuple[Contender, Artifact]:
    """Our kernels in TVM's virtual machine, stored units in and out."""
    artifact = compiled("edgescale_tvm", "host-tvm", variant, folder)
    import tvm

    from edgescale.rigs.ports import to_stored
    from edgescale.rigs.tvm import library_of, open_machine

    main = open_machine(library_of(artifact))["main"]
    stored = tvm.runtime.tensor(to_stored(artifact.meta["inputs"][0], x))
    size, note = library_of(artifact).stat().st_size, artifact.meta["instructions"]
    return Contender(size, lambda: main(stored), note), artifact


def by_tvms_import(variant: Variant, x: np.ndarray, folder: Path) -> tuple[Contender, None]:
    """TVM's own importer. Raises EdgescaleError with its last words where it refuses."""
    from edgescale.backends import get_backend

    get_backend("edgescale_tvm")
    folder.mkdir(parents=True)
    try:
        made = imported(variant, x, folder / "import.so")
        made.run()
    except Exception as error:  # another tool's refusal is a figure too
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EdgescaleError(lines[-1] if lines else type(error).__name__) from None
    return made, None


def by_generated_c(variant: Variant, x: np.ndarray, folder: Path) -> tuple[Contender, Artifact]:
    """Portable C built for this machine; bytes of its weights."""
    from edgescale.rigs.host_c import HostModel
    from edgescale.rigs.ports import to_stored

    artifact = compiled("edgescale_c", "cortex-m3", variant, folder)
    model = HostModel(artifact)
    stored = to_stored(artifact.meta["inputs"][0], x)
    size = int(artifact.meta["weights_bytes"])
    return Contender(size, lambda: model.run_stored(stored), "weights"), artifact


MAKERS: tuple[tuple[str, str, Callable[..., tuple[Contender, Artifact | None]]], ...] = (
    ("onnx", "host", by_onnx_runtime),
    ("tflite", "host-litert", by_litert),
    ("tvm", "host-tvm", by_tvm),
    ("import", "host-tvm", by_tvms_import),
    ("c", "cortex-m3", by_generated_c),
)
