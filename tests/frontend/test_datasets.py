"""Datasets: every source, every cast, every complaint."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgescale.core.errors import UsageError
from edgescale.core.model import Model, TensorSpec
from edgescale.frontend import dataset_fingerprint, load_dataset


def model(shape=(1, 3, 4, 5), dtype="float32", inputs=1):
    specs = tuple(TensorSpec(f"x{i}", shape, dtype) for i in range(inputs))
    return Model("net", None, specs, (), "", False)  # type: ignore[arg-type]


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(size=(6, 3, 4, 5)).astype(np.float32)


def test_npz(tmp_path, samples):
    path = tmp_path / "data.npz"
    np.savez(path, x=samples, y=np.arange(6))
    data = load_dataset(str(path), model(), need_labels=True)
    np.testing.assert_array_equal(data.x, samples)
    np.testing.assert_array_equal(data.y, np.arange(6))
    assert data.name == "data"
    assert data.sha256 == dataset_fingerprint(str(path))
    np.savez(path, samples)
    assert load_dataset(str(path)).y is None
    assert load_dataset(str(path)).sha256 != data.sha256


def test_npy_file(tmp_path, samples):
    np.save(tmp_path / "a.npy", samples)
    np.testing.assert_array_equal(load_dataset(str(tmp_path / "a.npy"), model()).x, samples)


def test_folder(tmp_path, samples):
    for i in (3, 0, 1, 2):
        np.save(tmp_path / f"s{i}.npy", samples[i])
    np.testing.assert_array_equal(load_dataset(str(tmp_path), model()).x, samples[:4])
    np.save(tmp_path / "labels.npy", np.array([1, 0, 2, 1]))
    np.testing.assert_array_equal(load_dataset(str(tmp_path), model()).y, [1, 0, 2, 1])
    before = dataset_fingerprint(str(tmp_path))
    np.save(tmp_path / "labels.npy", np.array([1, 0, 2, 2]))
    assert dataset_fingerprint(str(tmp_path)) != before
    np.save(tmp_path / "s9.npy", samples[0, :2])
    with pytest.raises(UsageError, match=r"s9\.npy has the shape \[2, 4, 5\]"):
        load_dataset(str(tmp_path), model())


def test_class_folders(tmp_path, samples):
    for folder, rows in (("dog", [0, 1]), ("cat", [2, 3, 4])):
        (tmp_path / folder).mkdir()
        for row in rows:
            np.save(tmp_path / folder / f"{row}.npy", samples[row])
    data = load_dataset(str(tmp_path), model(), need_labels=True)
    np.testing.assert_array_equal(data.x, samples[[2, 3, 4, 0, 1]])
    np.testing.assert_array_equal(data.y, [0, 0, 0, 1, 1])


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into a fresh working directory; forget it afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(text, name="my_data_source"):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def test_function(module, samples, tmp_path):
    name = module(
        "import numpy as np\n"
        "def load():\n    return np.ones((4, 3, 4, 5)) * np.arange(60).reshape(3, 4, 5), [0, 1, 0, 1]\n"
    )
    data = load_dataset(f"{name}:load", model(), need_labels=True)
    assert data.x.shape == (4, 3, 4, 5)
    assert data.x.dtype == np.float32
    assert data.y.tolist() == [0, 1, 0, 1]
    assert data.sha256 == dataset_fingerprint(f"{name}:load") != dataset_fingerprint(f"{name}:other")
    (tmp_path / f"{name}.py").write_text("# another\n")
    assert dataset_fingerprint(f"{name}:load") != data.sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def load():\n    raise KeyError('lost')\n", "raised KeyError"),
        ("def other():\n    pass\n", "no function 'load'"),
        ("import nothing_like_this\n", "ModuleNotFoundError"),
        ("def load():\n    return 1, 2, 3\n", "3 values"),
        ("def load():\n    return [[1, 2], [3]]\n", "no regular array"),
        ("def load():\n    return ['a', 'b']\n", "numbers are needed"),
    ],
)
def test_function_errors(module, text, words):
    name = module(text)
    with pytest.raises(UsageError, match=words):
        load_dataset(f"{name}:load")


@pytest.mark.parametrize("spec", ["nowhere.npz", "no_such_module_x:load", "folder/none", "C:data"])
def test_source_does_not_exist(spec):
    with pytest.raises(UsageError, match=spec):
        load_dataset(spec)


def test_unreadable_files(tmp_path, samples):
    cases = {
        "empty.npz": b"",
        "text.npz": b"not numpy at all",
        "zip.npz": b"PK\x03\x04" + bytes(50),
        "image.png": b"\x89PNG",
        "cut.npy": None,
        "cut.npz": None,
    }
    np.save(tmp_path / "cut.npy", samples)
    np.savez(tmp_path / "cut.npz", x=samples)
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:300] if data is None else data)
        with pytest.raises(UsageError, match=name):
            load_dataset(str(path))


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(UsageError, match="not loaded"):
        load_dataset(str(tmp_path / "evil.npz"))


def save(tmp_path, x, y=None):
    path = tmp_path / "d.npz"
    np.savez(path, x=x, **({} if y is None else {"y": y}))
    return str(path)


def test_names_in_the_archive(tmp_path, samples):
    np.savez(tmp_path / "d.npz", images=samples, labels=np.arange(6))
    with pytest.raises(UsageError, match="images, labels"):
        load_dataset(str(tmp_path / "d.npz"))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((6, 4, 5, 3), r"\[4, 5, 3\].*\[3, 4, 5\].*x\.transpose\(0, 3, 1, 2\) would fit"),
        ((6, 12, 5), r"\[12, 5\].*reshape\(-1, 3, 4, 5\)"),
        ((6, 3, 4, 6), r"\[3, 4, 6\].*\[3, 4, 5\]$"),
        ((3, 4, 5), r"a single sample"),
    ],
)
def test_wrong_shape(tmp_path, shape, words):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with pytest.raises(UsageError, match=words):
        load_dataset(save(tmp_path, x), model())


def test_transpose_hint_is_right(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    with pytest.raises(UsageError, match=r"x\.transpose\(0, 2, 3, 1\)"):
        load_dataset(save(tmp_path, x), model())
    assert x.transpose(0, 2, 3, 1).shape[1:] == (3, 4, 5)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int16, np.int64])
def test_casts_to_float32_keep_the_values(tmp_path, samples, dtype):
    x = (samples * 20).astype(dtype) if np.dtype(dtype).kind in "if" else np.abs(samples * 20).astype(dtype)
    data = load_dataset(save(tmp_path, x), model())
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, x.astype(np.float32))


def test_casts_that_lose_are_refused(tmp_path, samples):
    big = np.full((6, 3, 4, 5), 2**24 + 1)
    big[0] = 0
    with pytest.raises(UsageError, match=r"2\^24"):
        load_dataset(save(tmp_path, big), model())
    with pytest.raises(UsageError, match="beyond float32"):
        load_dataset(save(tmp_path, samples.astype(np.float64) * 1e300), model())
    with pytest.raises(UsageError, match="complex64"):
        load_dataset(save(tmp_path, samples.astype(np.complex64)), model())
    with pytest.raises(UsageError, match="quantize the samples"):
        load_dataset(save(tmp_path, samples), model(dtype="int8"))
    with pytest.raises(UsageError, match="from 0 to 200"):
        load_dataset(save(tmp_path, np.arange(0, 201).repeat(60).reshape(-1, 3, 4, 5)), model(dtype="int8"))
    fits = np.arange(-60, 60).reshape(2, 3, 4, 5)
    assert load_dataset(save(tmp_path, fits), model(dtype="int8")).x.dtype == np.int8


def test_values_without_use(tmp_path, samples):
    samples[4, 1, 2, 3] = np.nan
    with pytest.raises(UsageError, match="sample 4 holds NaN"):
        load_dataset(save(tmp_path, samples), model())
    with pytest.raises(UsageError, match=r"every number in x is 0\.5"):
        load_dataset(save(tmp_path, np.full((6, 3, 4, 5), 0.5)), model())
    with pytest.raises(UsageError, match="no samples"):
        load_dataset(save(tmp_path, samples[:0]), model())


def test_labels(tmp_path, samples):
    with pytest.raises(UsageError, match="no labels"):
        load_dataset(save(tmp_path, samples), model(), need_labels=True)
    with pytest.raises(UsageError, match="5 labels for 6 samples"):
        load_dataset(save(tmp_path, samples, np.arange(5)), model())
    with pytest.raises(UsageError, match="labels have the type"):
        load_dataset(save(tmp_path, samples, np.array(list("abcdef"))), model())
    with pytest.raises(UsageError, match="labels hold NaN"):
        load_dataset(save(tmp_path, samples, np.array([0, 1, np.nan, 0, 1, 1])), model())


def test_models_of_several_inputs(tmp_path, samples):
    several = model(inputs=2)
    with pytest.raises(UsageError, match=r"no array 'x0', 'x1' \(found: x\)"):
        load_dataset(save(tmp_path, samples), several)
    path = tmp_path / "both.npz"
    np.savez(path, x0=samples, x1=2 * samples[:5])
    with pytest.raises(UsageError, match="x0: 6, x1: 5"):
        load_dataset(str(path), several)
    np.savez(path, x0=samples, x1=2 * samples, y=np.arange(6))
    data = load_dataset(str(path), several, need_labels=True)
    np.testing.assert_array_equal(data.y, np.arange(6))
    assert [sorted(part) for part in data.parts(4)] == [["x0", "x1"]] * 2
    np.testing.assert_array_equal(np.concatenate([part["x1"] for part in data.parts(4)]), 2 * samples)
    np.testing.assert_array_equal(data.head(2).fed()["x1"], 2 * samples[:2])
    np.save(tmp_path / "only.npy", samples)
    with pytest.raises(UsageError, match=r"2 inputs \(x0, x1\)"):
        load_dataset(str(tmp_path / "only.npy"), several)


def test_tokens_of_any_length(tmp_path):
    tokens = model(shape=(1, -1), dtype="int64")
    data = load_dataset(save(tmp_path, np.arange(12).reshape(3, 4)), tokens)
    assert data.x.shape == (3, 4) and data.x.dtype == np.int64
    with pytest.raises(UsageError, match="takes int64"):
        load_dataset(save(tmp_path, np.random.default_rng(0).random((3, 4))), tokens)
    with pytest.raises(UsageError, match=r"takes \[-1\] \(-1: any\)"):
        load_dataset(save(tmp_path, np.arange(12).reshape(3, 2, 2)), tokens)
