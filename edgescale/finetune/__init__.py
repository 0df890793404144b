"""Training (extra `train`): quantization-aware, recovery from pruning, distillation.

The only room that imports torch, on first use.
"""

from __future__ import annotations

from importlib.util import find_spec

from edgescale.core.errors import MissingDependencyError
from edgescale.finetune.settings import Settings

__all__ = ["Settings", "need_torch"]


def need_torch() -> None:
    """Raise MissingDependencyError, with the command that installs it, where PyTorch is absent."""
    if find_spec("torch") is None:
        raise MissingDependencyError("PyTorch, which training needs,", "pip install 'edgescale[train]'")
