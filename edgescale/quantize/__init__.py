"""Post-training quantization: observers over streaming histograms, QDQ writing."""

from edgescale.quantize.int8 import FloatNode, float_nodes, quantize_int8

__all__ = ["FloatNode", "float_nodes", "quantize_int8"]
