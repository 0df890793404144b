"""Train the Fashion-MNIST example family and write it to ``examples/fashion``.

    python tools/train_fashion.py --size all

Training goes on where it stopped: after every epoch a checkpoint is written, and the same command
picks it up. With the same seed, epochs and thread count on the same machine an interrupted run ends
in the same weights as an uninterrupted one. The test split is read for the closing report only.

Needs the ``train`` extra (torch) and the Debian package ``dataset-fashion-mnist``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "fashion"
sys.path.insert(0, str(EXAMPLE))

try:
    import torch
    from fashion_data import (
        DEFAULT_DATA,
        DataMissingError,
        Images,
        Labels,
        load_split,
        stratified,
        to_input,
        write_subsets,
        write_whole,
    )
    from fashion_export import ExportError, accuracy, export
    from fashion_nets import SIZES, FashionNet, build, count_macs, count_parameters
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"{missing.name} is not installed: training needs the extra 'train' (pip install 'edgescale[train]')"
    ) from missing

EPOCHS = {"small": 40, "medium": 30, "large": 30}


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, besides the code and the machine."""

    size: str
    seed: int
    epochs: int
    threads: int
    hold_out: int
    """How many images of the train split are kept back for validation (0: train on all)."""
    batch: int = 128
    peak_rate: float = 0.2
    """Highest learning rate of the one-cycle schedule, reached after ``warm_up`` of the steps."""
    warm_up: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.05
    """Label smoothing: the share of the target spread evenly over the classes."""
    shift: int = 2
    """Pictures move by up to this many pixels each way."""

    @property
    def digest(self) -> str:
        """Twelve hex digits that stand for the recipe; they name its checkpoint."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class State:
    """A training run between two epochs."""

    net: FashionNet
    optimizer: torch.optim.SGD
    epoch: int = 0
    seconds: float = 0.0


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """One cycle: a straight line up to the peak, then half a cosine down to 0.1 % of it."""
    rise = max(1, int(recipe.warm_up * steps))
    if step < rise:
        return recipe.peak_rate * (0.05 + 0.95 * step / rise)
    done = (step - rise) / max(1, steps - rise)
    return recipe.peak_rate * (0.001 + 0.999 * (1 + math.cos(math.pi * done)) / 2)


def augment(padded: torch.Tensor, index: torch.Tensor, shift: int, dice: torch.Generator) -> torch.Tensor:
    """Pick a batch, each picture moved by up to ``shift`` pixels and mirrored half of the time.

    ``padded`` is uint8 ``[N, 28 + 2 * shift, 28 + 2 * shift]``, ``index`` int64 ``[B]``. Gives float32
    ``[B, 1, 28, 28]`` in ``[0, 1]``, the input range of the nets.
    """
    count = len(index)
    span = torch.arange(28)
    rows = span + torch.randint(0, 2 * shift + 1, (count, 1), generator=dice)
    columns = span + torch.randint(0, 2 * shift + 1, (count, 1), generator=dice)
    mirrored = torch.rand((count, 1), generator=dice) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picked = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return (picked.float() / 255.0).unsqueeze(1)


def start(recipe: Recipe, checkpoint: Path) -> State:
    """Set up a fresh run, or the one that ``checkpoint`` holds; a damaged file is a ``ClickException``."""
    torch.manual_seed(recipe.seed)
    net = build(recipe.size)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.peak_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    state = State(net, optimizer)
    if checkpoint.exists():
        try:
            saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
            if saved["recipe"] != asdict(recipe):
                raise ValueError("it belongs to other settings")
            net.load_state_dict(saved["net"])
            optimizer.load_state_dict(saved["optimizer"])
            state.epoch, state.seconds = int(saved["epoch"]), float(saved["seconds"])
        except Exception as error:  # torch raises many kinds for a damaged file
            raise click.ClickException(
                f"checkpoint {checkpoint} cannot be used ({error}); remove it to start over"
            ) from error
    return state


def save(state: State, recipe: Recipe, checkpoint: Path) -> None:
    """Write the checkpoint in one piece (temporary file, then rename)."""
    packed = io.BytesIO()
    torch.save(
        {
            "recipe": asdict(recipe),
            "net": state.net.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "epoch": state.epoch,
            "seconds": state.seconds,
        },
        packed,
    )
    write_whole(checkpoint, packed.getvalue())


def train(recipe: Recipe, images: Images, labels: Labels, checkpoint: Path, console: Console) -> State:
    """Train to the end of the recipe on ``images`` uint8 ``[N, 28, 28]`` and ``labels`` int64 ``[N]``."""
    state = start(recipe, checkpoint)
    if state.epoch == recipe.epochs:
        console.print(f"{recipe.size}: all {recipe.epochs} epochs are done, see {checkpoint.name}")
        return state
    if state.epoch:
        console.print(f"{recipe.size}: going on after epoch {state.epoch} of {recipe.epochs}")
    pad = recipe.shift
    padded = torch.from_numpy(np.pad(images, ((0, 0), (pad, pad), (pad, pad))))
    targets = torch.from_numpy(labels.copy())
    batches = len(labels) // recipe.batch  # the rest of each epoch's order is left out
    steps = batches * recipe.epochs
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} batches"),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        task = progress.add_task(recipe.size, total=steps, completed=state.epoch * batches)
        while state.epoch < recipe.epochs:
            began = time.perf_counter()
            # order and augmentation hang on seed and epoch alone, so a resumed run repeats them
            dice = torch.Generator().manual_seed(recipe.seed * 100_003 + state.epoch)
            order = torch.randperm(len(labels), generator=dice)
            state.net.train()
            loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
            for batch in range(batches):
                index = order[batch * recipe.batch : (batch + 1) * recipe.batch]
                rate = learning_rate(recipe, state.epoch * batches + batch, steps)
                for group in state.optimizer.param_groups:
                    group["lr"] = rate
                logits = state.net(augment(padded, index, recipe.shift, dice))
                loss = criterion(logits, targets[index])
                state.optimizer.zero_grad()
                loss.backward()
                state.optimizer.step()
                loss_sum += loss.detach()
                right += (logits.detach().argmax(1) == targets[index]).sum()
                progress.advance(task)
            if not math.isfinite(float(loss_sum)):
                raise click.ClickException(f"{recipe.size}: loss not finite in epoch {state.epoch + 1}")
            state.epoch += 1
            state.seconds += time.perf_counter() - began
            save(state, recipe, checkpoint)
            loss_mean, share = float(loss_sum) / batches, int(right) / (batches * recipe.batch)
            console.print(
                f"{recipe.size}: epoch {state.epoch}/{recipe.epochs}, loss {loss_mean:.4f}, "
                f"accuracy in training {share:.2%}, {state.seconds:.0f} s so far"
            )
    return state


def torch_accuracy(net: FashionNet, images: Images, labels: Labels) -> float:
    """Share of ``images`` (uint8 ``[N, 28, 28]``) that ``net`` classifies as labelled, from 0 to 1."""
    net.eval()
    right = 0
    with torch.no_grad():
        for first in range(0, len(labels), 500):
            logits = net(torch.from_numpy(to_input(images[first : first + 500])))
            right += int((logits.argmax(1).numpy() == labels[first : first + 500]).sum())
    return right / len(labels)


def produce(recipe: Recipe, data: Path, out: Path, checkpoints: Path, console: Console) -> None:
    """Train one net; then report it on the held-out images, or, with none, export it and test it in full."""
    images, labels = load_split(data, "train")
    kept = np.ones(len(labels), dtype=bool)
    if recipe.hold_out:
        kept[stratified(labels, recipe.hold_out, recipe.seed)] = False
    checkpoint = checkpoints / f"fashion-{recipe.size}-{recipe.digest}.pt"
    state = train(recipe, images[kept], labels[kept], checkpoint, console)
    facts = f"{count_parameters(state.net):,} parameters, {count_macs(state.net):,} MACs"
    if recipe.hold_out:
        found = torch_accuracy(state.net, images[~kept], labels[~kept])
        console.print(f"{recipe.size}: {facts}, {found:.2%} of {recipe.hold_out:,} held-out images")
        return
    path = out / f"fashion_{recipe.size}.onnx"
    difference = export(state.net, path, images[:256])
    found = accuracy(path, *load_split(data, "test"))
    console.print(
        f"{recipe.size}: {facts}, {found:.2%} of the 10,000 test images, trained in {state.seconds:.0f} s, "
        f"ONNX Runtime within {difference:.1e} of torch, written to {path.name}"
    )


@click.command(help=(__doc__ or "").split("\n\n", 1)[0])
@click.option("--size", type=click.Choice(["all", *SIZES]), default="all", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True)
@click.option("--epochs", type=click.IntRange(1, 1000), help="Default: small 40, medium 30, large 30.")
@click.option("--data", type=click.Path(path_type=Path), default=DEFAULT_DATA, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=EXAMPLE, help="Default: examples/fashion.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=ROOT / "build" / "train-fashion",
    help="Where runs are kept between calls. Default: build/train-fashion.",
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option(
    "--hold-out",
    type=click.IntRange(0, 30_000),
    default=0,
    help="Keep this many images of the train split back and report on them; nothing is exported.",
)
def main(
    size: str,
    seed: int,
    epochs: int | None,
    data: Path,
    out: Path,
    checkpoints: Path,
    threads: int,
    hold_out: int,
) -> None:
    """Run the command line."""
    console = Console(highlight=False)
    torch.set_num_threads(threads)
    try:
        if not hold_out:
            for path in write_subsets(data, out, seed):
                console.print(f"written: {path.name}, {path.stat().st_size / 2**20:.2f} MiB")
        for one in SIZES if size == "all" else (size,):
            recipe = Recipe(one, seed, epochs or EPOCHS[one], threads, hold_out)
            produce(recipe, data, out, checkpoints, console)
    except (DataMissingError, ExportError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on after the last whole epoch")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
