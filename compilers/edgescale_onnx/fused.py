"""Which layers of weights in blocks ONNX Runtime really multiplies as integers, read from its optimized graph."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from edgescale.runtime.ort import SessionConfig, session_options


def unfused_weights(model: Path, config: SessionConfig) -> list[str]:
    """Names of the layers whose blockwise DequantizeLinear is left before them after all optimizations, in order.

    Empty for models without weights in blocks, which are not opened.
    """
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    if not any(_blockwise(node) for node in proto.graph.node):
        return []
    import onnxruntime as ort

    with TemporaryDirectory() as folder:
        options = session_options(config)
        # Kernels of this processor are chosen at the last level; the fusion happens one before.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    left = {node.output[0] for node in graph.node if _blockwise(node) and node.input[0] in constants}
    return [node.name for node in graph.node if left & set(node.input)]


def _blockwise(node: object) -> bool:
    op, attributes = getattr(node, "op_type", ""), getattr(node, "attribute", ())
    return op == "DequantizeLinear" and any(a.name == "block_size" and a.i > 0 for a in attributes)
