"""Python's values as the structs of ebca.h."""

from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int64, c_uint8
from typing import Any

import numpy as np

from ebca.runtime.native.structures import (
    Edit,
    Image,
    Prompt,
    Region,
    Schedule,
    ScheduleKind,
    SizeConditions,
    StepCallback,
    StepInfo,
    Tensor,
    TokenWeight,
)

# Each pair of `ebca.Session.generate` and its fields in ebca_size_conditions.
_SIZES = {
    "original_size": ("original_height", "original_width"),
    "crops_coords_top_left": ("crop_top", "crop_left"),
    "target_size": ("target_height", "target_width"),
}


class Arguments:
    """The arguments of one call. Owns the memory that they point to, so it must live until the call returns.

    Attributes:
        raised: what the callback raised.
    """

    def __init__(self) -> None:
        self._alive: list[Any] = []
        self.raised: list[BaseException] = []

    def pointer(self, array: np.ndarray, kind: Any) -> Any:
        """To the values of a C-contiguous array."""
        self._alive.append(array)
        return array.ctypes.data_as(POINTER(kind))

    def array(self, kind: Any, items: Sequence[Any]) -> Any:
        """An array of C."""
        made = (kind * len(items))(*items)
        self._alive.append(made)
        return made

    def tensor(self, value: np.ndarray) -> Tensor:
        array = np.ascontiguousarray(value, np.float32)
        return Tensor(self.pointer(array, c_float), (c_int64 * 4)(*array.shape), array.ndim, 0)

    def prompt(self, text: str | Sequence[str] | None, embeds: np.ndarray | None) -> Prompt:
        """Texts, embeddings [n,T,D], both or neither."""
        prompt = Prompt()
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            prompt.texts, prompt.count = self.texts(texts), len(texts)
        if embeds is not None:
            prompt.embeds = self.tensor(embeds)
        return prompt

    def pooled(self, params: Structure, given: dict[str, Any]) -> None:
        """Set the second prompts and the pooled embeddings of a struct, taken out of `given`."""
        for name in (field[0] for field in params._fields_):
            if name in ("prompt_2", "negative_prompt_2") and (text := given.pop(name, None)) is not None:
                setattr(params, name, self.prompt(text, None))
            if name.endswith("pooled_prompt_embeds") and (embeds := given.pop(name, None)) is not None:
                setattr(params, name, self.tensor(embeds))

    def sizes(self, params: Structure, given: dict[str, Any]) -> None:
        """Set the sizes of a struct, (height, width) or (top, left) in pixels, taken out of `given`."""
        for field in [one[0] for one in params._fields_ if one[1] is SizeConditions]:
            prefix, made = field.removesuffix("size_conditions"), SizeConditions()
            for name, (one, other) in _SIZES.items():
                if (pair := given.pop(prefix + name, None)) is not None:
                    first, second = pair
                    setattr(made, one, first)
                    setattr(made, other, second)
            setattr(params, field, made)

    def texts(self, texts: Sequence[str]) -> Any:
        return self.array(c_char_p, [one.encode() for one in texts])

    def regions(self, regions: Mapping[str, np.ndarray]) -> Any:
        """Phrases and their masks."""
        return self.array(Region, [Region(phrase.encode(), self.images(mask)[0]) for phrase, mask in regions.items()])

    def schedule(self, value: Any) -> Schedule:
        """A number, a sequence with one per evaluation, or an `ebca.Schedule`."""
        if hasattr(value, "kind"):
            return Schedule(ScheduleKind[value.kind.upper()], value.value, value.parameter, None, 0)
        if np.ndim(value) == 0:
            return Schedule(ScheduleKind.CONSTANT, float(value), 0.0, None, 0)
        values = np.asarray(value, np.float64)
        return Schedule(ScheduleKind.VALUES, 0.0, 0.0, self.pointer(values, c_double), values.size)

    def token_weights(self, weights: Mapping[str | int, float]) -> Any:
        made = [
            TokenWeight(key.encode() if isinstance(key, str) else None, 0 if isinstance(key, str) else key, factor)
            for key, factor in weights.items()
        ]
        return self.array(TokenWeight, made)

    def edit(self, made: Edit, edit: Any) -> Edit:
        """An `ebca.Edit` into a struct with its defaults."""
        made.prompt = self.prompt(edit.prompt, edit.prompt_embeds)
        made.direction = edit.direction
        for name in ("alpha", "gamma_attn", "gamma_norm"):
            setattr(made, name, self.schedule(getattr(edit, name)))
        return made

    def filled(self, made: Any, source: Any) -> Any:
        """A struct with the attributes of `source` that are called as its fields."""
        for name, _ in made._fields_:
            if name != "struct_size":
                setattr(made, name, getattr(source, name))
        self._alive.append(made)
        return made

    def images(self, value: np.ndarray | Sequence[np.ndarray]) -> list[Image]:
        """uint8 arrays [H,W,C] or [H,W]."""
        made = []
        for one in [value] if isinstance(value, np.ndarray) else list(value):
            array = np.ascontiguousarray(one, np.uint8)
            channels = 1 if array.ndim == 2 else array.shape[2]
            made.append(Image(self.pointer(array, c_uint8), array.shape[0], array.shape[1], channels))
        return made

    def give_images(self, params: Structure, name: str, value: np.ndarray | Sequence[np.ndarray]) -> None:
        """Set the images of a struct: its fields `images` and `image_count` for the name "image"."""
        made = self.images(value)
        setattr(params, f"{name}s", self.array(Image, made))
        setattr(params, f"{name}_count", len(made))

    def give_seeds(self, params: Structure, seed: int | Sequence[int]) -> None:
        """Set the seeds of a struct: one for all images or one each."""
        seeds = np.atleast_1d(np.asarray(seed, np.int64))
        params.seeds, params.seed_count = self.pointer(seeds, c_int64), seeds.size

    def callback(self, on_step: Callable[[StepInfo], bool | None] | None) -> Any:
        """A function of C that cancels if `on_step` returns False or raises."""
        if on_step is None:
            return StepCallback()

        def call(info: Any, _: Any) -> int:
            try:
                return int(on_step(info.contents) is not False)
            except BaseException as error:
                self.raised.append(error)
                return 0

        made = StepCallback(call)
        self._alive.append(made)
        return made
