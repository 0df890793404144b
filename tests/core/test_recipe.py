"""Recipes: names to settings and back, overrides, and no part that is silently ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgescale.core.errors import UsageError
from edgescale.core.variant import Recipe, parse_recipe, with_overrides

NAMES = ["w8a8", "w4a8", "w4a16-g32", "w8a16", "w4a8-adaround", "w4a8-gptq-mse", "w4-g64-asym", "w8a8-cle-bc", "auto"]


@pytest.mark.parametrize("name", NAMES)
def test_names_round_trip(name):
    recipe = parse_recipe(name)
    assert str(recipe) == name
    assert parse_recipe(str(recipe)) == recipe


@pytest.mark.parametrize("name", ["fp4-g64", "nf4", "wfp8afp8", "wfp4a8-g16-m2", "w3-g64-asym"])
def test_formats_that_nothing_executes_say_so_in_their_name(name):
    recipe = parse_recipe(name)
    assert str(recipe) == f"{name}-simulated"
    assert parse_recipe(str(recipe)) == recipe
    assert recipe.simulated is not None


def test_fields():
    recipe = parse_recipe("w4a16-g32", "minmax")
    assert (recipe.weight_bits, recipe.activation_bits, recipe.group, recipe.observer) == (4, 16, 32, "minmax")
    assert parse_recipe("int8") == Recipe(8, 8)
    assert parse_recipe("fp32") == Recipe()
    assert parse_recipe("auto0.7").share == 0.7


def test_method_that_applies_where_none_is_written():
    assert parse_recipe("w8a8").method == "rtn"
    assert parse_recipe("w4a8").method == "adaround"
    assert parse_recipe("w4a8-rtn").method == "rtn"
    assert parse_recipe("w4-g32").method == "rtn"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w9a8", "unknown recipe"),
        ("w8a7", "unknown recipe"),
        ("q4", "unknown recipe"),
        ("w8a8-fast", "unknown suffix 'fast'"),
        ("fp32-cle", "takes no suffix"),
        ("fp4-asym", "no zero-points"),
        ("w4a8-adaround-bc", "fits the biases"),
        ("w4-smooth", "stay float"),
        ("w8a8-bc-abc", "choose one"),
        ("auto-g32", "itself"),
        ("w8a8-simulated", "unknown suffix"),
        ("w8a16-g32-pos", "above zero without pos"),
        ("w4a8-pos", "above zero without pos"),
        ("w4a16-g32-asym-pos", "above zero without pos"),
        ("nf4-g64-pos", "above zero without pos"),
    ],
)
def test_refusals(name, words):
    with pytest.raises(UsageError, match=words):
        parse_recipe(name)


def test_signed_scales():
    assert parse_recipe("w4a16-g32").signed_scales and parse_recipe("w2a16-g32-awq").signed_scales
    for name in ("w4a16-g32-pos", "w8a16-g32", "w4a16-g32-asym", "w4a16-g32-m1", "fp4-g64"):
        assert not parse_recipe(name).signed_scales
        assert str(parse_recipe(name)).removesuffix("-simulated") == name


def test_later_overrides_win():
    recipe = with_overrides(parse_recipe("w4a8"), ["stage1.*=w8a8", "stage1.conv2=fp32", "head=w8a16"])
    assert str(recipe.for_node("stage1.conv1")) == "w8a8"
    assert recipe.for_node("stage1.conv2").is_float
    assert recipe.for_node("head").activation_bits == 16
    assert recipe.for_node("stem") is recipe


def test_sets_of_overrides_are_different_variants():
    names = {str(with_overrides(parse_recipe("w4a8"), texts)) for texts in ([], ["a=w8a8"], ["b=w8a8"])}
    assert len(names) == 3


@pytest.mark.parametrize("text", ["w8a8", "=w8a8", "a=", "a=nothing", "a=auto", "a=w8a8-cle"])
def test_malformed_overrides(text):
    with pytest.raises(UsageError):
        with_overrides(parse_recipe("w4a8"), [text])


@given(st.text(alphabet="wafp0123456789-gnmclesutointrqd.", max_size=24))
def test_any_text_is_a_recipe_or_a_usage_error(text):
    try:
        recipe = parse_recipe(text)
    except UsageError:
        return
    assert parse_recipe(str(recipe)) == recipe
