"""Texts of Stable Diffusion XL: what both text encoders make of them, pooled embeddings, and what is refused."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diffusers import StableDiffusionXLPipeline  # noqa: E402
from helpers import manifests  # noqa: E402
from helpers.pipelines import tiny_xl_pipeline  # noqa: E402
from helpers.tiny import changed_copy  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.runtime.conditioning.prompts import Conditioning, PromptEncoder, Prompts  # noqa: E402
from ebca.runtime.conditioning.weighting import weigh  # noqa: E402
from ebca.runtime.text.chunks import Reading  # noqa: E402

# float32 on two libraries.
LIMIT = 2e-6
PROMPT, OTHER = "a lion with a crown", "a red car in the snow"
LONG = "a red cat on a beach, " * 20
FIRST, POOLED = 32, 40
RUN: dict[str, Any] = {"steps": 1, "seed": 1, "output": "latents"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_xl_pipeline(StableDiffusionXLPipeline, tmp_path_factory.mktemp("xl"))


def encoded(
    engine: ebca.Engine, prompt: Any = PROMPT, *, batch: int = 1, guided: bool = False, **fields: Any
) -> Prompts:
    return PromptEncoder(engine, batch).encode(Conditioning(prompt, **fields), guided=guided)


def pooled(prompts: Prompts) -> np.ndarray:
    assert prompts.pooled is not None
    return prompts.pooled


@pytest.mark.parametrize("second", [None, OTHER])
@pytest.mark.parametrize("skip", [0, 1])
def test_embeddings_equal_those_of_diffusers(
    xl_engine: ebca.Engine, pipeline: Any, second: str | None, skip: int
) -> None:
    embeds, _, of_text, _ = pipeline.encode_prompt(
        PROMPT, prompt_2=second, clip_skip=skip or None, do_classifier_free_guidance=False
    )
    made = encoded(xl_engine, prompt_2=second, clip_skip=skip)
    assert relative_l2(made.conditional, embeds.numpy()) <= LIMIT
    assert relative_l2(pooled(made), of_text.numpy()) <= LIMIT


def test_the_second_prompt_changes_its_own_half_and_the_pooled_embedding(xl_engine: ebca.Engine) -> None:
    plain, other = encoded(xl_engine), encoded(xl_engine, prompt_2=OTHER)
    assert np.array_equal(plain.conditional[..., :FIRST], other.conditional[..., :FIRST])
    assert relative_l2(plain.conditional[..., FIRST:], other.conditional[..., FIRST:]) > 0.1
    assert np.array_equal(pooled(other), pooled(encoded(xl_engine, OTHER)))


def test_weights_act_on_each_half_and_not_on_the_pooled_embedding(xl_engine: ebca.Engine) -> None:
    plain, weighted = encoded(xl_engine), encoded(xl_engine, "a (lion:1.4) with a crown")
    weights = np.ones((1, 77), np.float32)
    weights[0, xl_engine.tokenizer.find_words(PROMPT, ["lion"])["lion"]] = 1.4
    first, second = plain.conditional[..., :FIRST], plain.conditional[..., FIRST:]
    expected = np.concatenate([weigh(half, weights, "prompt") for half in (first, second)], -1)
    # Not exactly, since they are encoded alone.
    assert relative_l2(weighted.conditional, expected) <= LIMIT
    assert np.array_equal(pooled(weighted), pooled(plain))
    # Weights of a second prompt, on the second half alone.
    mixed = encoded(xl_engine, prompt_2="a (lion:1.4) with a crown")
    assert np.array_equal(mixed.conditional[..., :FIRST], first)
    assert relative_l2(mixed.conditional[..., FIRST:], expected[..., FIRST:]) <= LIMIT


def test_a_long_prompt_is_encoded_in_chunks_and_its_first_is_pooled(xl_engine: ebca.Engine) -> None:
    tokenizer = xl_engine.tokenizer.reading(Reading(weighting=True, long=True))
    assert tokenizer.second is not None
    made = encoded(xl_engine, LONG)
    ids, ids_2 = (each.encode([LONG]).ids for each in (tokenizer, tokenizer.second))
    assert len(ids) == 2 and not np.array_equal(ids[1], ids_2[1])
    rows = [xl_engine.encode(ids[row : row + 1], ids_2[row : row + 1]) for row in range(2)]
    assert relative_l2(made.conditional, np.concatenate([row.contexts for row in rows], 1)) <= LIMIT
    assert relative_l2(pooled(made), rows[0].pooled) <= LIMIT
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cut = encoded(xl_engine, LONG, long_prompts=False)
    assert cut.conditional.shape[1] == 77 and len(caught) == 1
    assert "the prompt is longer than 75 tokens" in str(caught[0].message)
    # With fewer chunks, a text gets rows of an empty one, as a negative prompt does.
    mixed, swapped = encoded(xl_engine, PROMPT, prompt_2=LONG), encoded(xl_engine, LONG, prompt_2=PROMPT)
    empty = encoded(xl_engine, "").conditional[0]
    assert relative_l2(mixed.conditional[0, 77:, :FIRST], empty[:, :FIRST]) <= LIMIT
    assert relative_l2(mixed.conditional[0, :, FIRST:], made.conditional[0, :, FIRST:]) <= LIMIT
    assert relative_l2(pooled(mixed), pooled(made)) <= LIMIT
    assert relative_l2(swapped.conditional[0, :, :FIRST], made.conditional[0, :, :FIRST]) <= LIMIT
    assert relative_l2(pooled(swapped), pooled(encoded(xl_engine))) <= LIMIT
    guided = encoded(xl_engine, PROMPT, prompt_2=LONG, negative_prompt="snow", guided=True)
    assert guided.unconditional is not None
    assert relative_l2(guided.unconditional[0, 77:], empty) <= LIMIT


def test_warnings_name_the_second_prompt(xl_engine: ebca.Engine) -> None:
    with pytest.warns(UserWarning, match="the second prompt is longer than 75 tokens"):
        encoded(xl_engine, prompt_2=LONG, long_prompts=False)


def test_an_empty_negative_prompt_is_zeros(xl_engine: ebca.Engine, tiny_xl_dir: Path, tmp_path: Path) -> None:
    none = encoded(xl_engine, guided=True)
    assert none.unconditional is not None and none.unconditional_pooled is not None
    assert none.unconditional.shape == none.conditional.shape
    assert not none.unconditional.any() and not none.unconditional_pooled.any()
    space = encoded(xl_engine, guided=True, negative_prompt=" ")
    assert space.unconditional is not None and space.unconditional.any()
    both = encoded(xl_engine, [PROMPT, OTHER], batch=2, guided=True, negative_prompt=["snow", ""])
    assert both.unconditional is not None and both.unconditional_pooled is not None
    for each in (both.unconditional, both.unconditional_pooled):
        assert [one.any() for one in each] == [True, False]
    # A model that was not trained so encodes it.
    field = "force_zeros_for_empty_prompt"
    folder = changed_copy(tiny_xl_dir, tmp_path / "other", lambda data: data["model"].pop(field))
    with ebca.load(folder, backend="onnxruntime") as engine:
        other = encoded(engine, guided=True)
        assert other.unconditional is not None and other.unconditional.any()


def test_embeddings_replace_texts(xl_session: ebca.Session, xl_engine: ebca.Engine) -> None:
    made = encoded(xl_engine, guided=True, negative_prompt="snow")
    given = {
        "prompt_embeds": made.conditional,
        "pooled_prompt_embeds": pooled(made),
        "negative_prompt_embeds": made.unconditional,
        "negative_pooled_prompt_embeds": made.unconditional_pooled,
    }
    expected = xl_session.generate(PROMPT, negative_prompt="snow", **RUN).latents
    assert np.array_equal(xl_session.generate(**given, **RUN).latents, expected)
    # Zeros of an empty negative prompt have the length of the embeddings.
    short = {"prompt_embeds": made.conditional[:, :60], "pooled_prompt_embeds": pooled(made)}
    assert PromptEncoder(xl_engine, 1).tokens(Conditioning(**short), guided=True) == 60
    assert np.isfinite(xl_session.generate(**short, **RUN).latents).all()


EMBEDS, OF_TEXT = np.zeros((1, 77, 80), np.float32), np.zeros((1, POOLED), np.float32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt_embeds": EMBEDS}, "prompt_embeds needs pooled_prompt_embeds beside it"),
        (
            {"prompt": "a", "negative_prompt_embeds": EMBEDS},
            r"negative_prompt_embeds needs negative_pooled_prompt_embeds beside it; .*\[1 or one per image, 40\]",
        ),
        ({"prompt": "a", "pooled_prompt_embeds": OF_TEXT}, "pooled_prompt_embeds is given without prompt_embeds"),
        (
            {"prompt_embeds": EMBEDS, "pooled_prompt_embeds": OF_TEXT, "prompt_2": "a"},
            "prompt_2 and prompt_embeds do not go together",
        ),
        (
            {"prompt_embeds": EMBEDS, "pooled_prompt_embeds": OF_TEXT[:, 1:]},
            r"pooled_prompt_embeds has shape \[1, 39\]; give \[1, 40\]",
        ),
        (
            {"prompt_embeds": EMBEDS, "pooled_prompt_embeds": OF_TEXT * np.nan},
            "pooled_prompt_embeds has values that are not finite",
        ),
        ({"prompt": "a", "prompt_2": ["a", "b"]}, "prompt_2 has 2 texts for a batch of 1"),
        ({"prompt": "a", "prompt_2": 3}, "prompt_2 is 3"),
        ({"prompt": "a", "negative_prompt_2": ["a", "b"]}, "negative_prompt_2 has 2 texts for a batch of 1"),
        ({"prompt": "a", "prompt_2": "(a"}, "is not closed"),
        ({"prompt": "a", "target_size": (1, 2, 3)}, r"target_size is \(1, 2, 3\); give two whole numbers from 0 to"),
        ({"prompt": "a", "target_size": 512}, "target_size is 512; give two whole numbers .* height and width"),
        ({"prompt": "a", "original_size": (1.5, 2)}, "original_size is 1.5"),
        ({"prompt": "a", "original_size": (2, 2**24 + 1)}, "original_size is .*16777217"),
        (
            {"prompt": "a", "crops_coords_top_left": (0, -1)},
            "crops_coords_top_left is .* from the top and from the",
        ),
        (
            {"prompt": "a", "negative_target_size": (1, 2)},
            "negative_target_size needs negative_original_size beside it",
        ),
        (
            {"prompt": "a", "negative_crops_coords_top_left": (1, 2)},
            "negative_crops_coords_top_left needs negative_original_size beside it",
        ),
    ],
)
def test_what_is_refused(xl_session: ebca.Session, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ebca.ParameterError, match=message):
        xl_session.generate(**asked, **RUN)
    request = ebca.GenerateRequest.of(**asked, **RUN)
    with pytest.raises(ebca.ParameterError, match=message):
        xl_session.check(request)


@pytest.mark.parametrize(
    "name",
    [
        *("prompt_2", "negative_prompt_2", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
        *("original_size", "crops_coords_top_left", "target_size", "negative_original_size", "negative_target_size"),
    ],
)
def test_an_engine_with_one_encoder_takes_none_of_these(session: ebca.Session, name: str) -> None:
    with pytest.raises(ebca.ParameterError, match=f"^{name} is for models that take pooled embeddings"):
        session.generate("a", **{name: OF_TEXT if "embeds" in name else (1, 2)})
    if name in ("prompt_2", "pooled_prompt_embeds", "target_size"):
        with pytest.raises(ebca.ParameterError, match=f"^{name} is for models that take pooled embeddings"):
            session.invert(np.zeros((1, 4, 8, 8), np.float32), "a", **{name: (1, 2)})


def test_a_damaged_padding_is_found(tiny_xl_dir: Path, tmp_path: Path) -> None:
    folder = changed_copy(tiny_xl_dir, tmp_path / "other", lambda data: None)
    manifests.edit(folder, lambda data: data["tokenizer"]["info"].update(pad_token_id_2=1))
    with (
        ebca.load(folder, backend="onnxruntime") as engine,
        pytest.raises(ebca.EngineError, match="gives pad_token_2 '!' the id 1, and the vocabulary says 0"),
    ):
        engine.generate("a", steps=1)


def test_sizes_are_told_row_by_row() -> None:
    from ebca.runtime.conditioning.sizes import SizeConditions

    rows = SizeConditions((1, 2), None, (5, 6)).time_ids((7, 8), 2, 1)
    assert rows.dtype == np.float32 and rows.tolist() == [[1, 2, 0, 0, 5, 6]] * 4
    negative = SizeConditions(negative_original_size=np.array([1, 2]), negative_target_size=[3, 4])  # type: ignore[arg-type]
    assert negative.time_ids((7, 8), 1, 2).tolist() == [[1, 2, 0, 0, 3, 4]] * 2 + [[7, 8, 0, 0, 7, 8]]
    assert negative.time_ids((7, 8), 1, 0).tolist() == [[7, 8, 0, 0, 7, 8]]
