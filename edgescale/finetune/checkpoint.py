"""A training run between two epochs, on disk: whole or absent."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgescale.core.errors import UsageError
from edgescale.core.files import write_whole


def identity(*parts: object) -> str:
    """64 hex digits of everything a run depends on: content hashes, settings and other JSON values."""
    return hashlib.sha256(json.dumps([*parts, torch.__version__], sort_keys=True).encode()).hexdigest()


def save(path: Path, run: str, epoch: int, net: Any, optimizer: Any, best: Any, hooks: Any) -> None:
    """Write the state after `epoch` epochs, that of the hooks and the best so far (`loop.Best`)."""
    packed = io.BytesIO()
    state = {"run": run, "epoch": epoch, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"hooks": hooks.state_dict(), "best": best.state, "least": best.loss}
    torch.save(state, packed)
    write_whole(path, packed.getvalue())


def load(path: Path, run: str, net: Any, optimizer: Any, best: Any, hooks: Any) -> int:
    """Take up the state in `path`; the epochs done, 0 where there is no file.

    Raises UsageError for a file that is damaged or of another run.
    """
    if not path.exists():
        return 0
    try:
        saved: Mapping[str, Any] = torch.load(path, weights_only=True)
        if saved["run"] != run:
            raise ValueError("it belongs to another model, recipe, data or settings")
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        hooks.load_state_dict(saved["hooks"])
        best.state, best.loss = dict(saved["best"]), float(saved["least"])
        return int(saved["epoch"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UsageError(f"checkpoint {path} cannot be used ({error}); remove it to start over") from error
