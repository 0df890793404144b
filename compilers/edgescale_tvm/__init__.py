"""Back end for Linux-class processors: the integer program as a TVM (Relax) shared library that computes in integers.

TVM's own ONNX importer turns QDQ graphs into float arithmetic. Here the integer program becomes Relax: layers
with weights call kernels for the processor's vector instructions (`kernels/`), every other layer is a tensor
expression that TVM compiles. Nothing of TVM is imported before something is compiled.
"""

from __future__ import annotations

from edgescale_tvm.backend import BACKEND, TvmBackend

__all__ = ["BACKEND", "TvmBackend"]
