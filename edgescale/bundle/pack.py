"""Writing a bundle: artifacts, their figures and the policy, as one directory that appears whole or not at all."""

from __future__ import annotations

import errno
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgescale.bundle.manifest import (
    FORMAT,
    MANIFEST_NAME,
    SCHEMA,
    SUMS_NAME,
    BundleError,
    DatasetRecord,
    DiagnosisFile,
    DiagnosisRecord,
    EntryRecord,
    FileRecord,
    LayerFile,
    LayerRecord,
    Manifest,
    MetricRecord,
    PolicyRecord,
    PolicyRow,
    Record,
    decode_manifest,
    encode,
    is_manifest,
    sums_text,
)
from edgescale.bundle.options import Answers, build_policy
from edgescale.bundle.policy import preference, smallest
from edgescale.bundle.reader import open_bundle
from edgescale.bundle.records import figures_of, onnx_record, recipe_record, target_record, verdict_record
from edgescale.control.policy import encode_policy
from edgescale.core.budget import BUDGET_METRICS, Budget, Budgets
from edgescale.core.errors import EdgescaleError, UsageError
from edgescale.core.files import sha256_file, sha256_tree, whole_directory
from edgescale.core.quantity import format_value
from edgescale.core.recipe import SIMULATED

if TYPE_CHECKING:
    from edgescale.core.measurement import Measurement
    from edgescale.core.target import Target
    from edgescale.core.variant import Artifact, Variant


@dataclass(frozen=True)
class Entry:
    """A variant compiled for a target, with its figures and what the selection says of it.

    `selected` marks the target's choice under the budget (at most one a target; with an infeasible
    budget, the nearest attempt), `pareto` a member of its non-dominated set.
    """

    variant: Variant
    target: Target
    artifact: Artifact
    measurement: Measurement
    pareto: bool = False
    selected: bool = False
    answers: Answers | None = None
    """A classifier's answers on the evaluation data, from which cascades are made."""


@dataclass(frozen=True)
class Context:
    """What the bundle as a whole was made from.

    `command` reproduces it; `metric` is the evaluation metric's name; `tools` maps a tool to its
    version (see `tool_versions`); `views` are those of the answers (see `runtime.views`); `created_utc` is ISO 8601, by
    default the present second.
    """

    command: str
    budgets: Budgets = field(default_factory=Budgets)
    metric: str | None = None
    direction: Literal["max", "min"] = "max"
    datasets: Sequence[DatasetRecord] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    views: Sequence[str] = ()
    created_utc: str | None = None


TOOLS = ("edgescale", "numpy", "onnx", "onnx-ir", "onnxruntime", "scipy", "msgspec", "ziglang", "unicorn", "capstone")


def tool_versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that shape a bundle; absent ones are left out."""
    import platform
    from importlib import metadata

    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def check_destination(out: Path) -> None:
    """Raise UsageError unless `out` is free, an empty directory, or an old bundle that may be replaced.

    Cheap, so that a long run can ask before it starts. An old bundle to which files were added is
    not replaced: they would be lost.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"cannot write a bundle to {out}: it is a file; give the name of a directory")
    if next(out.iterdir(), None) is None:
        return
    manifest = out / MANIFEST_NAME
    data = manifest.read_bytes() if manifest.is_file() else b""
    if not is_manifest(data):
        raise UsageError(f"{out} exists and is not an edgescale bundle; it is left as it is: choose another directory")
    try:
        listed = {file.path for file in decode_manifest(data, str(manifest)).all_files()}
    except BundleError:
        return  # A bundle of another schema, or a damaged one: nothing says which files are its own.
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}
    extra = sorted(present - listed - {MANIFEST_NAME, SUMS_NAME})
    if extra:
        raise UsageError(
            f"the bundle {out} holds files that are not its own ({', '.join(extra[:5])}) and would be lost: "
            "move them away or choose another directory"
        )


def write_bundle(out: Path, entries: Sequence[Entry], context: Context) -> Path:
    """Write `entries` as the bundle directory `out` and return its path.

    An old bundle in its place is replaced at the end, in one rename; on any failure `out` is as
    before. Equal entries and context give equal bytes, `created_utc` apart. Raises UsageError (see
    `check_destination`, no entries, two entries alike), EdgescaleError (no space, no permission, an
    artifact that changed after it was measured).
    """
    if not entries:
        raise UsageError("a bundle needs at least one entry")
    out = Path(out).resolve()
    try:
        check_destination(out)
        with whole_directory(out) as directory:
            _fill(directory, entries, context)
            open_bundle(directory)  # What is written can be read: its form, its references, every hash.
    except OSError as error:
        raise EdgescaleError(_os_message(out, entries, error)) from None
    return out


def _fill(directory: Path, entries: Sequence[Entry], context: Context) -> None:
    ids = _entry_ids(entries)
    records = tuple(
        _write_entry(directory, entry, name, context.budgets.of(entry.target.name))
        for name, entry in zip(ids, entries, strict=True)
    )
    answers = {n: e.answers for n, e in zip(ids, entries, strict=True) if e.answers is not None}
    given = (context.metric or "", answers, context.views)
    manifest = Manifest(
        format=FORMAT,
        schema=SCHEMA,
        created_utc=context.created_utc or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=context.command,
        tools=dict(context.tools),
        metric=None if context.metric is None else MetricRecord(name=context.metric, direction=context.direction),
        datasets=tuple(context.datasets),
        targets=tuple(target_record(target) for target in {e.target.name: e.target for e in entries}.values()),
        entries=records,
        policies=tuple(
            _policy(name, records, str(context.budgets.of(name)), _write_controller(directory, name, records, given))
            for name in dict.fromkeys(e.target.name for e in entries)
        ),
    )
    manifest_path = directory / MANIFEST_NAME
    manifest_path.write_bytes(encode(manifest))
    (directory / SUMS_NAME).write_text(sums_text(manifest, sha256_file(manifest_path)), encoding="utf-8")


def _entry_ids(entries: Sequence[Entry]) -> list[str]:
    """`<variant>@<target>`, with `:<backend>` where two back ends compiled the same pair."""
    plain = [f"{entry.variant.name}@{entry.target.name}" for entry in entries]
    count = Counter(plain)
    ids = [
        name if count[name] == 1 else f"{name}:{entry.artifact.backend}"
        for name, entry in zip(plain, entries, strict=True)
    ]
    folders = Counter(_folder(name) for name in ids)
    for name in ids:
        if folders[_folder(name)] > 1:
            raise UsageError(
                f"two entries of the bundle would be called {name}; give models and targets distinct names"
            )
    return ids


def _folder(entry_id: str) -> str:
    """The id as the name of a folder, valid on every file system."""
    return re.sub(r"[^A-Za-z0-9_.@+-]", "_", entry_id).lstrip(".") or "_"


def _write_entry(directory: Path, entry: Entry, name: str, budget: Budget) -> EntryRecord:
    artifact, measurement = entry.artifact, entry.measurement
    if measurement.artifact_sha256 != artifact.sha256 or artifact.variant != entry.variant.name:
        raise EdgescaleError(f"{name}: the figures were measured on another artifact; profile it again")
    folder = f"artifacts/{_folder(name)}"
    files = _copy_tree(artifact.path, directory, folder)
    if sha256_tree(directory / folder) != artifact.sha256:
        raise EdgescaleError(f"{name}: the artifact in {artifact.path} changed after it was measured; compile it again")
    figures, broken = figures_of(measurement.metrics, artifact.sha256)
    quantities = {metric: figure.quantity() for metric, figure in figures.items()}
    return EntryRecord(
        id=name,
        variant=entry.variant.name,
        model=entry.variant.model,
        recipe=recipe_record(entry.variant),
        variant_sha256=entry.variant.sha256,
        target=entry.target.name,
        backend=artifact.backend,
        kind=artifact.kind,
        path=folder,
        artifact_sha256=artifact.sha256,
        files=files,
        rig=measurement.rig,
        figures=figures,
        unavailable={**measurement.unavailable, **broken},
        environment={key: str(value) for key, value in measurement.environment.items()},
        verdict=verdict_record(budget, quantities),
        pareto=entry.pareto,
        selected=entry.selected,
        onnx=onnx_record(artifact) if artifact.kind == "onnx" else None,
        layers=_write_layers(directory, name, artifact.sha256, measurement),
        diagnosis=_write_diagnosis(directory, name, entry.variant),
    )


def _write_layers(directory: Path, name: str, artifact_sha256: str, measurement: Measurement) -> FileRecord | None:
    if not measurement.layers:
        return None
    layers = tuple(
        LayerRecord(
            name=layer.name,
            op=layer.op,
            macs=int(layer.macs),
            kernel=layer.kernel,
            metrics=figures_of(layer.metrics, artifact_sha256)[0],
        )
        for layer in measurement.layers
    )
    content: Record = LayerFile(entry=name, artifact_sha256=artifact_sha256, layers=layers)
    path = directory / "layers" / f"{_folder(name)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode(content))
    return _file_record(directory, path)


def _write_diagnosis(directory: Path, name: str, variant: Variant) -> FileRecord | None:
    if not variant.diagnosis:
        return None
    layers = tuple(DiagnosisRecord(**vars(layer)) for layer in variant.diagnosis)
    content: Record = DiagnosisFile(variant=variant.name, variant_sha256=variant.sha256, layers=layers)
    path = directory / "diagnosis" / f"{_folder(name)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode(content))
    return _file_record(directory, path)


def _write_controller(
    directory: Path,
    target: str,
    records: Sequence[EntryRecord],
    given: tuple[str, Mapping[str, Answers], Sequence[str]],
) -> FileRecord | None:
    """`policies/<target>.json` for the run-time controller; `given`: the metric, the answers by entry, the views."""
    policy = build_policy(target, given[0], [r for r in records if r.target == target], *given[1:])
    if policy is None:
        return None
    path = directory / "policies" / f"{_folder(target)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_policy(policy))
    return _file_record(directory, path)


def _policy(target: str, records: Sequence[EntryRecord], budget: str, controller: FileRecord | None) -> PolicyRecord:
    mine = {record.id: record for record in records if record.target == target}
    figures = {name: record.quantities() for name, record in mine.items()}
    # What no back end executes comes last.
    order = sorted(mine, key=lambda n: (mine[n].recipe.name.endswith(SIMULATED), preference(figures[n], n)))
    selected = [name for name in order if mine[name].selected]
    if len(selected) > 1:
        raise UsageError(f"target {target}: {' and '.join(selected)} are both marked as selected")
    rows = tuple(
        PolicyRow(
            entry=name,
            figures={m: figures[name][m].value for m in BUDGET_METRICS if m in figures[name]},
        )
        for name in order
    )
    default = (selected or order)[0]
    last = smallest(figures)
    return PolicyRecord(target=target, budget=budget, rows=rows, default=default, fallback=last, controller=controller)


def _copy_tree(source: Path, directory: Path, folder: str) -> tuple[FileRecord, ...]:
    """Copy the contents of `source` (links followed, modes and times not kept) and list them."""
    if not source.is_dir():
        raise EdgescaleError(f"the artifact {source} is gone; compile it again")
    records = []
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        copy = directory / folder / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        records.append(_file_record(directory, copy))
    return tuple(records)


def _file_record(directory: Path, path: Path) -> FileRecord:
    return FileRecord(path=path.relative_to(directory).as_posix(), sha256=sha256_file(path), bytes=path.stat().st_size)


def _os_message(out: Path, entries: Sequence[Entry], error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        size = sum(p.stat().st_size for e in entries for p in e.artifact.path.rglob("*") if p.is_file())
        return (
            f"no space left to write the bundle {out} (its artifacts take {format_value(size, 'B')}); nothing was "
            "written. Free some space or choose another place"
        )
    return f"cannot write the bundle {out}: {error.strerror or error}"
