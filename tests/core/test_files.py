"""Whole files or none, and content hashes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgescale.core.files import sha256_file, sha256_listing, sha256_tree, whole_directory, write_whole


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


class TestHashes:
    def test_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")
        # FIPS 180-2, appendix B.1.
        assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def test_tree_depends_on_names_and_contents_alone(self, tmp_path: Path) -> None:
        files = {"b/c.txt": b"1", "b-d": b"2", "a": b"3"}
        one = sha256_tree(fill(tmp_path / "one", files))
        two = fill(tmp_path / "two", dict(reversed(files.items())))
        os.utime(two / "a", (1, 1))
        (two / "a").chmod(0o600)
        (two / "empty").mkdir()
        assert sha256_tree(two) == one
        (two / "a").rename(two / "z")
        assert sha256_tree(two) != one

    @given(
        st.dictionaries(st.sampled_from(["a", "b", "a/x", "a.c", "a-b/y", "b/a/z"]), st.binary(max_size=4), max_size=4)
    )
    def test_listing_is_the_tree(self, files: dict[str, bytes]) -> None:
        import tempfile

        files = {n: d for n, d in files.items() if not any(other.startswith(n + "/") for other in files)}
        with tempfile.TemporaryDirectory() as folder:
            root = fill(Path(folder), files)
            listing = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            assert sha256_listing(listing) == sha256_tree(root)


class TestWriteWhole:
    def test_text_bytes_and_parents(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "er" / "f"
        write_whole(path, "é")
        assert path.read_bytes() == "é".encode() and path.stat().st_mode & 0o777 == 0o644
        write_whole(path, b"\x00")
        assert path.read_bytes() == b"\x00"
        assert names(path.parent) == {"f"}

    def test_failure_keeps_the_old(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "f"
        write_whole(path, "old")

        def fail(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            write_whole(path, "new")
        assert path.read_text() == "old" and names(tmp_path) == {"f"}


class TestWholeDirectory:
    def test_appears_at_the_end(self, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "out"
        with whole_directory(out) as directory:
            fill(directory, {"a/b": b"1"})
            assert not out.exists()
        assert (out / "a" / "b").read_bytes() == b"1"
        assert out.stat().st_mode & 0o777 == 0o755
        assert names(out.parent) == {"out"}

    def test_replaces(self, tmp_path: Path) -> None:
        out = fill(tmp_path / "out", {"old": b"1"})
        with whole_directory(out) as directory:
            fill(directory, {"new": b"2"})
            assert names(out) == {"old"}
        assert names(out) == {"new"} and names(tmp_path) == {"out"}

    @pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
    def test_vanishes_on_failure(self, tmp_path: Path, error: BaseException) -> None:
        out = fill(tmp_path / "out", {"old": b"1"})
        with pytest.raises(type(error)), whole_directory(out) as directory:
            fill(directory, {"new": b"2"})
            raise error
        assert names(out) == {"old"} and names(tmp_path) == {"out"}

    def test_old_comes_back_when_the_last_rename_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = fill(tmp_path / "out", {"old": b"1"})
        original, calls = Path.rename, []

        def second_fails(self: Path, target: Path) -> Path:
            calls.append(self)
            if len(calls) == 2:
                raise OSError(5, "Input/output error")
            return original(self, target)

        monkeypatch.setattr(Path, "rename", second_fails)
        with pytest.raises(OSError, match="Input/output"), whole_directory(out) as directory:
            fill(directory, {"new": b"2"})
        assert names(out) == {"old"} and names(tmp_path) == {"out"}
