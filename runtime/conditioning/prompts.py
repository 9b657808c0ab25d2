"""Prompts: texts or embeddings, checked, encoded, and where their words are."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ebca.errors import ParameterError
from ebca.runtime.components import Components
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.validation import as_numbers, finite, whole


@dataclass
class Prompts:
    """Embeddings [n,T,D] of both halves (unconditional: None without guidance) and of each editing prompt, and the
    positions of the weighted words."""

    conditional: np.ndarray
    unconditional: np.ndarray | None
    edits: list[np.ndarray] = field(default_factory=list)
    positions: dict[str | int, list[int]] = field(default_factory=dict)

    @property
    def contexts(self) -> np.ndarray:
        """[B,S,T,D]: the unconditional rows first. There, editing contexts start as copies of the main one."""
        conditional = np.stack([self.conditional, *self.edits], 1)
        if self.unconditional is None:
            return conditional
        unconditional = np.repeat(self.unconditional[:, None], conditional.shape[1], 1)
        return np.concatenate([unconditional, conditional])

    def token_factors(self, token_weights: Mapping[str | int, float]) -> np.ndarray:
        """[B,1,T] factors of gamma_attn: those of `token_weights` on the conditional rows, else 1."""
        pictures, tokens = self.conditional.shape[:2]
        factors = np.ones((pictures if self.unconditional is None else 2 * pictures, 1, tokens), np.float32)
        for key, factor in token_weights.items():
            for position in self.positions[key]:
                factors[-pictures:, 0, position] *= factor
        return factors


class PromptEncoder:
    """Encodes what `Session.generate` is given, for `batch` pictures."""

    def __init__(self, engine: Components, batch: int) -> None:
        self.engine = engine
        self.batch = batch

    def encode(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str],
        prompt_embeds: np.ndarray | None,
        negative_prompt_embeds: np.ndarray | None,
        token_weights: Mapping[str | int, float],
        guided: bool,
        edits: Sequence[Edit] = (),
    ) -> Prompts:
        texts: dict[str, list[str]] = {}
        embeds: dict[str, np.ndarray] = {}
        for name, text, given in (
            ("prompt", prompt, prompt_embeds),
            *((f"editing prompt {i + 1}", edit.prompt, edit.prompt_embeds) for i, edit in enumerate(edits)),
        ):
            if text is not None and given is None:
                texts[name] = self._per_picture(name, text)
            elif text is None and given is not None:
                embeds[name] = self._embeds(_label(name), given)
            else:
                raise ParameterError(f"{name}: give either a prompt or prompt_embeds")
        if guided and negative_prompt_embeds is not None:
            embeds["negative prompt"] = self._embeds(_label("negative prompt"), negative_prompt_embeds)
        elif guided and prompt_embeds is not None and self.engine.manifest.text_encoder is None:
            raise ParameterError("guidance needs negative_prompt_embeds beside prompt_embeds", "or guidance_scale=1")
        elif guided:
            texts["negative prompt"] = self._per_picture("negative_prompt", negative_prompt)
        positions = self._positions(token_weights, texts.get("prompt", []))
        embeds |= self._encode(texts)
        conditional = embeds["prompt"]
        tokens = conditional.shape[1]
        for key, found in positions.items():
            if any(not 0 <= p < tokens for p in found):
                raise ParameterError(f"token_weights names position {key}", f"there are positions 0 to {tokens - 1}")
        for name, array in embeds.items():
            if array.shape != conditional.shape:
                raise ParameterError(
                    f"{_label(name)} have shape {list(array.shape)}, prompt_embeds {list(conditional.shape)}",
                    "give the same",
                )
        unconditional = embeds.get("negative prompt")
        return Prompts(
            conditional, unconditional, [embeds[f"editing prompt {i + 1}"] for i in range(len(edits))], positions
        )

    def _positions(self, token_weights: Mapping[str | int, float], texts: list[str]) -> dict[str | int, list[int]]:
        found: dict[str | int, list[int]] = {}
        for key, factor in token_weights.items():
            finite(f"the factor of '{key}' in token_weights", factor)
            if not isinstance(key, str):
                found[key] = [whole("a position in token_weights", key)]
                continue
            if not texts:
                raise ParameterError(f"token_weights names the word '{key}'", "beside prompt_embeds, give its position")
            if len(set(texts)) != 1:
                raise ParameterError(f"token_weights names the word '{key}', which needs one prompt for all pictures")
            found[key] = self.engine.tokenizer.find_words(texts[0], [key])[key]
        return found

    def _encode(self, texts: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
        """All texts in one run of the text encoder; [n,T,D] each."""
        if not texts:
            return {}
        unique = list(dict.fromkeys(text for each in texts.values() for text in each))
        encoded = self.engine.tokenizer.encode(unique)
        limit = self.engine.tokenizer.max_length - 2
        for name, each in texts.items():
            for text in dict.fromkeys(each):
                if dropped := encoded.truncated[unique.index(text)]:
                    warnings.warn(
                        f"the {name} is longer than {limit} tokens; dropped: '{dropped.strip()}'", stacklevel=4
                    )
        embeddings = self.engine.encode(encoded.ids)
        # Half a gigabyte at SD 1.5 size that no step needs; opening it again takes a fraction of a step.
        spec = self.engine.manifest.text_encoder
        if spec is not None:
            self.engine.release(spec.component)
        return {name: np.stack([embeddings[unique.index(text)] for text in each]) for name, each in texts.items()}

    def _per_picture(self, name: str, value: str | Sequence[str]) -> list[str]:
        try:
            texts = [value] * self.batch if isinstance(value, str) else list(value)
        except TypeError:
            raise ParameterError(f"{name} is {value!r}", "give a text, or one per picture") from None
        if len(texts) != self.batch:
            raise ParameterError(f"{name} has {len(texts)} texts for {self.batch} pictures", "give one, or one each")
        return texts

    def _embeds(self, name: str, value: np.ndarray) -> np.ndarray:
        width = self.engine.manifest.unet.context_dim
        array = as_numbers(name, value, f"an array [{self.batch}, tokens, {width}]")
        if array.ndim != 3 or array.shape[0] not in (1, self.batch) or array.shape[2] != width or not array.shape[1]:
            raise ParameterError(f"{name} has shape {list(array.shape)}", f"give [{self.batch}, tokens, {width}]")
        if not np.isfinite(array).all():
            raise ParameterError(f"{name} has values that are not finite")
        return np.broadcast_to(array, (self.batch, *array.shape[1:]))


def _label(name: str) -> str:
    """What embeddings are called where they are passed in."""
    return {"prompt": "prompt_embeds", "negative prompt": "negative_prompt_embeds"}.get(
        name, f"prompt_embeds of {name}"
    )
