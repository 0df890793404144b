"""The bundle's manifest: what `manifest.json` holds, as types, and its JSON schema.

A bundle is a directory: `manifest.json`, `SHA256SUMS` (readable by `sha256sum -c`), one folder of
files an artifact under `artifacts/`, and the figures of single layers under `layers/`. Every figure
carries its source and the hash of the artifact it belongs to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgescale.core.errors import EdgescaleError
from edgescale.core.quantity import Quantity, Source

FORMAT: Literal["edgescale-bundle"] = "edgescale-bundle"
SCHEMA: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"


class BundleError(EdgescaleError):
    """A bundle that cannot be used: damaged, incomplete, or written by another edgescale."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every part of the manifest: immutable, and an unknown key is an error."""


class FileRecord(Record, frozen=True, kw_only=True):
    """A file of the bundle; `path` is relative to the bundle, with forward slashes."""

    path: str
    sha256: str
    bytes: int


class Figure(Record, frozen=True, kw_only=True):
    """A number with its canonical unit (ms, B, uJ, 1), its source and the artifact it was obtained from."""

    value: float
    unit: str
    source: Source
    artifact_sha256: str
    note: str = ""

    def quantity(self) -> Quantity:
        """The figure as the rest of edgescale speaks of it."""
        return Quantity(self.value, self.unit, self.source, self.note)


class LayerRecord(Record, frozen=True, kw_only=True):
    """Cost of one layer; `name` is the node's name in the model the user gave."""

    name: str
    op: str
    macs: int
    kernel: str
    metrics: dict[str, Figure]


class LayerFile(Record, frozen=True, kw_only=True):
    """Content of `layers/<entry>.json`; `layers` in run order."""

    entry: str
    artifact_sha256: str
    layers: tuple[LayerRecord, ...]


class DiagnosisRecord(Record, frozen=True, kw_only=True):
    """What quantizing one layer alone does to the output; see `core.variant.LayerDiagnosis` for the fields."""

    name: str
    op: str
    loss: float
    share: float
    changed: float
    causes: tuple[str, ...]
    verdict: str
    override: str


class DiagnosisFile(Record, frozen=True, kw_only=True):
    """Content of `diagnosis/<entry>.json`; `layers` with the one that costs most accuracy first."""

    variant: str
    variant_sha256: str
    layers: tuple[DiagnosisRecord, ...]


class Limit(Record, frozen=True, kw_only=True):
    """A limit of the budget an entry misses; `value` is None where the entry has no such figure."""

    metric: str
    relation: Literal["<=", ">="]
    limit: float
    unit: str
    value: float | None


class VerdictRecord(Record, frozen=True, kw_only=True):
    """Whether an entry met the budget the bundle was made for."""

    feasible: bool
    unmet: tuple[Limit, ...]


class TensorRecord(Record, frozen=True, kw_only=True):
    """An input or output of an ONNX artifact: shape (batch 1 first, -1 for any size) and NumPy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class OnnxRecord(Record, frozen=True, kw_only=True):
    """How ONNX Runtime opens an artifact of kind "onnx": the file and the session options it was measured with."""

    file: str
    session: dict[str, Any]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]


class RecipeRecord(Record, frozen=True, kw_only=True):
    """How the variant was compressed; `name` is the short form (`fp32`, `w8a8`).

    `overrides`: rules for single layers as the command line takes them; `simulated`: why no back
    end executes it, or "".
    """

    name: str
    weight_bits: int
    activation_bits: int
    observer: str
    percentile: float
    overrides: tuple[str, ...]
    simulated: str


class EntryRecord(Record, frozen=True, kw_only=True):
    """One variant compiled for one target.

    `path` is the artifact's folder; `artifact_sha256` covers that folder as `core.files.sha256_tree`
    does; `unavailable` maps a metric to the reason it is missing.
    """

    id: str
    variant: str
    model: str
    recipe: RecipeRecord
    variant_sha256: str
    target: str
    backend: str
    kind: str
    path: str
    artifact_sha256: str
    files: tuple[FileRecord, ...]
    rig: str
    figures: dict[str, Figure]
    unavailable: dict[str, str]
    environment: dict[str, str]
    verdict: VerdictRecord
    pareto: bool
    selected: bool
    onnx: OnnxRecord | None = None
    layers: FileRecord | None = None
    diagnosis: FileRecord | None = None

    def quantities(self) -> dict[str, Quantity]:
        """The figures of the whole artifact, by metric."""
        return {metric: figure.quantity() for metric, figure in self.figures.items()}


class TargetRecord(Record, frozen=True, kw_only=True):
    """A device: `profile_sha256` is the hash of its TOML file."""

    name: str
    title: str
    cpu: str
    clock_hz: int
    profile_sha256: str


class PolicyRow(Record, frozen=True, kw_only=True):
    """An entry with the figures a device decides by, in canonical units."""

    entry: str
    figures: dict[str, float]


class PolicyRecord(Record, frozen=True, kw_only=True):
    """A target's table: rows best first; without a budget `default` runs, when nothing fits `fallback`.

    `budget` is the text of the limits the default was chosen by. `controller`: the policy of the run-time
    controller, where there are figures for one.
    """

    target: str
    budget: str
    rows: tuple[PolicyRow, ...]
    default: str
    fallback: str
    controller: FileRecord | None = None


class MetricRecord(Record, frozen=True, kw_only=True):
    """The evaluation metric: its own name (top1, auc, mse, ...) and which way is better."""

    name: str
    direction: Literal["max", "min"]


class DatasetRecord(Record, frozen=True, kw_only=True):
    """Data that shaped the bundle: its role ("calibration", "evaluation"), hash and, where known, size."""

    role: str
    name: str
    sha256: str
    samples: int | None = None


class Manifest(Record, frozen=True, kw_only=True):
    """Content of `manifest.json`. `created_utc` is ISO 8601; all else depends on the inputs alone."""

    format: Literal["edgescale-bundle"]
    schema: Literal[1]
    created_utc: str
    command: str
    tools: dict[str, str]
    metric: MetricRecord | None
    datasets: tuple[DatasetRecord, ...]
    targets: tuple[TargetRecord, ...]
    entries: tuple[EntryRecord, ...]
    policies: tuple[PolicyRecord, ...]

    def all_files(self) -> tuple[FileRecord, ...]:
        """Every file the bundle holds besides the manifest and its checksum list, sorted by path."""
        files = [file for entry in self.entries for file in entry.files]
        files += [entry.layers for entry in self.entries if entry.layers is not None]
        files += [entry.diagnosis for entry in self.entries if entry.diagnosis is not None]
        files += [policy.controller for policy in self.policies if policy.controller is not None]
        return tuple(sorted(files, key=lambda file: file.path))


class _Header(msgspec.Struct):
    format: Any = None
    schema: Any = None


def encode(record: Record) -> bytes:
    """Indented JSON with sorted maps: equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=1) + b"\n"


def is_manifest(data: bytes) -> bool:
    """Whether `data` is the manifest of a bundle, of whatever schema version."""
    try:
        return bool(msgspec.json.decode(data, type=_Header).format == FORMAT)
    except (msgspec.MsgspecError, RecursionError):
        return False


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Parse and check the form of a manifest. Raises BundleError naming `where` and the wrong part."""
    try:
        header = msgspec.json.decode(data, type=_Header)
        if header.format != FORMAT:
            raise BundleError(f"{where} is not the manifest of an edgescale bundle")
        if header.schema != SCHEMA:
            newer = isinstance(header.schema, int) and header.schema > SCHEMA
            hint = "install a newer edgescale" if newer else "make the bundle again with this edgescale"
            raise BundleError(f"{where} has schema {header.schema}, this edgescale reads schema {SCHEMA}: {hint}")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{where} is damaged: {error}") from None


def decode_layers(data: bytes, where: str) -> LayerFile:
    """Parse `layers/<entry>.json`. Raises BundleError."""
    try:
        return msgspec.json.decode(data, type=LayerFile)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{where} is damaged: {error}") from None


def decode_diagnosis(data: bytes, where: str) -> DiagnosisFile:
    """Parse `diagnosis/<entry>.json`. Raises BundleError."""
    try:
        return msgspec.json.decode(data, type=DiagnosisFile)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{where} is damaged: {error}") from None


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `manifest.json`."""
    schema = msgspec.json.schema(Manifest)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"{FORMAT} {SCHEMA}", **schema}


def write_manifest_schema(path: Path) -> None:
    """Write `manifest_schema()` as JSON, for readers in other languages."""
    from edgescale.core.files import write_whole

    write_whole(path, msgspec.json.format(msgspec.json.encode(manifest_schema()), indent=1) + b"\n")


def sums_text(manifest: Manifest, manifest_sha256: str) -> str:
    """Content of `SHA256SUMS`: the manifest and every file, in the form `sha256sum -c` reads."""
    lines = [f"{manifest_sha256}  {MANIFEST_NAME}"]
    lines += [f"{file.sha256}  {file.path}" for file in manifest.all_files()]
    return "\n".join(lines) + "\n"


_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")


def is_safe_path(path: str) -> bool:
    """Whether a bundle may name this path: relative, forward slashes, no `.` or `..`, no control characters."""
    parts = path.split("/")
    return not _UNSAFE.search(path) and all(part not in ("", ".", "..") for part in parts)
