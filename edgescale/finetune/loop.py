"""Epochs of training that can be stopped and gone on with, and what acts between their steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.progress import Progress
from edgescale.finetune import checkpoint
from edgescale.finetune.graph import TorchGraph
from edgescale.finetune.objective import Objective
from edgescale.finetune.settings import Settings

WARM_UP = 0.05
JUDGED = 1024
"""Training samples by whose loss epochs are compared."""
Listener = Callable[[int, Mapping[str, float]], None]
"""(epochs done, {loss, and what the hooks count})."""


class Hook(torch.nn.Module):  # type: ignore[misc]
    """What acts between the steps of a training run; its buffers are part of the checkpoint."""

    settled = True
    """Whether the network, as it is, may be what training ends with."""

    def begin(self, epoch: int) -> None:
        """An epoch begins."""

    def before(self, step: int) -> None:
        """Gradients are there and parameters not yet moved; `step` counts from the first epoch's."""

    def after(self, step: int) -> None:
        """Parameters have moved."""

    def figures(self) -> Mapping[str, float]:
        """What a listener is told of the epoch that ends."""
        return {}


class Best:
    """The parameters of the least loss seen, over the same JUDGED samples each time."""

    def __init__(self, objective: Objective, data: Dataset, batch: int) -> None:
        self._objective, self._batch = objective, batch
        self._x = torch.from_numpy(data.x[:JUDGED])
        self._y = None if objective.targets is None else objective.targets[:JUDGED]
        self.loss = math.inf
        self.state: dict[str, Any] = {}

    def offer(self, net: TorchGraph) -> None:
        """Keep what `net` holds now if it is better."""
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(self._x), self._batch):
                part = slice(start, min(start + self._batch, len(self._x)))
                x, y = self._x[part], None if self._y is None else self._y[part]
                total += float(self._objective(x, y, part)) * len(x)
        if total / len(self._x) < self.loss or not self.state:
            self.loss = total / len(self._x)
            self.state = {name: tensor.clone() for name, tensor in net.state_dict().items()}


def run_epochs(
    objective: Objective,
    student: TorchGraph,
    optimizer: Any,
    data: Dataset,
    settings: Settings,
    progress: Progress,
    hooks: Sequence[Hook] = (),
    *,
    keep: Path | None = None,
    run: str = "",
    listener: Listener | None = None,
) -> None:
    """Train `student` in place. It ends with the best of its settled states: the start, and that after each epoch.

    `keep`: file that holds the run (named by `run`) after every epoch and that this goes on from. Raises UsageError for
    data that does not fit or a file of another run, UnsupportedModelError for a loss that is not finite.
    """
    check_samples(student, data)
    rates = [group["lr"] for group in optimizer.param_groups]
    x = torch.from_numpy(data.x)
    objective.remember(x, settings.batch)
    best = Best(objective, data, settings.batch)
    acting = torch.nn.ModuleList(hooks)
    done = checkpoint.load(keep, run, student, optimizer, best, acting) if keep is not None else 0
    if not done and all(hook.settled for hook in hooks):
        best.offer(student)
    batch = min(settings.batch, len(data))
    steps = len(data) // batch
    task = progress.start("training", settings.epochs * steps)
    progress.advance(task, done * steps)
    try:
        for epoch in range(done, settings.epochs):
            # The order hangs on seed and epoch alone, so a resumed run repeats it.
            dice = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
            order = torch.randperm(len(data), generator=dice)
            for hook in hooks:
                hook.begin(epoch)
            total = 0.0
            for step in range(steps):
                at = epoch * steps + step
                factor = schedule(at, settings.epochs * steps)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                picked = order[step * batch : (step + 1) * batch]
                loss = objective(x[picked], None if objective.targets is None else objective.targets[picked], picked)
                optimizer.zero_grad()
                loss.backward()
                for hook in hooks:
                    hook.before(at)
                optimizer.step()
                for hook in hooks:
                    hook.after(at)
                total += float(loss.detach())
                progress.advance(task)
            if not math.isfinite(total):
                raise UnsupportedModelError(f"training: the loss is not finite in epoch {epoch + 1}; lower the rate")
            if all(hook.settled for hook in hooks):
                best.offer(student)
            if keep is not None:
                checkpoint.save(keep, run, epoch + 1, student, optimizer, best, acting)
            if listener is not None:
                found = {name: value for hook in hooks for name, value in hook.figures().items()}
                listener(epoch + 1, {"loss": total / steps, **found})
    finally:
        progress.finish(task)
    if best.state:
        student.load_state_dict(best.state)


def check_samples(student: TorchGraph, data: Dataset) -> None:
    """Raise UsageError for samples that the network does not take."""
    sample = student.source.shape
    if sample is None or tuple(data.x.shape[1:]) != tuple(sample)[1:] or data.x.dtype.name != "float32":
        raise UsageError(
            f"training data {data.name}: samples are {data.x.dtype} {list(data.x.shape[1:])}, the model takes float32 "
            f"{list(sample or ())[1:]}"
        )


def schedule(step: int, steps: int) -> float:
    """Share of the full rate: a straight line up over the first WARM_UP of the steps, half a cosine down to 0."""
    rise = max(1, int(WARM_UP * steps))
    return min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / steps))


def weight_groups(net: TorchGraph, settings: Settings) -> list[dict[str, Any]]:
    """One group a tensor, so that Adam's step is the same share of every tensor."""
    groups = []
    for weights in net.weights:
        size = float(weights.detach().square().mean().sqrt())
        groups.append({"params": [weights], "lr": settings.rate * max(size, 1e-3)})
    return groups


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread while the block runs: sums in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
