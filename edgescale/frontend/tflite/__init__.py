"""TensorFlow Lite files in: read without TensorFlow, translated into the ONNX form the rest of edgescale knows.

`reader` decodes the file into plain dataclasses and trusts none of its offsets and lengths; `translate` walks
the operators and has one function each in `weighted`, `elementwise`, `reductions` and `movement`; `graph` keeps
account of which ONNX value holds which tensor, in which layout. Needs the extra `tflite`.

What comes out: QDQ ONNX for quantized files (the file's own scales, zero-points and integers), float ONNX for
float and hybrid ones. Images are channels-first inside, as ONNX wants them; the graph's inputs and outputs keep
the file's shape, dtype and order (`core.model.PORTS_AS_GIVEN` tells the lowering so).
"""

from edgescale.frontend.tflite.translate import operators, translate

__all__ = ["operators", "translate"]
