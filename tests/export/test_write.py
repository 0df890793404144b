"""What is exported, from where, and what becomes of the folder that was there before."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgescale.bundle import BundleError, open_bundle
from edgescale.core.errors import EdgescaleError, UnsupportedModelError, UsageError
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.export import LAYOUTS, RECORD_NAME, export
from edgescale.export.write import check_destination

ENTRY = "fashion_small-w8a8@cortex-m4-stm32l4r5"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def write(made, repository: Path) -> Callable[..., Path]:
    """Export the int8 entry."""
    bundle = open_bundle(made.bundle)

    def call(out: Path, layout: str = "plain", **options: Any) -> Path:
        return export(bundle, bundle.entry(ENTRY), layout, out, repository / "firmware", **options).path

    return call


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_record_says_what_was_exported(layout: str, made, write, tmp_path: Path) -> None:
    out = write(tmp_path / "out", layout, version="4.5.6")
    record = json.loads((out / RECORD_NAME).read_text())
    entry = open_bundle(made.bundle).entry(ENTRY)
    assert record["bundle_manifest_sha256"] == hashlib.sha256((made.bundle / "manifest.json").read_bytes()).hexdigest()
    assert record["artifact_sha256"] == entry.artifact_sha256 == sha256_tree(made.bundle / entry.path)
    assert (record["entry"], record["layout"], record["package_version"]) == (ENTRY, layout, "4.5.6")
    assert record["figures"]["flash"]["value"] == entry.figures["flash"].value
    assert record["figures"]["stack"]["source"] == "emulated"
    present = {name: sha256_file(out / name) for name in contents(out) if name != RECORD_NAME}
    assert record["files"] == present


@pytest.mark.parametrize("layout", ["plain", "cmake", "make"])
def test_the_artifact_is_in_it_byte_for_byte(layout: str, made, write, tmp_path: Path) -> None:
    out = contents(write(tmp_path / "out", layout))
    for name, content in contents(made.bundle / "artifacts" / ENTRY).items():
        assert out[name] == content


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_arguments_give_equal_bytes_and_no_place_is_named(layout, made, write, repository, tmp_path) -> None:
    first, second = contents(write(tmp_path / "a", layout)), contents(write(tmp_path / "deep" / "b", layout))
    assert first == second
    for place in (tmp_path, made.root, repository):
        assert not any(str(place).encode() in content for content in first.values())
    assert not any(
        b"@NAME@" in content or b"@HEADER@" in content for name, content in first.items() if ".ld" not in name
    )


class TestDestination:
    def test_an_earlier_export_is_replaced_with_its_build(self, write, tmp_path: Path) -> None:
        out = write(tmp_path / "out", "make")
        (out / "build" / "host").mkdir(parents=True)
        (out / "build" / "host" / "example").write_text("program")
        write(out, "cmake")
        assert (out / "CMakeLists.txt").is_file() and not (out / "Makefile").exists() and not (out / "build").exists()

    @pytest.mark.parametrize("name", ["main.c", "edgescale/mine.h"])
    def test_added_files_are_not_lost(self, write, tmp_path: Path, name: str) -> None:
        out = write(tmp_path / "out")
        (out / name).write_text("mine")
        with pytest.raises(UsageError, match=name):
            write(out)
        assert (out / name).read_text() == "mine"

    def test_changed_files_are_not_lost(self, write, tmp_path: Path) -> None:
        out = write(tmp_path / "out", "make")
        (out / "example" / "main.c").write_text("int main(void) { return 0; }\n")
        with pytest.raises(UsageError, match=r"changed by hand \(example/main\.c\)"):
            write(out, "make")

    @pytest.mark.parametrize("record", [None, "{", "[]", '{"format": "edgescale-bundle", "files": {}}',
                                        '{"format": "edgescale-export", "files": [1]}'])  # fmt: skip
    def test_a_foreign_folder_is_left_as_it_is(self, write, tmp_path: Path, record: str | None) -> None:
        out = tmp_path / "home"
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
        if record is not None:
            (out / RECORD_NAME).write_text(record)
        before = contents(out)
        with pytest.raises(UsageError, match="left as it is"):
            write(out)
        assert contents(out) == before

    def test_files_and_links(self, write, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(UsageError, match="it is a file"):
            write(tmp_path / "file")
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "empty")
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / RECORD_NAME).is_file()
        (tmp_path / "empty" / "elsewhere").symlink_to(tmp_path)
        with pytest.raises(UsageError, match="elsewhere"):
            check_destination(tmp_path / "empty")

    def test_not_into_the_bundle(self, made, write) -> None:
        before = sha256_tree(made.bundle)
        for out in (made.bundle / "export", made.bundle):
            with pytest.raises(UsageError, match="inside the bundle"):
                write(out)
        assert sha256_tree(made.bundle) == before


class TestFailures:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
    def test_what_cannot_be_written_leaves_nothing(self, write, tmp_path: Path, monkeypatch, code: int) -> None:
        out = write(tmp_path / "out")
        before, around = contents(out), set(tmp_path.iterdir())
        real = Path.write_bytes

        def fail(path: Path, data: bytes) -> int:
            if path.name == "CMakeLists.txt":
                raise OSError(code, "as told")
            return real(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", fail)
            for place in (out, tmp_path / "new"):
                with pytest.raises(EdgescaleError) as caught:
                    write(place, "cmake")
                message = str(caught.value)
                assert ("no space left" in message) == (code != errno.EACCES) and str(place) in message
        assert contents(out) == before and set(tmp_path.iterdir()) == around

    @pytest.mark.parametrize("version", ["1", "1.0", "1.0.0-rc1", "01.0.0", "1.0.0\n", "v1.0.0"])
    def test_versions_that_no_package_manager_takes(self, write, tmp_path: Path, version: str) -> None:
        with pytest.raises(UsageError, match=r"major\.minor\.patch"):
            write(tmp_path / "out", version=version)

    @pytest.mark.parametrize(
        "change",
        [
            {"symbol": "x; rm -rf /"},
            {"sources": ["../../etc/passwd"]},
            {"sources": []},
            {"header": "$(shell id).h"},
            {"inputs": [{"name": "x"}]},
        ],
    )
    def test_an_artifact_that_names_strange_things_is_refused(self, made, repository, tmp_path, change) -> None:
        """Its names become build scripts. The hashes of such a bundle are right: it was made so."""
        shutil.copytree(made.bundle, tmp_path / "bundle")
        artifact = tmp_path / "bundle" / "artifacts" / ENTRY / "artifact.json"
        artifact.write_text(json.dumps({**json.loads(artifact.read_text()), **change}))
        bundle = open_bundle(tmp_path / "bundle", verify=False)
        with pytest.raises(BundleError, match=r"artifact\.json"):
            export(bundle, bundle.entry(ENTRY), "make", tmp_path / "out", repository / "firmware")
        assert not (tmp_path / "out").exists()

    def test_types_the_example_cannot_convert(self, made, repository: Path, tmp_path: Path) -> None:
        shutil.copytree(made.bundle, tmp_path / "bundle")
        artifact = tmp_path / "bundle" / "artifacts" / ENTRY / "artifact.json"
        meta = json.loads(artifact.read_text())
        meta["outputs"][0]["dtype"] = "complex64"
        artifact.write_text(json.dumps(meta))
        bundle = open_bundle(tmp_path / "bundle", verify=False)
        for layout in ("make", "arduino"):
            with pytest.raises(UnsupportedModelError, match="complex64"):
                export(bundle, bundle.entry(ENTRY), layout, tmp_path / "out", repository / "firmware")
        export(bundle, bundle.entry(ENTRY), "cmake", tmp_path / "out", repository / "firmware")
