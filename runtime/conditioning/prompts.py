"""Prompts: checks and encodes texts or embeddings, and finds the tokens of words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ebca.runtime.components import Components
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown
from ebca.runtime.validation import as_numbers, texts_for_images, warn

_NEGATIVE = "negative prompt"
# How much of a text a warning shows.
_SHOWN = 100
_WEIGHTED = re.compile(r"\(([^():]+):([^():]+)\)")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_SPACE = " \t\r\n"
_FIELDS = {"prompt": "prompt", _NEGATIVE: "negative_prompt"}


@dataclass(frozen=True, repr=False)
class Conditioning(Shown):
    """What the images show.

    Attributes:
        prompt: one text for all images, or one per image.
        negative_prompt: likewise, for the unconditional half of classifier-free guidance.
        prompt_embeds, negative_prompt_embeds: [n,T,D] float32 instead of texts.
        token_weights: maps token positions or words of the prompt to factors of gamma_attn on the conditional rows.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] = rules.GENERATE.negative_prompt
    prompt_embeds: np.ndarray | None = None
    negative_prompt_embeds: np.ndarray | None = None
    token_weights: Mapping[str | int, float] = field(default_factory=dict)


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
        """Encode all texts in one run of the text encoder.

        Args:
            conditioning: prompts and token weights.
            edits: editing prompts.
            guided: encode the negative prompt too.

        Raises:
            ParameterError: a wrong number of texts, embeddings of a wrong shape, or a word that is not in the prompt.
            EngineError: texts for a UNet-only directory.
        """
        texts, embeds = self._given(conditioning, edits, guided)
        positions = self._positions(conditioning.token_weights, texts.get("prompt", []))
        embeds |= self._encode(texts)
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
        positions = self._positions(conditioning.token_weights, texts.get("prompt", []))
        if texts:
            tokenizer = self._components.tokenizer
            tokenizer.encode(list(dict.fromkeys(text for each in texts.values() for text in each)))
            _check_positions(positions, embeds["prompt"].shape[1] if "prompt" in embeds else tokenizer.max_length)

    def _given(
        self, conditioning: Conditioning, edits: Sequence[Edit], guided: bool
    ) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
        """Texts and embeddings by name of the prompt; each prompt is in one of the two."""
        sources = {"prompt": (conditioning.prompt, conditioning.prompt_embeds)}
        if guided and conditioning.negative_prompt_embeds is not None:
            sources[_NEGATIVE] = (None, conditioning.negative_prompt_embeds)
        elif guided:
            sources[_NEGATIVE] = (conditioning.negative_prompt, None)
        sources |= {_edit_name(index): (edit.prompt, edit.prompt_embeds) for index, edit in enumerate(edits)}
        texts: dict[str, list[str]] = {}
        embeds: dict[str, np.ndarray] = {}
        for name, (text, array) in sources.items():
            if array is not None:
                embeds[name] = self._embeds(_label(name), array)
            elif text is not None:
                texts[name] = texts_for_images(_FIELDS.get(name, name), text, self._batch)
        return texts, embeds

    def _positions(self, token_weights: Mapping[str | int, float], texts: Sequence[str]) -> dict[str | int, list[int]]:
        found: dict[str | int, list[int]] = {}
        for key in token_weights:
            if not isinstance(key, str):
                found[key] = [int(key)]
            elif len(set(texts)) != 1:
                raise rules.TOKEN_WORD_OF_SEVERAL_PROMPTS.error(word=key)
            else:
                found[key] = self._components.tokenizer.find_words(texts[0], [key])[key]
        return found

    def _encode(self, texts: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
        """All texts in one run of the text encoder; [n,T,D] each."""
        if not texts:
            return {}
        components = self._components
        unique = list(dict.fromkeys(text for each in texts.values() for text in each))
        encoded = components.tokenizer.encode(unique)
        limit = components.tokenizer.max_length - 2
        for name, each in texts.items():
            for text in dict.fromkeys(each):
                if found := weight_in(text):
                    warn(rules.PROMPT_WEIGHTS.text(name=name, found=rules.shortened(found, _SHOWN)))
                if dropped := encoded.truncated[unique.index(text)].strip():
                    shown = rules.shortened(dropped, _SHOWN)
                    warn(rules.PROMPT_TRUNCATED.text(name=name, limit=limit, dropped=shown))
        embeddings = components.encode(encoded.ids)
        # Half a gigabyte at SD 1.5 size that sampling does not need; reopening takes a fraction of a step.
        spec = components.manifest.text_encoder
        if spec is not None:
            components.release(spec.component)
        return {name: np.stack([embeddings[unique.index(text)] for text in each]) for name, each in texts.items()}

    def _embeds(self, name: str, value: np.ndarray) -> np.ndarray:
        width, batch = self._components.manifest.unet.context_dim, self._batch
        array = as_numbers(name, value, f"an array [{batch}, tokens, {width}]")
        if array.ndim != 3 or array.shape[0] not in (1, batch) or array.shape[2] != width or not array.shape[1]:
            raise rules.EMBEDS_SHAPE.error(name=name, shape=list(array.shape), batch=batch, width=width)
        if not np.isfinite(array).all():
            raise rules.EMBEDS_NOT_FINITE.error(name=name)
        return np.broadcast_to(array, (batch, *array.shape[1:]))


def weight_in(text: str) -> str:
    """The first weight in a text as other programs write it, such as "(red:1.3)"; "" if there is none.

    Ratios and times are none: after a digit, only a number with a fraction is a weight.
    """
    for match in _WEIGHTED.finditer(text):
        words, number = (part.strip(_SPACE) for part in match.groups())
        if words and _NUMBER.fullmatch(number) and ("." in number or words[-1] not in "0123456789"):
            return match[0]
    return ""


def _check_positions(positions: Mapping[str | int, list[int]], tokens: int) -> None:
    for found in positions.values():
        if outside := [position for position in found if not 0 <= position < tokens]:
            raise rules.TOKEN_POSITION.error(position=outside[0], last=tokens - 1)


def _edit_name(index: int) -> str:
    return f"editing prompt {index + 1}"


def _label(name: str) -> str:
    """The field's name for embeddings of a prompt."""
    return f"{_FIELDS[name]}_embeds" if name in _FIELDS else f"prompt_embeds of {name}"
