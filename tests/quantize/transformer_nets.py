"""Small transformers as graphs: two layers of attention and a feed-forward network, and one step of a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgescale.core.model import Model
from edgescale.frontend import load_model

WIDTH, INNER, HEADS, WORDS = 96, 160, 4, 50


class Graph:
    """Collects nodes; a few channels of each normalization are outliers, as in trained transformers."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, array: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, op: str, *inputs: str, name: str = "", out: str = "", **attributes: Any) -> str:
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out or f"{name}_y"], name=name, **attributes))
        return self.nodes[-1].output[0]

    def dense(self, x: str, terms: int, outputs: int, name: str, bias: bool = True) -> str:
        weights = self.random.standard_normal((terms, outputs)) / terms**0.5
        weights *= self.random.lognormal(0, 0.4, (terms, 1))
        y = self.node("MatMul", x, self.const(weights.astype(np.float32)), name=name)
        if not bias:
            return y
        return self.node("Add", y, self.const((0.1 * self.random.standard_normal(outputs)).astype(np.float32)))

    def norm(self, x: str) -> str:
        gain = self.random.lognormal(0, 0.3, WIDTH)
        gain[self.random.choice(WIDTH, 4, replace=False)] *= 12
        shift = 0.1 * self.random.standard_normal(WIDTH)
        parts = (self.const(part.astype(np.float32)) for part in (gain, shift))
        return self.node("LayerNormalization", x, *parts, axis=-1)

    def split(self, x: str) -> str:
        shaped = self.node("Reshape", x, self.const(np.array([0, 0, HEADS, WIDTH // HEADS])))
        return self.node("Transpose", shaped, perm=[0, 2, 1, 3])

    def attend(self, q: str, k: str, v: str, hidden: str | None) -> str:
        turned = self.node("Transpose", k, perm=[0, 1, 3, 2])
        scores = self.node("Mul", self.node("MatMul", q, turned), self.const(np.float32((WIDTH // HEADS) ** -0.5)))
        scores = scores if hidden is None else self.node("Add", scores, hidden)
        mixed = self.node("Transpose", self.node("MatMul", self.node("Softmax", scores), v), perm=[0, 2, 1, 3])
        return self.node("Reshape", mixed, self.const(np.array([0, 0, WIDTH])))

    def layer(self, x: str, label: str, hidden: str | None) -> str:
        h = self.norm(x)
        q, k, v = (self.split(self.dense(h, WIDTH, WIDTH, f"{label}.{part}")) for part in "qkv")
        x = self.node("Add", x, self.dense(self.attend(q, k, v, hidden), WIDTH, WIDTH, f"{label}.o"))
        return self.feed_forward(x, label)

    def feed_forward(self, x: str, label: str) -> str:
        inner = self.node("Relu", self.dense(self.norm(x), WIDTH, INNER, f"{label}.up"))
        return self.node("Add", x, self.dense(inner, INNER, WIDTH, f"{label}.down"))

    def table(self, ids: str, name: str = "embedding") -> str:
        return self.node("Gather", self.const(self.random.standard_normal((WORDS, WIDTH)).astype(np.float32)), ids,
                         name=name)  # fmt: skip

    def write(self, path: Path, inputs: dict[str, tuple[int, list[Any]]], outputs: list[str]) -> Model:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(onnx.shape_inference.infer_shapes(proto), path)
        return load_model(path)


def encoder(folder: Path) -> Model:
    """ids, attention_mask [1, any] -> hidden [1, any, WIDTH]; nodes l0.q ... l1.down."""
    g = Graph()
    shown = g.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    shut = g.node("Mul", g.node("Sub", shown, g.const(np.float32(1))), g.const(np.float32(1e4)))
    hidden = g.node("Unsqueeze", shut, g.const(np.array([1, 2])))
    x = g.table("ids")
    for label in ("l0", "l1"):
        x = g.layer(x, label, hidden)
    g.node("Mul", x, g.const(np.full(WIDTH, 1.0, np.float32)), out="hidden")
    tokens = (TensorProto.INT64, ["batch", "length"])
    return g.write(folder / "encoder.onnx", {"ids": tokens, "attention_mask": tokens}, ["hidden"])


def decoder(folder: Path) -> Model:
    """One step: ids [1, any], past_k and past_v [1, HEADS, any, WIDTH / HEADS] -> logits, k, v (with the past)."""
    g = Graph()
    x = g.table("ids")
    h = g.norm(x)
    q, k, v = (g.split(g.dense(h, WIDTH, WIDTH, part)) for part in "qkv")
    k = g.node("Concat", "past_k", k, axis=2, out="k")
    v = g.node("Concat", "past_v", v, axis=2, out="v")
    x = g.node("Add", x, g.dense(g.attend(q, k, v, None), WIDTH, WIDTH, "o"))
    y = g.dense(g.norm(g.feed_forward(x, "ff")), WIDTH, WORDS, "head", bias=False)
    g.node("Identity", y, out="logits")
    past = (TensorProto.FLOAT, ["batch", HEADS, "past", WIDTH // HEADS])
    inputs = {"ids": (TensorProto.INT64, ["batch", "length"]), "past_k": past, "past_v": past}
    return g.write(folder / "decoder.onnx", inputs, ["logits", "k", "v"])
