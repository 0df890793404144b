"""Target profiles: what is read, and that no mistake in one is silent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgescale.core.errors import UsageError
from edgescale.core.target import load_target, parse_target, profile_names

PROFILE = """
schema = 1
name = "mine"
title = "My board"
rig = "emulator"
backends = ["c"]
[core]
cpu = "cortex-m4"
clock_hz = 120_000_000
fpu = true
[memory.flash]
origin = 0x08000000
length = 2_097_152
wait_states = 5
[memory.ram]
origin = 0x20000000
length = 655_360
[toolchain]
triple = "thumb-freestanding-eabihf"
mcpu = "cortex_m4"
flags = ["-O3"]
[power]
active_mw = 12
origin = "data sheet"
"""


def test_every_field_is_read() -> None:
    target = parse_target(PROFILE.encode(), "mine.toml")
    assert (target.name, target.title, target.rig, target.backends) == ("mine", "My board", "emulator", ("c",))
    assert (target.core.cpu, target.core.clock_hz, target.core.kernels, target.core.fpu) == (
        "cortex-m4",
        120_000_000,
        "scalar",
        True,
    )
    assert list(target.memory) == ["flash", "ram"]
    flash = target.memory["flash"]
    assert (flash.name, flash.origin, flash.length, flash.wait_states) == ("flash", 0x08000000, 2097152, 5)
    assert target.toolchain is not None and target.toolchain.flags == ("-O3",)
    assert target.power is not None and target.power.active_mw == 12.0
    assert target.sha256 == hashlib.sha256(PROFILE.encode()).hexdigest()


def test_optional_tables_may_be_absent() -> None:
    target = parse_target(PROFILE.split("[memory.flash]")[0].encode(), "x.toml")
    assert (dict(target.memory), target.toolchain, target.power) == ({}, None, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "schema 2 is not supported"),
        ("schema = 1", "", "missing key 'schema'"),
        ('name = "mine"', "", "missing key 'name'"),
        ('title = "My board"', "title = 3", "'title' has the wrong type int"),
        ('backends = ["c"]', 'backends = "c"', "'backends' has the wrong type str"),
        ("fpu = true", 'fpu = "yes"', r"\[core\]: 'fpu' has the wrong type str"),
        ("fpu = true", "fpu = true\nfppu = 1", r"\[core\]: unknown key\(s\) fppu"),
        ("clock_hz = 120_000_000", "clock_hz = true", "'clock_hz' has the wrong type bool"),
        ("clock_hz = 120_000_000", "clock_hz = 1.5", "'clock_hz' has the wrong type float"),
        ("length = 655_360", "length = 0", r"\[ram\]: length must be above 0"),
        ("length = 655_360", "length = 4\nwaits = 1", r"unknown key\(s\) waits"),
        ("wait_states = 5", "wait_states = -1", "not negative"),
        ('mcpu = "cortex_m4"', "", r"\[toolchain\]: missing key 'mcpu'"),
        ('origin = "data sheet"', "", r"\[power\]: missing key 'origin'"),
        ("active_mw = 12", "active_mw = -1", "active_mw"),
        ("active_mw = 12", "active_mw = nan", "active_mw"),
        ("active_mw = 12", "active_mw = true", "wrong type bool"),
        ('backends = ["c"]', "backends = [1]", "'backends'"),
        ('flags = ["-O3"]', "flags = [3]", "'flags'"),
        ("clock_hz = 120_000_000", "clock_hz = -1", "clock_hz"),
        ("[power]", "[powre]", "unknown key"),
        ("schema = 1", "schema = ", "not valid TOML"),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str) -> None:
    text = PROFILE.replace(old, new)
    assert text != PROFILE
    with pytest.raises(UsageError, match=message) as caught:
        parse_target(text.encode(), "mine.toml")
    assert str(caught.value).startswith("mine.toml")


def test_not_text() -> None:
    with pytest.raises(UsageError, match="not valid TOML"):
        parse_target(b"\xff\xfe", "x.toml")


def test_by_path_and_unknown(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE)
    assert load_target(str(path)).name == "mine"
    with pytest.raises(UsageError, match="does not exist"):
        load_target(str(tmp_path / "other.toml"))
    for name in ("no-such-board", "../profiles/host", ""):
        with pytest.raises(UsageError, match="unknown target"):
            load_target(name)


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_load(name: str) -> None:
    target = load_target(name)
    assert target.name == name and target.title and target.backends
    if target.backends == ("edgescale_c",):
        assert {"flash", "ram"} <= set(target.memory) and target.toolchain and target.core.clock_hz > 0
