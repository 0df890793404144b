"""Writing bundles: what is in them, what is refused, and that nothing is ever half-written."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgescale.bundle import BundleError, check_destination, open_bundle, tool_versions, write_bundle
from edgescale.core.errors import EdgescaleError, UsageError
from edgescale.core.quantity import Quantity


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_what_goes_in_comes_out(toys: ModuleType, tmp_path: Path) -> None:
    entries = toys.family(tmp_path / "made")
    bundle = open_bundle(write_bundle(tmp_path / "b", entries, toys.context()))
    assert bundle.target_names() == ("host", "m4")
    assert [e.variant for e in bundle.entries_for("host")] == ["large-fp32", "medium-fp32", "small-fp32"]
    for entry in entries:
        record = bundle.entry(f"{entry.variant.name}@{entry.target.name}")
        assert record.quantities() == dict(entry.measurement.metrics)
        assert record.artifact_sha256 == entry.artifact.sha256
        assert all(figure.artifact_sha256 == entry.artifact.sha256 for figure in record.figures.values())
        assert contents(bundle.artifact_path(record)) == contents(entry.artifact.path)
        assert record.unavailable == entry.measurement.unavailable
        layers = bundle.layers(record)
        assert [(x.name, x.macs, x.metrics["latency"].value) for x in layers] == [("MatMul_0", 12, 0.5)]
        assert (record.selected, record.pareto) == (entry.selected, entry.pareto)
        assert record.verdict.feasible == (entry.measurement.metrics["latency"].value <= 5)
    missed = bundle.entry("large-fp32@host").verdict.unmet
    assert [(m.metric, m.limit, m.value) for m in missed] == [("latency", 5.0, 9.0)]
    assert bundle.policy("host").default == "medium-fp32@host"
    assert bundle.policy("host").fallback == "small-fp32@host"


def test_hashes_are_those_of_sha256sum(bundle_path: Path) -> None:
    listed = dict(reversed(line.split("  ")) for line in (bundle_path / "SHA256SUMS").read_text().splitlines())
    assert listed == {
        name: hashlib.sha256(data).hexdigest() for name, data in contents(bundle_path).items() if name != "SHA256SUMS"
    }
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=bundle_path, check=True)


def test_equal_inputs_give_equal_bytes_but_for_the_time(toys: ModuleType, tmp_path: Path) -> None:
    entries = toys.family(tmp_path / "made")
    first = contents(write_bundle(tmp_path / "a", entries, toys.context()))
    again = contents(write_bundle(tmp_path / "b", entries, toys.context()))
    assert first == again
    later = contents(write_bundle(tmp_path / "c", entries, toys.context(created_utc=None)))
    assert {name for name in first if first[name] != later[name]} == {"manifest.json", "SHA256SUMS"}
    before, after = json.loads(first["manifest.json"]), json.loads(later["manifest.json"])
    assert before.pop("created_utc") != after.pop("created_utc")
    assert before == after


def test_budget_text_survives(toys: ModuleType, tmp_path: Path) -> None:
    text = "latency<=5ms, ram<=2097153B, accuracy>=0.8812345678"
    policies = open_bundle(toys.family_bundle(tmp_path, text)).manifest.policies
    assert {policy.budget for policy in policies} == {text}


def test_not_a_number_is_told_not_written(toys: ModuleType, tmp_path: Path) -> None:
    entry = toys.make_entry(tmp_path / "made", "m", {"latency": math.nan, "ram": 5.0})
    record = open_bundle(write_bundle(tmp_path / "b", [entry], toys.context())).entries_for("host")[0]
    assert set(record.figures) == {"ram"}
    assert "nan" in record.unavailable["latency"]
    assert not record.verdict.feasible and record.verdict.unmet[0].value is None


def test_two_back_ends_for_one_pair_get_distinct_ids(toys: ModuleType, tmp_path: Path) -> None:
    entries = [
        toys.make_entry(tmp_path / "made", "m", {"latency": value}, backend=backend)
        for backend, value in (("one", 1.0), ("two", 2.0))
    ]
    bundle = open_bundle(write_bundle(tmp_path / "b", entries, toys.context()))
    assert [e.id for e in bundle.entries_for("host")] == ["m-fp32@host:one", "m-fp32@host:two"]
    with pytest.raises(UsageError, match="m-fp32@host"):
        write_bundle(tmp_path / "c", [entries[0], entries[0]], toys.context())


def test_a_hostile_target_name_stays_inside(toys: ModuleType, tmp_path: Path) -> None:
    board = dataclasses.replace(toys.BOARD, name="../../x y:z")
    path = write_bundle(tmp_path / "deep" / "b", [toys.make_entry(tmp_path / "m", "a", {})], toys.context())
    before = set(tmp_path.rglob("*"))
    entry = toys.make_entry(tmp_path / "n", "a", {"ram": 1.0})
    entry = dataclasses.replace(entry, target=board, artifact=dataclasses.replace(entry.artifact, target=board.name))
    write_bundle(path, [entry], toys.context())
    outside = {
        p for p in set(tmp_path.rglob("*")) - before if path not in p.parents and tmp_path / "n" not in p.parents
    }
    assert outside == {tmp_path / "n"}
    assert open_bundle(path).target_names() == (board.name,)


@pytest.mark.parametrize("change", ["artifact", "measurement"])
def test_figures_of_another_artifact_are_refused(toys: ModuleType, tmp_path: Path, change: str) -> None:
    entry = toys.make_entry(tmp_path / "made", "m", {"latency": 1.0})
    if change == "artifact":
        (entry.artifact.path / "model.onnx").write_bytes(b"other")
    else:
        entry = dataclasses.replace(entry, measurement=dataclasses.replace(entry.measurement, artifact_sha256="0" * 64))
    with pytest.raises(EdgescaleError, match=r"m-fp32@host.*(changed after|another artifact)"):
        write_bundle(tmp_path / "b", [entry], toys.context())
    assert not (tmp_path / "b").exists()


def test_refusals(toys: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one entry"):
        write_bundle(tmp_path / "b", [], toys.context())
    entries = [toys.make_entry(tmp_path / "made", name, {"latency": 1.0}, selected=True) for name in "ab"]
    with pytest.raises(UsageError, match="both marked as selected"):
        write_bundle(tmp_path / "b", entries, toys.context())
    wrong = dataclasses.replace(entries[0].measurement, metrics={"latency": Quantity(1.0, "s", "measured")})
    with pytest.raises(EdgescaleError, match="latency in 's'; it is counted in 'ms'"):
        write_bundle(tmp_path / "b", [dataclasses.replace(entries[0], measurement=wrong)], toys.context())
    broken = dataclasses.replace(entries[0], artifact=dataclasses.replace(entries[0].artifact, meta={"file": "x"}))
    with pytest.raises(EdgescaleError, match="'session'"):
        write_bundle(tmp_path / "b", [broken], toys.context())


class TestDestination:
    def test_free_empty_or_old_bundle(self, toys: ModuleType, tmp_path: Path, bundle_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for out in (tmp_path / "new", tmp_path / "empty", bundle_path):
            check_destination(out)
            entry = toys.make_entry(tmp_path / f"made-{out.name}", "other", {"latency": 2.0})
            write_bundle(out, [entry], toys.context())
            assert [e.variant for e in open_bundle(out).manifest.entries] == ["other-fp32"]
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

    def test_foreign_directory_or_file_is_left_alone(self, toys: ModuleType, tmp_path: Path) -> None:
        entries = [toys.make_entry(tmp_path / "made", "m", {"latency": 1.0})]
        foreign = tmp_path / "mine"
        foreign.mkdir()
        (foreign / "thesis.txt").write_text("years of work")
        with pytest.raises(UsageError, match="not an edgescale bundle"):
            write_bundle(foreign, entries, toys.context())
        (foreign / "manifest.json").write_text('{"format": "something else"}')
        with pytest.raises(UsageError, match="not an edgescale bundle"):
            write_bundle(foreign, entries, toys.context())
        assert (foreign / "thesis.txt").read_text() == "years of work"
        with pytest.raises(UsageError, match="it is a file"):
            write_bundle(foreign / "thesis.txt", entries, toys.context())

    def test_files_added_to_a_bundle_are_not_lost(self, toys: ModuleType, tmp_path: Path, bundle_path: Path) -> None:
        (bundle_path / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"notes\.txt"):
            write_bundle(bundle_path, toys.family(tmp_path / "again"), toys.context())
        assert (bundle_path / "notes.txt").read_text() == "mine"

    def test_a_damaged_or_newer_bundle_may_be_replaced(self, toys: ModuleType, tmp_path: Path) -> None:
        for number, text in enumerate(
            ('{"format": "edgescale-bundle", "schema": 99}', '{"format": "edgescale-bundle"}')
        ):
            out = tmp_path / f"old{number}"
            out.mkdir()
            (out / "manifest.json").write_text(text)
            write_bundle(out, [toys.make_entry(tmp_path / f"m{number}", "m", {"latency": 1.0})], toys.context())
            open_bundle(out)

    def test_a_link_to_a_bundle_stays_a_link(self, toys: ModuleType, tmp_path: Path, bundle_path: Path) -> None:
        link = tmp_path / "current"
        link.symlink_to(bundle_path)
        write_bundle(link, [toys.make_entry(tmp_path / "m", "m", {"latency": 1.0})], toys.context())
        assert link.is_symlink() and len(open_bundle(bundle_path).manifest.entries) == 1


class TestFailures:
    """A failure at any step leaves the old bundle whole and no temporary behind."""

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
    @pytest.mark.parametrize("step", ["copy", "manifest", "sums"])
    def test_write_errors(
        self,
        toys: ModuleType,
        tmp_path: Path,
        bundle_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        code: int,
    ) -> None:
        before, around = contents(bundle_path), set(tmp_path.iterdir())
        entries = [toys.make_entry(tmp_path / "made", "m-new", {"latency": 1.0})]

        def fail(*args: Any, **options: Any) -> Any:
            raise OSError(code, "as told")

        with monkeypatch.context() as patch:
            if step == "copy":
                patch.setattr(shutil, "copyfile", fail)
            elif step == "manifest":
                patch.setattr(Path, "write_bytes", fail)
            else:
                patch.setattr(Path, "write_text", fail)
            with pytest.raises(EdgescaleError) as caught:
                write_bundle(bundle_path, entries, toys.context())
        message = str(caught.value)
        assert ("no space left" in message) == (code != errno.EACCES)
        assert str(bundle_path) in message and "\n" not in message
        assert contents(bundle_path) == before
        assert set(tmp_path.iterdir()) == around

    def test_interrupt(
        self, toys: ModuleType, tmp_path: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, around = contents(bundle_path), set(tmp_path.iterdir())
        entries = [toys.make_entry(tmp_path / "made", "m-new", {"latency": 1.0})]

        def interrupt(*args: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shutil, "copyfile", interrupt)
            write_bundle(bundle_path, entries, toys.context())
        assert contents(bundle_path) == before and set(tmp_path.iterdir()) == around


def test_tool_versions_name_python_and_packages() -> None:
    import numpy

    versions = tool_versions()
    assert versions["numpy"] == numpy.__version__ and versions["python"].startswith("3.")


def test_quantities_of_numpy_scalars_are_written(toys: ModuleType, tmp_path: Path) -> None:
    import numpy as np

    entry = toys.make_entry(tmp_path / "made", "m", {})
    metrics = {"latency": Quantity(np.float64(1.5), "ms", "measured"), "ram": Quantity(np.int64(7), "B", "measured")}
    entry = dataclasses.replace(entry, measurement=dataclasses.replace(entry.measurement, metrics=metrics))
    record = open_bundle(write_bundle(tmp_path / "b", [entry], toys.context())).entries_for("host")[0]
    assert {m: f.value for m, f in record.figures.items()} == {"latency": 1.5, "ram": 7.0}


def test_errors_are_of_the_common_family() -> None:
    assert issubclass(BundleError, EdgescaleError)
