"""Post-training quantization: formats, observers over streaming histograms, rounding methods, QDQ writing."""

from edgescale.quantize.int8 import FloatNode, float_nodes, quantize_int8
from edgescale.quantize.post_training import quantize, quantize_and_explain

__all__ = ["FloatNode", "float_nodes", "quantize", "quantize_and_explain", "quantize_int8"]
