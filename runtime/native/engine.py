"""Engines that the C++ library opened."""

from collections.abc import Mapping, Sequence
from ctypes import byref, c_void_p, sizeof
from types import TracebackType
from typing import Any, Self

import numpy as np

from ebca.errors import EngineError
from ebca.runtime.native.arguments import Arguments
from ebca.runtime.native.functions import Functions
from ebca.runtime.native.results import Result, called
from ebca.runtime.native.session import Session, set_numbers
from ebca.runtime.native.structures import EngineInfo


class Engine:
    """An opened engine directory, shared by threads. It and its sessions may be closed in any order.

    Attributes:
        handle: the ebca_engine*.
    """

    def __init__(self, library: Functions, handle: c_void_p, keep: list[Any]) -> None:
        self.library, self.handle, self._keep = library, handle, keep

    def info(self) -> EngineInfo:
        """What the engine can do; the strings (bytes) belong to it."""
        self._check_open()
        info = EngineInfo(struct_size=sizeof(EngineInfo))
        self.library.check(self.library.lib.ebca_engine_get_info(self.handle, byref(info)))
        return info

    def session(self, height: int = 0, width: int = 0, batch: int = 1) -> Session:
        """A session for images of this size in pixels (0: the size the model was trained at), `batch` per call.

        Raises:
            ParameterError: a size that the engine cannot make.
        """
        self._check_open()
        params = self.library.init("session_params")
        params.height, params.width, params.batch = height, width, batch
        handle = c_void_p()
        self.library.check(self.library.lib.ebca_session_create(self.handle, byref(params), byref(handle)))
        return Session(self.library, handle, self._keep)

    def encode_prompt(self, texts: str | Sequence[str], **reading: Any) -> np.ndarray:
        """Embeddings [n,T,D] of texts, which all get as many tokens as the longest.

        This and the next four calls may be made by any thread at any time, also in a step callback.

        Args:
            texts: one or several.
            reading: prompt_weighting, long_prompts and clip_skip, as in `Session.generate`.

        Raises:
            ParameterError, EngineError, NativeError: from the library.
        """
        return _made(self._encoded(texts, None, reading).embeds)

    def encode_pooled_prompt(
        self, texts: str | Sequence[str], texts_2: str | Sequence[str] | None = None, **reading: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [n,T,D] and pooled embeddings [n,P] of texts, for Stable Diffusion XL.

        Args:
            texts, reading: as in `encode_prompt`.
            texts_2: for the second text encoder, one for all texts or one each; None: the same texts.

        Raises:
            ParameterError, EngineError, NativeError: from the library.
        """
        made = self._encoded(texts, texts_2, reading)
        return _made(made.embeds), _made(made.pooled_embeds)

    def encode_images(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        *,
        height: int = 0,
        width: int = 0,
        sample: bool = False,
        seed: int | Sequence[int] | None = None,
    ) -> np.ndarray:
        """Latents [n,C,h,w] of images, scaled as the UNet takes them.

        Args:
            images: uint8 arrays [H,W,C] or [H,W].
            height, width: that they are resized to, in pixels; 0: the size the model was trained at.
            sample: a sample, as image to image starts from, rather than the most likely latents.
            seed: of the sample, one for all images or one each; None: random.

        Raises:
            ParameterError, EngineError, NativeError: from the library.
        """
        params, arguments = self.library.init("encode_images_params"), Arguments()
        arguments.give_images(params, "image", images)
        params.height, params.width, params.sample = height, width, sample
        if seed is not None:
            arguments.give_seeds(params, seed)
        return _made(self._call("encode_images", byref(params)).latents)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pixels [n,H,W,3] uint8 of latents [n,C,h,w], which are scaled as the UNet takes them.

        Raises:
            ParameterError, EngineError, NumericalError, NativeError: from the library.
        """
        arguments = Arguments()
        return _made(self._call("decode", byref(arguments.tensor(latents))).pixels)

    def preview(self, latents: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Pixels [n,h,w,3] uint8 of latents times a scale, one per latent, without the VAE.

        In a step callback, the scale is `info.unit_scale`.

        Raises:
            ParameterError, EngineError, NativeError: from the library.
        """
        arguments = Arguments()
        return _made(self._call("preview", byref(arguments.tensor(latents)), scale).pixels)

    def close(self) -> None:
        """Free the engine. Closing twice is fine."""
        self.library.lib.ebca_engine_free(self.handle)
        self.handle = c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encoded(
        self, texts: str | Sequence[str], texts_2: str | Sequence[str] | None, reading: Mapping[str, Any]
    ) -> Result:
        params, arguments = self.library.init("encode_prompt_params"), Arguments()
        given = [texts] if isinstance(texts, str) else list(texts)
        params.texts, params.count = arguments.texts(given), len(given)
        if texts_2 is not None:
            second = [texts_2] if isinstance(texts_2, str) else list(texts_2)
            params.texts_2, params.count_2 = arguments.texts(second), len(second)
        set_numbers(params, reading)
        return self._call("encode_prompt", byref(params))

    def _call(self, name: str, *arguments: Any) -> Result:
        self._check_open()
        return called(self.library, getattr(self.library.lib, f"ebca_engine_{name}"), self.handle, *arguments)

    def _check_open(self) -> None:
        if not self.handle:
            raise EngineError("this engine is closed", "open it again")


def _made(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array
