"""Train the tiny language family of ``examples/tinylm`` on its graded task.

    python tools/train_tinylm.py                             every size and seed; one finished is not repeated
    python examples/tinylm/tinylm_export.py build/tinylm     the ONNX files of a seed

Every size sees the same problems, so the same number of tokens, with the same seed. Rows of ROW tokens are
packed with whole problems that do not see each other; only completions count in the loss. Hidden matrices are
trained with Muon, the rest with AdamW. Needs the ``train`` extra (torch).
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "tinylm"
sys.path.insert(0, str(EXAMPLE))

try:
    import torch
    import torch.nn.functional as functional
    from tinylm_nets import TinyLM, count_parameters
    from tinylm_shapes import SIZES
    from tinylm_task import END, LEVELS, TOKENS, make
    from torch import Tensor
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"{missing.name} is not installed: training needs the extra 'train' (pip install 'edgescale[train]')"
    ) from missing

ROW = 96
SEEDS = (0, 1, 2)
IDS = {token: index for index, token in enumerate(TOKENS)}


class Packer:
    """An endless stream of packed rows from one seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"tinylm training {seed}")
        self._next: tuple[list[int], int] | None = None

    def _problem(self) -> tuple[list[int], int]:
        problem = make(self._rng.choice(LEVELS), self._rng)
        return [IDS[c] for c in problem.prompt + problem.solution + END], len(problem.prompt)

    def row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """ids, positions, problem number (-1 where empty) and targets (-100 where none counts), each [ROW]."""
        ids, positions = np.zeros(ROW, np.int64), np.zeros(ROW, np.int64)
        owner, targets = np.full(ROW, -1, np.int64), np.full(ROW, -100, np.int64)
        at = number = 0
        while True:
            tokens, prompt = self._next or self._problem()
            self._next = None
            if at + len(tokens) > ROW:
                self._next = (tokens, prompt)
                return ids, positions, owner, targets
            end = at + len(tokens)
            ids[at:end], positions[at:end], owner[at:end] = tokens, np.arange(len(tokens)), number
            targets[at + prompt - 1 : end - 1] = tokens[prompt:]
            at, number = end, number + 1

    def batch(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """ids, positions, mask and targets of `rows` rows, and the tokens in them."""
        ids, positions, owner, targets = (
            torch.from_numpy(np.stack(part)) for part in zip(*(self.row() for _ in range(rows)), strict=True)
        )
        mask = (owner[:, None, :, None] == owner[:, None, None, :]).tril()
        return ids, positions, mask, targets, int((owner >= 0).sum())


def train(size: str, seed: int, tokens: int, rows: int, rate: float, work: Path) -> None:
    """Train one net and write its weights (.npz) and record (.json) under `work`."""
    name = f"tinylm_{size}_seed{seed}"
    if (work / f"{name}.json").is_file():
        return
    torch.manual_seed(seed)
    net = TinyLM(SIZES[size])
    matrices = [p for block in net.blocks for p in block.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if not any(p is m for m in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(others, lr=rate / 4, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    packer, seen, step, started, losses = Packer(seed), 0, 0, time.process_time(), []
    while seen < tokens:
        left = 1 - seen / tokens
        scale = min(1.0, (step + 1) / 20, left / 0.6)
        for optimizer, base in zip(optimizers, (rate, rate / 4), strict=True):
            optimizer.param_groups[0]["lr"] = base * scale
        ids, positions, mask, targets, count = packer.batch(rows)
        loss = functional.cross_entropy(net(ids, positions, mask).flatten(0, 1), targets.flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seen, step = seen + count, step + 1
        if step % 100 == 0:
            spent = time.process_time() - started
            print(f"{name}: {seen} tokens, loss {np.mean(losses[-50:]):.3f}, {spent:.0f} s", flush=True)
    work.mkdir(parents=True, exist_ok=True)
    np.savez(work / f"{name}.npz", **{key: value.numpy() for key, value in net.state_dict().items()})
    record = {
        "size": size, "seed": seed, "parameters": count_parameters(net), "tokens": seen, "steps": step,
        "loss": float(np.mean(losses[-50:])), "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip
    (work / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record), flush=True)


@click.command()
@click.option("--size", type=click.Choice([*SIZES, "all"]), default="all", show_default=True)
@click.option("--seed", type=int, multiple=True, default=SEEDS, show_default=True)
@click.option("--tokens", type=click.IntRange(1000), default=800_000, show_default=True)
@click.option("--rows", type=click.IntRange(1), default=10, show_default=True, help="Rows of 96 tokens in a step.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=0.02, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "build" / "tinylm", help="Weights and records.")
def main(size: str, seed: tuple[int, ...], tokens: int, rows: int, rate: float, work: Path) -> None:
    """Train the chosen sizes and seeds."""
    torch.set_num_threads(1)
    sizes = list(SIZES) if size == "all" else [size]
    for one in seed:
        for name in sizes:
            train(name, one, tokens, rows, rate, work)


if __name__ == "__main__":
    main()
