"""Writes a trained net as ONNX, with inputs, outputs and node names as the usual exporters have them.

    python examples/tinylm/tinylm_export.py build/tinylm --seed 0

Inputs: input_ids and position_ids [batch, sequence], attention_mask [batch, past + sequence] (int64),
past_key_values.N.key and .value [batch, heads, past, head width]; outputs: logits [batch, sequence, vocabulary],
present.N.key and .value [batch, heads, past + sequence, head width]. Opset 21, without PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tinylm_shapes import EPSILON, POSITIONS, ROPE_BASE, SIZES, Shape
from tinylm_task import TOKENS

EXAMPLE = Path(__file__).resolve().parent
MASKED = -1e9
"""Added to the score of a key that is not attended to."""

Weights = dict[str, npt.NDArray[np.float32]]


class Graph:
    """Nodes and initializers of a graph while it is written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._known: dict[str, str] = {}

    def add(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node with one output, called `name` like the node."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike, kind: type = np.float32) -> str:
        """An initializer; one of the same name is written once."""
        if name not in self._known:
            self._known[name] = name
            self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def norm(self, x: str, weight: npt.NDArray[np.float32], name: str) -> str:
        """RMS norm over the last axis."""
        square = self.add("Mul", [x, x], f"{name}/square")
        mean = self.add("ReduceMean", [square, self.constant("axis_last", [-1], np.int64)], f"{name}/mean")
        shifted = self.add("Add", [mean, self.constant("epsilon", EPSILON)], f"{name}/shifted")
        root = self.add("Sqrt", [shifted], f"{name}/root")
        normed = self.add("Div", [x, root], f"{name}/normed")
        return self.add("Mul", [normed, self.constant(f"{name}.weight", weight)], name)

    def linear(self, x: str, weight: npt.NDArray[np.float32], name: str) -> str:
        """x W^T for `weight` [outputs, inputs]."""
        return self.add("MatMul", [x, self.constant(f"{name}.weight", weight.T)], f"{name}/MatMul")


def rope_table(head_width: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """cos and sin [POSITIONS, head_width], the halves of the last axis alike."""
    rates = ROPE_BASE ** (-np.arange(0, head_width, 2) / head_width)
    angles = np.arange(POSITIONS)[:, None] * rates[None]
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _bias(g: Graph) -> str:
    """0 where a query sees a key and MASKED elsewhere, [batch, 1, sequence, past + sequence]."""
    zero, one = g.constant("zero", 0, np.int64), g.constant("one", 1, np.int64)
    total = g.add("Gather", [g.add("Shape", ["attention_mask"], "mask/shape"), one], "mask/total", axis=0)
    new = g.add("Gather", [g.add("Shape", ["input_ids"], "ids/shape"), one], "mask/new", axis=0)
    keys = g.add("Range", [zero, total, one], "mask/keys")
    queries = g.add("Range", [g.add("Sub", [total, new], "mask/past"), total, one], "mask/queries")
    column = g.add("Unsqueeze", [queries, g.constant("axis_1", [1], np.int64)], "mask/column")
    causal = g.add("LessOrEqual", [keys, column], "mask/causal")
    here = g.add("Cast", ["attention_mask"], "mask/bool", to=TensorProto.BOOL)
    here = g.add("Unsqueeze", [here, g.constant("axes_1_2", [1, 2], np.int64)], "mask/here")
    seen = g.add("And", [causal, here], "mask/seen")
    return g.add("Where", [seen, g.constant("bias_seen", 0.0), g.constant("bias_masked", MASKED)], "mask/bias")


def _rotate(g: Graph, heads: str, name: str) -> str:
    first, second = f"{name}/first", f"{name}/second"
    g.nodes.append(helper.make_node("Split", [heads], [first, second], name=f"{name}/Split", axis=-1, num_outputs=2))
    turned = g.add("Concat", [g.add("Neg", [second], f"{name}/neg"), first], f"{name}/turned", axis=-1)
    straight = g.add("Mul", [heads, "rope/cos"], f"{name}/straight")
    return g.add("Add", [straight, g.add("Mul", [turned, "rope/sin"], f"{name}/across")], f"{name}/rotated")


def _attention(g: Graph, x: str, shape: Shape, weights: Weights, layer: int) -> str:
    name = f"model/layers.{layer}/self_attn"
    split = g.constant("heads", [0, 0, shape.heads, shape.head_width], np.int64)
    heads = {}
    for part in ("query", "key", "value"):
        flat = g.linear(x, weights[f"blocks.{layer}.{part}.weight"], f"{name}/{part[0]}_proj")
        rows = g.add("Reshape", [flat, split], f"{name}/{part}/rows")
        heads[part] = g.add("Transpose", [rows], f"{name}/{part}", perm=[0, 2, 1, 3])
    query, key = (_rotate(g, heads[part], f"{name}/{part}") for part in ("query", "key"))
    keys = g.add("Concat", [f"past_key_values.{layer}.key", key], f"present.{layer}.key", axis=2)
    values = g.add("Concat", [f"past_key_values.{layer}.value", heads["value"]], f"present.{layer}.value", axis=2)
    across = g.add("Transpose", [keys], f"{name}/keys", perm=[0, 1, 3, 2])
    scores = g.add("MatMul", [query, across], f"{name}/scores")
    scores = g.add("Mul", [scores, g.constant("score_scale", shape.head_width**-0.5)], f"{name}/scaled")
    shares = g.add("Softmax", [g.add("Add", [scores, "mask/bias"], f"{name}/biased")], f"{name}/shares", axis=-1)
    mixed = g.add("Transpose", [g.add("MatMul", [shares, values], f"{name}/mixed")], f"{name}/back", perm=[0, 2, 1, 3])
    flat = g.add("Reshape", [mixed, g.constant("width", [0, 0, shape.width], np.int64)], f"{name}/flat")
    return g.linear(flat, weights[f"blocks.{layer}.output.weight"], f"{name}/o_proj")


def build(shape: Shape, weights: Weights) -> onnx.ModelProto:
    """The ONNX model of trained weights (keys as in `TinyLM.state_dict`)."""
    g = Graph()
    _bias(g)
    for part, table in zip(("cos", "sin"), rope_table(shape.head_width), strict=True):
        rows = g.add("Gather", [g.constant(f"rope_{part}", table), "position_ids"], f"rope/{part}_rows", axis=0)
        g.add("Unsqueeze", [rows, g.constant("axis_1", [1], np.int64)], f"rope/{part}")
    embedding = g.constant("model.embed_tokens.weight", weights["embedding.weight"])
    x = g.add("Gather", [embedding, "input_ids"], "model/embed_tokens", axis=0)
    x = g.add("Mul", [x, g.constant("embedding_scale", shape.width**0.5)], "model/embedded")
    for layer in range(shape.layers):
        name = f"model/layers.{layer}"
        normed = g.norm(x, weights[f"blocks.{layer}.attention_norm.weight"], f"{name}/input_layernorm")
        x = g.add("Add", [x, _attention(g, normed, shape, weights, layer)], f"{name}/attended")
        normed = g.norm(x, weights[f"blocks.{layer}.mlp_norm.weight"], f"{name}/post_attention_layernorm")
        up = g.linear(normed, weights[f"blocks.{layer}.up.weight"], f"{name}/mlp/up_proj")
        active = g.add("Relu", [up], f"{name}/mlp/active")
        square = g.add("Mul", [active, active], f"{name}/mlp/square")
        down = g.linear(square, weights[f"blocks.{layer}.down.weight"], f"{name}/mlp/down_proj")
        x = g.add("Add", [x, down], name)
    last = g.norm(x, weights["norm.weight"], "model/norm")
    head = g.add("Transpose", [embedding], "lm_head/weight", perm=[1, 0])
    g.add("MatMul", [last, head], "logits")
    return _model(g, shape)


def _model(g: Graph, shape: Shape) -> onnx.ModelProto:
    def ids(name: str, time: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", time])

    def cache(name: str, time: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", shape.heads, time, shape.head_width])

    parts = [(layer, part) for layer in range(shape.layers) for part in ("key", "value")]
    inputs = [ids("input_ids", "sequence"), ids("attention_mask", "total"), ids("position_ids", "sequence")]
    inputs += [cache(f"past_key_values.{layer}.{part}", "past") for layer, part in parts]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", len(TOKENS)])]
    outputs += [cache(f"present.{layer}.{part}", "total") for layer, part in parts]
    graph = helper.make_graph(g.nodes, "tinylm", inputs, outputs, g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="edgescale")
    model.ir_version = 10
    helper.set_model_props(model, {"context_length": str(POSITIONS)})
    onnx.checker.check_model(model, full_check=True)
    return model


def export(shape: Shape, weights: Weights, path: Path) -> None:
    """Write the model to `path` and the vocabulary beside it (tokenizer.json)."""
    onnx.save(build(shape, weights), path)
    vocabulary = {"format": "edgescale-characters", "tokens": list(TOKENS), "end": 0}
    (path.parent / "tokenizer.json").write_text(json.dumps(vocabulary) + "\n")


def main() -> None:
    """Export every trained size of one seed."""
    parser = argparse.ArgumentParser(description="Write trained weights as ONNX.")
    parser.add_argument("work", type=Path, help="where train_tinylm.py left its .npz files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=EXAMPLE)
    options = parser.parse_args()
    for size, shape in SIZES.items():
        path = options.work / f"tinylm_{size}_seed{options.seed}.npz"
        if path.is_file():
            with np.load(path) as weights:
                export(shape, dict(weights), options.out / f"tinylm_{size}.onnx")
            print(f"{size}: {options.out / f'tinylm_{size}.onnx'}")


if __name__ == "__main__":
    main()
