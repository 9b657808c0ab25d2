"""Sessions of the C++ library, with the parameters of `ebca.Session`."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_double, c_void_p
from types import TracebackType
from typing import Any, Self

import numpy as np

from ebca.errors import ParameterError
from ebca.runtime.native.arguments import Arguments
from ebca.runtime.native.functions import Functions
from ebca.runtime.native.results import Result, called
from ebca.runtime.native.structures import Edit, StepInfo

OnStep = Callable[[StepInfo], bool | None]
"""Called after each evaluation; its arrays are valid only then. False cancels; what it raises cancels too."""


class Session:
    """Makes images of one size. Use from one thread at a time, except for `cancel`.

    Attributes:
        handle: the ebca_session*.
    """

    def __init__(self, library: Functions, handle: c_void_p, keep: list[Any]) -> None:
        # A session keeps its engine alive, so the callbacks of the engine must live as long.
        self.library, self.handle, self._keep = library, handle, keep

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        on_step: OnStep | None = None,
        **given: Any,
    ) -> Result:
        """Make images. Takes the parameters of `ebca.Session.generate` in the same forms, with these differences.

        Args:
            image, mask: uint8 arrays [H,W,C] or [H,W], one for all images or a sequence with one each.
            subjects: phrases, the same for all images.
            regions: maps phrases to masks, uint8 arrays.
            edits, repaint and the schedules: objects of `ebca`, or others with the same attributes.
            output: "np" (the default) or "latents".

        Raises:
            ParameterError: a value that does not fit, or a parameter that the library does not have.
            EngineError, CancelledError, NumericalError, NativeError: from the library.
        """
        params, arguments = self.library.init("generate_params"), Arguments()
        params.prompt = arguments.prompt(prompt, given.pop("prompt_embeds", None))
        params.negative_prompt = arguments.prompt(negative_prompt, given.pop("negative_prompt_embeds", None))
        arguments.pooled(params, given)
        arguments.sizes(params, given)
        for name in ("gamma_attn", "gamma_norm", "subject_exclusion", "subject_balance"):
            if name in given:
                setattr(params, name, arguments.schedule(given.pop(name)))
        if subjects := given.pop("subjects", None):
            params.subjects, params.subject_count = arguments.texts(subjects), len(subjects)
        if regions := given.pop("regions", None):
            params.regions, params.region_count = arguments.regions(regions), len(regions)
        if (seed := given.pop("seed", None)) is not None:
            arguments.give_seeds(params, seed)
        if weights := given.pop("token_weights", None):
            params.token_weights, params.token_weight_count = arguments.token_weights(weights), len(weights)
        if edits := given.pop("edits", None):
            made = [arguments.edit(self.library.init("edit"), edit) for edit in edits]
            params.edits, params.edit_count = arguments.array(Edit, made), len(made)
        for name in ("image", "mask"):
            if (value := given.pop(name, None)) is not None:
                arguments.give_images(params, name, value)
        if (repaint := given.pop("repaint", None)) is not None:
            params.repaint = ctypes.pointer(arguments.filled(self.library.init("repaint_params"), repaint))
        if (latents := given.pop("latents", None)) is not None:
            params.latents = arguments.tensor(latents)
        if (scheduler := given.pop("scheduler", None)) is not None:
            params.scheduler = scheduler.encode()
        params.latents_only = given.pop("output", "np") == "latents"
        params.record_energies = bool(given.pop("energies", False))
        params.record_attention = bool(given.pop("attention_maps", False))
        set_numbers(params, given)
        params.on_step = arguments.callback(on_step)
        return self._call(self.library.lib.ebca_session_generate, params, arguments)

    def invert(
        self,
        image: np.ndarray | Sequence[np.ndarray] | None = None,
        prompt: str | Sequence[str] | None = None,
        *,
        steps: int = 50,
        latents: np.ndarray | None = None,
        prompt_embeds: np.ndarray | None = None,
        regularize: Any = None,
        on_step: OnStep | None = None,
        **given: Any,
    ) -> Result:
        """Find the latents that an image comes from (DDIM inversion).

        Args:
            image: uint8 arrays [H,W,C] or [H,W], one for all images or a sequence with one each; or
            latents: [n,C,h,w] float32 of the images instead.
            prompt: what the image shows.
            steps: of the scheduler; one evaluation less is run.
            prompt_embeds: [n,T,D] float32 instead of the prompt.
            regularize: an `ebca.NoiseRegularization`, or an object with the same attributes; None: off.
            on_step: called after each evaluation; False cancels.
            given: what else `ebca.Session.invert` takes: how the prompt is read, vae_tiling, and what Stable Diffusion
                XL takes.

        Raises:
            ParameterError, EngineError, CancelledError, NumericalError, NativeError: from the library.
        """
        params, arguments = self.library.init("invert_params"), Arguments()
        params.prompt, params.steps = arguments.prompt(prompt, prompt_embeds), steps
        arguments.pooled(params, given)
        arguments.sizes(params, given)
        set_numbers(params, given)
        if image is not None:
            arguments.give_images(params, "image", image)
        if latents is not None:
            params.latents = arguments.tensor(latents)
        if regularize is not None:
            params.regularize = ctypes.pointer(arguments.filled(self.library.init("regularize_params"), regularize))
        params.on_step = arguments.callback(on_step)
        return self._call(self.library.lib.ebca_session_invert, params, arguments)

    def denoise(
        self,
        sample: np.ndarray,
        timestep: float | Sequence[float],
        contexts: np.ndarray,
        control: Any = None,
        *,
        text_embeds: np.ndarray | None = None,
        time_ids: np.ndarray | None = None,
        energies: bool = False,
    ) -> Result:
        """Evaluate the UNet once, as `ebca.Denoiser` does.

        Args:
            sample: [B,channels,h,w] float32 of this session's size.
            timestep: a number, or one per row.
            contexts: [B,S,T,D] float32.
            control: an `ebca.EnergyControl`, or an object with the same attributes; None: no update.
            text_embeds: [B,P] float32, needed exactly by the UNet of Stable Diffusion XL.
            time_ids: [B,6] float32, likewise.
            energies: compute the energies too.

        Returns:
            A result with `noise`, `contexts` and the energies.

        Raises:
            ParameterError, EngineError, CancelledError, NumericalError, NativeError: from the library.
        """
        params, arguments = self.library.init("denoise_params"), Arguments()
        params.sample, params.contexts = arguments.tensor(sample), arguments.tensor(contexts)
        times = np.atleast_1d(np.asarray(timestep, np.float64))
        params.timesteps, params.timestep_count = arguments.pointer(times, c_double), times.size
        params.record_energies = energies
        for name, value in (("text_embeds", text_embeds), ("time_ids", time_ids)):
            if value is not None:
                setattr(params, name, arguments.tensor(value))
        if control is not None:
            for name in ("gamma_attn", "gamma_norm", "weights"):
                setattr(params, name, arguments.tensor(np.atleast_1d(getattr(control, name))))
            if control.mask is not None:
                params.mask = arguments.tensor(control.mask)
            for name in ("norm_factor", "tie_unconditional", "rows_per_image"):
                setattr(params, name, getattr(control, name))
        return self._call(self.library.lib.ebca_session_denoise, params, arguments)

    def cancel(self) -> None:
        """Stop the call that is running in another thread, or else the next one: it raises CancelledError."""
        self.library.check(self.library.lib.ebca_session_cancel(self.handle))

    def reset_cancel(self) -> None:
        """Forget a `cancel` that no call has taken yet."""
        self.library.check(self.library.lib.ebca_session_reset_cancel(self.handle))

    def last_error(self) -> str:
        """Text of the error of this session's last call; "" after a success."""
        return str(self.library.lib.ebca_session_last_error(self.handle).decode())

    def close(self) -> None:
        """Free the session; not while a call runs. Closing twice is fine."""
        self.library.lib.ebca_session_free(self.handle)
        self.handle = c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, function: Any, params: ctypes.Structure, arguments: Arguments) -> Result:
        try:
            return called(self.library, function, self.handle, byref(params))
        finally:
            if arguments.raised:
                raise arguments.raised[0]


def set_numbers(params: ctypes.Structure, given: Mapping[str, Any]) -> None:
    """The fields that are plain numbers; None leaves the default."""
    numbers = {name for name, kind in params._fields_ if issubclass(kind, ctypes._SimpleCData)}  # type: ignore[misc]
    for name, value in given.items():
        if name not in numbers:
            raise ParameterError(f"'{name}' is not a parameter of the C++ library", "leave it out")
        if value is not None:
            setattr(params, name, value)
