"""Opening bundles: every kind of damage is noticed and named."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.bundle import BundleError, manifest_schema, open_bundle, write_manifest_schema
from edgescale.bundle.manifest import is_safe_path
from edgescale.core.errors import EdgescaleError, UsageError


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest and bring the checksum list up to date, as a forger would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    lines = (bundle / "SHA256SUMS").read_text().splitlines()[1:]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (bundle / "SHA256SUMS").write_text("\n".join([f"{digest}  manifest.json", *lines]) + "\n")


def test_any_flipped_bit_in_any_file_is_noticed(bundle_path: Path) -> None:
    files = sorted(p for p in bundle_path.rglob("*") if p.is_file())
    assert len(files) > 10
    for path in files:
        original = path.read_bytes()
        for position in (0, len(original) // 2, len(original) - 1):
            flipped = bytearray(original)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(EdgescaleError) as caught:
                open_bundle(bundle_path)
            assert path.name in str(caught.value), f"{path} at {position}"
        path.write_bytes(original)
    open_bundle(bundle_path)


def test_missing_extra_truncated(bundle_path: Path) -> None:
    model = bundle_path / "artifacts" / "small-fp32@host" / "model.onnx"
    data = model.read_bytes()
    model.unlink()
    with pytest.raises(BundleError, match=r"lacks artifacts/small-fp32@host/model\.onnx"):
        open_bundle(bundle_path)
    model.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=r"changed.*small-fp32@host/model\.onnx"):
        open_bundle(bundle_path)
    model.write_bytes(data)
    (bundle_path / "artifacts" / "virus.so").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"does not list: artifacts/virus\.so"):
        open_bundle(bundle_path)
    (bundle_path / "artifacts" / "virus.so").unlink()
    (bundle_path / "SHA256SUMS").unlink()
    with pytest.raises(BundleError, match="lacks SHA256SUMS"):
        open_bundle(bundle_path)


def test_symbolic_links_are_refused(bundle_path: Path, tmp_path: Path) -> None:
    model = bundle_path / "artifacts" / "small-fp32@host" / "model.onnx"
    outside = tmp_path / "outside.onnx"
    model.rename(outside)
    model.symlink_to(outside)
    with pytest.raises(BundleError, match="symbolic link"):
        open_bundle(bundle_path)


def test_without_verification_content_is_trusted(bundle_path: Path) -> None:
    (bundle_path / "extra").write_text("x")
    with pytest.raises(BundleError):
        open_bundle(bundle_path)
    assert open_bundle(bundle_path, verify=False).target_names() == ("host", "m4")


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no bundle at"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    ("schema", "hint"), [(2, "newer edgescale"), (99, "newer edgescale"), (0, "make the bundle again"), ("1", "make")]
)
def test_other_schema_versions(bundle_path: Path, schema: object, hint: str) -> None:
    rewrite(bundle_path, lambda m: m.update(schema=schema, unheard_of=1))
    with pytest.raises(BundleError, match=f"schema {schema}.*{hint}"):
        open_bundle(bundle_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 3}', b"{}"])
@pytest.mark.parametrize("verify", [True, False])
def test_broken_manifests(bundle_path: Path, data: bytes, verify: bool) -> None:
    (bundle_path / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(bundle_path, verify)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_value_of_a_wrong_kind_is_a_bundle_error(bundle_path: Path, data: st.DataObject) -> None:
    path = bundle_path / "manifest.json"
    original = path.read_text()
    manifest = json.loads(original)
    node: Any = manifest
    key: Any = None
    while isinstance(node, (dict, list)) and node and (key is None or data.draw(st.integers(0, 3)) > 0):
        parent = node
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node = parent[key]
    parent[key] = data.draw(st.sampled_from([None, [], {}, -1, "../x", 1e300, [None], {"a": None}]))
    try:
        path.write_text(json.dumps(manifest))
        with pytest.raises(EdgescaleError):  # At least the checksum of the manifest differs.
            open_bundle(bundle_path)
        with contextlib.suppress(BundleError):
            open_bundle(bundle_path, verify=False)
    finally:
        path.write_text(original)


@pytest.mark.parametrize(
    "bad", ["../outside", "/etc/passwd", "artifacts/../../x", "a\\..\\b", "C:/x", "", "a//b", "a/./b"]
)
@pytest.mark.parametrize("verify", [True, False])
def test_paths_that_leave_the_bundle(bundle_path: Path, bad: str, verify: bool) -> None:
    def into_file(manifest: dict[str, Any]) -> None:
        manifest["entries"][0]["files"][0]["path"] = bad

    def into_entry(manifest: dict[str, Any]) -> None:
        manifest["entries"][0]["path"] = bad

    def into_layers(manifest: dict[str, Any]) -> None:
        manifest["entries"][0]["layers"]["path"] = bad

    def into_model(manifest: dict[str, Any]) -> None:
        manifest["entries"][0]["onnx"]["file"] = bad

    original = (bundle_path / "manifest.json").read_bytes()
    for change in (into_file, into_entry, into_layers, into_model):
        (bundle_path / "manifest.json").write_bytes(original)
        rewrite(bundle_path, change)
        with pytest.raises(BundleError):
            open_bundle(bundle_path, verify)


def test_figures_must_agree_with_each_other(bundle_path: Path) -> None:
    def other_artifact(manifest: dict[str, Any]) -> None:
        manifest["entries"][0]["figures"]["latency"]["artifact_sha256"] = "0" * 64

    def other_files(manifest: dict[str, Any]) -> None:
        manifest["entries"][0]["artifact_sha256"] = "0" * 64

    def better_policy(manifest: dict[str, Any]) -> None:
        manifest["policies"][0]["rows"][0]["figures"]["latency"] = 0.1

    def unit(manifest: dict[str, Any]) -> None:
        manifest["entries"][0]["figures"]["latency"]["unit"] = "s"

    def unknown_fallback(manifest: dict[str, Any]) -> None:
        manifest["policies"][0]["fallback"] = "ghost"

    def dropped_row(manifest: dict[str, Any]) -> None:
        manifest["policies"][0]["rows"].pop()

    def doubled_entry(manifest: dict[str, Any]) -> None:
        manifest["entries"].append(manifest["entries"][0])

    def unknown_key(manifest: dict[str, Any]) -> None:
        manifest["entries"][0]["secret"] = 1

    def broken_budget(manifest: dict[str, Any]) -> None:
        manifest["budget"] = "fast please"

    original = (bundle_path / "manifest.json").read_bytes()
    for change in (
        other_artifact,
        other_files,
        better_policy,
        unit,
        unknown_fallback,
        dropped_row,
        doubled_entry,
        unknown_key,
        broken_budget,
    ):
        (bundle_path / "manifest.json").write_bytes(original)
        rewrite(bundle_path, change)
        with pytest.raises(BundleError):
            open_bundle(bundle_path)


def test_unknown_names_list_the_known(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    with pytest.raises(UsageError, match="host, m4"):
        bundle.policy("m7")
    with pytest.raises(UsageError, match="small-fp32@host"):
        bundle.entry("small")


def test_layers_of_another_entry_are_refused(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    first, second = bundle.entries_for("host")[:2]
    assert first.layers and second.layers
    (bundle_path / first.layers.path).write_bytes((bundle_path / second.layers.path).read_bytes())
    with pytest.raises(BundleError, match="another artifact"):
        bundle.layers(first)


def test_schema_describes_the_manifest(bundle_path: Path, tmp_path: Path) -> None:
    schema = manifest_schema()
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    definitions = schema["$defs"]
    top = definitions[schema["$ref"].rsplit("/", 1)[1]]
    assert set(top["required"]) <= set(manifest) <= set(top["properties"])
    entry = definitions["EntryRecord"]
    assert all(set(entry["required"]) <= set(e) <= set(entry["properties"]) for e in manifest["entries"])
    write_manifest_schema(tmp_path / "manifest.schema.json")
    assert json.loads((tmp_path / "manifest.schema.json").read_text()) == schema


@given(st.lists(st.sampled_from(["a", "b.c", "..", ".", "", "\\", "x:y", "\n"]), min_size=1, max_size=4))
def test_safe_paths_stay_inside(parts: list[str]) -> None:
    path = "/".join(parts)
    root = Path("/srv/bundle")
    inside = Path(root, path)
    if is_safe_path(path):
        assert ".." not in inside.parts and root in inside.parents
    else:
        assert not {"..", "", "."}.isdisjoint(parts) or any(c in path for c in "\\:\n")
