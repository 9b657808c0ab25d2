"""From prompts to pictures of one size."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ebca.errors import EngineError, NumericalError, ParameterError
from ebca.runtime import images as pictures
from ebca.runtime.control import EnergyControl, resolve
from ebca.runtime.denoiser import as_numbers
from ebca.runtime.engine import Engine
from ebca.runtime.executor import Executor
from ebca.runtime.numbers import finite, whole
from ebca.runtime.prompts import PromptEncoder
from ebca.runtime.random import randn
from ebca.runtime.sampling import OnStep, sample
from ebca.runtime.schedulers import SchedulerTable, available_schedulers, load_table, normalise_name
from ebca.runtime.schedules import Gamma, describe
from ebca.runtime.schedules import resolve as resolve_schedule

# Pixels per latent where there is no VAE to ask.
_DOWNSCALE = 8

# Goes from pictures to noise; its table is in the engine for inversion.
_INVERSE = "ddim_inverse"


@dataclass(frozen=True)
class Result:
    """What `generate` made.

    images: list of PIL images, float32 array [n,H,W,3] in [0, 1], or None for output="latents".
    latents: [n,C,h,w] float32, scaled as the UNet sees them.
    energies: [evaluations,L,2,B,S] (attention, norm) or None.
    timings: seconds per stage; "unet_steps" is a list.
    parameters: everything needed to make the same pictures again.
    """

    images: Any
    latents: np.ndarray
    energies: np.ndarray | None
    timings: Mapping[str, Any]
    parameters: Mapping[str, Any]


class Session:
    """Makes pictures of one size. Owns its buffers; use from one thread at a time, one session per thread.

    Args:
        engine: the opened engine, which must outlive the session.
        height, width: picture size in pixels, multiples of 8; None: the size the model was trained at.
        batch: number of pictures per call.

    Raises:
        ParameterError: a size that the engine cannot make.
    """

    def __init__(self, engine: Engine, *, height: int | None = None, width: int | None = None, batch: int = 1) -> None:
        manifest = engine.manifest
        self.engine = engine
        self._downscale = manifest.vae.downscale if manifest.vae else _DOWNSCALE
        native = manifest.unet.sample_size * self._downscale
        self.height = native if height is None else whole("height", height)
        self.width = native if width is None else whole("width", width)
        for name, value in (("height", self.height), ("width", self.width)):
            if value < self._downscale or value % self._downscale:
                low = max(value // self._downscale, 1) * self._downscale
                raise ParameterError(
                    f"{name} is {value}; give a multiple of {self._downscale}, e.g. {low} or {low + self._downscale}"
                )
        self.batch = whole("batch", batch)
        if self.batch < 1:
            raise ParameterError(f"batch is {batch}; give 1 or more pictures")
        self._executors: dict[tuple[int, ...], Executor] = {}
        self._closed = False

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = "",
        steps: int = 50,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        seed: int | Sequence[int] | None = None,
        gamma_attn: Gamma = 0.0,
        gamma_norm: Gamma = 0.0,
        token_weights: Mapping[str | int, float] | None = None,
        norm_factor: float = 1.0,
        prompt_embeds: np.ndarray | None = None,
        negative_prompt_embeds: np.ndarray | None = None,
        latents: np.ndarray | None = None,
        energies: bool = False,
        on_step: OnStep | None = None,
        output: str = "pil",
    ) -> Result:
        """Text to image with Energy-Based Bayesian Context Update.

        Args:
            prompt: one text for all pictures of the session's batch, or one per picture.
            negative_prompt: the same for the unconditional half.
            steps: scheduler steps.
            guidance_scale: of classifier-free guidance; 1 or less evaluates the conditional half only; None: the
                engine's default, 7.5 for Stable Diffusion.
            scheduler: "pndm", "ddim", "euler", "dpmpp_2m", "unipc"; None: the engine's default.
            seed: start latents as torch.randn on the CPU makes them; a sequence has one per picture. None: random.
            gamma_attn, gamma_norm: step sizes of the context update: a number, a Schedule, or one value per
                evaluation of the scheduler.
            token_weights: token position or word of the prompt -> factor of gamma_attn on the conditional rows.
            norm_factor: 1 as in the authors' code, 0.5 as in the paper.
            prompt_embeds, negative_prompt_embeds: [n,T,D] float32 instead of texts.
            latents: start noise [n,C,h,w] of unit variance instead of a seed.
            energies: record the energies of every step and layer.
            on_step: called after each evaluation; False cancels.
            output: "pil", "np" ([n,H,W,3] float32 in [0, 1]), or "latents".

        Raises:
            ParameterError: a value that does not fit; nothing has been computed then.
            CancelledError: `on_step` returned False. The session stays usable.
            NumericalError: a result is not finite; the message names the segment.
        """
        self._check_open()
        self._check_output(output)
        guidance_scale = finite(
            "guidance_scale", self.engine.manifest.guidance_scale if guidance_scale is None else guidance_scale
        )
        guided = guidance_scale > 1
        table = self._table(scheduler, steps)
        attn = resolve_schedule(gamma_attn, steps, table.evaluations, "gamma_attn", table.name)
        norm = resolve_schedule(gamma_norm, steps, table.evaluations, "gamma_norm", table.name)
        start, seeds = self._start_latents(latents, seed)
        negative_prompt = "" if negative_prompt is None else negative_prompt
        token_weights = token_weights or {}

        began = time.perf_counter()
        prompts = PromptEncoder(self.engine, self.batch).encode(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, token_weights, guided
        )
        encoded = time.perf_counter()
        contexts, factors = prompts.contexts, prompts.token_factors(token_weights)
        executor = self._executor(contexts.shape[0], contexts.shape[1])
        executor.contexts[:, 0] = contexts
        layers = self.engine.manifest.unet.layers
        controls = [
            resolve(
                EnergyControl(factors * a, n, tie_unconditional=guided, norm_factor=norm_factor), layers, executor.sizes
            )
            for a, n in zip(attn, norm, strict=True)
        ]
        opening = time.perf_counter()
        for variant in {"energies"} if energies else {control.variant for control in controls}:
            executor.record(variant)
        opened = time.perf_counter()
        sampled = sample(
            executor,
            table,
            start,
            controls,
            guidance_scale=guidance_scale if guided else None,
            energies=energies,
            on_step=on_step,
        )
        decoding = time.perf_counter()
        images = None if output == "latents" else self._decode(sampled.latents, output)
        timings = {
            "text_encoder": encoded - began,
            "open": opened - opening,
            "unet_steps": sampled.unet_seconds,
            "scheduler": sampled.scheduler_seconds,
            "vae": time.perf_counter() - decoding,
        }
        parameters = {
            "prompt": _texts(prompt),
            "negative_prompt": _texts(negative_prompt),
            "steps": table.steps,
            "guidance_scale": guidance_scale,
            "scheduler": table.name,
            "seed": seeds,
            "height": self.height,
            "width": self.width,
            "gamma_attn": describe(gamma_attn),
            "gamma_norm": describe(gamma_norm),
            # Pairs: as the keys of a JSON object, positions would become words.
            "token_weights": [[k if isinstance(k, str) else int(k), float(f)] for k, f in token_weights.items()],
            "norm_factor": float(norm_factor),
            "model": self.engine.manifest.model["name"],
            "weights": self.engine.manifest.precision,
            "backend": self.engine.backend.name,
            "precision": self.engine.precision,
        }
        return Result(images, sampled.latents, sampled.energies, timings, parameters)

    def close(self) -> None:
        """Give the buffers back. Closing twice is fine."""
        self._executors.clear()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ParameterError("this session is closed; open another with engine.session()")

    def _check_output(self, output: str) -> None:
        manifest = self.engine.manifest
        if manifest.unet.in_channels != manifest.unet.out_channels:
            raise EngineError(
                f"this engine's UNet takes {manifest.unet.in_channels} channels (an inpainting model); "
                "text to image needs one that takes 4"
            )
        if output not in ("pil", "np", "latents"):
            raise ParameterError(f"output is '{output}'; choose 'pil', 'np' or 'latents'")
        if output != "latents" and manifest.vae is None:
            raise EngineError("this engine directory has no VAE; ask for output='latents'")

    def _table(self, scheduler: str | None, steps: int) -> SchedulerTable:
        section = self.engine.manifest.schedulers
        name = str(section["default"]) if scheduler is None else scheduler
        choices = [n for n in available_schedulers(section) if n != _INVERSE]
        if not isinstance(name, str) or normalise_name(name) not in choices:
            raise ParameterError(f"scheduler {name!r} is not in this engine; available: {', '.join(choices)}")
        self.engine.verify_tables()
        return load_table(self.engine.directory.path, section, name, steps)

    def _decode(self, latents: np.ndarray, output: str) -> Any:
        decoded = pictures.to_unit_range(self.engine.decode(latents))
        if not np.isfinite(decoded).all():
            raise NumericalError(
                "the picture is not finite, first in the VAE decoder; lower the gammas, or check the checkpoint"
            )
        return pictures.to_pil(decoded) if output == "pil" else decoded

    def _executor(self, rows: int, tokens: int) -> Executor:
        key = (rows, tokens)
        if key not in self._executors:
            self._executors[key] = self.engine.executor(
                {
                    "batch": rows,
                    "contexts": 1,
                    "tokens": tokens,
                    "height": self.height // self._downscale,
                    "width": self.width // self._downscale,
                }
            )
        return self._executors[key]

    def _start_latents(
        self, latents: np.ndarray | None, seed: int | Sequence[int] | None
    ) -> tuple[np.ndarray, int | list[int] | None]:
        channels = self.engine.manifest.unet.out_channels
        shape = (self.batch, channels, self.height // self._downscale, self.width // self._downscale)
        if latents is not None:
            array = as_numbers("latents", latents, f"an array {list(shape)}")
            if array.shape != shape:
                raise ParameterError(f"latents have shape {list(array.shape)}, this session needs {list(shape)}")
            if not np.isfinite(array).all():
                raise ParameterError("latents have values that are not finite")
            return array, None
        if seed is None:
            seed = secrets.randbits(32)
        if np.ndim(seed) == 0:
            seed = whole("seed", seed)
            return randn(shape, seed), seed
        seeds = [whole("seed", s) for s in np.asarray(seed, dtype=object).tolist()]
        if len(seeds) != self.batch:
            raise ParameterError(f"seed has {len(seeds)} values for {self.batch} pictures; give one number or one each")
        return np.concatenate([randn((1, *shape[1:]), s) for s in seeds]), seeds


def _texts(value: str | Sequence[str] | None) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else list(map(str, value))
