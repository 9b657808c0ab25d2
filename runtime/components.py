"""The components of an engine directory as functions of numpy arrays: text encoder, VAE, ControlNets' images."""

from dataclasses import dataclass

import numpy as np

from ebca.engines.backends.protocol import Backend
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.manifest import ControlNetSpec, TextEncoderSpec
from ebca.runtime import tiling
from ebca.runtime.devices.device import Device
from ebca.runtime.runners import Runners
from ebca.runtime.schema import parameters as rules
from ebca.runtime.text.tokenizer import Tokenizer

# Texts that a component of fixed shape encodes together: a prompt and its negative prompt.
_TEXTS_AT_ONCE = 2


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of n texts.

    Attributes:
        contexts: [n,T,D] float32.
        pooled: [n,P] float32, one vector for a whole text; None of a model without.
    """

    contexts: np.ndarray
    pooled: np.ndarray | None = None


class Components(Runners):
    """Text encoder, VAE and tables of an engine. Thread-safe. Parameters: see `Runners`."""

    def __init__(self, directory: EngineDirectory, backend: Backend, device: Device, precision: str = "fp32") -> None:
        super().__init__(directory, backend, device, precision)
        self._tokenizer: Tokenizer | None = None
        self._tables_verified = False

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use. Raises EngineError for a UNet-only directory."""
        spec = self.manifest.tokenizer
        if spec is None:
            raise rules.UNET_ONLY.error(path=self.directory.path)
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_bytes(self.directory.read(spec.file), spec.info)
        return self._tokenizer

    def verify_tables(self) -> None:
        """Check the scheduler tables against the manifest, once. Raises EngineError if a file differs."""
        if not self._tables_verified:
            section = self.manifest.schedulers
            self.directory.verify([section["alphas_cumprod"], *(table["file"] for table in section["tables"].values())])
            self._tables_verified = True

    def encode(self, ids: np.ndarray, ids_2: np.ndarray | None = None, *, clip_skip: int = 0) -> TextEmbeddings:
        """Embeddings of token ids.

        Args:
            ids: [n,T] int64.
            ids_2: likewise, for the second text encoder; needed exactly when there is one.
            clip_skip: layers of the text encoder to leave out at its end. It does not act on pooled embeddings.

        Raises:
            EngineError: there is no text encoder, or only its last layer.
        """
        spec = self.manifest.text_encoder
        if spec is None:
            raise rules.NO_TEXT_ENCODER.error(path=self.directory.path)
        name, given = spec.component, {"input_ids": ids}
        if ids_2 is not None:
            given["input_ids_2"] = ids_2
        more = {}
        if clip_skip:
            name, more = self._layers_component(spec), {"skip": np.array([clip_skip], np.int64)}
        at_once = _TEXTS_AT_ONCE if self.backend.fixes_shapes else len(ids)
        shapes: dict[str, tuple[int, ...]] = {"hidden_states": (at_once, spec.max_length, spec.hidden_size)}
        if spec.pooled_size is not None:
            shapes["pooled"] = (at_once, spec.pooled_size)
        parts: dict[str, list[np.ndarray]] = {output: [] for output in shapes}
        for first in range(0, len(ids), at_once):
            count = min(at_once, len(ids) - first)
            # Rows are independent; the last one fills up what a component of fixed shape expects.
            rows = np.minimum(np.arange(first, first + at_once), len(ids) - 1)
            made = self._evaluate(name, {**{n: array[rows] for n, array in given.items()}, **more}, shapes)
            for output, each in parts.items():
                each.append(made[output][:count])
        joined = {output: each[0] if len(each) == 1 else np.concatenate(each) for output, each in parts.items()}
        return TextEmbeddings(joined["hidden_states"], joined.get("pooled"))

    def _layers_component(self, spec: TextEncoderSpec) -> str:
        """The component that returns any layer of the text encoder. Raises EngineError if there is none here."""
        plans = self.manifest.plans.get(self.backend.name)
        if spec.layers_component is None:
            raise rules.CLIP_SKIP_ENGINE.error()
        if plans is not None and spec.layers_component not in plans.components:
            raise rules.CLIP_SKIP_PLANS.error(backend=self.backend.name)
        return spec.layers_component

    def release_text_encoder(self) -> None:
        """`release` what encodes texts."""
        spec = self.manifest.text_encoder
        for name in () if spec is None else (spec.component, spec.layers_component):
            if name is not None:
                self.release(name)

    def decode(self, latents: np.ndarray, *, tiled: bool = False) -> np.ndarray:
        """Scaled latents [n,C,h,w] -> images [n,3,8h,8w] float32 in [-1, 1]. One image at a time, to bound memory.

        Args:
            latents: of the images.
            tiled: decode tiles of the size that the model was trained at, see `ebca.runtime.tiling`.

        Raises:
            EngineError: there is no VAE.
            ParameterError: another number of channels.
        """
        spec = self.manifest.vae
        if spec is None:
            raise rules.NO_VAE_TO_DECODE.error()
        if latents.shape[1] != spec.latent_channels:
            raise rules.LATENTS_CHANNELS.error(count=latents.shape[1], expected=spec.latent_channels)
        unscaled = latents / spec.scaling_factor + spec.shift_factor
        return self._decoded(spec.decoder, unscaled, spec.downscale, tiled=tiled)

    def decode_preview(self, latents: np.ndarray) -> np.ndarray:
        """`StepInfo.unit_latents` [n,C,h,w] -> images [n,3,8h,8w] float32 in about [-1, 1], by the small decoder.

        Raises:
            EngineError: there is none.
        """
        spec = self.manifest.vae
        if spec is None or spec.preview is None:
            raise rules.NO_VAE_TO_DECODE.error()
        return self._decoded(spec.preview, latents, spec.downscale)

    def _decoded(self, decoder: str, latents: np.ndarray, downscale: int, *, tiled: bool = False) -> np.ndarray:
        n, _, height, width = latents.shape
        images = np.empty((n, 3, height * downscale, width * downscale), np.float32)

        def run(tile: np.ndarray) -> np.ndarray:
            shape = 1, 3, *(side * downscale for side in tile.shape[2:])
            return self._evaluate(decoder, {"latents": tile}, {"image": shape})["image"]

        self._fill(images, latents, run, (1, downscale), tiled=tiled)
        return images

    def _fill(
        self, made: np.ndarray, arrays: np.ndarray, run: tiling.Run, per_latent: tuple[int, int], *, tiled: bool
    ) -> None:
        """Fill `made` with the results of `arrays`, one image at a time.

        Args:
            made, arrays: [n,C,h,w].
            run: makes the result of one image [1,C,h,w], or of a tile.
            per_latent: rows of `arrays` and of `made` for each of the latents.
            tiled: in tiles, if the image has more than one.
        """
        before, after = (tiling.tile_side(self.manifest.unet.sample_size) * rows for rows in per_latent)
        height, width = arrays.shape[2:]
        tiled = tiled and tiling.is_tiled(height, width, before)
        for index in range(len(arrays)):
            one = arrays[index : index + 1]
            made[index] = (tiling.in_tiles(one, run, before, after) if tiled else run(one))[0]

    def encode_image(
        self, pixels: np.ndarray, *, scaled: bool = True, tiled: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images [n,H,W,3] in [0, 1] -> mean and standard deviation of their latents, [n,C,h,w] float32 each.

        Args:
            pixels: the images.
            scaled: as the UNet denoises them; else as the VAE gives them.
            tiled: encode tiles of the size that the model was trained at; standard deviations are blended like means.

        Raises:
            EngineError: there is no VAE.
        """
        spec = self.manifest.vae
        if spec is None:
            raise rules.NO_VAE_FOR_IMAGE.error(path=self.directory.path)
        channels, downscale, encoder = spec.latent_channels, spec.downscale, spec.encoder
        n, height, width, _ = pixels.shape
        both = np.empty((n, 2 * channels, height // downscale, width // downscale), np.float32)

        def run(tile: np.ndarray) -> np.ndarray:
            shape = 1, channels, *(side // downscale for side in tile.shape[2:])
            made = self._evaluate(encoder, {"image": tile}, {"mean": shape, "std": shape})
            return np.concatenate([made["mean"], made["std"]], 1)

        self._fill(both, pixels.transpose(0, 3, 1, 2) * 2 - 1, run, (downscale, 1), tiled=tiled)
        # Not needed until the next call with an image.
        self.release(encoder)
        mean, std = both[:, :channels], both[:, channels:]
        if not scaled:
            return mean, std
        return (mean - spec.shift_factor) * np.float32(spec.scaling_factor), std * np.float32(spec.scaling_factor)

    def encode_hint(self, spec: ControlNetSpec, pixels: np.ndarray) -> np.ndarray:
        """Images [n,H,W,3] in [0, 1] -> what a ControlNet reads of them, [n,C,h,w] float32."""
        n, height, width, _ = pixels.shape
        channels = self.manifest.components[spec.hint].outputs["hint"].shape[1]
        assert isinstance(channels, int)
        hint = np.empty((n, channels, height // spec.downscale, width // spec.downscale), np.float32)
        images = pixels.transpose(0, 3, 1, 2)
        for index in range(n):
            one = slice(index, index + 1)
            hint[one] = self._evaluate(spec.hint, {"image": images[one]}, {"hint": hint[one].shape})["hint"]
        # Not needed until the next call with an image.
        self.release(spec.hint)
        return hint

    def warm_up_decoder(self, latent_shape: tuple[int, ...], *, tiled: bool = False) -> None:
        """Open the VAE's decoder for latents [n,C,h,w] and run it once, if that would later outdate recorded work. In
        tiles, this is so for the first one, which needs the most memory."""
        spec = self.manifest.vae
        if spec is None or not self.backend.shares_scratch:
            return
        _, channels, height, width = latent_shape
        if tiled:
            side = tiling.tile_side(self.manifest.unet.sample_size)
            height, width = min(height, side), min(width, side)
        sizes = {"batch": 1, "height": height, "width": width}
        if self.runner(spec.decoder, sizes) not in self._settled:
            self.decode(np.zeros((1, channels, height, width), np.float32))
