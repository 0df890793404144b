"""Views of images: against pixel by pixel, offered where they pay, averaged by the adaptive session."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgescale.bundle import open_bundle, write_bundle
from edgescale.bundle.options import Answers, answers_of, build_policy
from edgescale.cache import StageStore
from edgescale.control import Controller, decode_policy, encode_policy
from edgescale.control.c_source import c_policy
from edgescale.core.errors import UsageError
from edgescale.core.recipe import parse_recipe
from edgescale.core.target import load_target
from edgescale.pipeline import Request, compile_models
from edgescale.runtime import AdaptiveSession
from edgescale.runtime.views import image_axes, parse_views

FASHION = Path(__file__).parents[2] / "examples" / "fashion"


def pixel(image, row: float, column: float) -> float:
    """Linear between the four pixels around, the border repeated."""
    rows, columns = image.shape
    row, column = min(max(row, 0.0), rows - 1.0), min(max(column, 0.0), columns - 1.0)
    i, j = math.floor(row), math.floor(column)
    k, m = min(i + 1, rows - 1), min(j + 1, columns - 1)
    top = image[i, j] * (1 - (column - j)) + image[i, m] * (column - j)
    low = image[k, j] * (1 - (column - j)) + image[k, m] * (column - j)
    return top * (1 - (row - i)) + low * (row - i)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("mirror", lambda r, c, h, w: (r, w - 1 - c)),
        ("shift:1,-2", lambda r, c, h, w: (r + 2, c - 1)),
        ("shift:0.5,0", lambda r, c, h, w: (r, c - 0.5)),
        ("zoom:2", lambda r, c, h, w: ((r - (h - 1) / 2) / 2 + (h - 1) / 2, (c - (w - 1) / 2) / 2 + (w - 1) / 2)),
        ("zoom:0.8", lambda r, c, h, w: ((r - (h - 1) / 2) / 0.8 + (h - 1) / 2, (c - (w - 1) / 2) / 0.8 + (w - 1) / 2)),
    ],
)
@pytest.mark.parametrize(("shape", "dtype"), [((3, 6, 5), "float32"), ((7, 4, 3), "uint8"), ((5, 6), "int8")])
def test_a_view_is_what_each_pixel_says(text, place, shape, dtype):
    x = (np.random.default_rng(0).normal(20, 40, (2, *shape))).clip(0, 99).astype(dtype)
    seen = parse_views([text])[0].apply(x, shape)
    assert seen.shape == x.shape and seen.dtype == x.dtype
    rows, columns = image_axes(shape)
    images, views = (
        np.moveaxis(a, (rows, columns), (-2, -1)).reshape(-1, shape[rows], shape[columns]) for a in (x, seen)
    )
    for image, view in zip(images.astype(float), views, strict=True):
        h, w = image.shape
        right = [[pixel(image, *place(r, c, h, w)) for c in range(w)] for r in range(h)]
        np.testing.assert_allclose(view, right, atol=1e-4 if dtype == "float32" else 1.01)


def test_what_is_no_view_is_refused():
    for text in ("flip", "shift:1", "shift:0,0", "zoom:1", "zoom:9", "mirror:1", "shift:a,b", "zoom:nan"):
        with pytest.raises(UsageError, match="no view"):
            parse_views([text])
    with pytest.raises(UsageError, match="different"):
        parse_views(["mirror", "mirror"])
    with pytest.raises(UsageError, match="none with 1, 3 or 4 channels"):
        image_axes((8, 9, 10))


def offered(toys, tmp_path, base, views):
    confidence = np.clip(np.random.default_rng(1).normal(0.6, 0.2, len(base)) + 0.2 * base, 0.1, 1).astype(np.float32)
    made = toys.make_entry(tmp_path / "made", "net", {"accuracy": float(base.mean()), "latency": 1.0})
    records = open_bundle(write_bundle(tmp_path / "bundle", [made], toys.context(""))).manifest.entries
    answers = {"net-fp32@host": Answers(confidence, base, tuple(views))}
    return build_policy("host", "top1", records, answers, ["mirror", "shift:1,0"]), confidence


def test_views_are_offered_where_they_win_beyond_chance(toys, tmp_path):
    rng = np.random.default_rng(0)
    base = rng.random(1000) < 0.8
    better = base | (rng.random(1000) < 0.15)
    policy, confidence = offered(toys, tmp_path, base, [rng.permutation(base), better])
    assert {o.steps[-1].views for o in policy.options} == {0, 2}
    (always,) = (o for o in policy.options if len(o.steps) == 1 and o.steps[0].views)
    assert (always.mean_us, always.samples, always.quality[0]) == (3000, 3, round(better.mean() * 32768))
    gated = [o for o in policy.options if len(o.steps) == 2]
    assert gated
    for option in gated:
        asked = confidence < option.confidence / 32768
        assert option.quality[0] / 32768 == pytest.approx(np.where(asked, better, base).mean(), abs=0.005)
        assert option.mean_us == pytest.approx(1000 + 2000 * asked.mean(), rel=0.02)
        assert option.memory == policy.options[0].memory
    assert decode_policy(encode_policy(policy), "here") == policy
    with pytest.raises(UsageError, match="views of option"):
        msgspec.structs.replace(policy, views=("mirror",)).check()


def test_firmware_gets_no_policy_with_views(toys, tmp_path):
    rng = np.random.default_rng(0)
    base = rng.random(1000) < 0.8
    policy, _ = offered(toys, tmp_path, base, [base, base | (rng.random(1000) < 0.15)])
    with pytest.raises(UsageError, match="without --views"):
        c_policy(policy, "net")


def test_views_that_win_nothing_are_not_offered(toys, tmp_path):
    rng = np.random.default_rng(0)
    base = rng.random(1000) < 0.8
    spoiled = base & (rng.random(1000) < 0.95) | (rng.random(1000) < 0.04)
    policy, _ = offered(toys, tmp_path, base, [spoiled, base])
    assert [o.steps[0].views for o in policy.options] == [0]


def test_answers_of_views_are_those_of_the_mean_probability():
    rng = np.random.default_rng(3)
    scores, more, last = rng.normal(0, 2, (3, 200, 5))
    labels = rng.integers(0, 5, 200)
    answers = answers_of(scores, labels, [more, last])

    def softmax(s):
        return np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)

    np.testing.assert_array_equal(answers.views[0], (softmax(scores) + softmax(more)).argmax(axis=1) == labels)
    three = softmax(scores) + softmax(more) + softmax(last)
    np.testing.assert_array_equal(answers.views[1], three.argmax(axis=1) == labels)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    data = np.load(FASHION / "test.npz")
    np.savez(folder / "some.npz", x=data["x"][:300], y=data["y"][:300])
    request = Request(
        models=(FASHION / "fashion_small.onnx",),
        recipes=(parse_recipe("fp32"),),
        targets=(load_target("host"),),
        evaluation=str(folder / "some.npz"),
        samples=2,
        out=folder / "bundle",
        views=("mirror", "shift:1,0"),
    )
    return compile_models(request, StageStore(folder / "cache")).bundle, data["x"][:20]


def test_the_session_averages_what_the_option_asks_for(bundle):
    path, images = bundle
    with AdaptiveSession(path) as session:
        session.ready()
        policy = session.controller.policy
        assert policy.views == ("mirror", "shift:1,0")
        plain = policy.options[0]
        step = plain.steps[0]
        more = msgspec.structs.replace(step, views=2)
        views = parse_views(policy.views)

        def answer(x):
            scores = session.session.infer(policy.variants[0].name, x)[0]
            powers = np.exp(next(iter(scores.values())).astype(np.float64))
            return powers / powers.sum()

        always = msgspec.structs.replace(plain, steps=(more,))
        gated = msgspec.structs.replace(plain, steps=(step, more), confidence=round(0.7 * 32768))
        asked = 0
        for one in (always, gated):
            for image in images:
                session.controller = Controller(msgspec.structs.replace(policy, options=(one,)))
                result = session.run(image)
                alone = answer(image)
                mean = np.mean([alone, *(answer(v.apply(image, images.shape[1:])) for v in views)], axis=0)
                if one is gated and alone.max() >= 0.7:
                    assert result.ran == (policy.variants[0].name,)
                    continue
                asked += one is gated
                np.testing.assert_allclose(result.output, mean, rtol=1e-5, atol=1e-7)
        assert 0 < asked < len(images)


def test_views_need_labels(tmp_path):
    request = Request(
        models=(FASHION / "fashion_small.onnx",), recipes=(parse_recipe("fp32"),), targets=(load_target("host"),),
        calibration=str(FASHION / "calibration.npz"), out=tmp_path / "bundle", views=("mirror",),
    )  # fmt: skip
    with pytest.raises(UsageError, match="give --eval"):
        compile_models(request, StageStore(tmp_path / "cache"))
