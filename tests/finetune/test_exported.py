"""Programs of torch.export as models: PyTorch's own values, and errors that say what the file is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from edgescale.core.errors import UnsupportedModelError
from edgescale.sources import ModelSource

torch = pytest.importorskip("torch", reason="PyTorch (extra `train`) is not installed")
pytest.importorskip("onnxscript", reason="onnxscript (extra `train`) is not installed")


def test_a_program_gives_pytorchs_values(tmp_path, onnx_rows):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.Hardswish(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(96, 5),
    ).eval()  # fmt: skip
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 8, 8),)), path)
    source = ModelSource(path)
    assert source.model.name == "net"
    assert source.model.sha256 == source.fingerprint
    x = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(onnx_rows(onnx_ir.to_proto(source.model.ir), x), wanted, rtol=1e-4, atol=1e-5)


def test_another_file_is_refused(tmp_path: Path):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(UnsupportedModelError, match=r"net\.pt2 holds no program"):
        _ = ModelSource(path).model
