"""Serving a bundle from the workstation: through the run-time session, or on the emulated device."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgescale.bundle import Bundle, EntryRecord, open_bundle
from edgescale.bundle.policy import decide
from edgescale.core.budget import parse_budget
from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.model import TensorSpec
from edgescale.core.quantity import Quantity
from edgescale.core.target import Target, load_target
from edgescale.core.variant import Artifact
from edgescale.frontend import load_dataset
from edgescale.rigs.units import output_units, real_values
from edgescale.runtime import BudgetWarning, Session


@dataclass(frozen=True)
class Served:
    """Real outputs [n, ...] of the variant a budget chose; `figures` are the bundle's, `observed` this run's."""

    target: str
    variant: str
    met: bool
    reason: str
    figures: Mapping[str, Quantity]
    observed: Mapping[str, Quantity]
    outputs: npt.NDArray[np.generic]


def serve(path: Path, target: str | None, budget: str | None, source: str, count: int | None) -> tuple[Served, Dataset]:
    """Run samples of `source` through the bundle at `path`; see `edgescale run`."""
    bundle = open_bundle(path)
    name = _target_name(bundle, target)
    kinds = {entry.kind for entry in bundle.entries_for(name)}
    if "onnx" in kinds:
        return _serve_here(path, name, budget, source, count)
    return _serve_emulated(bundle, name, target, budget, source, count)


def entry_artifact(bundle: Bundle, entry: EntryRecord) -> Artifact:
    """A bundle's entry as the rigs take it."""
    path = bundle.artifact_path(entry)
    meta = json.loads((path / "artifact.json").read_text())
    return Artifact(entry.variant, entry.target, entry.backend, entry.kind, path, entry.artifact_sha256, meta)


def entry_target(bundle: Bundle, entry: EntryRecord, given: str | None) -> Target:
    """The profile an entry was made for. Raises UsageError where the profile has changed since."""
    target = load_target(given if given and given.endswith(".toml") else entry.target)
    record = next(t for t in bundle.manifest.targets if t.name == entry.target)
    if target.sha256 != record.profile_sha256:
        raise UsageError(
            f"the profile {entry.target} differs from the one the bundle was made with; compile the bundle again, "
            "or give the path of the original profile with --target"
        )
    return target


def _target_name(bundle: Bundle, wanted: str | None) -> str:
    names = bundle.target_names()
    if wanted is not None:
        return load_target(wanted).name if wanted.endswith(".toml") else wanted
    runnable = [n for n in names if any(e.kind == "onnx" for e in bundle.entries_for(n))]
    return (runnable or list(names))[0]


def _serve_here(path: Path, target: str, budget: str | None, source: str, count: int | None) -> tuple[Served, Dataset]:
    with Session(path, target) as session, warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)  # The result says so itself.
        entry = session.bundle.entry(session.choose(budget).entry)
        assert entry.onnx is not None  # A session only chooses entries ONNX Runtime can run.
        specs = tuple(TensorSpec(port.name, port.shape, port.dtype) for port in entry.onnx.inputs)
        dataset = _dataset(source, specs, count)
        result = session.run(dataset.fed(), budget)
        model = session.bundle.artifact_path(entry) / entry.onnx.file
    observed = {"latency": result.observed}
    outputs = real_values(result.output, output_units(model))
    served = Served(target, result.variant, result.met, result.reason, result.figures, observed, outputs)
    return served, dataset


def _serve_emulated(
    bundle: Bundle, name: str, given: str | None, budget: str | None, source: str, count: int | None
) -> tuple[Served, Dataset]:
    from edgescale.rigs import get_rig

    entries = {e.id: e for e in bundle.entries_for(name)}
    figures = {entry_id: e.quantities() for entry_id, e in entries.items()}
    policy = bundle.policy(name)
    if budget is None:
        chosen, met, reason = policy.default, True, "the bundle's default"
    else:
        decision = decide(figures, policy.fallback, parse_budget(budget))
        chosen, met, reason = decision.name, decision.met, decision.reason
    entry = entries[chosen]
    artifact = entry_artifact(bundle, entry)
    port = artifact.meta["inputs"][0]
    dataset = _dataset(
        source, (TensorSpec(port["name"], tuple(port["shape"]), port.get("value_dtype", "float32")),), count
    )
    target = entry_target(bundle, entry, given)
    outputs = get_rig(target.rig).executor(artifact, target)(dataset.x)
    return Served(name, entry.variant, met, reason, figures[chosen], {}, outputs), dataset


def _dataset(source: str, specs: tuple[TensorSpec, ...], count: int | None) -> Dataset:
    dataset = load_dataset(source, specs)
    return dataset if count is None else dataset.head(count)
