"""Prompts: texts or embeddings, checked, encoded, and where their words are."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ebca.errors import ParameterError
from ebca.runtime.denoiser import as_numbers
from ebca.runtime.engine import Engine
from ebca.runtime.numbers import finite, whole


@dataclass
class Prompts:
    """Embeddings [n,T,D] of both halves (unconditional: None without guidance), and positions of the weighted words."""

    conditional: np.ndarray
    unconditional: np.ndarray | None
    positions: dict[str | int, list[int]] = field(default_factory=dict)

    @property
    def contexts(self) -> np.ndarray:
        """[B,T,D]: the unconditional rows first."""
        halves = [self.conditional] if self.unconditional is None else [self.unconditional, self.conditional]
        return np.concatenate(halves)

    def token_factors(self, token_weights: Mapping[str | int, float]) -> np.ndarray:
        """[B,1,T] factors of gamma_attn: those of `token_weights` on the conditional rows, else 1."""
        rows, tokens = self.contexts.shape[:2]
        factors = np.ones((rows, 1, tokens), np.float32)
        for key, factor in token_weights.items():
            for position in self.positions[key]:
                factors[-len(self.conditional) :, 0, position] *= factor
        return factors


class PromptEncoder:
    """Encodes what `Session.generate` is given, for `batch` pictures."""

    def __init__(self, engine: Engine, batch: int) -> None:
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
    ) -> Prompts:
        if (prompt is None) == (prompt_embeds is None):
            raise ParameterError("give either a prompt or prompt_embeds")
        texts = self._per_picture("prompt", prompt) if prompt is not None else []
        positions = self._positions(token_weights, texts)
        if prompt_embeds is not None:
            conditional = self._embeds("prompt_embeds", prompt_embeds)
        else:
            conditional = self._encode("prompt", texts)
        tokens = conditional.shape[1]
        for key, found in positions.items():
            if any(not 0 <= p < tokens for p in found):
                raise ParameterError(f"token_weights names position {key}; there are positions 0 to {tokens - 1}")
        if not guided:
            return Prompts(conditional, None, positions)
        if negative_prompt_embeds is not None:
            unconditional = self._embeds("negative_prompt_embeds", negative_prompt_embeds)
        elif prompt_embeds is not None and self.engine.manifest.text_encoder is None:
            raise ParameterError("guidance needs negative_prompt_embeds beside prompt_embeds; or guidance_scale=1")
        else:
            unconditional = self._encode("negative prompt", self._per_picture("negative_prompt", negative_prompt))
        if unconditional.shape != conditional.shape:
            raise ParameterError(
                f"negative_prompt_embeds have shape {list(unconditional.shape)}, "
                f"prompt_embeds {list(conditional.shape)}; give the same"
            )
        return Prompts(conditional, unconditional, positions)

    def _positions(self, token_weights: Mapping[str | int, float], texts: list[str]) -> dict[str | int, list[int]]:
        found: dict[str | int, list[int]] = {}
        for key, factor in token_weights.items():
            finite(f"the factor of '{key}' in token_weights", factor)
            if not isinstance(key, str):
                found[key] = [whole("a position in token_weights", key)]
                continue
            if not texts:
                raise ParameterError(f"token_weights names the word '{key}'; beside prompt_embeds, give its position")
            if len(set(texts)) != 1:
                raise ParameterError(f"token_weights names the word '{key}', which needs one prompt for all pictures")
            found[key] = self.engine.tokenizer.find_words(texts[0], [key])[key]
        return found

    def _encode(self, name: str, texts: list[str]) -> np.ndarray:
        unique = sorted(set(texts))
        encoded = self.engine.tokenizer.encode(unique)
        for dropped in encoded.truncated:
            if dropped:
                limit = self.engine.tokenizer.max_length - 2
                warnings.warn(f"the {name} is longer than {limit} tokens; dropped: '{dropped.strip()}'", stacklevel=5)
        embeddings = self.engine.encode(encoded.ids)
        # Half a gigabyte at SD 1.5 size that no step needs; opening it again takes a fraction of a step.
        spec = self.engine.manifest.text_encoder
        if spec is not None:
            self.engine.release(spec.component)
        return np.stack([embeddings[unique.index(text)] for text in texts])

    def _per_picture(self, name: str, value: str | Sequence[str]) -> list[str]:
        try:
            texts = [value] * self.batch if isinstance(value, str) else list(value)
        except TypeError:
            raise ParameterError(f"{name} is {value!r}; give a text, or one per picture") from None
        if len(texts) != self.batch:
            raise ParameterError(f"{name} has {len(texts)} texts for {self.batch} pictures; give one, or one each")
        return texts

    def _embeds(self, name: str, value: np.ndarray) -> np.ndarray:
        width = self.engine.manifest.unet.context_dim
        array = as_numbers(name, value, f"an array [{self.batch}, tokens, {width}]")
        if array.ndim != 3 or array.shape[0] not in (1, self.batch) or array.shape[2] != width or not array.shape[1]:
            raise ParameterError(f"{name} has shape {list(array.shape)}; give [{self.batch}, tokens, {width}]")
        if not np.isfinite(array).all():
            raise ParameterError(f"{name} has values that are not finite")
        return np.broadcast_to(array, (self.batch, *array.shape[1:]))
