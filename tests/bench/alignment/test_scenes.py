"""Captions describe scenes, and the split of the prompts is permanent."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebca.bench.alignment.prompts import KINDS, SPLITS, prompts
from ebca.bench.alignment.scenes import COLORS, RELATIONS, SHAPES, UNSEEN, Scene, Thing, outline, parse
from ebca.errors import ParameterError

FIRST_HELD_OUT = {
    "one": "a purple heart",
    "two": "a cyan star and a blue square",
    "three": "a purple square, an orange cross and a blue circle",
    "relation": "a cyan star above an orange circle",
    "unseen": "a purple circle and a pink square",
}


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    count = draw(st.integers(1, 3))
    colors = draw(st.permutations(list(COLORS)))[:count]
    shapes = draw(st.permutations(SHAPES))[:count]
    relation = draw(st.sampled_from([None, *RELATIONS])) if count == 2 else None
    return Scene(tuple(map(Thing, colors, shapes)), relation)


# A busy machine draws slowly; that is no error.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenes())
def test_captions_are_parsed_back(scene: Scene) -> None:
    assert parse(scene.caption()) == scene


def test_captions_are_plain_english() -> None:
    two = (Thing("orange", "star"), Thing("blue", "cross"))
    assert Scene(two[:1]).caption() == "an orange star"
    assert Scene(two).caption() == "an orange star and a blue cross"
    assert Scene(two, "left of").caption() == "an orange star left of a blue cross"
    assert Scene((*two, Thing("red", "heart"))).caption() == "an orange star, a blue cross and a red heart"


@pytest.mark.parametrize("text", ["", "a dog", "a red circle and a dog", "red circle", "a orange star"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="is not a caption"):
        parse(text)


def test_unseen_pairs_leave_every_color_and_shape_in_training() -> None:
    seen = {Thing(c, s) for c in COLORS for s in SHAPES} - UNSEEN
    assert {t.color for t in seen} == set(COLORS) and {t.shape for t in seen} == set(SHAPES)
    assert {t.shape for t in UNSEEN} == set(SHAPES) and len({t.color for t in UNSEEN}) == len(UNSEEN)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_fill_the_unit_circle(shape: str) -> None:
    radius = np.linalg.norm(outline(shape), axis=1).max()
    assert 0.9 <= radius <= 1.4


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_share_no_prompt_and_miss_none(kind: str) -> None:
    development, held_out = (prompts(kind, split) for split in SPLITS)
    assert not set(development) & set(held_out)
    # Half and half up to chance: the split is a bit of a hash.
    assert abs(len(development) - len(held_out)) <= 4 * np.sqrt(len(development) + len(held_out))
    for scene in (*development[:50], *held_out[:50]):
        assert len(UNSEEN.intersection(scene.things)) == (kind == "unseen")
        assert (scene.relation is not None) == (kind == "relation")
        assert len(scene.things) == {"one": 1, "three": 3}.get(kind, 2)


def test_the_prompts_never_change() -> None:
    """Otherwise results of different versions could not be compared."""
    assert {kind: prompts(kind, "held-out")[0].caption() for kind in KINDS} == FIRST_HELD_OUT
