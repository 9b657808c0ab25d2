"""From prompts to pictures: the sampling loop around one recorded UNet evaluation."""

import math
import operator
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from ebca.errors import CancelledError, EngineError, NumericalError, ParameterError
from ebca.runtime import images as pictures
from ebca.runtime.control import EnergyControl, resolve
from ebca.runtime.denoiser import as_numbers, check_finite
from ebca.runtime.engine import Engine
from ebca.runtime.executor import Executor
from ebca.runtime.random import randn
from ebca.runtime.schedulers import Scheduler, available_schedulers, load_table, normalise_name
from ebca.runtime.schedules import Schedule
from ebca.runtime.schedules import resolve as resolve_schedule

# Pixels per latent where there is no VAE to ask.
_DOWNSCALE = 8

# Goes from pictures to noise; its table is in the engine for inversion.
_INVERSE = "ddim_inverse"

Gamma = float | Sequence[float] | Schedule


@dataclass(frozen=True)
class StepInfo:
    """State after one evaluation. Arrays are views that the next step overwrites.

    index counts from 0; total is the number of evaluations (PNDM makes one more than steps); latents [n,C,h,w];
    contexts [B,S,T,D] after the last layer.
    """

    index: int
    total: int
    timestep: float
    latents: np.ndarray
    contexts: np.ndarray


OnStep = Callable[[StepInfo], bool | None]


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


@dataclass
class _Prompts:
    """Embeddings [n,T,D] of both halves, and how many tokens."""

    conditional: np.ndarray
    unconditional: np.ndarray | None
    positions: dict[str | int, list[int]] = field(default_factory=dict)


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
        self.height = native if height is None else _whole("height", height)
        self.width = native if width is None else _whole("width", width)
        for name, value in (("height", self.height), ("width", self.width)):
            if value < self._downscale or value % self._downscale:
                low = max(value // self._downscale, 1) * self._downscale
                raise ParameterError(
                    f"{name} is {value}; give a multiple of {self._downscale}, e.g. {low} or {low + self._downscale}"
                )
        self.batch = _whole("batch", batch)
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
        guidance_scale: float = 7.5,
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
            guidance_scale: classifier-free guidance; 1 or less evaluates the conditional half only.
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
        negative_prompt = "" if negative_prompt is None else negative_prompt
        timings: dict[str, Any] = {}
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
        guidance_scale = _finite("guidance_scale", guidance_scale)
        guided = guidance_scale > 1
        name = str(manifest.schedulers["default"]) if scheduler is None else scheduler
        choices = [n for n in available_schedulers(manifest.schedulers) if n != _INVERSE]
        if not isinstance(name, str) or normalise_name(name) not in choices:
            raise ParameterError(f"scheduler {name!r} is not in this engine; available: {', '.join(choices)}")
        self.engine.verify_tables()
        table = load_table(self.engine.directory.path, manifest.schedulers, name, steps)
        total = table.evaluations
        attn = resolve_schedule(gamma_attn, steps, total, "gamma_attn", table.name)
        norm = resolve_schedule(gamma_norm, steps, total, "gamma_norm", table.name)
        start, seeds = self._start_latents(latents, seed)

        began = time.perf_counter()
        prompts = self._prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, token_weights, guided)
        timings["text_encoder"] = time.perf_counter() - began
        contexts = prompts.conditional
        if prompts.unconditional is not None:
            contexts = np.concatenate([prompts.unconditional, contexts])
        executor = self._executor(contexts.shape[0], contexts.shape[1])
        token_factors = np.ones((contexts.shape[0], 1, contexts.shape[1]), np.float32)
        first_conditional = self.batch if guided else 0
        for key, factor in (token_weights or {}).items():
            for position in prompts.positions[key]:
                token_factors[first_conditional:, 0, position] *= factor
        controls = [
            resolve(
                EnergyControl(token_factors * attn[i], norm[i], tie_unconditional=guided, norm_factor=norm_factor),
                manifest.unet.layers,
                executor.sizes,
            )
            for i in range(total)
        ]

        began = time.perf_counter()
        for variant in {"energies"} if energies else {control.variant for control in controls}:
            executor.record(variant)
        timings["open"] = time.perf_counter() - began

        sampler = Scheduler(table, start.shape)
        begin = sampler.start(start)
        current = begin
        executor.contexts[:, 0] = contexts
        recorded = np.empty((total, *executor.energies.shape), np.float32) if energies else None
        timings["unet_steps"], timings["scheduler"] = [], 0.0
        for i, control in enumerate(controls):
            began = time.perf_counter()
            variant = "energies" if energies else control.variant
            scaled = sampler.model_input(i, current)
            executor.sample[: self.batch] = scaled
            if guided:
                executor.sample[self.batch :] = scaled
            executor.timestep[...] = table.timesteps[i]
            executor.set_control(control)
            prepared = time.perf_counter()
            executor.run(variant)
            done = time.perf_counter()
            check_finite(executor, variant, float(table.timesteps[i]))
            noise = sampler.noises[i]
            if guided:
                unconditional, conditional = executor.noise[: self.batch], executor.noise[self.batch :]
                with np.errstate(over="ignore", invalid="ignore"):
                    np.subtract(conditional, unconditional, out=noise)
                    noise *= np.float32(guidance_scale)
                    noise += unconditional
            else:
                noise[...] = executor.noise
            with np.errstate(over="ignore", invalid="ignore"):
                current = sampler.combine(i, begin)
            if not np.isfinite(current).all():
                raise NumericalError(
                    f"the latents after timestep {table.timesteps[i]:g} are not finite, though the noise prediction "
                    "is; lower guidance_scale"
                )
            if recorded is not None:
                recorded[i] = executor.energies
            timings["unet_steps"].append(done - prepared)
            timings["scheduler"] += time.perf_counter() - done + prepared - began
            if on_step is not None:
                info = StepInfo(i, total, float(table.timesteps[i]), current, executor.contexts_out)
                if on_step(info) is False:
                    raise CancelledError(f"cancelled after {i + 1} of {total} evaluations")
        final = np.array(current)

        made: Any = None
        began = time.perf_counter()
        if output != "latents":
            decoded = pictures.to_unit_range(self.engine.decode(final))
            if not np.isfinite(decoded).all():
                raise NumericalError(
                    "the picture is not finite, first in the VAE decoder; lower the gammas, or check the checkpoint"
                )
            made = pictures.to_pil(decoded) if output == "pil" else decoded
        timings["vae"] = time.perf_counter() - began
        parameters = {
            "prompt": prompt if prompt is None or isinstance(prompt, str) else list(map(str, prompt)),
            "negative_prompt": negative_prompt if isinstance(negative_prompt, str) else list(map(str, negative_prompt)),
            "steps": table.steps,
            "guidance_scale": guidance_scale,
            "scheduler": table.name,
            "seed": seeds,
            "height": self.height,
            "width": self.width,
            "gamma_attn": _plain(gamma_attn),
            "gamma_norm": _plain(gamma_norm),
            # Pairs: as the keys of a JSON object, positions would become words.
            "token_weights": [
                [key if isinstance(key, str) else int(key), float(f)] for key, f in (token_weights or {}).items()
            ],
            "norm_factor": float(norm_factor),
            "model": manifest.model["name"],
            "weights": manifest.precision,
            "backend": self.engine.backend.name,
            "precision": self.engine.precision,
        }
        return Result(made, final, recorded, timings, parameters)

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
            seed = _whole("seed", seed)
            return randn(shape, seed), seed
        seeds = [_whole("seed", s) for s in np.asarray(seed, dtype=object).tolist()]
        if len(seeds) != self.batch:
            raise ParameterError(f"seed has {len(seeds)} values for {self.batch} pictures; give one number or one each")
        return np.concatenate([randn((1, *shape[1:]), s) for s in seeds]), seeds

    def _prompts(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str],
        prompt_embeds: np.ndarray | None,
        negative_prompt_embeds: np.ndarray | None,
        token_weights: Mapping[str | int, float] | None,
        guided: bool,
    ) -> _Prompts:
        if (prompt is None) == (prompt_embeds is None):
            raise ParameterError("give either a prompt or prompt_embeds")
        texts = self._per_picture("prompt", prompt) if prompt is not None else []
        positions = self._positions(token_weights or {}, texts)
        if prompt_embeds is not None:
            conditional = self._embeds("prompt_embeds", prompt_embeds)
        else:
            conditional = self._encode("prompt", texts)
        tokens = conditional.shape[1]
        for key, found in positions.items():
            if any(not 0 <= p < tokens for p in found):
                raise ParameterError(f"token_weights names position {key}; there are positions 0 to {tokens - 1}")
        if not guided:
            return _Prompts(conditional, None, positions)
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
        return _Prompts(conditional, unconditional, positions)

    def _positions(self, token_weights: Mapping[str | int, float], texts: list[str]) -> dict[str | int, list[int]]:
        found: dict[str | int, list[int]] = {}
        for key, factor in token_weights.items():
            _finite(f"the factor of '{key}' in token_weights", factor)
            if not isinstance(key, str):
                found[key] = [_whole("a position in token_weights", key)]
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
                warnings.warn(f"the {name} is longer than {limit} tokens; dropped: '{dropped.strip()}'", stacklevel=4)
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


def _plain(gamma: Gamma) -> Any:
    if isinstance(gamma, Schedule):
        return {"schedule": gamma.kind, "value": float(gamma.value), "parameter": float(gamma.parameter)}
    return np.asarray(gamma, np.float64).tolist()


def _finite(name: str, value: Any) -> float:
    """`value` as a float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ParameterError(f"{name} is {value}; give a finite number")
    return number


def _whole(name: str, value: Any) -> int:
    """`value` as an int, numpy's included."""
    try:
        return operator.index(value)
    except TypeError:
        raise ParameterError(f"{name} is {value!r}; give a whole number") from None
