"""Opening an ONNX model in ONNX Runtime with the options an artifact stores.

Imported by the runtime on a device, by the `host` rig and by the ONNX back end alike, so that what is
measured is what runs. Imports onnxruntime only when a session is opened.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgescale.core.errors import MissingDependencyError, UnsupportedModelError, UsageError
from edgescale.core.state import decode_states
from edgescale.runtime.stream import StreamSession

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

SessionConfig = Mapping[str, Any]
"""The `session` table of artifact.json: intra_op_num_threads (default 1), graph_optimization_level (the name
of an ONNX Runtime level, default ORT_ENABLE_ALL), config (session config entries, text to text; the value "auto"
of session.x64quantprecision becomes "1" on x86 processors without VNNI and "0" elsewhere)."""

_KEYS = ("intra_op_num_threads", "graph_optimization_level", "config")
_EXACT = "session.x64quantprecision"
_ERRORS_ONLY = 3


def session_options(config: SessionConfig) -> SessionOptions:
    """ONNX Runtime's options for `config`. Raises UsageError for a key, a level or a value it does not have."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingDependencyError("onnxruntime", "pip install onnxruntime")
    import onnxruntime as ort

    if unknown := set(config) - set(_KEYS):
        raise UsageError(f"session options: unknown key {', '.join(sorted(unknown))}; known: {', '.join(_KEYS)}")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    threads = config.get("intra_op_num_threads", 1)
    if not isinstance(threads, int) or threads < 1:
        raise UsageError(f"session options: intra_op_num_threads must be a whole number above 0, not {threads!r}")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # graphs run sequentially, so this pool would only idle
    level = config.get("graph_optimization_level", "ORT_ENABLE_ALL")
    levels = ort.GraphOptimizationLevel.__members__
    if level not in levels:
        raise UsageError(f"session options: graph_optimization_level {level!r} is not one of {', '.join(levels)}")
    options.graph_optimization_level = levels[level]
    for key, value in config.get("config", {}).items():
        if key == _EXACT and value == "auto":
            value = "1" if saturating_int8() else "0"
        options.add_session_config_entry(str(key), str(value))
    return options


@cache
def saturating_int8() -> bool:
    """Whether this processor's fast uint8 x int8 products saturate in 16 bits: x86-64 without (known) VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True  # unknown: exact and slower rather than fast and perhaps wrong
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


def open_session(model_path: Path, options: SessionConfig, *, profile_prefix: Path | None = None) -> InferenceSession:
    """An ONNX Runtime CPU session of the model with an artifact's options.

    A model with state (`core.state`) comes as a `StreamSession`: each run continues where the last one ended.
    profile_prefix: record a per-node profile into files beginning with it. Raises UnsupportedModelError
    where ONNX Runtime refuses the model, UsageError where the file is missing or an option is wrong.
    """
    if not model_path.is_file():
        raise UsageError(f"model file {model_path} does not exist")
    settings = session_options(options)
    import onnxruntime as ort

    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_prefix)
    try:
        session = ort.InferenceSession(str(model_path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a family of its own without a common base
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(
            f"{model_path.name}: ONNX Runtime {ort.__version__} refuses it: {lines[0]}"
        ) from None
    states = decode_states(session.get_modelmeta().custom_metadata_map, model_path.name)
    return cast("InferenceSession", StreamSession(session, states)) if states else session
