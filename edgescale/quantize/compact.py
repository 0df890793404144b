"""Takes out of a quantized graph what readers know anyway: in small nets it weighs as much as the weights."""

from __future__ import annotations

import onnx_ir as ir

from edgescale.frontend.graph import DEFAULT_DOMAINS

_INTEGERS: dict[str, dict[str, int]] = {
    "Conv": {"group": 1},
    "Gemm": {"transA": 0, "transB": 0},
    "AveragePool": {"ceil_mode": 0, "count_include_pad": 0},
    "MaxPool": {"ceil_mode": 0, "storage_order": 0},
}
_FLOATS: dict[str, dict[str, float]] = {"Gemm": {"alpha": 1.0, "beta": 1.0}}
_WINDOWED = ("Conv", "AveragePool", "MaxPool")


class Compact(ir.passes.InPlacePass):
    """Drop names of Q/DQ nodes, shorten those of inner values, drop attributes that say the default.

    Contract: names of all other nodes, of constants and of graph inputs and outputs stay; nothing is computed
    differently.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Go over the graph once."""
        graph = model.graph
        taken = {str(v.name) for v in (*graph.inputs, *graph.outputs)} | set(graph.initializers)
        count = 0
        for node in graph:
            for value in node.outputs:
                if value.is_graph_output() or not value.name:
                    continue
                while f"v{count}" in taken:
                    count += 1
                value.name = f"v{count}"
                count += 1
            if node.domain in DEFAULT_DOMAINS:
                _drop_defaults(node)
                if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                    node.name = ""
        return ir.passes.PassResult(model, True)


def _drop_defaults(node: ir.Node) -> None:
    attributes = node.attributes
    for name, integer in _INTEGERS.get(node.op_type, {}).items():
        if name in attributes and attributes[name].as_int() == integer:
            del attributes[name]
    for name, number in _FLOATS.get(node.op_type, {}).items():
        if name in attributes and attributes[name].as_float() == number:
            del attributes[name]
    if node.op_type not in _WINDOWED:
        return
    for name, entry in (("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in attributes and set(attributes[name].as_ints()) <= {entry}:
            del attributes[name]
    if "auto_pad" in attributes and attributes["auto_pad"].as_string() == "NOTSET":
        del attributes["auto_pad"]
    if node.op_type == "Conv" and "kernel_shape" in attributes:
        del attributes["kernel_shape"]  # the weights have it
