"""Opening a bundle: form, file list and every hash are checked before anything in it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from edgescale.bundle.manifest import (
    MANIFEST_NAME,
    SUMS_NAME,
    BundleError,
    DiagnosisRecord,
    EntryRecord,
    FileRecord,
    LayerRecord,
    Manifest,
    PolicyRecord,
    decode_diagnosis,
    decode_layers,
    decode_manifest,
    is_safe_path,
    sums_text,
)
from edgescale.control.policy import Policy, decode_policy
from edgescale.core.budget import parse_budget
from edgescale.core.errors import UsageError
from edgescale.core.files import sha256_file, sha256_listing
from edgescale.core.measurement import METRIC_UNITS


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `path` is its directory, `sha256` the hash of its manifest, which names all the rest."""

    path: Path
    manifest: Manifest
    sha256: str

    def entry(self, entry_id: str) -> EntryRecord:
        """The entry called `entry_id`. Raises UsageError naming those that exist."""
        for entry in self.manifest.entries:
            if entry.id == entry_id:
                return entry
        known = ", ".join(entry.id for entry in self.manifest.entries)
        raise UsageError(f"the bundle {self.path} has no entry {entry_id!r}; it holds: {known}")

    def target_names(self) -> tuple[str, ...]:
        """Names of the targets the bundle serves, in the order they were asked for."""
        return tuple(target.name for target in self.manifest.targets)

    def entries_for(self, target: str) -> tuple[EntryRecord, ...]:
        """A target's entries, best first. Raises UsageError for a target the bundle does not serve."""
        return tuple(self.entry(row.entry) for row in self.policy(target).rows)

    def policy(self, target: str) -> PolicyRecord:
        """A target's policy table. Raises UsageError for a target the bundle does not serve."""
        for policy in self.manifest.policies:
            if policy.target == target:
                return policy
        known = ", ".join(self.target_names())
        raise UsageError(f"the bundle {self.path} has nothing for target {target!r}; it serves: {known}")

    def controller_policy(self, target: str) -> Policy:
        """The run-time controller's policy of a target. Raises UsageError where the bundle has none, BundleError."""
        record = self.policy(target).controller
        if record is None:
            raise UsageError(
                f"the bundle {self.path} has no policy for the controller on {target}: it needs a latency and a "
                "quality of the variants; compile with --eval"
            )
        where = self.path / record.path
        try:
            policy = decode_policy(where.read_bytes(), str(where))
        except OSError as error:
            raise BundleError(f"cannot read {where}: {error.strerror}") from None
        for variant in policy.variants:
            if variant.name not in {row.entry for row in self.policy(target).rows}:
                raise BundleError(f"{where} names {variant.name}, which is no entry of {target}")
        return policy

    def artifact_path(self, entry: EntryRecord) -> Path:
        """Directory of an entry's artifact."""
        return self.path / entry.path

    def layers(self, entry: EntryRecord) -> tuple[LayerRecord, ...]:
        """Figures of the entry's layers in run order; empty where the rig gave none. Raises BundleError."""
        if entry.layers is None:
            return ()
        where = self.path / entry.layers.path
        try:
            content = decode_layers(where.read_bytes(), str(where))
        except OSError as error:
            raise BundleError(f"cannot read {where}: {error.strerror}") from None
        if content.entry != entry.id or content.artifact_sha256 != entry.artifact_sha256:
            raise BundleError(f"{where} holds the layers of another artifact ({content.entry})")
        return content.layers

    def diagnosis(self, entry: EntryRecord) -> tuple[DiagnosisRecord, ...]:
        """What each layer costs in quality, worst first; empty where nothing was quantized here. Raises BundleError."""
        if entry.diagnosis is None:
            return ()
        where = self.path / entry.diagnosis.path
        try:
            content = decode_diagnosis(where.read_bytes(), str(where))
        except OSError as error:
            raise BundleError(f"cannot read {where}: {error.strerror}") from None
        if content.variant_sha256 != entry.variant_sha256:
            raise BundleError(f"{where} holds the diagnosis of another variant ({content.variant})")
        return content.layers


def open_bundle(path: Path, verify: bool = True) -> Bundle:
    """Open the bundle in directory `path`.

    The manifest's form and its inner consistency are always checked, paths that leave the bundle
    always refused. `verify` also checks that exactly the listed files exist with the listed SHA-256.
    Raises UsageError where there is no bundle, BundleError naming what is changed, missing or extra.
    """
    path = Path(path)
    manifest_path = path / MANIFEST_NAME
    if not path.exists():
        raise UsageError(f"there is no bundle at {path}")
    if not manifest_path.is_file():
        raise UsageError(f"{path} is not an edgescale bundle: it has no {MANIFEST_NAME}")
    try:
        data = manifest_path.read_bytes()
        manifest = decode_manifest(data, str(manifest_path))
        bundle = Bundle(path, manifest, sha256(data).hexdigest())
        _check_paths(bundle)
        _check_references(bundle)
        if verify:
            _check_files(bundle)
    except OSError as error:
        raise BundleError(f"cannot read the bundle {path}: {error}") from None
    return bundle


def _check_paths(bundle: Bundle) -> None:
    """Every named path stays inside the bundle, once, under its entry's folder."""
    where = bundle.path / MANIFEST_NAME
    seen: set[str] = set()
    for policy in bundle.manifest.policies:
        file = policy.controller
        if file is not None and (not is_safe_path(file.path) or not file.path.startswith("policies/")):
            raise BundleError(f"{where}: the policy of {policy.target} is outside policies/: {file.path!r}")
    for entry in bundle.manifest.entries:
        beside = (file for file in (entry.layers, entry.diagnosis) if file is not None)
        for file in (*entry.files, *beside):
            if not is_safe_path(file.path) or file.path in (MANIFEST_NAME, SUMS_NAME):
                raise BundleError(f"{where}: entry {entry.id} names a file outside the bundle: {file.path!r}")
            if file.path in seen:
                raise BundleError(f"{where}: the file {file.path} is listed twice")
            seen.add(file.path)
        if not is_safe_path(entry.path) or any(not f.path.startswith(entry.path + "/") for f in entry.files):
            raise BundleError(f"{where}: the files of entry {entry.id} are not all inside {entry.path!r}")
        if entry.onnx is not None and f"{entry.path}/{entry.onnx.file}" not in {f.path for f in entry.files}:
            raise BundleError(f"{where}: the model file {entry.onnx.file!r} of entry {entry.id} is not listed")


def _check_references(bundle: Bundle) -> None:
    """Ids exist once, figures are of the entry's own artifact, and the policy says what the entries say."""
    manifest, where = bundle.manifest, bundle.path / MANIFEST_NAME
    try:
        for policy in manifest.policies:
            parse_budget(policy.budget)
    except UsageError as error:
        raise BundleError(f"{where}: {error}") from None
    entries = {entry.id: entry for entry in manifest.entries}
    targets = [target.name for target in manifest.targets]
    if len(entries) != len(manifest.entries) or len(set(targets)) != len(targets):
        raise BundleError(f"{where}: two entries or two targets share a name")
    if [policy.target for policy in manifest.policies] != targets:
        raise BundleError(f"{where}: targets and policies do not correspond")
    for entry in manifest.entries:
        names = {file.path.removeprefix(entry.path + "/"): file.sha256 for file in entry.files}
        if sha256_listing(names) != entry.artifact_sha256:
            raise BundleError(f"{where}: the files of entry {entry.id} are not those of its artifact")
        if (entry.kind == "onnx") != (entry.onnx is not None):
            raise BundleError(f"{where}: entry {entry.id} of kind {entry.kind} does not say how to run it")
        for metric, figure in entry.figures.items():
            if figure.artifact_sha256 != entry.artifact_sha256:
                raise BundleError(f"{where}: {metric} of {entry.id} belongs to another artifact")
            if figure.unit != METRIC_UNITS.get(metric, figure.unit):
                raise BundleError(f"{where}: {metric} of {entry.id} is in {figure.unit}")
    for policy in manifest.policies:
        ids = [row.entry for row in policy.rows]
        if set(ids) != {e.id for e in manifest.entries if e.target == policy.target} or len(set(ids)) != len(ids):
            raise BundleError(f"{where}: the policy of {policy.target} does not list its entries once each")
        if policy.default not in ids or policy.fallback not in ids:
            raise BundleError(f"{where}: default or fallback of {policy.target} is not among its entries")
        for row in policy.rows:
            known = entries[row.entry].figures
            if any(metric not in known or known[metric].value != value for metric, value in row.figures.items()):
                raise BundleError(f"{where}: the policy of {policy.target} disagrees with the figures of {row.entry}")


def _check_files(bundle: Bundle) -> None:
    """Exactly the listed files, each with its hash; the checksum list covers the manifest itself."""
    listed = {file.path: file for file in bundle.manifest.all_files()}
    found = set(_walk(bundle.path))
    missing = sorted({*listed, SUMS_NAME} - found)
    if missing:
        raise BundleError(f"the bundle {bundle.path} lacks {_some(missing)}; make or copy it again")
    extra = sorted(found - {*listed, MANIFEST_NAME, SUMS_NAME})
    if extra:
        raise BundleError(f"the bundle {bundle.path} holds what its manifest does not list: {_some(extra)}; remove it")
    changed = [file.path for file in listed.values() if not _matches(bundle.path / file.path, file)]
    if changed:
        raise BundleError(f"the bundle {bundle.path} has been changed: {_some(changed)} does not match its SHA-256")
    sums = (bundle.path / SUMS_NAME).read_bytes()
    if sums != sums_text(bundle.manifest, bundle.sha256).encode():
        # Either may be the one that was changed; what contradicts the manifest is all that is known.
        raise BundleError(f"the bundle {bundle.path} has been changed: {MANIFEST_NAME} and {SUMS_NAME} disagree")


def _matches(path: Path, file: FileRecord) -> bool:
    return path.stat().st_size == file.bytes and sha256_file(path) == file.sha256


def _walk(root: Path) -> Iterator[str]:
    """Relative paths of all files under `root`; a symbolic link is refused, since it may lead outside."""
    for directory, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(directory, name)
            if path.is_symlink():
                raise BundleError(f"the bundle {root} holds a symbolic link: {path.relative_to(root).as_posix()}")
            if name in files:
                yield path.relative_to(root).as_posix()


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:5])
    return shown if len(paths) <= 5 else f"{shown} and {len(paths) - 5} more"
