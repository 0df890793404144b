"""Models saved by `torch.export.save` (.pt2), read through PyTorch's ONNX exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from edgescale.core.errors import MissingDependencyError, UnsupportedModelError
from edgescale.core.model import Model
from edgescale.finetune import need_torch

OPSET = 18


def load_exported(path: Path, sha256: str) -> Model:
    """The program in `path` as a checked, cleaned graph (see `frontend.load_model`); `sha256` is that of the file.

    Raises MissingDependencyError without torch and onnxscript, UnsupportedModelError for a file that holds no program
    or one that cannot be written as ONNX.
    """
    need_torch()
    if find_spec("onnxscript") is None:
        raise MissingDependencyError("onnxscript, which .pt2 files are read through,", "pip install 'edgescale[train]'")
    import torch

    from edgescale.frontend import load_model

    with tempfile.TemporaryDirectory(prefix="edgescale-pt2-") as folder:
        written = Path(folder) / f"{path.stem}.onnx"
        with _quiet():
            try:
                program = torch.export.load(path)
            except Exception as error:  # torch raises many kinds for files that are no programs
                raise UnsupportedModelError(f"{path} holds no program of torch.export: {_brief(error)}") from None
            try:
                made = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, verbose=False)
                made.save(str(written), external_data=False)
            except Exception as error:  # the exporter's own hierarchy, chained several deep
                raise UnsupportedModelError(f"{path} cannot be written as ONNX: {_brief(error)}") from None
        return replace(load_model(written), sha256=sha256)


def _brief(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's notes on packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
