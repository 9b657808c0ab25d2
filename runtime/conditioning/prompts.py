"""Prompts: checks and encodes texts or embeddings, and finds the tokens of words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ebca.runtime.components import Components, TextEmbeddings
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.sizes import SizeConditions
from ebca.runtime.conditioning.texts import TextPair, TextReader
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown
from ebca.runtime.text.chunks import Reading
from ebca.runtime.validation import as_numbers, texts_for_images

_PROMPT, _NEGATIVE = "prompt", "negative prompt"
_FIELDS = {_PROMPT: "prompt", _NEGATIVE: "negative_prompt"}


@dataclass(frozen=True, repr=False)
class Conditioning(Shown):
    """What the images show.

    Attributes:
        prompt: one text for all images, or one per image.
        negative_prompt: likewise, for the unconditional half of classifier-free guidance.
        prompt_2, negative_prompt_2: what the second text encoder of Stable Diffusion XL reads; None: the same text.
        prompt_embeds, negative_prompt_embeds: [n,T,D] float32 instead of texts.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: [n,P] float32, which Stable Diffusion XL needs beside them.
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
    prompt_2: str | Sequence[str] | None = None
    negative_prompt_2: str | Sequence[str] | None = None
    pooled_prompt_embeds: np.ndarray | None = None
    negative_pooled_prompt_embeds: np.ndarray | None = None

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
        pooled, unconditional_pooled: [n,P] float32 of a model that takes pooled embeddings; None of others, and without
            guidance.
    """

    conditional: np.ndarray
    unconditional: np.ndarray | None
    edits: tuple[np.ndarray, ...] = ()
    factors: tuple[tuple[list[int], float], ...] = ()
    unconditional_parts: int = 1
    pooled: np.ndarray | None = None
    unconditional_pooled: np.ndarray | None = None

    @property
    def contexts(self) -> np.ndarray:
        """[B,S,T,D] float32, unconditional rows first. In these, editing contexts start as copies of the main one."""
        conditional = np.stack([self.conditional, *self.edits], 1)
        if self.unconditional is None:
            return conditional
        unconditional = np.repeat(self.unconditional[:, None], conditional.shape[1], 1)
        return np.concatenate([*[unconditional] * self.unconditional_parts, conditional])

    def conditions(self, sizes: SizeConditions, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """What the UNet takes beside latents and timestep, by name: contexts, and `ADDED_INPUTS` if it has them.

        Args:
            sizes: what Stable Diffusion XL is told about sizes.
            size: (height, width) of the images in pixels.
        """
        if self.pooled is None:
            return {"contexts": self.contexts}
        parts = 0 if self.unconditional_pooled is None else self.unconditional_parts
        text_embeds = np.concatenate([*[self.unconditional_pooled] * parts, self.pooled])
        return {
            "contexts": self.contexts,
            "text_embeds": text_embeds,
            "time_ids": sizes.time_ids(size, len(self.pooled), parts),
        }

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
        given, embeds = self._given(conditioning, edits, guided)
        texts, zeros = self._without_zeros(given)
        positions = self._positions(conditioning, texts.get(_PROMPT, []))
        tokens = max((each.contexts.shape[1] for each in embeds.values()), default=0)
        if texts:
            embeds |= TextReader(self._components, conditioning.reading).encode(texts, conditioning.clip_skip, tokens)
        main = embeds[_PROMPT]
        if zeros.any():
            embeds[_NEGATIVE] = _zeroed(embeds.get(_NEGATIVE, main), zeros)
        _check_positions(positions, main.contexts.shape[1])
        for name, each in embeds.items():
            if each.contexts.shape != main.contexts.shape:
                shape, expected = list(each.contexts.shape), list(main.contexts.shape)
                raise rules.EMBEDS_DIFFER.error(name=_label(name), shape=shape, expected=expected)
        negative = embeds.get(_NEGATIVE)
        return Prompts(
            main.contexts,
            None if negative is None else negative.contexts,
            tuple(embeds[_edit_name(index)].contexts for index in range(len(edits))),
            tuple((found, float(conditioning.token_weights[key])) for key, found in positions.items()),
            pooled=main.pooled,
            unconditional_pooled=None if negative is None else negative.pooled,
        )

    def check(self, conditioning: Conditioning, edits: Sequence[Edit] = (), *, guided: bool) -> None:
        """Raise those errors of `encode` that do not need the text encoder. Gives no warnings."""
        texts, embeds = self._given(conditioning, edits, guided)
        positions = self._positions(conditioning, texts.get(_PROMPT, []))
        if _PROMPT in embeds:
            _check_positions(positions, embeds[_PROMPT].contexts.shape[1])
        elif texts:
            _check_positions(positions, self.tokens(conditioning, edits, guided=guided))

    def tokens(self, conditioning: Conditioning, edits: Sequence[Edit] = (), *, guided: bool) -> int:
        """T of the contexts that `encode` makes; 1 if nothing says.

        Raises the same errors about texts, and EngineError if plans are too short for them.
        """
        sources = _sources(conditioning, edits, guided)
        # Embeddings are checked later: here, they may be larger than memory.
        shapes: list[tuple[int, ...]] = [getattr(source.embeds, "shape", ()) for source in sources.values()]
        given = max((int(shape[1]) for shape in shapes if len(shape) == 3), default=1)
        texts, _ = self._without_zeros(self._texts(sources))
        if not texts:
            return given
        reader = TextReader(self._components, conditioning.reading)
        tokens = max(given, reader.max_length * reader.rows(texts))
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
    ) -> tuple[dict[str, list[TextPair]], dict[str, TextEmbeddings]]:
        """Texts and embeddings by name of the prompt; each prompt is in one of the two."""
        sources = _sources(conditioning, edits, guided)
        given = {name: source for name, source in sources.items() if source.embeds is not None}
        return self._texts(sources), {name: self._embeds(name, source) for name, source in given.items()}

    def _texts(self, sources: "_Sources") -> dict[str, list[TextPair]]:
        """The texts of each prompt that is not given as embeddings, one per image."""
        made = {}
        for name, source in sources.items():
            if source.embeds is not None or source.text is None:
                continue
            field = _FIELDS.get(name, name)
            first = texts_for_images(field, source.text, self._batch)
            second = first if source.text_2 is None else texts_for_images(f"{field}_2", source.text_2, self._batch)
            made[name] = [TextPair(*pair) for pair in zip(first, second, strict=True)]
        return made

    def _without_zeros(self, texts: Mapping[str, list[TextPair]]) -> tuple[dict[str, list[TextPair]], np.ndarray]:
        """The texts to encode, and [n] bool: which negative prompts stand for zeros rather than an empty text."""
        zero = self._components.manifest.force_zeros_for_empty_prompt
        zeros = np.array([zero and pair == ("", "") for pair in texts.get(_NEGATIVE, [])], bool)
        unread = zeros.size and zeros.all()
        return {name: each for name, each in texts.items() if not (unread and name == _NEGATIVE)}, zeros

    def _positions(self, conditioning: Conditioning, texts: Sequence[TextPair]) -> dict[str | int, list[int]]:
        found: dict[str | int, list[int]] = {}
        for key in conditioning.token_weights:
            if not isinstance(key, str):
                found[key] = [int(key)]
            elif len({pair.first for pair in texts}) != 1:
                raise rules.TOKEN_WORD_OF_SEVERAL_PROMPTS.error(word=key)
            else:
                tokenizer = self._components.tokenizer.reading(conditioning.reading)
                found[key] = tokenizer.find_words(texts[0].first, [key])[key]
        return found

    def _embeds(self, name: str, source: "_Source") -> TextEmbeddings:
        unet, batch, label = self._components.manifest.unet, self._batch, _label(name)
        width = unet.context_dim
        array = as_numbers(label, source.embeds, f"an array [{batch}, tokens, {width}]")
        if array.ndim != 3 or array.shape[0] not in (1, batch) or array.shape[2] != width or not array.shape[1]:
            raise rules.EMBEDS_SHAPE.error(name=label, shape=list(array.shape), batch=batch, width=width)
        if not np.isfinite(array).all():
            raise rules.EMBEDS_NOT_FINITE.error(name=label)
        contexts = np.broadcast_to(array, (batch, *array.shape[1:]))
        return TextEmbeddings(contexts, None if source.pooled is None else self._pooled(name, source.pooled))

    def _pooled(self, name: str, value: np.ndarray) -> np.ndarray:
        label, batch, width = pooled_label(_label(name)), self._batch, self._components.manifest.unet.pooled_size
        array = as_numbers(label, value, f"an array [{batch}, {width}]")
        if array.ndim != 2 or array.shape[0] not in (1, batch) or array.shape[1] != width:
            raise rules.POOLED_SHAPE.error(name=label, shape=list(array.shape), batch=batch, width=width)
        if not np.isfinite(array).all():
            raise rules.EMBEDS_NOT_FINITE.error(name=label)
        return np.broadcast_to(array, (batch, *array.shape[1:]))


class _Source(NamedTuple):
    """One prompt as given: as texts, or as embeddings."""

    text: str | Sequence[str] | None = None
    text_2: str | Sequence[str] | None = None
    embeds: np.ndarray | None = None
    pooled: np.ndarray | None = None


_Sources = Mapping[str, _Source]


def _sources(conditioning: Conditioning, edits: Sequence[Edit], guided: bool) -> _Sources:
    """Each prompt as given, by name."""
    c = conditioning
    sources = {_PROMPT: _Source(c.prompt, c.prompt_2, c.prompt_embeds, c.pooled_prompt_embeds)}
    if guided and c.negative_prompt_embeds is not None:
        sources[_NEGATIVE] = _Source(embeds=c.negative_prompt_embeds, pooled=c.negative_pooled_prompt_embeds)
    elif guided:
        sources[_NEGATIVE] = _Source(c.negative_prompt, c.negative_prompt_2)
    # Their pooled embeddings have no place in the UNet, which takes those of the main prompt.
    return sources | {_edit_name(i): _Source(edit.prompt, embeds=edit.prompt_embeds) for i, edit in enumerate(edits)}


def _zeroed(embeddings: TextEmbeddings, zeros: np.ndarray) -> TextEmbeddings:
    """Embeddings with zeros for some images; `zeros`: [n] bool."""
    contexts = np.where(zeros[:, None, None], np.float32(0), embeddings.contexts)
    pooled = embeddings.pooled
    return TextEmbeddings(contexts, None if pooled is None else np.where(zeros[:, None], np.float32(0), pooled))


def _check_positions(positions: Mapping[str | int, list[int]], tokens: int) -> None:
    for found in positions.values():
        if outside := [position for position in found if not 0 <= position < tokens]:
            raise rules.TOKEN_POSITION.error(position=outside[0], last=tokens - 1)


def _edit_name(index: int) -> str:
    return f"editing prompt {index + 1}"


def _label(name: str) -> str:
    """The field's name for embeddings of a prompt."""
    return f"{_FIELDS[name]}_embeds" if name in _FIELDS else f"prompt_embeds of {name}"


def pooled_label(field: str) -> str:
    """The name of the pooled embeddings that belong to `prompt_embeds` or `negative_prompt_embeds`."""
    return field.replace("prompt_embeds", "pooled_prompt_embeds")
