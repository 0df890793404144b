"""Layout arduino: what the library specification asks, and the sketch on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgescale.export.layouts import library_name

W8A8 = "es_fashion_small_w8a8"
FP32 = "es_fashion_small_fp32"
MAIN = '#include "{sketch}"\nint main() {{ setup(); while (Serial.available()) loop(); return 0; }}\n'


@pytest.fixture(scope="module")
def libraries(made, edgescale_once: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arduino")
    for name, variant in ((W8A8, "fashion_small-w8a8"), (FP32, "fashion_small-fp32")):
        edgescale_once("export", made.bundle, "-v", variant, "-l", "arduino", "-o", root / name)
    return root


def _build(libraries: Path, name: str, folder: Path, sh: Callable[..., str], strict: str) -> Path:
    """As the Arduino builder does: every source below src as C on its own, the sketch as C++; optimized for size."""
    source = libraries / name / "src"
    objects = []
    for path in sorted(source.rglob("*.c")):
        objects.append(folder / f"{path.stem}.o")
        flags = ["-std=gnu11", "-Os", *strict.split(), f"-I{source}"]
        sh("gcc", *flags, "-c", path, "-o", objects[-1], cwd=folder)
    sketch = libraries / name / "examples" / name / f"{name}.ino"
    (folder / "main.cpp").write_text(MAIN.format(sketch=sketch))
    stub = Path(__file__).parent
    command = ["g++", "-std=gnu++17", "-Os", *strict.split(), f"-I{source}", f"-I{stub}", "-include", "Arduino.h"]
    sh(*command, "main.cpp", *objects, "-o", "sketch", cwd=folder)
    return folder / "sketch"


def _arg_max(text: str) -> list[int]:
    lines = text.splitlines()
    assert all(re.fullmatch(r"arg max \d+, 7 us", line) for line in lines), text
    return [int(line.split()[2].rstrip(",")) for line in lines]


def test_the_sketch_classifies_as_the_emulated_core(libraries, made, source, need, sh, strict, tmp_path: Path) -> None:
    need("gcc", "g++")
    from edgescale.rigs.ports import to_stored

    sketch = _build(libraries, W8A8, tmp_path, sh, strict)
    stored = to_stored(source.meta["inputs"][0], made.x)
    (tmp_path / "serial").write_bytes(stored.tobytes())
    with (tmp_path / "serial").open("rb") as serial:
        found = _arg_max(sh(sketch, cwd=tmp_path, stdin=serial))
    expected = made.answers["fashion_small-w8a8"].argmax(axis=1).tolist()
    assert found == [expected[-1], *expected]  # before any input, a blank one: the last sample


def test_the_float_sketch_and_short_inputs(libraries, made, need, sh, strict, tmp_path: Path) -> None:
    need("gcc", "g++")
    sketch = _build(libraries, FP32, tmp_path, sh, strict)
    images = np.ascontiguousarray(made.x.reshape(-1, 784), np.float32).tobytes()
    (tmp_path / "serial").write_bytes(images + images[:100])
    with (tmp_path / "serial").open("rb") as serial:
        found = _arg_max(sh(sketch, cwd=tmp_path, stdin=serial))
    assert found[1:] == made.answers["fashion_small-fp32"].argmax(axis=1).tolist()


def test_descriptions_and_folders_are_as_the_specification_asks(libraries) -> None:
    folder = libraries / W8A8
    lines = (folder / "library.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert required <= properties.keys()
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}", properties["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", properties["version"])
    assert properties["category"] == "Data Processing"
    assert (folder / "src" / properties["includes"]).is_file()
    described = json.loads((folder / "library.json").read_text())
    assert (described["name"], described["version"]) == (properties["name"], properties["version"])
    assert (folder / "src" / described["headers"]).is_file()
    for example in described["examples"]:
        assert all((folder / example["base"] / name).is_file() for name in example["files"])
        assert [Path(name).stem for name in example["files"]] == [Path(example["base"]).name]  # the IDE's rule
    assert not [path for path in (folder / "src").iterdir() if path.is_dir()]


def test_flash_and_ram_of_the_description_are_the_manifests(libraries, made) -> None:
    from edgescale.bundle import open_bundle
    from edgescale.core.quantity import format_value

    figures = open_bundle(made.bundle).entry("fashion_small-w8a8@cortex-m4-stm32l4r5").figures
    text = (libraries / W8A8 / "library.properties").read_text()
    for metric in ("flash", "ram"):
        assert format_value(figures[metric].value, "B") in text


def test_both_libraries_in_one_program(libraries, made, need, sh, tmp_path: Path) -> None:
    """Both folders on the include path, as the builder has them: each source finds its own headers first."""
    need("gcc", "g++")
    (tmp_path / "main.cpp").write_text(
        f"#include <{W8A8}.h>\n#include <{FP32}.h>\n"
        f"int main() {{ {W8A8}_run(); {FP32}_run(); return {W8A8}_output() == nullptr; }}\n"
    )
    paths = [f"-I{libraries / name / 'src'}" for name in (FP32, W8A8)]
    for name in (W8A8, FP32):
        sh("gcc", "-O1", *paths, "-c", libraries / name / "src" / f"{name}.c", "-o", f"{name}.o", cwd=tmp_path)
    sh("g++", *paths, "main.cpp", f"{W8A8}.o", f"{FP32}.o", "-o", "both", cwd=tmp_path)
    sh("./both", cwd=tmp_path)


@pytest.mark.parametrize("name", ["es_net", "es_" + "a_" * 60, "es_" + "x" * 59 + "_____y"])
def test_long_names_become_legal(name: str) -> None:
    short = library_name(name)
    assert name.startswith(short) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]{0,62}", short)
    assert not short.endswith("_")
