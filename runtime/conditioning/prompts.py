"""Prompts: checks and encodes texts or embeddings, and finds the tokens of words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ebca.runtime.components import Components
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.weighting import weigh
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown
from ebca.runtime.text.chunks import Reading
from ebca.runtime.validation import as_numbers, texts_for_images, warn

_NEGATIVE = "negative prompt"
# How much of a text a warning shows.
_SHOWN = 100
_FIELDS = {"prompt": "prompt", _NEGATIVE: "negative_prompt"}


@dataclass(frozen=True, repr=False)
class Conditioning(Shown):
    """What the images show.

    Attributes:
        prompt: one text for all images, or one per image.
        negative_prompt: likewise, for the unconditional half of classifier-free guidance.
        prompt_embeds, negative_prompt_embeds: [n,T,D] float32 instead of texts.
        token_weights: maps token positions or words of the prompt to factors of gamma_attn on the conditional rows.
        prompt_weighting: brackets and BREAK in texts are syntax, see `ebca.runtime.text.weighted`; else they are words.
        long_prompts: texts beyond the length of the text encoder are encoded in chunks; else their end is dropped, with
            a warning.
        clip_skip: layers of the text encoder that are left out at its end: 0, all are used; 1, the last one is not. As
            in diffusers, where the other programs' "clip skip 2" is 1.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] = rules.GENERATE.negative_prompt
    prompt_embeds: np.ndarray | None = None
    negative_prompt_embeds: np.ndarray | None = None
    token_weights: Mapping[str | int, float] = field(default_factory=dict)
    prompt_weighting: bool = rules.GENERATE.prompt_weighting
    long_prompts: bool = rules.GENERATE.long_prompts
    clip_skip: int = rules.GENERATE.clip_skip

    @property
    def reading(self) -> Reading:
        """How its texts are read, and those of editing prompts."""
        return Reading(self.prompt_weighting, self.long_prompts)


@dataclass(frozen=True, repr=False)
class Prompts(Shown):
    """Encoded prompts.

    Attributes:
        conditional: [n,T,D] float32.
        unconditional: [n,T,D] float32, or None without guidance.
        edits: [n,T,D] float32 per editing prompt.
        factors: (positions, factor of gamma_attn) for each weighted word or position.
        unconditional_parts: rows per image that have the unconditional text: 1; 2 if one of them sees an image.
    """

    conditional: np.ndarray
    unconditional: np.ndarray | None
    edits: tuple[np.ndarray, ...] = ()
    factors: tuple[tuple[list[int], float], ...] = ()
    unconditional_parts: int = 1

    @property
    def contexts(self) -> np.ndarray:
        """[B,S,T,D] float32, unconditional rows first. In these, editing contexts start as copies of the main one."""
        conditional = np.stack([self.conditional, *self.edits], 1)
        if self.unconditional is None:
            return conditional
        unconditional = np.repeat(self.unconditional[:, None], conditional.shape[1], 1)
        return np.concatenate([*[unconditional] * self.unconditional_parts, conditional])

    def token_factors(self) -> np.ndarray:
        """[B,1,T] float32 factors of gamma_attn; other than 1 only for weighted tokens on the conditional rows."""
        images, tokens = self.conditional.shape[:2]
        parts = 1 if self.unconditional is None else 1 + self.unconditional_parts
        factors = np.ones((parts * images, 1, tokens), np.float32)
        for positions, factor in self.factors:
            for position in positions:
                factors[-images:, 0, position] *= factor
        return factors


class PromptEncoder:
    """Encodes the prompts of a generation.

    Args:
        components: tokenizer and text encoder.
        batch: number of images.
    """

    def __init__(self, components: Components, batch: int) -> None:
        self._components = components
        self._batch = batch

    def encode(self, conditioning: Conditioning, edits: Sequence[Edit] = (), *, guided: bool) -> Prompts:
        """Encode all texts in one run of the text encoder. All prompts get as many tokens as the longest.

        Args:
            conditioning: prompts and token weights.
            edits: editing prompts.
            guided: encode the negative prompt too.

        Raises:
            ParameterError: a wrong number of texts, embeddings of a wrong shape, a word that is not in the prompt, or
                wrong syntax of weights.
            EngineError: texts for a UNet-only directory, or a clip skip that the directory does not have.
        """
        texts, embeds = self._given(conditioning, edits, guided)
        positions = self._positions(conditioning, texts.get("prompt", []))
        embeds |= self._encode(texts, conditioning, max((each.shape[1] for each in embeds.values()), default=0))
        conditional = embeds["prompt"]
        _check_positions(positions, conditional.shape[1])
        for name, array in embeds.items():
            if array.shape != conditional.shape:
                expected = list(conditional.shape)
                raise rules.EMBEDS_DIFFER.error(name=_label(name), shape=list(array.shape), expected=expected)
        return Prompts(
            conditional,
            embeds.get(_NEGATIVE),
            tuple(embeds[_edit_name(index)] for index in range(len(edits))),
            tuple((found, float(conditioning.token_weights[key])) for key, found in positions.items()),
        )

    def check(self, conditioning: Conditioning, edits: Sequence[Edit] = (), *, guided: bool) -> None:
        """Raise those errors of `encode` that do not need the text encoder. Gives no warnings."""
        texts, embeds = self._given(conditioning, edits, guided)
        positions = self._positions(conditioning, texts.get("prompt", []))
        if "prompt" in embeds:
            _check_positions(positions, embeds["prompt"].shape[1])
        elif texts:
            _check_positions(positions, self.tokens(conditioning, edits, guided=guided))

    def tokens(self, conditioning: Conditioning, edits: Sequence[Edit] = (), *, guided: bool) -> int:
        """T of the contexts that `encode` makes; 1 if nothing says.

        Raises the same errors about texts, and EngineError if plans are too short for them.
        """
        sources = _sources(conditioning, edits, guided)
        # Embeddings are checked later: here, they may be larger than memory.
        shapes: list[tuple[int, ...]] = [getattr(array, "shape", ()) for _, array in sources.values()]
        given = max((int(shape[1]) for shape in shapes if len(shape) == 3), default=1)
        texts = self._texts(sources)
        if not texts:
            return given
        tokenizer = self._components.tokenizer.reading(conditioning.reading)
        tokens = max(given, tokenizer.max_length * max(tokenizer.rows(text) for text in _distinct(texts)))
        self._check_plans(tokens)
        return tokens

    def _check_plans(self, tokens: int) -> None:
        """Raise EngineError if there are plans, and none of them takes so many tokens."""
        name = self._components.backend.name
        plans = self._components.manifest.plans.get(name)
        built = [] if plans is None else [sizes["tokens"] for sizes in plans.shapes if "tokens" in sizes]
        if built and not any(low <= tokens <= high for low, _, high in built):
            most = max(high for _, _, high in built)
            raise rules.LONG_PROMPT_PLANS.error(tokens=tokens, backend=name, built=most)

    def _given(
        self, conditioning: Conditioning, edits: Sequence[Edit], guided: bool
    ) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
        """Texts and embeddings by name of the prompt; each prompt is in one of the two."""
        sources = _sources(conditioning, edits, guided)
        given = {name: array for name, (_, array) in sources.items() if array is not None}
        return self._texts(sources), {name: self._embeds(_label(name), array) for name, array in given.items()}

    def _texts(self, sources: "_Sources") -> dict[str, list[str]]:
        """The texts of each prompt that is not given as embeddings, one per image."""
        texts = {name: text for name, (text, array) in sources.items() if array is None and text is not None}
        return {name: texts_for_images(_FIELDS.get(name, name), text, self._batch) for name, text in texts.items()}

    def _positions(self, conditioning: Conditioning, texts: Sequence[str]) -> dict[str | int, list[int]]:
        found: dict[str | int, list[int]] = {}
        for key in conditioning.token_weights:
            if not isinstance(key, str):
                found[key] = [int(key)]
            elif len(set(texts)) != 1:
                raise rules.TOKEN_WORD_OF_SEVERAL_PROMPTS.error(word=key)
            else:
                tokenizer = self._components.tokenizer.reading(conditioning.reading)
                found[key] = tokenizer.find_words(texts[0], [key])[key]
        return found

    def _encode(self, texts: Mapping[str, list[str]], conditioning: Conditioning, tokens: int) -> dict[str, np.ndarray]:
        """All texts in one run of the text encoder; [n,T,D] each, where T is a multiple of a row's tokens.

        Args:
            texts: by name of the prompt.
            conditioning: how they are read.
            tokens: of embeddings that are given beside them, which the texts are lengthened to.
        """
        if not texts:
            return {}
        components = self._components
        tokenizer = components.tokenizer.reading(conditioning.reading)
        unique = _distinct(texts)
        encoded = tokenizer.encode(unique)
        for name, each in texts.items():
            for text in dict.fromkeys(each):
                if dropped := encoded.truncated[unique.index(text)].strip():
                    shown, limit = rules.shortened(dropped, _SHOWN), tokenizer.max_length - 2
                    warn(rules.PROMPT_TRUNCATED.text(name=name, limit=limit, dropped=shown))
        rows = max(*encoded.rows, tokens // tokenizer.max_length if conditioning.long_prompts else 0)
        ids = encoded.ids
        if min(encoded.rows) < rows:
            # A shorter prompt is lengthened by rows of an empty one.
            ids = np.concatenate([ids, tokenizer.encode([""]).ids])
        embeddings = components.encode(ids, conditioning.clip_skip)
        # Half a gigabyte at SD 1.5 size that sampling does not need; reopening takes a fraction of a step.
        components.release_text_encoder()
        made: dict[str, np.ndarray] = {}
        for name, each in texts.items():
            for text in each:
                if text not in made:
                    of = encoded.of(unique.index(text))
                    made[text] = _joined(weigh(embeddings[of], encoded.weights[of], name), embeddings[-1], rows)
        return {name: np.stack([made[text] for text in each]) for name, each in texts.items()}

    def _embeds(self, name: str, value: np.ndarray) -> np.ndarray:
        width, batch = self._components.manifest.unet.context_dim, self._batch
        array = as_numbers(name, value, f"an array [{batch}, tokens, {width}]")
        if array.ndim != 3 or array.shape[0] not in (1, batch) or array.shape[2] != width or not array.shape[1]:
            raise rules.EMBEDS_SHAPE.error(name=name, shape=list(array.shape), batch=batch, width=width)
        if not np.isfinite(array).all():
            raise rules.EMBEDS_NOT_FINITE.error(name=name)
        return np.broadcast_to(array, (batch, *array.shape[1:]))


_Sources = Mapping[str, tuple[str | Sequence[str] | None, np.ndarray | None]]


def _sources(conditioning: Conditioning, edits: Sequence[Edit], guided: bool) -> _Sources:
    """Text and embeddings of each prompt, as given."""
    sources: dict[str, tuple[str | Sequence[str] | None, np.ndarray | None]]
    sources = {"prompt": (conditioning.prompt, conditioning.prompt_embeds)}
    if guided and conditioning.negative_prompt_embeds is not None:
        sources[_NEGATIVE] = (None, conditioning.negative_prompt_embeds)
    elif guided:
        sources[_NEGATIVE] = (conditioning.negative_prompt, None)
    return sources | {_edit_name(index): (edit.prompt, edit.prompt_embeds) for index, edit in enumerate(edits)}


def _distinct(texts: Mapping[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(text for each in texts.values() for text in each))


def _joined(embeddings: np.ndarray, empty: np.ndarray, rows: int) -> np.ndarray:
    """Rows [r,T,D] of a prompt and the row [T,D] of an empty one -> [rows T,D]."""
    missing = [empty] * (rows - len(embeddings))
    return np.concatenate([*embeddings, *missing]) if len(embeddings) + len(missing) > 1 else embeddings[0]


def _check_positions(positions: Mapping[str | int, list[int]], tokens: int) -> None:
    for found in positions.values():
        if outside := [position for position in found if not 0 <= position < tokens]:
            raise rules.TOKEN_POSITION.error(position=outside[0], last=tokens - 1)


def _edit_name(index: int) -> str:
    return f"editing prompt {index + 1}"


def _label(name: str) -> str:
    """The field's name for embeddings of a prompt."""
    return f"{_FIELDS[name]}_embeds" if name in _FIELDS else f"prompt_embeds of {name}"
