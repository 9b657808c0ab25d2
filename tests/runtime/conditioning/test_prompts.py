"""Weighted and long prompts: their embeddings against the reference, and everything that is found by words."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import weighted_reference
from transformers import CLIPTokenizerFast

import ebca
from ebca.export.checkpoint.tiny import WORDS, build_tiny
from ebca.export.checkpoint.word_tokenizer import write_word_tokenizer
from ebca.runtime.conditioning.prompts import Conditioning, PromptEncoder
from ebca.runtime.request.serialization import from_parameters

# Rounding of float32 in another order, on embeddings of up to 5.
LIMIT = 1e-5
LONG = "a red cat on a beach, " * 20
RUN: dict[str, Any] = {"steps": 1, "scheduler": "ddim", "seed": 1, "output": "latents"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_word_tokenizer(folder, WORDS, 77)
    yield CLIPTokenizerFast.from_pretrained(str(folder)), build_tiny().text_encoder


def encoded(engine: ebca.Engine, prompt: str, **fields: Any) -> np.ndarray:
    return PromptEncoder(engine, 1).encode(Conditioning(prompt, **fields), guided=False).conditional[0]


def test_200_prompts_equal_the_reference(engine: ebca.Engine, reference: tuple[Any, Any]) -> None:
    """Embeddings against PyTorch, and what weights make of them. These are two comparisons, because the random net's
    embeddings have a mean of about 0.002, a fiftieth of CLIP's, which multiplies the rounding of the encoder."""
    tokenizer, encoder = reference
    counts: set[int] = set()
    for prompt in weighted_reference.prompts(WORDS, 200):
        ids, weights = weighted_reference.rows(prompt, tokenizer)
        plain = engine.encode(ids.numpy()).contexts
        with torch.no_grad():
            assert np.abs(plain - encoder(ids).last_hidden_state.numpy()).max() <= LIMIT, prompt
        expected = weighted_reference.weighted(torch.from_numpy(plain), weights).numpy()
        found = encoded(engine, prompt)
        assert found.shape == expected.shape, prompt
        assert np.abs(found - expected).max() <= LIMIT * max(1.0, float(np.abs(expected).max())), prompt
        counts.add(len(ids))
    assert {1, 2, 3} <= counts


def test_a_prompt_without_syntax_has_the_bits_of_the_encoder(engine: ebca.Engine) -> None:
    prompt = r"a red cat: a \ photo, 16:9"
    ids = engine.tokenizer.encode([prompt]).ids
    for options in ({}, {"prompt_weighting": False, "long_prompts": False}):
        assert np.array_equal(encoded(engine, prompt, **options), engine.encode(ids).contexts[0])
    assert np.array_equal(encoded(engine, "a (red:1) cat"), encoded(engine, "a red cat"))


def test_options_turn_it_off(engine: ebca.Engine) -> None:
    plain = engine.encode(engine.tokenizer.encode(["a (red:1.3) cat BREAK"]).ids).contexts[0]
    assert np.array_equal(encoded(engine, "a (red:1.3) cat BREAK", prompt_weighting=False), plain)
    assert encoded(engine, "((", prompt_weighting=False).shape == (77, 32)
    with pytest.warns(UserWarning, match="the prompt is longer than 75 tokens; dropped: '"):
        assert len(encoded(engine, LONG, long_prompts=False)) == 77
    # All in one chunk: BREAK only separates words.
    one = encoded(engine, "a red BREAK (cat)", long_prompts=False)
    assert np.array_equal(one, encoded(engine, "a red (cat)"))


def test_all_prompts_are_lengthened_by_empty_ones(engine: ebca.Engine) -> None:
    conditioning = Conditioning(["a cat", LONG], negative_prompt="(blurry:1.2)")
    made = PromptEncoder(engine, 2).encode(conditioning, [ebca.Edit("a dog BREAK a cat")], guided=True)
    empty, blurry = encoded(engine, ""), encoded(engine, "(blurry:1.2)")
    assert made.unconditional is not None and made.contexts.shape == (4, 2, 154, 32)
    assert np.abs(made.conditional[0] - np.concatenate([encoded(engine, "a cat"), empty])).max() <= LIMIT
    assert np.abs(made.unconditional[1] - np.concatenate([blurry, empty])).max() <= LIMIT
    dog = np.concatenate([encoded(engine, "a dog"), encoded(engine, "a cat")])
    assert np.abs(made.edits[0][0] - dog).max() <= LIMIT
    tokens = PromptEncoder(engine, 2).tokens(conditioning, [ebca.Edit("a dog BREAK a cat")], guided=True)
    assert tokens == 154
    # Texts beside embeddings get their length.
    given = Conditioning(prompt_embeds=made.conditional[:1], negative_prompt="")
    assert PromptEncoder(engine, 1).encode(given, guided=True).contexts.shape == (2, 1, 154, 32)


def test_words_are_found_in_the_plain_text_of_all_chunks(engine: ebca.Engine) -> None:
    weights = {"red cat": 2.0, "dog": 3.0}
    made = PromptEncoder(engine, 1).encode(
        Conditioning("a (red:1.3) cat BREAK a dog, [red] cat", token_weights=weights), guided=False
    )
    factors = made.token_factors()[0, 0]
    assert {int(i): float(factors[i]) for i in np.flatnonzero(factors != 1)} == {2: 2, 3: 2, 79: 3, 81: 2, 82: 2}
    with pytest.raises(ebca.ParameterError, match="the word 'cat a' is not in the prompt"):
        encoded(engine, "a cat BREAK a dog", token_weights={"cat a": 2.0})
    with pytest.raises(ebca.ParameterError, match="positions 0 to 153"):
        encoded(engine, "a cat BREAK a dog", token_weights={154: 2.0})


def test_everything_runs_with_several_chunks(session: ebca.Session, tmp_path: Path) -> None:
    prompt = f"a (red:1.3) cat and a [blue] dog, {LONG} BREAK a (green bird)"
    fields = {"negative_prompt": "(blurry)", "edits": [ebca.Edit("a (boat:1.2)", alpha=0.5, gamma_attn=0.01)]}
    made = session.generate(
        prompt, **fields, gamma_attn=0.01, gamma_norm=0.01, token_weights={"green bird": 2.0}, energies=True,
        attention_maps=True, **RUN,
    )  # fmt: skip
    assert made.energies is not None and np.isfinite(made.latents).all()
    assert made.parameters["prompt_weighting"] is True and made.parameters["long_prompts"] is True
    again = session.run(from_parameters(made.parameters, energies=False, attention_maps=False))
    assert np.array_equal(again.latents, made.latents)
    # A file of a version that did not know weights is repeated without them.
    old = {name: value for name, value in made.parameters.items() if name not in ("prompt_weighting", "long_prompts")}
    request = from_parameters(old, long_prompts=True)
    assert request.conditioning.prompt_weighting is False and request.conditioning.long_prompts is True


def test_subjects_are_found_in_the_plain_text(session: ebca.Session) -> None:
    made = session.generate("a (red:1.3) cat and a [blue] dog", subjects="auto", negative_prompt=LONG, **RUN)
    assert made.parameters["subjects"] == ["red cat", "blue dog"]
    parted = session.generate(f"a red cat, {LONG} BREAK a blue dog", subjects=["red cat", "blue dog"], **RUN)
    assert np.isfinite(parted.latents).all()


def test_inversion_reads_its_prompt_likewise(session: ebca.Session) -> None:
    image = np.zeros(session._latent_shape, np.float32) + 0.1
    found = {
        weighting: session.invert(image, f"a (red:1.9) cat, {LONG}", steps=2, prompt_weighting=weighting).latents
        for weighting in (True, False)
    }
    assert not np.array_equal(found[True], found[False])


def test_plans_are_for_so_many_tokens(engine: ebca.Engine) -> None:
    plans = SimpleNamespace(shapes=({"batch": (2, 2, 2), "tokens": (77, 77, 77)},))
    manifest = SimpleNamespace(plans={"tensorrt-rtx": plans}, force_zeros_for_empty_prompt=False)
    planned: Any = SimpleNamespace(
        tokenizer=engine.tokenizer, manifest=manifest, backend=SimpleNamespace(name="tensorrt-rtx")
    )
    encoder = PromptEncoder(planned, 1)
    assert encoder.tokens(Conditioning("a (red) cat"), guided=True) == 77
    assert encoder.tokens(Conditioning(LONG, long_prompts=False), guided=True) == 77
    told = "the prompts need 154 tokens, and the plans for tensorrt-rtx are built for 77; shorten them"
    with pytest.raises(ebca.EngineError, match=told):
        encoder.tokens(Conditioning(LONG), guided=True)


def test_wrong_syntax_is_refused_before_anything_is_computed(session: ebca.Session) -> None:
    for given in ({"prompt": "a (cat"}, {"prompt": "", "negative_prompt": "a]"}):
        with pytest.raises(ebca.ParameterError, match="at character"):
            session.check(ebca.GenerateRequest.of(**given))
    with pytest.raises(ebca.ParameterError, match="prompt_weighting is 'yes'"):
        session.generate("a cat", prompt_weighting="yes", **RUN)


def test_no_prompt_warns_of_weights(session: ebca.Session) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.generate("a (red:1.3) cat", **RUN)


def test_a_long_prompt_is_not_shown_in_full(session: ebca.Session) -> None:
    with pytest.warns(UserWarning, match="the prompt is longer than 75 tokens") as caught:
        session.generate("a cat " * 5_000, long_prompts=False, **RUN)
    text = str(caught[0].message)
    assert len(text) < 250 and text.endswith("more characters)'")
    with pytest.raises(ebca.ParameterError) as refused:
        session.generate("a cat", token_weights={"dog " * 5_000: 2.0}, output="latents")
    assert len(str(refused.value)) < 2_500
