"""Warnings about the texts of prompts."""

import warnings

import pytest

import ebca
from ebca.runtime.conditioning.prompts import weight_in


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a (red:1.3) circle", "(red:1.3)"),
        ("((very red:1.2) circle:1.5)", "(very red:1.2)"),
        ("a ( red circle : -.5 )", "( red circle : -.5 )"),
        ("(room 2:1.3)", "(room 2:1.3)"),
        ("(red:2)", "(red:2)"),
        ("(a:b) then (red:1.3)", "(red:1.3)"),
        ("a circle (red) and a star: 2", ""),
        ("a screen (16:9)", ""),
        ("(at 5:30)", ""),
        ("(:3)", ""),
        ("(a:b:1.3)", ""),
        ("(red:)", ""),
        ("(" * 100_000 + "a:" * 100_000, ""),
    ],
)
def test_weights_in_a_text_are_found(text: str, found: str) -> None:
    assert weight_in(text) == found


def test_every_text_with_weights_gives_a_warning(session: ebca.Session) -> None:
    texts = {"prompt": "a (red:1.3) cat", "negative_prompt": "(blue:1.1)", "edits": [ebca.Edit("a (dog:0.5)")]}
    with pytest.warns(UserWarning) as caught:
        session.generate(**texts, steps=1, scheduler="ddim", output="latents")
    remedy = "and weights in a text are not interpreted: they are read as words; use token_weights"
    assert [str(one.message).split(" (ebca-run")[0] for one in caught] == [
        f"the prompt has '(red:1.3)', {remedy}",
        f"the negative prompt has '(blue:1.1)', {remedy}",
        f"the editing prompt 1 has '(dog:0.5)', {remedy}",
    ]
    assert {one.filename for one in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.generate("a (red) cat", steps=1, scheduler="ddim", output="latents")


def test_a_long_prompt_is_not_shown_in_full(session: ebca.Session) -> None:
    with pytest.warns(UserWarning, match="the prompt is longer than 75 tokens") as caught:
        session.generate("a cat " * 5_000, steps=1, scheduler="ddim", output="latents")
    text = str(caught[0].message)
    assert len(text) < 250 and text.endswith("more characters)'")
    with pytest.raises(ebca.ParameterError) as refused:
        session.generate("a cat", token_weights={"dog " * 5_000: 2.0}, output="latents")
    assert len(str(refused.value)) < 2_500
