"""Random decoders for the tests, and what they compute written out in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "examples" / "tinylm"))

from tinylm_export import build  # noqa: E402
from tinylm_shapes import EPSILON, ROPE_BASE, Shape  # noqa: E402
from tinylm_task import TOKENS  # noqa: E402

SHAPE = Shape(2, 16, 2, 24)
Weights = dict[str, npt.NDArray[np.float32]]


def random_weights(seed: int = 0, gain: float = 1.0) -> Weights:
    """Weights of SHAPE; `gain` scales the logits, so that distributions are flat or peaked."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> npt.NDArray[np.float32]:
        return (rng.normal(size=shape) * shape[-1] ** -0.5 * 1.5).astype(np.float32)

    weights = {"embedding.weight": matrix(len(TOKENS), SHAPE.width)}
    weights["norm.weight"] = (gain * rng.uniform(0.5, 1.5, SHAPE.width)).astype(np.float32)
    for layer in range(SHAPE.layers):
        for part in ("query", "key", "value", "output"):
            weights[f"blocks.{layer}.{part}.weight"] = matrix(SHAPE.width, SHAPE.width)
        weights[f"blocks.{layer}.up.weight"] = matrix(SHAPE.hidden, SHAPE.width)
        weights[f"blocks.{layer}.down.weight"] = matrix(SHAPE.width, SHAPE.hidden)
        for part in ("attention_norm", "mlp_norm"):
            weights[f"blocks.{layer}.{part}.weight"] = rng.uniform(0.5, 1.5, SHAPE.width).astype(np.float32)
    return weights


def write(path: Path, weights: Weights, cached: bool = True) -> Path:
    """The model at `path` with tokenizer.json beside it; without inputs of the past where not `cached`."""
    model = build(SHAPE, weights)
    if not cached:
        graph = model.graph
        for node in graph.node:
            if node.op_type == "Concat" and node.input[0].startswith("past"):
                node.op_type = "Identity"
                new = node.input[1]
                del node.input[:], node.attribute[:]
                node.input.append(new)
        for values in (graph.input, graph.output):
            kept = [value for value in values if not value.name.startswith(("past", "present"))]
            del values[:]
            values.extend(kept)
    onnx.save(model, path)
    text = (ROOT / "examples" / "tinylm" / "tokenizer.json").read_text()
    (path.parent / "tokenizer.json").write_text(text)
    return path


def logits(
    weights: Weights, ids: list[int], positions: list[int] | None = None, seen: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """Logits [tokens, vocabulary] of one text, computed whole; `seen` [tokens, tokens]: who attends to whom."""
    w = {key: value.astype(np.float64) for key, value in weights.items()}
    place = np.array(range(len(ids)) if positions is None else positions)
    mask = np.tril(np.ones((len(ids), len(ids)), bool)) if seen is None else seen
    width = SHAPE.head_width
    angles = place[:, None] * ROPE_BASE ** (-np.arange(0, width, 2) / width)[None]

    def norm(x: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPSILON) * weight

    def turn(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        pairs = (x[:, : width // 2] + 1j * x[:, width // 2 :]) * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag], axis=1)

    x = w["embedding.weight"][ids] * SHAPE.width**0.5
    for layer in range(SHAPE.layers):
        b = f"blocks.{layer}"
        y = norm(x, w[f"{b}.attention_norm.weight"])
        q, k, v = (y @ w[f"{b}.{part}.weight"].T for part in ("query", "key", "value"))
        heads = []
        for head in range(SHAPE.heads):
            part = slice(head * width, (head + 1) * width)
            scores = np.where(mask, turn(q[:, part]) @ turn(k[:, part]).T * width**-0.5, -np.inf)
            share = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(share / share.sum(axis=1, keepdims=True) @ v[:, part])
        x = x + np.concatenate(heads, axis=1) @ w[f"{b}.output.weight"].T
        y = norm(x, w[f"{b}.mlp_norm.weight"])
        x = x + np.maximum(y @ w[f"{b}.up.weight"].T, 0) ** 2 @ w[f"{b}.down.weight"].T
    result: npt.NDArray[np.float64] = norm(x, w["norm.weight"]) @ w["embedding.weight"].T
    return result
