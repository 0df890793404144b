#!/usr/bin/env python3
"""What quantization-aware training gains, against the float model and post-training quantization.

    tools/bench_finetune.py conv --sizes small,medium,large      4-bit weights, the example family
    tools/bench_finetune.py vit --model build/vit/vit.onnx       3-bit weights, a vision transformer (train_vit.py)
    tools/bench_finetune.py vit --start float --rate 0.01 --batch 128 --epochs 8 --annealing 0.375   as the papers begin
    tools/bench_finetune.py data --out build/fashion             the same data as files for `edgescale compile`

conv: top-1 on the 10,000 test images of the float model, its post-training form and the trained one (in ONNX Runtime),
how many of the trained network's own predictions the written file gives, seconds of training on one thread.

vit: learned scales (LSQ; `layer`: one a layer, as published) against statistic scales, annealing and query-key
reparameterization (OFQ), added one by one, at equal epochs, data, rates and distillation: changes of a weight's integer
per weight and epoch ("flips"), those that undo the change before ("oscillations"), in the last epoch and over the
epochs in which annealing acts. With --seeds N each case is trained N times (data and order drawn anew) and differences
are paired by seed. Narrow nets (`train_vit.py --width 8`) show most: in wide ones the falling rate calms LSQ as well.

data: writes train.npz and calibration.npz, cut from the train split, and test.npz, the whole test split, for
`edgescale compile MODEL --recipe w4a8-qat --train train.npz --calib calibration.npz --eval test.npz`.

Needs the extra `train` and the Debian package `dataset-fashion-mnist`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "fashion"
sys.path[:0] = [str(ROOT), str(ROOT / "compilers"), str(EXAMPLE), str(ROOT / "tools")]

try:
    import torch
    from bench_quantize import session
    from fashion_data import DEFAULT_DATA, load_split, to_input
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing.name} is not installed: pip install 'edgescale[train]'") from missing

from edgescale.core.dataset import Dataset  # noqa: E402
from edgescale.core.progress import SILENT  # noqa: E402
from edgescale.core.recipe import Recipe, parse_recipe, with_overrides  # noqa: E402
from edgescale.finetune import Settings  # noqa: E402
from edgescale.finetune.train import fit, one_thread, start  # noqa: E402
from edgescale.frontend import load_model, save_model  # noqa: E402
from edgescale.quantize import quantize  # noqa: E402
from edgescale.quantize.post_training import finish  # noqa: E402
from edgescale.quantize.rules import WEIGHTED, refusal  # noqa: E402


@dataclass(frozen=True)
class Data:
    """Calibration and training samples, and the test split."""

    calibration: Dataset
    train: Dataset
    test: np.ndarray
    labels: np.ndarray

    def accuracy(self, found: np.ndarray) -> float:
        """Top-1 of predicted classes, percent."""
        return 100 * float(np.mean(found == self.labels))


def load(folder: Path, images: int, seed: int) -> Data:
    """`images` of the train split drawn with `seed`, 512 more to calibrate, the whole test split."""
    x, y = load_split(folder, "train")
    order = np.random.default_rng(seed).permutation(len(y))
    picked, held = order[:images], order[-512:]
    test, labels = load_split(folder, "test")
    train = Dataset("train", np.ascontiguousarray(to_input(x[picked])), y[picked].astype(np.int64), f"{images}:{seed}")
    return Data(Dataset("held", to_input(x[held]), None, f"held:{seed}"), train, to_input(test), labels)


def predicted(model: Any, x: np.ndarray, folder: Path) -> np.ndarray:
    """Classes by ONNX Runtime."""
    path = folder / "measured.onnx"
    save_model(model, path)
    opened = session(path)
    name = opened.get_inputs()[0].name
    return np.concatenate([opened.run(None, {name: row[None]})[0] for row in x]).argmax(1)


@dataclass(frozen=True)
class Outcome:
    """A trained model: predictions of its file and of the network, what happened each epoch, seconds."""

    file: np.ndarray
    network: np.ndarray
    epochs: list[Mapping[str, float]]
    seconds: float


def run(source: Path, data: Data, recipe: Recipe, settings: Settings, folder: Path, *, watch: bool) -> Outcome:
    """Train, and run both the network and the file it becomes on the test split."""
    model, epochs, began = load_model(source), [], time.perf_counter()

    def listen(epoch: int, figures: Mapping[str, float]) -> None:
        epochs.append(dict(figures))
        print(f"  epoch {epoch}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)

    with one_thread():
        teacher, student = start(model, data.calibration, recipe, settings)
        fit(teacher, student, data.train, settings, SILENT, listener=listen if watch else None)
        seconds = time.perf_counter() - began
        output = student.model.graph.outputs[0]
        with torch.no_grad():
            rows = [student(torch.from_numpy(data.test[i : i + 250]))[output] for i in range(0, len(data.test), 250)]
        network = torch.cat(rows).argmax(1).numpy()
        made, stored = student.finished()
    return Outcome(predicted(finish(made, stored, recipe), data.test, folder), network, epochs, seconds)


def conv(options: argparse.Namespace, data: Data, folder: Path) -> None:
    """The example family under `--recipe`."""
    print(f"{'model':10}{'float':>8}{'PTQ':>8}{'QAT':>8}{'PTQ drop':>10}{'QAT drop':>10}{'file=net':>10}{'s':>7}")
    for size in options.sizes.split(","):
        source = EXAMPLE / f"fashion_{size}.onnx"
        model, recipe = load_model(source), parse_recipe(options.recipe)
        floating = data.accuracy(predicted(model.ir, data.test, folder))
        rounded = quantize(model, data.calibration, replace(recipe, rounding=""))
        ptq = data.accuracy(predicted(rounded, data.test, folder))
        made = run(source, data, recipe, settings_of(options), folder, watch=options.verbose)
        qat = data.accuracy(made.file)
        same = float(np.mean(made.file == made.network))
        print(
            f"{size:10}{floating:8.2f}{ptq:8.2f}{qat:8.2f}{floating - ptq:10.2f}{floating - qat:10.2f}{same:10.4f}"
            f"{made.seconds:7.0f}",
            flush=True,
        )


def vit(options: argparse.Namespace, data: Data, folder: Path) -> None:
    """LSQ and the parts of OFQ; first and last layer stay at 8 bits, as in the paper."""
    model = load_model(options.model)
    weighted = [str(n.name) for n in model.ir.graph if n.op_type in WEIGHTED and refusal(n) is None]
    recipe = with_overrides(parse_recipe(options.recipe), [f"{weighted[0]}=w8a8", f"{weighted[-1]}=w8a8"])
    base = replace(settings_of(options), annealing=0.0)
    calm = options.annealing
    cases = {
        "layer": ("LSQ, one step a layer", replace(base, scales="lsq")),
        "lsq": ("LSQ", replace(base, scales="lsq")),
        "statsq": ("StatsQ", replace(base, scales="statsq")),
        "cga": ("StatsQ, annealing", replace(base, scales="statsq", annealing=calm)),
        "ofq": ("OFQ: and query-key", replace(base, scales="statsq", annealing=calm)),
    }
    floating = data.accuracy(predicted(model.ir, data.test, folder))
    rounded = quantize(model, data.calibration, replace(recipe, rounding=""))
    ptq = data.accuracy(predicted(rounded, data.test, folder))
    print(f"float {floating:.2f}, {recipe} without training {ptq:.2f}", flush=True)
    last = max(1, replace(base, annealing=calm).annealed)
    head = f"{'':30}{'last epoch':>22}{f'last {last} epochs':>22}\n" + (
        f"{'':22}{'top-1':>8}{'flips':>11}{'oscill.':>11}{'flips':>11}{'oscill.':>11}{'file=net':>10}{'s':>7}"
    )
    found: dict[str, list[list[float]]] = {name: [] for name in options.cases.split(",")}
    for seed in range(options.seed, options.seed + options.seeds):
        sample = data if seed == options.seed else load(options.data, options.images, seed)
        for name in found:
            label, settings = cases[name]
            print(f"{label}, seed {seed}", flush=True)
            asked = replace(recipe, steps=("qkr",) if name == "ofq" else ())
            asked = replace(asked, group="tensor") if name == "layer" else asked
            made = run(options.model, sample, asked, replace(settings, seed=seed), folder, watch=True)
            tail = made.epochs[-last:]
            means = [float(np.mean([epoch[key] for epoch in tail])) for key in ("flips", "oscillations")]
            ends = [made.epochs[-1][key] for key in ("flips", "oscillations")]
            same = float(np.mean(made.file == made.network))
            found[name].append([sample.accuracy(made.file), *ends, *means, same, made.seconds])
    print(head)
    for name, rows in found.items():
        top, *rest, same, seconds = np.mean(rows, axis=0)
        print(f"{cases[name][0]:22}{top:8.2f}" + "".join(f"{v:11.4f}" for v in rest) + f"{same:10.4f}{seconds:7.0f}")
    first, *others = found
    for name in others if options.seeds > 1 else ():
        gain = np.subtract([row[0] for row in found[name]], [row[0] for row in found[first]])
        error = float(np.std(gain, ddof=1)) / len(gain) ** 0.5
        print(
            f"{cases[name][0]} over {cases[first][0]}: {gain.mean():+.3f} points, standard error {error:.3f}, "
            f"{len(gain)} seeds: {' '.join(f'{g:+.2f}' for g in gain)}"
        )


def write(options: argparse.Namespace, data: Data, folder: Path) -> None:
    """The data as .npz files."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name, x, y in (
        ("train", data.train.x, data.train.y),
        ("calibration", data.calibration.x, None),
        ("test", data.test, data.labels),
    ):
        np.savez(options.out / f"{name}.npz", **({"x": x} if y is None else {"x": x, "y": y}))
        print(f"{options.out / name}.npz: {len(x)} images{'' if y is None else ', labelled'}")


def settings_of(options: argparse.Namespace) -> Settings:
    """The defaults of training, with what the command line changes."""
    given = {
        name: getattr(options, name) for name in ("epochs", "batch", "rate", "annealing", "labels", "start", "seed")
    }
    return replace(Settings(), **{name: value for name, value in given.items() if value is not None}).checked()


def main() -> None:
    """Parse the command line and run one of the three."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["conv", "vit", "data"])
    parser.add_argument("--sizes", default="small,medium,large", help="conv: which of the family")
    parser.add_argument("--model", type=Path, default=ROOT / "build" / "vit" / "vit.onnx", help="vit: the float model")
    parser.add_argument("--cases", default="lsq,ofq", help="vit: of layer, lsq, statsq, cga, ofq")
    parser.add_argument("--recipe", help="default: w4a8-qat for conv, w3a8-qat for vit")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--images", type=int, default=20_000, help="training images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--annealing", type=float, default=Settings().annealing)
    parser.add_argument("--labels", type=float)
    parser.add_argument("--start", choices=["reconstructed", "float"], help="what the weights begin as")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="vit: means over so many seeds, from --seed on")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fashion", help="data: folder to write to")
    parser.add_argument("--verbose", action="store_true", help="conv: print each epoch (costs time for counting)")
    options = parser.parse_args()
    options.recipe = options.recipe or {"vit": "w3a8-qat"}.get(options.what, "w4a8-qat")
    work: dict[str, Callable[..., None]] = {"conv": conv, "vit": vit, "data": write}
    with tempfile.TemporaryDirectory() as folder:
        work[options.what](options, load(options.data, options.images, options.seed), Path(folder))


if __name__ == "__main__":
    main()
