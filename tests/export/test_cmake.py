"""The CMake packages: an exported model as a package of its own, and find_package(edgescale)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgescale

# Reads images from standard input, writes the logits of both models: nothing in common but their headers.
TWO_MODELS = r"""
#include "es_fashion_small_w8a8.h"
#include "es_fashion_small_fp32.h"
#include "edgescale/es_quantize.h"
#include <stdio.h>

static float image[ES_FASHION_SMALL_FP32_INPUT_SIZE];

int main(void)
{
    while (fread(image, sizeof image, 1, stdin) == 1) {
        for (int i = 0; i < ES_FASHION_SMALL_W8A8_INPUT_SIZE; i++) {
            es_fashion_small_w8a8_input()[i] =
                es_real_to_s8(image[i], ES_FASHION_SMALL_W8A8_INPUT_SCALE, ES_FASHION_SMALL_W8A8_INPUT_ZERO_POINT);
            es_fashion_small_fp32_input()[i] = image[i];
        }
        es_fashion_small_w8a8_run();
        es_fashion_small_fp32_run();
        for (int i = 0; i < ES_FASHION_SMALL_W8A8_OUTPUT_SIZE; i++) {
            const float logit = es_s8_to_real(es_fashion_small_w8a8_output()[i],
                ES_FASHION_SMALL_W8A8_OUTPUT_SCALE, ES_FASHION_SMALL_W8A8_OUTPUT_ZERO_POINT);
            fwrite(&logit, sizeof logit, 1, stdout);
        }
        fwrite(es_fashion_small_fp32_output(), sizeof(float), ES_FASHION_SMALL_FP32_OUTPUT_SIZE, stdout);
    }
    return 0;
}
"""
W8A8, FP32 = "fashion_small-w8a8", "fashion_small-fp32"


@pytest.fixture
def project(tmp_path: Path, made, need, sh, strict: str) -> Callable[..., Path]:
    """Configure and build a project whose CMakeLists.txt holds the given lines; its build folder."""
    need("cmake", "gcc")

    def build(
        lines: str, *options: str, main: str = TWO_MODELS, failing: bool = False, only_configure: bool = False
    ) -> Path | str:
        folder = tmp_path / "app"
        folder.mkdir(exist_ok=True)
        (folder / "main.c").write_text(main)
        (folder / "CMakeLists.txt").write_text(
            f"cmake_minimum_required(VERSION 3.19...3.31)\nproject(app LANGUAGES C)\n{lines}\n"
        )
        shutil.rmtree(tmp_path / "build", ignore_errors=True)
        flags = f"-DCMAKE_C_FLAGS={strict}"
        text = sh("cmake", "-S", folder, "-B", tmp_path / "build", flags, *options, cwd=tmp_path, code=int(failing))
        if failing:
            return text
        if not only_configure:
            sh("cmake", "--build", tmp_path / "build", cwd=tmp_path)
        return tmp_path / "build"

    return build


@pytest.fixture
def answers(made, tmp_path: Path, sh) -> Callable[[Path], None]:
    """Assert that the built program answers as the emulated core: int8 to the bit, float to rounding."""

    def check(build: Path) -> None:
        (tmp_path / "images").write_bytes(np.ascontiguousarray(made.x.reshape(-1, 784)).tobytes())
        with (tmp_path / "images").open("rb") as images, (tmp_path / "logits").open("wb") as logits:
            import subprocess

            subprocess.run([build / "app"], stdin=images, stdout=logits, check=True)
        found = np.frombuffer((tmp_path / "logits").read_bytes(), np.float32).reshape(-1, 2, 10)
        assert np.array_equal(found[:, 0], made.answers[W8A8])
        np.testing.assert_allclose(found[:, 1], made.answers[FP32], rtol=1e-4, atol=1e-4)

    return check


@pytest.fixture(scope="module")
def exported(made, edgescale_once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both variants in layout cmake."""
    root = tmp_path_factory.mktemp("cmake")
    for variant in (W8A8, FP32):
        edgescale_once(
            "export", made.bundle, "-v", variant, "-l", "cmake", "-o", root / variant, "--package-version", "2.3.4"
        )
    return root


LINK = "add_executable(app main.c)\ntarget_link_libraries(app PRIVATE {})"
OWN = LINK.format("edgescale::es_fashion_small_w8a8 edgescale::es_fashion_small_fp32")


def test_two_models_by_add_subdirectory(exported: Path, project, answers) -> None:
    both = "".join(f'add_subdirectory("{exported / v}" {v})\n' for v in (W8A8, FP32))
    answers(project(f"{both}{OWN}"))


def test_two_models_installed_and_found_from_elsewhere(exported: Path, project, answers, need, sh, tmp_path) -> None:
    need("cmake", "gcc")
    for variant in (W8A8, FP32):
        sh("cmake", "-S", exported / variant, "-B", tmp_path / variant, cwd=tmp_path)
        sh("cmake", "--build", tmp_path / variant, cwd=tmp_path)
        sh("cmake", "--install", tmp_path / variant, "--prefix", tmp_path / "prefix", cwd=tmp_path)
    installed = {path.relative_to(tmp_path / "prefix").as_posix() for path in (tmp_path / "prefix").rglob("*.h")}
    assert installed == {
        "include/es_fashion_small_w8a8.h", "include/es_fashion_small_fp32.h", "include/edgescale/es_quantize.h",
    }  # fmt: skip
    lines = "find_package(es_fashion_small_w8a8 2.1 REQUIRED CONFIG)\nfind_package(es_fashion_small_fp32 REQUIRED)\n"
    answers(project(lines + OWN, f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"))
    newer = "find_package(es_fashion_small_w8a8 2.4 REQUIRED CONFIG)"
    assert "2.3.4" in project(newer, f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}", failing=True)


def test_the_models_are_optimized_even_in_a_debug_build(exported: Path, project) -> None:
    options = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    build = project(
        f'add_subdirectory("{exported / W8A8}" a)\nadd_subdirectory("{exported / FP32}" b)\n{OWN}', *options
    )
    commands = (build / "compile_commands.json").read_text()
    model = next(line for line in commands.splitlines() if "es_fashion_small_w8a8.c" in line and "command" in line)
    assert "-O2" in model and "-std=c99" in model
    both = "".join(f'add_subdirectory("{exported / v}" {v})\n' for v in (W8A8, FP32))
    build = project(both + OWN, *options, only_configure=True)
    commands = (build / "compile_commands.json").read_text()
    model = next(line for line in commands.splitlines() if "es_fashion_small_w8a8.c" in line and "command" in line)
    assert "-O2" in model and "-std=c99" in model
    build = project(both + OWN, *options, "-DEDGESCALE_OPTIMIZE=", only_configure=True)
    assert "-O" not in re.sub(r'"(file|output|directory)".*', "", (build / "compile_commands.json").read_text())


class TestGenericPackage:
    """find_package(edgescale) and edgescale_add_model()."""

    USE = "find_package(edgescale 0.1 REQUIRED CONFIG)\n"

    @pytest.fixture
    def package(self, repository: Path, need, sh, tmp_path: Path) -> str:
        """The option by which the installed package is found."""
        need("cmake", "gcc")
        sh("cmake", "-S", repository / "firmware", "-B", tmp_path / "firmware", cwd=tmp_path)
        sh("cmake", "--install", tmp_path / "firmware", "--prefix", tmp_path / "prefix", cwd=tmp_path)
        return f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"

    def test_two_variants_of_a_bundle(self, made, project, answers, package: str) -> None:
        lines = "".join(f'edgescale_add_model(m{i} "{made.bundle}" VARIANT {v})\n' for i, v in enumerate((W8A8, FP32)))
        answers(project(self.USE + lines + LINK.format("m0 m1"), package))

    def test_artifact_folders_and_relative_paths(self, made, project, answers, package: str, tmp_path) -> None:
        shutil.copytree(made.bundle / "artifacts", tmp_path / "app" / "models")
        lines = "".join(
            f"edgescale_add_model(m{i} models/{v}@cortex-m4-stm32l4r5)\n" for i, v in enumerate((W8A8, FP32))
        )
        answers(project(self.USE + lines + LINK.format("m0 m1"), package))

    def test_straight_from_the_source_tree(self, made, repository: Path, project, answers) -> None:
        lines = "".join(f'edgescale_add_model(m{i} "{made.bundle}" VARIANT {v})\n' for i, v in enumerate((W8A8, FP32)))
        found = "find_package(edgescale REQUIRED)\n"
        answers(project(found + lines + LINK.format("m0 m1"), f"-Dedgescale_DIR={repository / 'firmware' / 'cmake'}"))
        added = f'add_subdirectory("{repository / "firmware"}" edgescale)\n'
        project(added + lines + LINK.format("m0 m1"), only_configure=True)

    def test_the_default_is_the_bundles_choice(self, made, project, package: str) -> None:
        from edgescale.bundle import open_bundle

        chosen = open_bundle(made.bundle).policy("cortex-m4-stm32l4r5").default.partition("@")[0].replace("-", "_")
        main = f'#include "es_{chosen}.h"\nint main(void) {{ es_{chosen}_run(); return 0; }}\n'
        lines = f'edgescale_add_model(net "{made.bundle}" TARGET cortex-m4-stm32l4r5)\n'
        project(self.USE + lines + LINK.format("net"), package, main=main)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ('net "{bundle}" VARIANT nonsense', "fashion_small-fp32@cortex-m4-stm32l4r5"),
            ('net "{bundle}" TARGET nonsense', "none for a microcontroller"),
            ('net "{bundle}" VARIENT x', "cannot use"),
            ('net "{bundle}/layers"', "neither a bundle"),
            ('net "{bundle}/artifacts/fashion_small-w8a8@cortex-m4-stm32l4r5" VARIANT x', "choose from a bundle"),
        ],
    )
    def test_wrong_calls_are_explained(self, made, project, package: str, call: str, message: str) -> None:
        lines = f"edgescale_add_model({call.format(bundle=made.bundle)})"
        text = project(self.USE + lines, package, failing=True)
        assert message in " ".join(text.split())

    def test_a_changed_bundle_is_refused(self, made, project, package: str, tmp_path: Path) -> None:
        shutil.copytree(made.bundle, tmp_path / "bundle")
        header = next((tmp_path / "bundle").rglob("es_fashion_small_w8a8.h"))
        header.write_text(header.read_text() + "\n")
        text = project(f'{self.USE}edgescale_add_model(net "{tmp_path}/bundle" VARIANT {W8A8})', package, failing=True)
        assert "has been changed" in " ".join(text.split())

    def test_a_project_without_c_is_told(self, made, project, package: str, tmp_path: Path) -> None:
        project("", package, main="")
        (tmp_path / "app" / "CMakeLists.txt").write_text(
            f"cmake_minimum_required(VERSION 3.19)\nproject(app LANGUAGES NONE)\n{self.USE}"
            f'edgescale_add_model(net "{made.bundle}")\n'
        )
        import subprocess

        command = ["cmake", "-S", tmp_path / "app", "-B", tmp_path / "build2", package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "LANGUAGES" in done.stderr

    def test_a_new_bundle_configures_again(self, made, project, package: str, sh, tmp_path: Path) -> None:
        shutil.copytree(made.bundle, tmp_path / "bundle")
        main = '#include "es_fashion_small_w8a8.h"\nint main(void) { es_fashion_small_w8a8_run(); return 0; }\n'
        lines = f'edgescale_add_model(net "{tmp_path}/bundle" VARIANT {W8A8})\n'
        build = project(self.USE + lines + LINK.format("net"), package, main=main)
        header = next((tmp_path / "bundle").rglob("es_fashion_small_w8a8.h"))
        header.write_text(header.read_text() + "\n")
        (tmp_path / "bundle" / "manifest.json").touch()
        assert "has been changed" in " ".join(sh("cmake", "--build", build, cwd=tmp_path, code=2).split())

    def test_cross_build(self, made, repository: Path, project, package: str, need, sh) -> None:
        need("arm-none-eabi-gcc")
        cmake = repository / "firmware" / "cmake"
        options = [f"-Dedgescale_DIR={cmake}", f"-DCMAKE_TOOLCHAIN_FILE={cmake / 'arm-none-eabi.cmake'}"]
        options.append("-DEDGESCALE_CPU_FLAGS=-mcpu=cortex-m4 -mthumb")
        build = project(f'find_package(edgescale REQUIRED)\nedgescale_add_model(net "{made.bundle}" VARIANT {W8A8})',
                        *options)  # fmt: skip
        attributes = sh("arm-none-eabi-readelf", "-A", build / "libnet.a", cwd=build)
        assert "Tag_CPU_arch: v7E-M" in attributes and "Tag_CPU_arch_profile: Microcontroller" in attributes


def test_the_packages_version_is_edgescales(repository: Path) -> None:
    text = (repository / "firmware" / "CMakeLists.txt").read_text()
    assert f"project(edgescale VERSION {edgescale.__version__} " in text
